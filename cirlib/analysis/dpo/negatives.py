"""Train edits drawn, the images that each one's target is preferred to, and how good these are as negatives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor

from cirlib.benchmarks import Benchmark, Triplet, join_captions
from cirlib.models.prepared import ImageAttributes
from cirlib.retrieval.hard_negatives import mine_hard_negatives
from cirlib.study.errors import ParameterError
from cirlib.study.parameters import DPO

MARGIN = 0.05  # of semi_hard: the cosine by which the target leads


@dataclass(frozen=True)
class Edits:
    """N train edits, one category after the other; their categories (N); category → ids of its train images."""

    triplets: list[Triplet]
    categories: list[str]
    pools: Mapping[str, list[str]]

    @cached_property
    def texts(self) -> list[str]:
        """The two captions of each edit in one, N."""
        return [join_captions(triplet.captions, "and")[0] for triplet in self.triplets]

    @cached_property
    def references(self) -> list[str]:
        return [triplet.reference for triplet in self.triplets]

    @cached_property
    def targets(self) -> list[str]:
        return [triplet.targets[0] for triplet in self.triplets]

    def __len__(self) -> int:
        return len(self.triplets)


def draw_edits(parts: Mapping[str, Benchmark], count: int | None, seed: int) -> Edits:
    """``count`` edits, of every category an even share drawn at random; all of them where count is None.

    >>> len(draw_edits(prepared.splits.train, 4, seed=0))
    4
    """
    rng, drawn = np.random.default_rng(seed), {}
    for number, (category, part) in enumerate(parts.items()):
        rows = range(len(part.triplets))
        if count is not None:
            share = count // len(parts) + (number < count % len(parts))
            rows = sorted(rng.permutation(len(rows))[: max(1, share)].tolist())
        drawn[category] = [part.triplets[row] for row in rows]
    categories = [category for category, triplets in drawn.items() for _ in triplets]
    triplets = [triplet for some in drawn.values() for triplet in some]
    return Edits(triplets, categories, {category: part.gallery for category, part in parts.items()})


def mine_negatives(edits: Edits, queries: Tensor, pools: Mapping[str, Tensor], params: DPO, seed: int) -> np.ndarray:
    """The ids of each edit's negatives (N, K), among its category's train images, never its target or reference.

    Args:
        queries: (N, D) normalised.
        pools: category → normalised image vectors (M, D) or (M, T, D), row for row ``edits.pools``.

    Raises:
        ParameterError: a category has too few images for what is asked.

    >>> edits = draw_edits(prepared.splits.train, 4, seed=0)
    >>> pools = {category: prepared.clip[ids] for category, ids in edits.pools.items()}
    >>> mine_negatives(edits, prepared.clip[edits.references], pools, DPO(num_negatives=2), seed=0).shape
    (4, 2)
    """
    mined = np.empty((len(edits), params.num_negatives), dtype=object)
    categories = np.array(edits.categories)
    for category, images in pools.items():
        pool = np.array(edits.pools[category], dtype=object)
        _require_images(len(pool), params)
        rows = np.flatnonzero(categories == category)
        where = {image: row for row, image in enumerate(pool)}
        own = [(where[edits.targets[row]], where[edits.references[row]]) for row in rows]
        found = _mine(queries[rows], images, own, params, seed)  # (n, K)
        mined[rows] = pool[_filled(found, own, len(pool), seed)]
    return mined


def _require_images(size: int, params: DPO) -> None:
    first = params.range_min if params.sampling in ("top", "band") else 0
    if first + params.num_negatives > size - 2:
        raise ParameterError(
            f"dpo.range_min + dpo.num_negatives is {first} + {params.num_negatives}, at most {size - 2} is allowed: "
            "so many train images a category has beside an edit's own two"
        )
    if params.sampling != "random" and params.nlist and params.nlist > size:
        raise ParameterError(
            f"dpo.nlist is {params.nlist}, at most {size} is allowed: so many train images a category has"
        )


def _mine(queries: Tensor, images: Tensor, own: list[tuple[int, int]], params: DPO, seed: int) -> np.ndarray:
    """Pool rows (n, K) for edits whose target and reference are the rows ``own``; -1 where too few were found."""
    options = {"num_negatives": params.num_negatives, "seed": seed, "progress": False}
    if params.sampling == "random":  # asks no index: the whole pool is drawn from
        options |= {"range_max": len(images) - 2, "sampling_strategy": "random"}
        return mine_hard_negatives(queries, images, own, **options).indices
    options |= {"index": params.index, "nlist": params.nlist, "nprobe": params.nprobe}
    if params.sampling != "semi_hard":
        options |= {"range_min": params.range_min, "range_max": params.range_max}
        options["sampling_strategy"] = "random" if params.sampling == "band" else "top"
        return mine_hard_negatives(queries, images, own, **options).indices
    options |= {"num_negatives": params.num_negatives + 1, "absolute_margin": MARGIN}
    mined = mine_hard_negatives(queries, images, [[target] for target, _ in own], **options).indices  # (n, K + 1)
    found = np.where(mined == np.array(own)[:, 1:], -1, mined)  # without the reference, which was no positive
    return np.take_along_axis(found, np.argsort(found < 0, axis=1, kind="stable"), 1)[:, :-1]


def _filled(rows: np.ndarray, own: Sequence[tuple[int, int]], size: int, seed: int) -> np.ndarray:
    """Pool rows (n, K), with others of the pool drawn at random where an index found too few."""
    rng = np.random.default_rng(seed)
    rows = rows.copy()
    for query in np.flatnonzero((rows < 0).any(1)):
        few = rows[query] < 0
        taken = {*own[query], *rows[query][~few].tolist()}
        rows[query, few] = rng.choice([row for row in range(size) if row not in taken], few.sum(), replace=False)
    return rows


def negative_quality(edits: Edits, negatives: np.ndarray, attributes: ImageAttributes) -> dict[str, float]:
    """What share of the negatives (N, K) is a wrong or a useful one, by the true attributes of the pictures.

    Returns:
        ``satisfies_edit``: has all that the edit changes as the target has it: false for who reads the edit alone.
        ``differs_in_one``: is one attribute off the target, a useful negative.

    >>> edits = Edits([Triplet("q", "a", ("is blue",), ("b",), "hat")], ["hat"], {})
    >>> looks = {"a": {"colour": "red"}, "b": {"colour": "blue"}, "c": {"colour": "blue"}, "d": {"colour": "red"}}
    >>> negative_quality(edits, np.array([["c", "d"]]), looks)
    {'satisfies_edit': 0.5, 'differs_in_one': 0.5}
    """
    counts = {"satisfies_edit": 0, "differs_in_one": 0}
    for triplet, row in zip(edits.triplets, negatives, strict=True):
        reference, target = attributes[triplet.reference], attributes[triplet.targets[0]]
        for image in row:
            off = {name for name in target if attributes[image][name] != target[name]}
            counts["satisfies_edit"] += not any(target[name] != reference[name] for name in off)
            counts["differs_in_one"] += len(off) == 1
    return {name: count / negatives.size for name, count in counts.items()}
