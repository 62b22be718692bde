"""Why a query was missed: what the first image retrieved in the target's place has of the edit and of the reference.

Where the true attributes of every picture are known, they decide. Elsewhere the two-tower model's image space stands
in: how far an image went from the reference in the target's direction says whether the edit is done, how far aside of
it whether the garment is kept. That is an estimate; where both are known, a table of the two says how good a one.
"""

import re
from collections.abc import Mapping

import pandas as pd

from cirlib.models.feature_store import FeatureStore
from cirlib.models.prepared import ImageAttributes, Prepared
from cirlib.retrieval.statistics import bootstrap_ci

IGNORED_EDIT = "ignored the edit"
PART_OF_EDIT = "did part of the edit"
IGNORED_REFERENCE = "ignored the reference"
NEAR_MISS = "near miss in one attribute"
ALSO_RIGHT = "arguably right too"
NEITHER = "part of the edit, another garment"
REASONS = (IGNORED_EDIT, PART_OF_EDIT, IGNORED_REFERENCE, NEAR_MISS, ALSO_RIGHT, NEITHER)
AGREEMENT = 0.5  # share of all their words that two edits must have in common to ask the same
DONE = 0.5  # of the way from the reference to the target
ASIDE = 0.8  # of the mean distance between reference and target: further aside is another garment


def add_reasons(queries: pd.DataFrame, prepared: Prepared) -> pd.DataFrame:
    """The query table with each query's reason, as if it were missed.

    ``likely_reason`` is by likeness; ``reason`` is by attributes where the data has them, else the same.

    >>> add_reasons(pd.DataFrame(columns=["method", "category", "top", "targets"]), prepared).columns.tolist()[-2:]
    ['reason', 'likely_reason']
    """
    ranked = zip(queries["top"], queries["targets"], strict=True)  # the best image that is no target is judged
    queries = queries.assign(found=[next((i for i in top if i not in targets), top[0]) for top, targets in ranked])
    likely, known = pd.Series("", queries.index), prepared.attributes
    for _, rows in queries.groupby(["method", "category"], sort=False):
        likely[rows.index] = _by_likeness(rows, prepared.clip)
    if known is None:
        return queries.assign(reason=likely, likely_reason=likely)
    images = zip(queries["reference"], queries["targets"].str[0], queries["found"], strict=True)
    true = [_by_attributes(*(known[image] for image in three)) for three in images]
    return queries.assign(reason=true, likely_reason=likely)


def _by_attributes(reference: Mapping[str, str], target: Mapping[str, str], found: Mapping[str, str]) -> str:
    """The reason that one image was retrieved instead of the target."""
    changed = [name for name in target if target[name] != reference[name]]
    undone = sum(found[name] != target[name] for name in changed)
    lost = sum(found[name] != target[name] for name in target if name not in changed)
    if undone + lost == 0:
        return ALSO_RIGHT
    if undone == len(changed):  # of what the edit changes, nothing is as asked
        return IGNORED_EDIT
    if undone + lost == 1:
        return NEAR_MISS
    if undone == 0:  # everything asked for, but two or more things changed that nobody spoke of
        return IGNORED_REFERENCE
    return PART_OF_EDIT if lost <= 1 else NEITHER


def _by_likeness(queries: pd.DataFrame, store: FeatureStore) -> list[str]:
    """Reasons of one category's queries by where images lie in the two-tower space; half-done edits are none of them.

    With r, t and x the reference, the target and the image found, the edit is done where
    ``(x - r)·(t - r) / |t - r|² >= DONE``, and the garment kept where what remains of ``x - r`` aside of ``t - r`` is
    shorter than ``ASIDE`` times the mean ``|t - r|`` of all queries.
    """
    references = store[list(queries["reference"])]  # (N, D)
    wanted = store[[targets[0] for targets in queries["targets"]]] - references  # (N, D)
    moved = store[list(queries["found"])] - references  # (N, D)
    along = (moved * wanted).sum(-1) / (wanted * wanted).sum(-1).clamp_min(1e-12)  # (N,)
    aside = (moved - along[:, None] * wanted).norm(dim=-1)  # (N,)
    done, kept = along >= DONE, aside <= ASIDE * wanted.norm(dim=-1).mean()
    reasons = {(True, True): NEAR_MISS, (False, True): IGNORED_EDIT, (True, False): IGNORED_REFERENCE}
    return [
        ALSO_RIGHT if alike else reasons.get(tuple(pair), NEITHER)
        for alike, *pair in zip(_asked_alike(queries), done.tolist(), kept.tolist(), strict=True)
    ]


def reason_table(queries: pd.DataFrame) -> pd.DataFrame:
    """What share of each method's misses has which reason: method, reason, misses, value, ci_low, ci_high.

    >>> queries = pd.DataFrame({"method": "sum", "recall": [1, 0], "reason": "ignored the edit", "family": [0, 1]})
    >>> reason_table(queries)[["method", "misses", "value"]].values.tolist()[0]
    ['sum', 1, 1.0]
    """
    rows = []
    for method, missed in queries[queries["recall"] < 1].groupby("method", sort=False):
        for reason in REASONS:
            inside = (missed["reason"] == reason).to_numpy(float)
            rows.append(
                [
                    method,
                    reason,
                    int(inside.sum()),
                    inside.mean(),
                    *bootstrap_ci(inside, clusters=list(missed["family"])),
                ]
            )
    return pd.DataFrame(rows, columns=["method", "reason", "misses", "value", "ci_low", "ci_high"])


def confusions(queries: pd.DataFrame, attributes: ImageAttributes) -> dict[str, pd.DataFrame]:
    """Attribute → wanted (rows) against retrieved values (columns): counts over all queries by the first result.

    Attributes that no edit changes are left out; there are none where nothing is known of the images.

    >>> queries = pd.DataFrame({"reference": ["a"], "targets": [["b"]], "top": [["a"]]})
    >>> confusions(queries, {"a": {"colour": "red"}, "b": {"colour": "blue"}})["colour"].loc["blue", "red"].item()
    1
    """
    if not attributes:
        return {}
    known = pd.DataFrame.from_dict(attributes, orient="index").replace("", None).fillna("none").astype(str)
    images = (queries["reference"], queries["targets"].str[0], queries["top"].str[0])
    reference, wanted, retrieved = (known.loc[ids].reset_index(drop=True) for ids in images)
    tables = {}
    for name in known.columns[(wanted != reference).any()]:
        values = sorted({*wanted[name], *retrieved[name]})
        table = pd.crosstab(wanted[name], retrieved[name], rownames=["wanted"], colnames=["retrieved"])
        tables[name] = table.reindex(index=values, columns=values, fill_value=0)
    return tables


def _asked_alike(queries: pd.DataFrame) -> list[bool]:
    """Whether another query in much the same words has the image found as its target."""
    words = [set(re.findall(r"\w+", " ".join(captions).lower())) for captions in queries["captions"]]
    asked: dict[str, list[set[str]]] = {}
    for own, targets in zip(words, queries["targets"], strict=True):
        for target in targets:
            asked.setdefault(target, []).append(own)
    return [
        any(len(own & other) / max(1, len(own | other)) >= AGREEMENT for other in asked.get(image, ()))
        for own, image in zip(words, queries["found"], strict=True)
    ]
