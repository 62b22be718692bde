"""Which images an edit's target is preferred to, and how good they are as negatives."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from cirlib.analysis.dpo.train_edits import Edits
from cirlib.models.preparation import Attributes
from cirlib.models.qformer import mean_token
from cirlib.retrieval.hard_negatives import mine_hard_negatives
from cirlib.study.errors import ParameterError
from cirlib.study.parameters import DPO

MARGIN = 0.05  # of semi_hard: the cosine by which the target leads


def mine_negatives(edits: Edits, queries: Tensor, pools: Mapping[str, Tensor], params: DPO, seed: int) -> np.ndarray:
    """The ids of each edit's negatives (N, K), among its category's train images, never its target or reference.

    Args:
        queries: (N, D) normalised.
        pools: category → normalised image vectors (M, D) or (M, Q, D), row for row ``edits.pools``.

    Raises:
        ParameterError: a category has too few images for what is asked.
    """
    mined = np.empty((len(edits), params.num_negatives), dtype=object)
    categories = np.array(edits.categories)
    for category, images in pools.items():
        rows = np.flatnonzero(categories == category)
        mined[rows] = _mine_in(edits, rows, queries[rows], edits.pools[category], images, params, seed)
    return mined


def _mine_in(
    edits: Edits, rows: np.ndarray, queries: Tensor, pool: list[str], images: Tensor, params: DPO, seed: int
) -> np.ndarray:
    where = {image: row for row, image in enumerate(pool)}
    own = [(where[edits.triplets[row].targets[0]], where[edits.triplets[row].reference]) for row in rows]
    others = len(pool) - 2
    first = params.range_min if params.sampling in ("top", "band") else 0
    if first + params.num_negatives > others:
        raise ParameterError(
            f"dpo.range_min + dpo.num_negatives is {first} + {params.num_negatives}, at most {others} is allowed: "
            "so many train images a category has beside an edit's own two"
        )
    if params.sampling != "random" and params.nlist and params.nlist > len(pool):
        raise ParameterError(
            f"dpo.nlist is {params.nlist}, at most {len(pool)} is allowed: so many train images a category has"
        )
    images = mean_token(images)
    options = {"num_negatives": params.num_negatives, "seed": seed, "progress": False}
    index = {"index": params.index, "nlist": params.nlist, "nprobe": params.nprobe}
    if params.sampling == "semi_hard":
        positives = [[target] for target, _ in own]
        return _filled(_semi_hard(queries, images, positives, own, params, options | index), own, pool, seed)
    if params.sampling == "random":
        options |= {"range_max": others, "sampling_strategy": "random"}  # asks no index: the whole pool is drawn from
    else:
        strategy = "random" if params.sampling == "band" else "top"
        options |= index | {"range_min": params.range_min, "range_max": params.range_max, "sampling_strategy": strategy}
    mined = mine_hard_negatives(queries, images, own, **options)
    return _filled(mined.indices, own, pool, seed)


def _semi_hard(queries, images, positives, own, params: DPO, options: dict) -> np.ndarray:
    """The hardest that score below the target by the margin; the reference, no positive, is struck out after."""
    deeper = {**options, "num_negatives": params.num_negatives + 1}
    mined = mine_hard_negatives(queries, images, positives, absolute_margin=MARGIN, **deeper).indices
    kept = np.full((len(mined), params.num_negatives), -1)
    for row, (_, reference) in enumerate(own):
        others = mined[row][mined[row] != reference][: params.num_negatives]
        kept[row, : len(others)] = others
    return kept


def _filled(rows: np.ndarray, own: list[tuple[int, int]], pool: list[str], seed: int) -> np.ndarray:
    """Ids (N, K) of pool ``rows`` (N, K); where an index found too few, others of the pool drawn at random."""
    rng = np.random.default_rng(seed)
    rows = rows.copy()
    for query in np.flatnonzero((rows < 0).any(1)):
        few = rows[query] < 0
        taken = {*own[query], *rows[query][~few].tolist()}
        rows[query, few] = rng.choice([row for row in range(len(pool)) if row not in taken], few.sum(), replace=False)
    return np.array(pool, dtype=object)[rows]


def negative_quality(edits: Edits, negatives: np.ndarray, attributes: Attributes) -> dict[str, float]:
    """What share of the negatives (N, K) is a wrong or a useful one, by the true attributes of the pictures.

    Returns:
        ``satisfies_edit``: has every attribute that the edit changes as the target has it, whatever the rest is like: a
        false negative for who reads the edit alone. ``differs_in_one``: is one attribute off the target, a useful
        negative.
    """
    counts = {"satisfies_edit": 0, "differs_in_one": 0}
    for triplet, row in zip(edits.triplets, negatives, strict=True):
        reference, target = attributes[triplet.reference], attributes[triplet.targets[0]]
        changed = [name for name in target if target[name] != reference[name]]
        for image in row:
            other = attributes[image]
            off = sum(other[name] != target[name] for name in target)
            counts["satisfies_edit"] += all(other[name] == target[name] for name in changed)
            counts["differs_in_one"] += off == 1
    return {name: count / negatives.size for name, count in counts.items()}
