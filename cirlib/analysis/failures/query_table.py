"""The study query by query: a table of what was asked and found, and a method's recall and misses by what is asked."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from cirlib.analysis.failures.edit_kinds import UNCLASSIFIED, manners, subjects
from cirlib.benchmarks import Triplet
from cirlib.models.feature_store import FeatureStore
from cirlib.models.prepared import ImageAttributes
from cirlib.retrieval.scoring import Scored, compare
from cirlib.retrieval.statistics import bootstrap_ci, holm
from cirlib.study.errors import ParameterError

K = 10  # recall@K is what is taken apart
BINS = 5  # of words and likeness
MANY = 4  # changed things and more are one group
FEW = 10  # queries, too few for a group of their own


def query_table(scored: Sequence[Scored], attributes: ImageAttributes | None = None) -> pd.DataFrame:
    """A row a query and method: what was asked and found.

    Columns: method, category, query, family (of images, what intervals draw), captions, changed (what the edit changes:
    by the images' ``attributes`` where they are known, else by the captions' words), kinds (that, and how it is put),
    reference, targets, rank (of the target, from 1), recall and chance (of recall@10), top (the best images' ids, best
    first), benchmark (which knows the images' files).

    >>> query_table([make_scored("sum", "hat", [0, 40])])[["query", "rank", "recall"]].values.tolist()
    [['hat-query-0', 1, 1.0], ['hat-query-1', 41, 0.0]]
    """
    rows = []
    for one in scored:
        known = zip(
            one.benchmark.triplets, one.families.tolist(), one.target_ranks, one.recall(K), one.top, strict=True
        )
        for triplet, family, rank, recall, top in known:
            changed = _changed(triplet, attributes)
            kinds = [*(changed or [UNCLASSIFIED]), *manners(triplet.captions)]
            asked = [triplet.captions, changed, kinds, triplet.reference, triplet.targets]
            found = [rank, recall, min(1.0, K / one.candidates), top, one.benchmark]
            rows.append([one.method, one.category, triplet.id, (one.category, family), *asked, *found])
    columns = "method category query family captions changed kinds reference targets rank recall chance top benchmark"
    return pd.DataFrame(rows, columns=columns.split())


def _changed(triplet: Triplet, attributes: ImageAttributes | None) -> list[str]:
    """What an edit changes, in names of attributes or of the lexicon."""
    if attributes is None:
        return subjects(triplet.captions)
    reference, target = attributes[triplet.reference], attributes[triplet.targets[0]]
    return [name.replace("_", " ") for name in target if target[name] != reference[name]]


def select_method(queries: pd.DataFrame, method: str) -> pd.DataFrame:
    """The rows of one method; a ParameterError where the study has no such one.

    >>> select_method(pd.DataFrame({"method": ["sum", "slerp"], "rank": [3, 4]}), "sum")["rank"].tolist()
    [3]
    """
    found = queries[queries["method"] == method]
    if found.empty:
        allowed = ", ".join(queries["method"].unique())
        raise ParameterError(f"parameter 'method': no method {method!r} in this study, allowed: {allowed}")
    return found


def by_kind(queries: pd.DataFrame) -> pd.DataFrame:
    """Recall@10 by kind of edit, a row a group: group, queries, value, ci_low, ci_high, chance (fractions of 1).

    A query counts with every kind its edit is of; the commonest kind comes first.

    >>> by_kind(query_table([make_scored("sum", "hat", [0, 40])]))[["group", "value"]].values.tolist()
    [['colour', 0.5]]
    """
    several = queries.explode("kinds")
    return _recall_by(several, pd.Categorical(several["kinds"], several["kinds"].value_counts().index))


def by_question(queries: pd.DataFrame, store: FeatureStore) -> pd.DataFrame:
    """:func:`by_kind`'s table by words, number of things changed, and likeness of reference and target, as ``by``.

    Words and likeness (the cosine of the two images' embeddings in ``store``) are in fifths of the queries.

    >>> edit = {"captions": [("is red",)], "changed": [["colour"]], "recall": 1.0, "chance": 0.1, "family": 0}
    >>> edit |= {"reference": "hat-val-0", "targets": [("hat-val-1",)]}
    >>> by_question(pd.DataFrame(edit), prepared.clip)["group"].tolist()[:2]
    ['2', '1']
    """
    words = [len(" ".join(captions).split()) for captions in queries["captions"]]
    cosines = (store[list(queries["reference"])] * store[[targets[0] for targets in queries["targets"]]]).sum(-1)
    tables = {
        "words in the captions": _recall_by(queries, _fifths(words, "{:.0f}")),
        "things the edit changes": _recall_by(queries, _counted(queries["changed"].str.len())),
        "likeness of reference and target (cosine)": _recall_by(queries, _fifths(cosines.tolist(), "{:.2f}")),
    }
    return pd.concat(tables, names=["by"]).reset_index("by").reset_index(drop=True)


def miss_table(queries: pd.DataFrame) -> pd.DataFrame:
    """Every query whose target is not surely in the top ten, worst first, in words; ``reason`` where there is one.

    >>> miss_table(query_table([make_scored("sum", "hat", [0, 40])]))[["query", "kinds", "rank"]].values.tolist()
    [['hat-query-1', 'colour', 41]]
    """
    missed = queries[queries["recall"] < 1].sort_values("rank", ascending=False, kind="stable", ignore_index=True)
    columns = "category query kinds reason rank captions reference target top"
    return missed.assign(
        kinds=missed["kinds"].str.join(", "),
        captions=missed["captions"].str.join(" / "),
        target=missed["targets"].str[0],
        top=missed["top"].str.join(" "),
    ).reindex(columns=columns.split())


def exchanges(scored: Sequence[Scored], methods: Sequence[str], seed: int = 0) -> pd.DataFrame:
    """Every pair of methods: the queries that both, only one, or neither has among its first ten, and a paired test.

    Columns: first, second; both, only_first, only_second, neither (counts); difference (of the mean over categories,
    fraction of 1) with its interval ci_low, ci_high; p, p_holm.

    >>> pair = [make_scored("sum", "hat", [0, 40]), make_scored("slerp", "hat", [0, 0])]
    >>> exchanges(pair, ["sum", "slerp"])[["both", "only_second", "difference"]].values.tolist()
    [[1.0, 1.0, 0.5]]
    """
    found = {m: np.concatenate([one.recall(K) >= 0.5 for one in scored if one.method == m]) for m in methods}
    rows = []
    for first, second in combinations(methods, 2):
        pair = [one for one in scored if one.method in (first, second)]
        test = compare(pair, first, (f"recall@{K}",), seed).iloc[0]
        one, other = found[first], found[second]
        counts = [int(part.sum()) for part in (one & other, one & ~other, ~one & other, ~one & ~other)]
        rows.append([first, second, *counts, *test[["difference", "ci_low", "ci_high", "p"]]])
    columns = "first second both only_first only_second neither difference ci_low ci_high p"
    table = pd.DataFrame(rows, columns=columns.split())
    return table.assign(p_holm=holm(table["p"].tolist()))


def _recall_by(queries: pd.DataFrame, groups: pd.Categorical) -> pd.DataFrame:
    """A row a group that has queries, in their order; ``groups``: of each query its group."""
    rows = []
    for name, inside in queries.assign(group=groups).groupby("group", observed=True):
        value = inside["recall"].to_numpy()
        rows.append(
            [
                name,
                len(value),
                value.mean(),
                *bootstrap_ci(value, clusters=list(inside["family"])),
                inside["chance"].mean(),
            ]
        )
    return pd.DataFrame(rows, columns=["group", "queries", "value", "ci_low", "ci_high", "chance"])


def _counted(numbers: Sequence[int]) -> pd.Categorical:
    """Of each query its number, ``MANY`` and more as one; the smallest together until they have ``FEW``."""
    flat = np.minimum(numbers, MANY)  # (N,)
    ends = [end for end in sorted(set(flat)) if (flat <= end).sum() >= FEW or end == flat.max()]
    names = []
    for before, end in zip([-1, *ends], ends, strict=False):
        low = flat[flat > before].min()
        names.append(f"{low} or more" if end == MANY < max(numbers) else str(low) if low == end else f"{low} to {end}")
    return pd.Categorical([names[group] for group in np.searchsorted(ends, flat)], names)


def _fifths(values: Sequence[float], form: str) -> pd.Categorical:
    """Of each query the fifth that its value is in; fewer than five where many values are equal."""
    flat = np.asarray(values, float)
    bins = pd.qcut(flat, min(BINS, len(np.unique(flat))), duplicates="drop").codes
    names = []
    for number in range(bins.max() + 1):
        low, high = (form.format(end) for end in (flat[bins == number].min(), flat[bins == number].max()))
        names.append(low if low == high else f"{low} to {high}")
    return pd.Categorical([names[code] for code in bins], dict.fromkeys(names))
