"""From features to recalls, our way and the usual way, over stand-ins of FashionIQ's validation features."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cirlib.benchmarks import Benchmark, Triplet
from cirlib.metrics import recall_at_k, target_ranks
from cirlib.retrieval.scoring import score
from cirlib.study.parameters import Evaluation

WIDTH = 256
SIZES = {"dress": (2017, 3817), "shirt": (2038, 6346), "toptee": (1961, 5373)}  # queries, gallery images


@dataclass(frozen=True)
class Category:
    """One category's features and names."""

    queries: Tensor  # (N, D)
    gallery: Tensor  # (M, D)
    targets: Tensor  # (N,)
    names: list[str]  # M image ids of ten characters, as FashionIQ's are
    scores: Tensor  # (N, M) room for a product
    benchmark: Benchmark


def load(category: str) -> Category:
    """Unit vectors; each query lies near enough to its target for a recall of some tens of percent."""
    count, size = SIZES[category]
    rng = torch.Generator().manual_seed(count)
    gallery = normalize(torch.randn(size, WIDTH, generator=rng), dim=-1)
    targets = torch.randint(size, (count,), generator=rng)
    queries = normalize(gallery[targets] + 0.3 * torch.randn(count, WIDTH, generator=rng), dim=-1)
    names = [f"B{row:09d}" for row in range(size)]
    return Category(queries, gallery, targets, names, torch.empty(count, size), as_benchmark(targets, names))


def as_benchmark(targets: Tensor, names: list[str]) -> Benchmark:
    """A query a target; its reference is the image behind that."""
    triplets = [
        Triplet(str(i), names[(row + 1) % len(names)], ("is x",), (names[row],), "hat")
        for i, row in enumerate(targets.tolist())
    ]
    return Benchmark("fashioniq", "val", triplets, names, dict.fromkeys(names, "no file"))


def product(data: Category) -> None:
    """The bare matrix product, without which there is no ranking."""
    torch.mm(data.queries, data.gallery.T)


def product_in_place(data: Category) -> None:
    """The same into memory that is there already: the hardest thing to compare with."""
    torch.mm(data.queries, data.gallery.T, out=data.scores)


def counted(data: Category) -> list[float]:
    """Recall at 10 and 50 by cirlib."""
    ranks = target_ranks(data.queries, data.gallery, data.targets)
    return [float(recall_at_k(ranks, k).mean()) for k in (10, 50)]


def evaluated(data: Category) -> None:
    """All that a study takes from the features: the reference removed, ranks, and the five best images."""
    score("ours", "hat", data.queries, data.gallery, data.benchmark, Evaluation())


def sorted_names(data: Category) -> list[float]:
    """Recall at 10 and 50 as public CIR code computes it: sort everything, compare matrices of names."""
    distances = 1 - data.queries @ data.gallery.T  # (N, M)
    order = torch.argsort(distances, dim=-1)  # (N, M)
    ranked = np.array(data.names)[order.numpy()]  # (N, M) strings
    wanted = np.array(data.names)[data.targets.numpy()]  # (N,) strings
    hits = torch.tensor(ranked == np.repeat(wanted, len(data.names)).reshape(ranked.shape))  # (N, M)
    assert (hits.sum(dim=-1) == 1).all()
    return [hits[:, :k].sum().item() / len(hits) for k in (10, 50)]


WAYS = {way.__name__: way for way in (product, product_in_place, counted, evaluated, sorted_names)}
