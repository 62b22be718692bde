"""Why a query was missed: what the first image retrieved in the target's place has of the edit and of the reference.

Where the true attributes of every picture are known, they decide. Elsewhere the two-tower model's image space stands
in: how far an image went from the reference in the target's direction says whether the edit is done, how far aside of
it whether the garment is kept. That is an estimate; :func:`agreement` says how good a one where both are known.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from cirlib.benchmarks import Benchmark, Triplet
from cirlib.models.feature_store import FeatureStore
from cirlib.models.preparation import Attributes
from cirlib.retrieval.ranks import bootstrap_ci
from cirlib.retrieval.scoring import Scored

IGNORED_EDIT = "ignored the edit"
PART_OF_EDIT = "did part of the edit"
IGNORED_REFERENCE = "ignored the reference"
NEAR_MISS = "near miss in one attribute"
ALSO_RIGHT = "arguably right too"
NEITHER = "part of the edit, another garment"
REASONS = (IGNORED_EDIT, PART_OF_EDIT, IGNORED_REFERENCE, NEAR_MISS, ALSO_RIGHT, NEITHER)
AGREEMENT = 0.5  # share of words that two edits must have in common to ask the same
DONE = 0.5  # of the way from the reference to the target
ASIDE = 0.8  # of the mean distance between reference and target: further aside is another garment

Judge = Callable[[Scored], list[str]]


def first_wrong(one: Scored) -> list[str]:
    """The best-ranked image of each query that is not among its targets; the best where all that are known are."""
    return [
        next((image for image in top if image not in triplet.targets), top[0])
        for triplet, top in zip(one.benchmark.triplets, one.top, strict=True)
    ]


def by_attributes(attributes: Attributes) -> Judge:
    """Reasons by the true attributes of the pictures."""

    def judge(one: Scored) -> list[str]:
        return [
            attribute_reason(*(attributes[image] for image in (triplet.reference, triplet.targets[0], found)))
            for triplet, found in zip(one.benchmark.triplets, first_wrong(one), strict=True)
        ]

    return judge


def attribute_reason(reference: Mapping[str, str], target: Mapping[str, str], found: Mapping[str, str]) -> str:
    """The reason that one image was retrieved instead of the target.

    ``arguably right too``: every attribute is as the target's. ``ignored the edit``: of what the edit changes, nothing
    is as asked. ``near miss``: one attribute is off. ``ignored the reference``: everything asked for, but two or more
    things changed that nobody spoke of. The rest did part of the edit: of the same garment where at most one such
    thing changed, else of another.
    """
    changed = [name for name in target if target[name] != reference[name]]
    undone = sum(found[name] != target[name] for name in changed)
    lost = sum(found[name] != target[name] for name in target if name not in changed)
    if undone + lost == 0:
        return ALSO_RIGHT
    if undone == len(changed):
        return IGNORED_EDIT
    if undone + lost == 1:
        return NEAR_MISS
    if undone == 0:
        return IGNORED_REFERENCE
    return PART_OF_EDIT if lost <= 1 else NEITHER


def by_likeness(store: FeatureStore) -> Judge:
    """Reasons by where images lie in the two-tower space; half-done edits are none of them.

    With r, t and x the reference, the target and the image found, the edit is done where
    ``(x - r)·(t - r) / |t - r|² >= DONE``, and the garment kept where what remains of ``x - r`` aside of ``t - r`` is
    shorter than ``ASIDE`` times the mean ``|t - r|`` of all queries.
    """

    def judge(one: Scored) -> list[str]:
        triplets, found = one.benchmark.triplets, first_wrong(one)
        references = store[[triplet.reference for triplet in triplets]]  # (N, D)
        wanted = store[[triplet.targets[0] for triplet in triplets]] - references  # (N, D)
        moved = store[found] - references  # (N, D)
        along = (moved * wanted).sum(-1) / (wanted * wanted).sum(-1).clamp_min(1e-12)  # (N,)
        aside = (moved - along[:, None] * wanted).norm(dim=-1)  # (N,)
        done, kept = along >= DONE, aside <= ASIDE * wanted.norm(dim=-1).mean()
        reasons = {(True, True): NEAR_MISS, (False, True): IGNORED_EDIT, (True, False): IGNORED_REFERENCE}
        return [
            ALSO_RIGHT if alike else reasons.get(tuple(pair), NEITHER)
            for alike, *pair in zip(_asked_alike(one.benchmark, found), done.tolist(), kept.tolist(), strict=True)
        ]

    return judge


def _asked_alike(benchmark: Benchmark, found: Sequence[str]) -> list[bool]:
    """Whether another query in much the same words has the image found as its target."""
    asked: dict[str, list[Triplet]] = {}
    for triplet in benchmark.triplets:
        for target in triplet.targets:
            asked.setdefault(target, []).append(triplet)
    return [
        any(word_overlap(triplet.captions, other.captions) >= AGREEMENT for other in asked.get(image, ()))
        for triplet, image in zip(benchmark.triplets, found, strict=True)
    ]


def word_overlap(first: Sequence[str], second: Sequence[str]) -> float:
    """Words that two edits share, as a fraction of all words of either, in [0, 1]."""
    one, other = (set(re.findall(r"\w+", " ".join(captions).lower())) for captions in (first, second))
    return len(one & other) / max(1, len(one | other))


def reason_table(scored: Sequence[Scored], reasons: Sequence[Sequence[str]], k: int = 10) -> pd.DataFrame:
    """What share of the misses has which reason: columns reason, misses, value, ci_low, ci_high; a row a reason."""
    missed = np.array([why for one, part in zip(scored, reasons, strict=True) for why in _of_misses(one, part, k)])
    rows = []
    for reason in REASONS if len(missed) else ():
        inside = (missed == reason).astype(float)
        rows.append([reason, int(inside.sum()), inside.mean(), *bootstrap_ci(inside)])
    return pd.DataFrame(rows, columns=["reason", "misses", "value", "ci_low", "ci_high"])


def agreeing(true: Sequence[Sequence[str]], estimated: Sequence[Sequence[str]]) -> tuple[float, float]:
    """The share of queries on whose reason the two agree, in [0, 1], and Cohen's kappa, 0 for agreement by chance."""
    table = agreement(true, estimated)
    names = table.index.union(table.columns)
    counts = table.reindex(index=names, columns=names, fill_value=0).to_numpy(float)
    shares = counts / max(1.0, counts.sum())
    same, by_chance = float(np.trace(shares)), float(shares.sum(0) @ shares.sum(1))
    return same, (same - by_chance) / (1 - by_chance) if by_chance < 1 else 1.0


def agreement(true: Sequence[Sequence[str]], estimated: Sequence[Sequence[str]]) -> pd.DataFrame:
    """How often each estimated reason goes with each true one, over all queries: counts, a row a true reason."""
    pairs = [pd.Series(np.concatenate([np.asarray(part) for part in parts])) for parts in (true, estimated)]
    return pd.crosstab(pairs[0], pairs[1], rownames=["by attributes"], colnames=["by likeness"])


def _of_misses(one: Scored, reasons: Sequence[str], k: int) -> list[str]:
    return [reason for reason, recall in zip(reasons, one.recall(k), strict=True) if recall < 1]


def confusions(scored: Sequence[Scored], attributes: Attributes) -> dict[str, pd.DataFrame]:
    """Attribute → wanted (rows) against retrieved values (columns), counts over all queries by the first result.

    Attributes that no edit changes are left out.
    """
    pairs = [
        (attributes[triplet.targets[0]], attributes[top[0]])
        for one in scored
        for triplet, top in zip(one.benchmark.triplets, one.top, strict=True)
    ]
    references = [attributes[triplet.reference] for one in scored for triplet in one.benchmark.triplets]
    tables = {}
    for name in pairs[0][0] if pairs else ():
        if all(wanted[name] == reference[name] for (wanted, _), reference in zip(pairs, references, strict=True)):
            continue  # no edit changes it
        wanted, found = ([str(side[name] or "none") for side in sides] for sides in zip(*pairs, strict=True))
        values = sorted({*wanted, *found})
        table = pd.crosstab(pd.Series(wanted), pd.Series(found)).reindex(index=values, columns=values, fill_value=0)
        tables[name] = table.rename_axis(index="wanted", columns="retrieved")
    return tables
