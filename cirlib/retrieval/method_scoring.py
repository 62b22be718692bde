"""Any method scored: an object that embeds queries and images, and may re-rank what it finds first.

``embed_queries(images, texts)`` gives (B, D), ``embed_targets(images)`` (B, D) or (B, T, D), tensors or arrays, scored
by dot product. ``rerank(images, texts, candidates)``, where there is one, gives scores (B, K) of the first K images
found of each query, whose ids are ``candidates``; they are added to the first stage's.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cirlib.benchmarks import Benchmark, query_texts
from cirlib.retrieval.ranks import top_rows
from cirlib.retrieval.scoring import Scored, average_texts, protocol_name, score, score_run
from cirlib.retrieval.similarity import own_similarity
from cirlib.study.errors import MethodError, own_code
from cirlib.study.parameters import Evaluation

BATCH = 256  # queries or images that a method is given at a time
DEPTH = 50  # images that a second stage puts in order
RERANKED = 32  # queries that a second stage is given at a time
Read = Callable[[Sequence[str]], Any]  # ids → the images as methods read them: Prepared.read of a study


def embed(method: Any, read: Read, ids: Sequence[str], texts: Sequence[str] | None = None) -> Tensor:
    """A method's targets (M, D) or (M, T, D) of the images ``ids``; with ``texts`` its queries (N, D), of length one.

    >>> class Mine:
    ...     def embed_targets(self, images):
    ...         return np.ones((len(images), 2))
    >>> embed(Mine(), list, ["hat-0", "hat-1"]).shape
    torch.Size([2, 2])
    """
    parts = []
    for start in range(0, len(ids), BATCH):
        images, own = read(ids[start : start + BATCH]), slice(start, start + BATCH)
        what, asked = ("embed_targets", (images,)) if texts is None else ("embed_queries", (images, list(texts[own])))
        parts.append(_checked(method, what, asked, (len(ids[own]),), ("D", "T, D") if texts is None else ("D",)))
        if parts[-1].shape[1:] != parts[0].shape[1:]:
            shapes = " and ".join(str(tuple(part.shape)) for part in (parts[0], parts[-1]))
            raise MethodError(f"{type(method).__name__}.{what} gave arrays of shapes {shapes}, expected one width")
    return torch.cat(parts) if texts is None else normalize(torch.cat(parts), dim=-1)


def _checked(method: Any, what: str, asked: tuple, first: tuple[int, ...], rest: tuple[str, ...]) -> Tensor:
    """What a method gives, of a shape that begins with ``first`` and ends with one of ``rest``; else a MethodError."""
    name = f"{type(method).__name__}.{what}"
    with nullcontext() if type(method).__module__.startswith("cirlib.") else own_code(name):
        given = getattr(method, what)(*asked)
    try:
        values = torch.as_tensor(given).detach().float().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise MethodError(f"{name} gave a {type(given).__name__}, expected a tensor or an array of numbers") from None
    shapes = [[*map(str, first), *filter(None, more.split(", "))] for more in rest]
    if values.shape[: len(first)] != first or values.ndim not in map(len, shapes):
        expected = " or ".join(f"({', '.join(shape)})" for shape in shapes)
        raise MethodError(f"{name} gave an array of shape {tuple(values.shape)}, expected {expected}")
    if not values.isfinite().all():
        raise MethodError(f"{name} gave numbers that are not finite")
    return values


@torch.no_grad()
def score_methods(
    methods: Mapping[str, Any], read: Read, parts: Mapping[str, Benchmark], rules: Evaluation
) -> list[Scored]:
    """Every method on every category; the embeddings of a query's several texts are averaged.

    >>> class Mine:
    ...     def embed_queries(self, images, texts):
    ...         return images.embeddings
    ...     def embed_targets(self, images):
    ...         return images.embeddings
    >>> scored = score_methods({"mine": Mine()}, prepared.read, prepared.splits.reported, Evaluation())
    >>> [one.category for one in scored]
    ['hat', 'shoe']
    """
    scored = []
    for name, method in methods.items():
        for category, part in parts.items():
            texts, rows = query_texts(part, rules.captions)
            references = [part.triplets[row].reference for row in rows]
            queries = average_texts(embed(method, read, references, texts), rows, len(part.triplets))
            gallery = embed(method, read, part.gallery)
            if queries.shape[1] != gallery.shape[-1]:
                gave = f"method {name!r}: embed_queries gave D = {queries.shape[1]}, embed_targets {gallery.shape[-1]}"
                raise MethodError(f"{gave}, expected one D for both")
            if hasattr(method, "rerank"):
                run = _reranked(method, read, part, queries, gallery, texts, rows, rules.reference == "removed")
                one = score_run(run, part, method=name, reference=rules.reference)
                scored.append(replace(one, category=category, protocol=protocol_name(rules)))
            else:
                scored.append(score(name, category, queries, gallery, part, rules))
    return scored


def _reranked(
    method: Any, read: Read, part: Benchmark, queries: Tensor, gallery: Tensor, texts: Sequence[str], rows: np.ndarray,
    removed: bool,
) -> dict[str, list[str]]:  # fmt: skip
    """Query id → the gallery's ids, best first: the first stage's order, its first images in the second stage's."""
    references = [triplet.reference for triplet in part.triplets]
    exclude = [part.gallery_index[image] for image in references] if removed else None
    ranking = [[part.gallery[i] for i in best] for best in top_rows(queries, gallery, exclude, len(part.gallery))]
    first = torch.tensor([[part.gallery_index[image] for image in best[:DEPTH]] for best in ranking])  # (N, K)
    chunks = zip(queries.split(RERANKED), first.split(RERANKED), strict=True)
    total = torch.cat(
        [own_similarity(some, gallery[rows_of]) for some, rows_of in chunks]
    )  # and then the second stage's
    for start in range(0, len(rows), RERANKED):
        own = rows[start : start + RERANKED]
        candidates = [ranking[row][:DEPTH] for row in own]
        images = read([references[row] for row in own])
        asked = images, list(texts[start : start + RERANKED]), candidates
        scores = _checked(method, "rerank", asked, (len(own), first.shape[1]), ("",))
        total.index_add_(0, torch.from_numpy(own), scores)
    order = total.argsort(dim=1, descending=True, stable=True).tolist()
    return {
        triplet.id: [ids[i] for i in first] + ids[DEPTH:]
        for triplet, ids, first in zip(part.triplets, ranking, order, strict=True)
    }
