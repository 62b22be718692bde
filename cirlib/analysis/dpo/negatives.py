"""Train edits drawn, the images that each one's target is preferred to, and how good these are as negatives."""

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from cirlib.benchmarks import Benchmark, Triplet, join_captions
from cirlib.models.prepared import ImageAttributes
from cirlib.retrieval.hard_negatives import mine_hard_negatives
from cirlib.study.errors import ParameterError
from cirlib.study.parameters import DPO

MARGIN = 0.05  # of semi_hard: the cosine by which the target leads


class Edits:
    """N train edits with their categories, one category after the other; ``pools``: category → its train images."""

    def __init__(self, triplets: list[Triplet], categories: list[str], pools: Mapping[str, list[str]]) -> None:
        self.categories, self.pools = categories, pools
        self.references = [triplet.reference for triplet in triplets]
        self.targets = [triplet.targets[0] for triplet in triplets]
        self.texts = [join_captions(triplet.captions, "and")[0] for triplet in triplets]  # both captions in one

    def __len__(self) -> int:
        return len(self.targets)

    @classmethod
    def draw(cls, parts: Mapping[str, Benchmark], count: int | None, seed: int) -> "Edits":
        """``count`` edits, of every category an even share drawn at random; all of them where count is None."""
        rng, triplets, categories = np.random.default_rng(seed), [], []
        for number, (category, part) in enumerate(parts.items()):
            rows = range(len(part.triplets))
            if count is not None:
                share = count // len(parts) + (number < count % len(parts))
                rows = sorted(rng.permutation(len(rows))[: max(1, share)].tolist())
            triplets += [part.triplets[row] for row in rows]
            categories += [category] * len(rows)
        return cls(triplets, categories, {category: part.gallery for category, part in parts.items()})

    def mine(self, queries: Tensor, pools: Mapping[str, Tensor], params: DPO, seed: int) -> np.ndarray:
        """The ids of each edit's negatives (N, K), among its category's train images, never its target or reference.

        Where an index finds too few, others of the category are drawn at random; a category that has too few is a
        ParameterError. ``queries`` are (N, D), ``pools`` (M, D) or (M, T, D) row for row ``self.pools``, normalised.
        """
        count, first = params.num_negatives, params.range_min if params.sampling in ("top", "band") else 0
        mined, categories = np.empty((len(self), count), dtype=object), np.array(self.categories)
        for category, images in pools.items():
            pool, rng = np.array(self.pools[category], dtype=object), np.random.default_rng(seed)
            if first + count > len(pool) - 2:
                raise ParameterError(
                    f"dpo.range_min + dpo.num_negatives is {first} + {count}, at most {len(pool) - 2} is allowed: "
                    "so many train images a category has beside an edit's own two"
                )
            rows, where = np.flatnonzero(categories == category), {image: row for row, image in enumerate(pool)}
            own = [(where[self.targets[row]], where[self.references[row]]) for row in rows]
            for row, two, found in zip(rows, own, _candidates(queries[rows], images, own, params, seed), strict=True):
                kept = [image for image in found if image >= 0 and image not in two][:count]
                if len(kept) < count:
                    others = [image for image in range(len(pool)) if image not in {*two, *kept}]
                    kept += rng.choice(others, count - len(kept), replace=False).tolist()
                mined[row] = pool[kept]
        return mined

    def quality(self, negatives: np.ndarray, attributes: ImageAttributes) -> dict[str, float]:
        """What share of the negatives (N, K) is a wrong or a useful one, by the true attributes of the pictures.

        ``satisfies_edit``: has all that the edit changes as the target has it: false for who reads the edit alone.
        ``differs_in_one``: is one attribute off the target, a useful negative.
        """
        counts = {"satisfies_edit": 0, "differs_in_one": 0}
        for *own, row in zip(self.references, self.targets, negatives, strict=True):
            reference, target = (attributes[image] for image in own)
            for image in row:
                off = {name for name in target if attributes[image][name] != target[name]}
                counts["satisfies_edit"] += not any(target[name] != reference[name] for name in off)
                counts["differs_in_one"] += len(off) == 1
        return {name: count / negatives.size for name, count in counts.items()}


def _candidates(
    queries: Tensor, images: Tensor, own: Sequence[tuple[int, int]], params: DPO, seed: int
) -> list[list[int]]:
    """Pool rows for edits whose target and reference are the rows ``own``, at least K of each; -1 for what lacks."""
    index = {"index": params.index, "nlist": params.nlist, "nprobe": params.nprobe}
    ranks = {"range_min": params.range_min, "range_max": params.range_max}
    rules = {
        "top": index | ranks,
        "band": index | ranks | {"sampling_strategy": "random"},
        "random": {"range_max": len(images) - 2, "sampling_strategy": "random"},  # no index: the whole pool is drawn
        "semi_hard": index | {"absolute_margin": MARGIN},
    }[params.sampling]
    count, positives = params.num_negatives, own
    if params.sampling == "semi_hard":  # the margin is the target's, so the reference is no positive, but may be found
        count, positives = count + 1, [[target] for target, _ in own]
    options = {"num_negatives": count, "seed": seed, "progress": False}
    return mine_hard_negatives(queries, images, positives, **options, **rules).indices.tolist()
