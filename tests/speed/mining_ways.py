"""Ways to mine FashionIQ's train part, over stand-ins of its features."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cirlib.mining import mine_hard_negatives

QUERIES, GALLERY, WIDTH, TOP = 18_000, 25_136, 256, 100


@dataclass(frozen=True)
class Vectors:
    """Unit vectors, and the gallery row that each query asks for."""

    queries: Tensor  # (N, D)
    gallery: Tensor  # (M, D)
    targets: Tensor  # (N,)


def clustered_vectors() -> Vectors:
    """Images in 500 clusters, queries near their targets."""
    rng = torch.Generator().manual_seed(0)

    def noise(count: int, strength: float) -> Tensor:
        return strength * torch.randn(count, WIDTH, generator=rng)

    centres = normalize(noise(500, 1.0), dim=-1)
    gallery = normalize(centres[torch.randint(500, (GALLERY,), generator=rng)] + noise(GALLERY, 0.06), dim=-1)
    targets = torch.randint(GALLERY, (QUERIES,), generator=rng)
    return Vectors(normalize(gallery[targets] + noise(QUERIES, 0.05), dim=-1), gallery, targets)


def ours(vectors: Vectors, index: str = "flat") -> Tensor:
    """By cirlib, rows (N, TOP)."""
    positives = vectors.targets[:, None]
    mined = mine_hard_negatives(
        vectors.queries, vectors.gallery, positives, num_negatives=TOP, range_max=TOP, index=index, progress=False
    )
    return torch.from_numpy(mined.indices)


def torch_topk(vectors: Vectors, block: int = 1024) -> Tensor:
    """Matrix product and topk, block by block, rows (N, TOP): the whole score matrix would take 1.8 GB."""
    found = []
    for queries, targets in zip(vectors.queries.split(block), vectors.targets.split(block), strict=True):
        scores = queries @ vectors.gallery.T  # (block, M)
        scores.scatter_(1, targets[:, None], -torch.inf)
        found.append(scores.topk(TOP).indices)
    return torch.cat(found)


class Lookup:
    """Stands where a SentenceTransformer stands: the text "q3" is row 3 of the queries, "g3" of the gallery."""

    device = "cpu"

    def __init__(self, vectors: Vectors) -> None:
        self.features = {"q": vectors.queries.numpy(), "g": vectors.gallery.numpy()}

    def encode_query(self, texts: list[str], **_: object) -> np.ndarray:
        return self.features[texts[0][0]][[int(text[1:]) for text in texts]]

    encode_document = encode_query

    def get_embedding_dimension(self) -> int:
        return WIDTH

    @staticmethod
    def similarity(queries: Tensor, gallery: Tensor) -> Tensor:
        return torch.as_tensor(queries) @ torch.as_tensor(gallery).T

    @staticmethod
    def similarity_pairwise(queries: Tensor, gallery: Tensor) -> Tensor:
        return (torch.as_tensor(queries) * torch.as_tensor(gallery)).sum(-1)


def sentence_transformers(vectors: Vectors) -> None:
    """By the usual library."""
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives as mine

    queries = [f"q{n}" for n in range(len(vectors.queries))]
    corpus = [f"g{n}" for n in range(len(vectors.gallery))]
    pairs = Dataset.from_dict({"query": queries, "positive": [corpus[n] for n in vectors.targets]})
    options = {"range_max": TOP, "num_negatives": TOP, "use_faiss": True, "output_format": "n-tuple"}
    mine(pairs, Lookup(vectors), corpus=corpus, verbose=False, **options)


WAYS = {"ours": ours, "torch": torch_topk, "sentence-transformers": sentence_transformers}
