"""The best images of each query: exactly, block by block, or through a FAISS index."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

from cirlib.retrieval.hard_negatives import (
    Floats,
    IndexKind,
    Neighbours,
    Rows,
    as_matrix,
    batches,
    check_choice,
    check_fit,
)
from cirlib.retrieval.ranks import Array

BLOCK_VECTORS = 8192  # gallery vectors scored at a time
QUERIES_AT_ONCE = 256


class Images(Protocol):
    """Ids and, row for row, their features (M, D) or (M, T, D): a FeatureStore, or a Gallery."""

    @property
    def ids(self) -> Sequence[str]: ...

    @property
    def array(self) -> Array: ...


class Gallery(NamedTuple):
    """Images in memory for :func:`rank`."""

    ids: Sequence[str]  # M
    array: Array  # (M, D) or (M, T, D)


class Ranking(NamedTuple):
    """The k best images of N queries, best first."""

    ids: list[list[str]]  # N × k; shorter where an approximate index found fewer
    scores: Floats  # (N, k) inner products, -inf as padding
    index_recall: float  # share of the k found that are as good as the exact k best; 1.0 for "flat"


def rank(
    composer: Callable[..., Array],
    queries: Sequence[Any],
    gallery: Images,
    k: int,
    *,
    index: IndexKind = "flat",
    seed: int = 0,
) -> Ranking:
    """The k best gallery images of every composed query, found with FAISS.

    Args:
        composer: gives the embeddings (N, D) of the queries, such as ``partial(weighted_sum, weight=0.5)`` or
            ``QFormerComposer.embed_queries``; ``lambda features: features`` for what is embedded already.
        queries: the composer's arguments, such as ``(references, texts)``.
        gallery: M images in the composer's space; an image of several vectors scores by its best.
        k: images a query, 1 … M.
        index: "flat" is exact. "ivf" and "hnsw" are approximate; the same queries then go through "flat" too,
            to tell what the index costs.
        seed: of the k-means of "ivf".

    Scores are inner products of the features as given: pass unit vectors for cosine similarity.

    Raises:
        ValueError: an unknown index, k out of range, shapes that do not fit, features that are not finite.
    """
    check_choice("index", index, get_args(IndexKind))
    if not 1 <= k <= len(gallery.ids):
        raise ValueError(f"k must be from 1 to the gallery's {len(gallery.ids)} images, got {k}")
    with torch.inference_mode():
        asked = as_matrix("queries", composer(*queries))  # (N, D)
    vectors, tokens = _vectors(gallery)
    check_fit(asked, vectors)
    rows, scores = _search(Neighbours(vectors, index, seed), asked, k, tokens)  # (N, k) both
    exact = scores if index == "flat" else _search(Neighbours(vectors, "flat", seed), asked, k, tokens)[1]
    ids = [[gallery.ids[row] for row in found if row >= 0] for found in rows]
    return Ranking(ids, scores, _found(scores, exact))


def _vectors(gallery: Images) -> tuple[Floats, int]:
    """All vectors (M * T, D) of the gallery, image after image, and T."""
    shape = gallery.array.shape
    if len(shape) not in (2, 3) or shape[0] != len(gallery.ids):
        raise ValueError(f"expected features (M, D) or (M, T, D) of {len(gallery.ids)} images, got {tuple(shape)}")
    return as_matrix("gallery", gallery.array.reshape(-1, shape[-1])), shape[1] if len(shape) == 3 else 1


def _search(neighbours: Neighbours, queries: Floats, k: int, tokens: int) -> tuple[Rows, Floats]:
    """Images (N, k), -1 as padding, and scores (N, k) of the k best images."""
    rows = np.full((len(queries), k), -1, np.int64)
    scores = np.full((len(queries), k), -np.inf, np.float32)
    depth = min(k * tokens, neighbours.size)  # no more than that many vectors belong to the k best images
    for batch in batches(np.arange(len(queries)), depth):
        found, vectors = neighbours.search(queries[batch], depth)  # (B, depth) both
        for query, values, images in zip(batch, found, vectors // tokens, strict=True):
            first = np.sort(np.unique(images, return_index=True)[1])  # an image's best vector comes first
            kept = first[images[first] >= 0][:k]
            rows[query, : len(kept)], scores[query, : len(kept)] = images[kept], values[kept]
    return rows, scores


def _found(scores: Floats, exact: Floats) -> float:
    """The mean share of k found whose score (N, k) is as good as the worst of the exact k best, (N, k)."""
    if not len(exact):
        return 1.0
    worst = exact[:, -1:]  # (N, 1); images that tie with it are as good
    return float((scores >= worst - 1e-6 * np.abs(worst)).mean())


@torch.no_grad()
def top_rows(queries: Tensor, gallery: Array, exclude: Sequence[int] | None, k: int) -> list[list[int]]:
    """The k best gallery rows of each query, exactly, best first.

    Args:
        queries: (N, D). gallery: (M, D) or (M, T, D), perhaps on disk: it is read once, block by block.
        exclude: (N,) the row left out of each query's list.
        k: rows a query; all that are left where those are fewer.
    """
    size, tokens = gallery.shape[0], gallery.shape[1] if gallery.ndim == 3 else 1
    hidden = None if exclude is None else torch.tensor(exclude)  # (N,)
    parts = torch.arange(len(queries)).split(QUERIES_AT_ONCE)
    k = min(k, size - (exclude is not None))
    best = [(torch.empty(len(part), 0), torch.empty(len(part), 0, dtype=torch.long)) for part in parts]
    step = max(1, BLOCK_VECTORS // tokens)
    for start in range(0, size, step):
        vectors = _block(gallery, start, step).to(queries.device)  # (T * B, D)
        for i, part in enumerate(parts):
            scores = queries[part[0] : part[-1] + 1].float() @ vectors.T  # (n, T * B)
            scores = scores.unflatten(1, (tokens, -1)).amax(1).cpu() if tokens > 1 else scores.cpu()  # (n, B)
            if hidden is not None:
                _hide(scores, hidden[part] - start)
            best[i] = _merge(best[i], scores, start, k)
    return [row for _, rows in best for row in rows.tolist()]


def _block(gallery: Array, start: int, size: int) -> Tensor:
    """Gallery images as float32 vectors (T * B, D), token after token."""
    taken = gallery[start : start + size]
    images = taken if isinstance(taken, Tensor) else torch.from_numpy(np.array(taken))
    return (images.transpose(0, 1).flatten(0, 1) if images.ndim == 3 else images).float()


def _hide(scores: Tensor, column: Tensor) -> None:
    """Put the columns (n,) that lie in scores (n, B) below everything."""
    here = ((column >= 0) & (column < scores.shape[1])).nonzero()[:, 0]
    scores[here, column[here]] = -torch.inf


def _merge(best: tuple[Tensor, Tensor], scores: Tensor, start: int, k: int) -> tuple[Tensor, Tensor]:
    """The k best scores and rows, (n, ≤ k) each, of those so far and of a block (n, B) from row ``start`` on."""
    values, columns = scores.topk(min(k, scores.shape[1]))
    values, rows = torch.cat([best[0], values], 1), torch.cat([best[1], columns + start], 1)
    values, order = values.topk(min(k, values.shape[1]))
    return values, rows.gather(1, order)
