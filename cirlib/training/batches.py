"""A batch of the Q-Former's trainings: drawn, embedded in one call, scored by one loss."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from cirlib.benchmarks import Benchmark, sample_join
from cirlib.losses.gradient_cache import in_chunks
from cirlib.losses.info_nce import info_nce
from cirlib.models.feature_store import ImageFeatures
from cirlib.models.qformer import QFormerComposer
from cirlib.study.errors import ParameterError
from cirlib.study.parameters import Study
from cirlib.study.processes import all_gather, local_indices
from cirlib.training.loop import shuffled_batches


@dataclass(frozen=True)
class Batch:
    """B queries with their images, as rows of a feature store; in pretraining a query is a text without a reference."""

    references: np.ndarray | None  # (B,)
    targets: np.ndarray  # (B,)
    texts: list[str]  # B
    negatives: np.ndarray | None = None  # (B, K), mined

    def rows(self, own: np.ndarray) -> np.ndarray:
        """Every row of the store that the queries ``own`` (b,) of the batch read."""
        images = (self.references, self.targets, self.negatives)
        return np.concatenate([rows[own].ravel() for rows in images if rows is not None])

    def __len__(self) -> int:
        return len(self.texts)


def embed_batch(
    composer: QFormerComposer, tokens: ImageFeatures, batch: Batch, chunk_size: int | None = None, terms: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Query (B, D), target (B, Q, D) and negative (B, K, Q, D) embeddings; (B, D) and (B, K, D) of one vector an image.

    Of several processes each embeds its rows of the batch, and all get the whole. ``chunk_size``: images whose
    activations are kept at a time (:mod:`cirlib.losses.gradient_cache`); None: of all. ``terms``: queries are
    (B, 2 D + 1), as of ``composer.embed_queries``.

    >>> batch = Batch(np.array([0, 1]), np.array([1, 2]), ["red", "blue"])
    >>> [tuple(part.shape) for part in embed_batch(composer, prepared.tokens, batch)[:2]]
    [(2, 16), (2, 2, 16)]
    """

    def read(rows: np.ndarray) -> Tensor:
        return tokens.read(rows, composer.device)

    def queries(own: np.ndarray) -> Tensor:
        texts = [batch.texts[i] for i in own]
        if batch.references is None:
            return composer.embed_texts(texts)
        return composer.embed_queries(read(batch.references[own]), texts, terms)

    def images(rows: np.ndarray) -> Tensor:  # (b, …) → (b, …, Q, D)
        embedded = in_chunks(lambda part: composer.embed_targets(read(part)), rows.ravel(), chunk_size)
        return all_gather(embedded.unflatten(0, rows.shape), len(batch))

    own = local_indices(len(batch))  # (b,)
    composed, targets = all_gather(in_chunks(queries, own, chunk_size), len(batch)), images(batch.targets[own])
    return composed, targets, None if batch.negatives is None else images(batch.negatives[own])


def batch_loss(
    composer: QFormerComposer, tokens: ImageFeatures, batch: Batch, chunk_size: int | None = None,
    sprc_terms: float = 0.0,
) -> Tensor:  # fmt: skip
    """InfoNCE: each query finds its target among the batch's and its mined negatives; BLIP-2's ITC for texts alone.

    ``chunk_size`` as in :func:`embed_batch`. ``sprc_terms``: weight of SPRC's two further terms (Bai et al., 2024): the
    text with the prompt tokens finds the target too, and the mean fused state comes near the mean prompt token.

    >>> batch = Batch(np.array([0, 1]), np.array([1, 2]), ["red", "blue"], negatives=np.array([[3], [4]]))
    >>> batch_loss(composer, prepared.tokens, batch).shape
    torch.Size([])
    """
    terms = sprc_terms > 0 and batch.references is not None
    queries, targets, negatives = embed_batch(composer, tokens, batch, chunk_size, terms)
    queries, relations, apart = queries.tensor_split([width := targets.shape[-1], 2 * width], dim=1)
    options = {"temperature": composer.temperature, "negatives": negatives, "symmetric": batch.references is None}
    loss = info_nce(queries, targets, **options)
    if not terms:
        return loss
    return loss + sprc_terms * (info_nce(relations, targets, temperature=composer.temperature) + apart.float().mean())


class TripletSampler:
    """Train triplets of all categories, in batches with captions drawn anew each epoch."""

    def __init__(self, tokens: ImageFeatures, parts: Mapping[str, Benchmark], study: Study) -> None:
        self.tokens, self.parts, self.params, self.seed = tokens, parts, study.qformer, study.seed
        self.triplets = [triplet for part in parts.values() for triplet in part.triplets]  # N
        self.references = tokens.rows([triplet.reference for triplet in self.triplets])  # (N,)
        self.targets = tokens.rows([triplet.targets[0] for triplet in self.triplets])  # (N,)
        for category, part in parts.items():
            if self.params.hard_negatives > (others := len(part.gallery) - 2):
                raise ParameterError(
                    f"qformer.hard_negatives is {self.params.hard_negatives}, at most {others} is allowed: "
                    f"so many images has {category} beside a query's own two"
                )

    def rows(self, epoch: int) -> list[np.ndarray]:
        """The triplets of each batch of ``epoch``: all of them, or about ``qformer.edits`` drawn anew."""
        size, params = len(self.triplets), self.params
        parts = shuffled_batches(size, params.batch_size, self.seed, epoch, params.recipe == "sprc")
        return [part.numpy() for part in parts[: params.edits and -(-params.edits // params.batch_size)]]

    def batches(self, epoch: int, negatives: np.ndarray | None = None) -> list[Batch]:
        """The batches of ``epoch``, with their rows of the mined ``negatives`` (N, K)."""
        rng = np.random.default_rng((self.seed, epoch))
        texts = [sample_join(triplet.captions, rng, self.params.single_captions) for triplet in self.triplets]
        parts = self.rows(epoch)
        mined = [None if negatives is None else negatives[part] for part in parts]
        return [
            Batch(self.references[part], self.targets[part], [texts[row] for row in part], own)
            for part, own in zip(parts, mined, strict=True)
        ]
