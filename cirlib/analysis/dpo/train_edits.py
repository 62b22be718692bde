"""The train edits that preferences are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cirlib.benchmarks import Benchmark, Triplet, join_captions


@dataclass(frozen=True)
class Edits:
    """N train edits, one category after the other, and the images that may be negatives."""

    triplets: list[Triplet]
    categories: list[str]  # N
    pools: dict[str, list[str]]  # category → the ids of its train images

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
    """``count`` edits, of every category an even share drawn at random; all of them where count is None."""
    rng = np.random.default_rng(seed)
    triplets: list[Triplet] = []
    categories: list[str] = []
    for number, (category, part) in enumerate(parts.items()):
        chosen = part.triplets
        if count is not None:
            share = count // len(parts) + (number < count % len(parts))
            rows = rng.permutation(len(chosen))[: max(1, share)]
            chosen = [chosen[row] for row in sorted(rows.tolist())]
        triplets += chosen
        categories += [category] * len(chosen)
    return Edits(triplets, categories, {category: part.gallery for category, part in parts.items()})
