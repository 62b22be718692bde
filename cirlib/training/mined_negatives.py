"""Hard negatives for the Q-Former's triplets: the train images that it takes for a query's target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from accelerate import PartialState

from cirlib.benchmarks import join_captions
from cirlib.models.feature_store import ImageFeatures
from cirlib.models.qformer import QFormerComposer
from cirlib.models.qformer_embedding import embed_gallery, embed_queries
from cirlib.retrieval.hard_negatives import mine_hard_negatives
from cirlib.study.errors import ParameterError
from cirlib.study.parameters import QFormer
from cirlib.study.processes import all_reduce, shard
from cirlib.training.batches import TripletSampler


def mine_for_triplets(
    composer: QFormerComposer, tokens: ImageFeatures, sampler: TripletSampler, params: QFormer, seed: int
) -> np.ndarray:
    """Negatives of every train query among its category's images: rows of the store (N, K), never its own two.

    ``hard_negatives`` of the ``range_max`` hardest, drawn at random. As in the score, an image counts by its best
    token and a query's captions are joined by "and". Of several processes each searches for a part; all get the whole.

    >>> params = QFormer(hard_negatives=2)
    >>> sampler = TripletSampler(prepared.tokens, prepared.splits.train, batch_size=4, seed=0)
    >>> mine_for_triplets(composer, prepared.tokens, sampler, params, seed=0).shape
    (12, 2)
    """
    require_negatives(sampler.galleries, params.hard_negatives)
    negatives = np.empty((len(sampler.triplets), params.hard_negatives), np.int64)
    composer.eval()
    for category, gallery in sampler.galleries.items():
        mine = np.flatnonzero(sampler.categories == category)  # (n,)
        texts = [join_captions(sampler.triplets[row].captions, "and")[0] for row in mine]
        queries = embed_queries(composer, tokens, sampler.references[mine], texts)  # (n, D)
        images = embed_gallery(composer, tokens, gallery)  # (M, Q, D) or (M, D)
        own = _positions(gallery, np.stack([sampler.targets[mine], sampler.references[mine]], 1))  # (n, 2)
        mined = mine_hard_negatives(
            queries, images, own, num_negatives=params.hard_negatives, range_max=params.range_max,
            sampling_strategy="random", seed=seed, rows=shard(np.arange(len(mine))),
            progress=PartialState().is_main_process,
        )  # fmt: skip
        found = all_reduce(torch.from_numpy(mined.indices)).numpy()
        found += PartialState().num_processes - 1  # the others left -1
        negatives[mine] = gallery[found]
    return negatives


def _positions(gallery: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Where store ``rows`` stand in ``gallery`` (store rows, without repeats)."""
    order = np.argsort(gallery)
    return order[np.searchsorted(gallery, rows, sorter=order)]


def require_negatives(galleries: Mapping[str, Sequence | np.ndarray], wanted: int) -> None:
    """Refuses hard negatives that the train images, category → gallery, cannot give.

    Raises:
        ParameterError: a category has fewer images beside a query's own two than are ``wanted``.

    >>> require_negatives({"hat": ["a", "b", "c", "d"]}, wanted=2)
    """
    for category, gallery in galleries.items():
        if wanted > (others := len(gallery) - 2):
            raise ParameterError(
                f"qformer.hard_negatives is {wanted}, at most {others} is allowed: "
                f"so many images has {category} beside a query's own two"
            )
