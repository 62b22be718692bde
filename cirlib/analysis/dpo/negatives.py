"""Train edits drawn, the images that each one's target is preferred to, and how good these are as negatives."""

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from cirlib.benchmarks import Benchmark, Triplet, join_captions
from cirlib.models.prepared import ImageAttributes
from cirlib.retrieval.hard_negatives import MARGIN, copies, fill_at_random, mine_hard_negatives
from cirlib.study.errors import ParameterError
from cirlib.study.parameters import DPO


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
        """The ids of each edit's negatives (N, K), among its category's train images.

        Never its target, its reference, or a copy of the target under another id.

        Where an index finds too few, others of the category are drawn at random; a category that has too few is a
        ParameterError. ``queries`` are (N, D), ``pools`` (M, D) or (M, T, D) row for row ``self.pools``, normalised.
        """
        count, first = params.num_negatives, params.range_min if params.sampling in ("top", "band") else 0
        mined, categories = np.empty((len(self), count), dtype=object), np.array(self.categories)
        for category, images in pools.items():
            pool = np.array(self.pools[category], dtype=object)  # (M,)
            rows, where = np.flatnonzero(categories == category), {image: row for row, image in enumerate(pool)}
            own = np.array([[where[ids[row]] for ids in (self.targets, self.references)] for row in rows])  # (n, 2)
            own = np.column_stack([own, copies(images, own[:, 0])])  # (n, 2 + C)
            if first + count > len(pool) - own.shape[1]:
                raise ParameterError(
                    f"dpo.range_min + dpo.num_negatives is {first} + {count}, at most {len(pool) - own.shape[1]} is "
                    "allowed: so many train images a category has beside an edit's own two and copies of its target"
                )
            found = _mined(queries[rows], images, own, params, seed)  # (n, K)
            fill_at_random(found, own, len(pool), seed)
            mined[rows] = pool[found]
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


def _mined(queries: Tensor, images: Tensor, own: np.ndarray, params: DPO, seed: int) -> np.ndarray:
    """Pool rows (n, K) for edits whose target comes first in the rows ``own`` (n, 2 + C); -1 for what lacks."""
    index = {"index": params.index, "nlist": params.nlist, "nprobe": params.nprobe}
    ranks = {"range_min": params.range_min, "range_max": params.range_max}
    rules = {
        "top": index | ranks,
        "band": index | ranks | {"sampling_strategy": "random"},
        "random": {"range_max": len(images) - 2, "sampling_strategy": "random"},  # no index: the whole pool is drawn
        "margin": index | {"absolute_margin": MARGIN},
    }[params.sampling]
    options = {"excluded": own[:, 1:], "num_negatives": params.num_negatives, "seed": seed, "progress": False}
    return mine_hard_negatives(queries, images, own[:, 0], **options, **rules).indices
