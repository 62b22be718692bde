"""Hard negatives for the Q-Former's fine-tuning, mined anew each epoch by the model in training."""

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState

from cirlib.benchmarks import join_captions
from cirlib.models.qformer import QFormerComposer
from cirlib.models.qformer_embedding import embed_gallery, embed_queries
from cirlib.retrieval.hard_negatives import mine_hard_negatives
from cirlib.study.processes import all_reduce, shard
from cirlib.training.batches import TripletSampler


def mine_for_triplets(composer: QFormerComposer, sampler: TripletSampler) -> np.ndarray:
    """Negatives of every train query among its category's images: rows of the store (N, K), never its own two.

    They are drawn at random from the hardest. As in the score, an image counts by its best token and a query's
    captions are joined by "and". Of several processes each searches for a part; all get the whole.

    >>> mine_for_triplets(composer, TripletSampler(prepared.tokens, prepared.splits.train, stage.study)).shape
    (12, 2)
    """
    negatives, end = [], 0
    composer.eval()
    for part in sampler.parts.values():
        start, end = end, end + len(part.triplets)
        references, gallery = sampler.references[start:end], sampler.tokens.rows(part.gallery)  # (n,), (M,)
        texts = [join_captions(triplet.captions, "and")[0] for triplet in part.triplets]
        own = [pd.Index(gallery).get_indexer(rows) for rows in (sampler.targets[start:end], references)]  # (2, n)
        mined = mine_hard_negatives(
            embed_queries(composer, sampler.tokens, references, texts),  # (n, D)
            embed_gallery(composer, sampler.tokens, gallery),  # (M, Q, D) or (M, D)
            np.stack(own, 1), num_negatives=sampler.params.hard_negatives, range_max=sampler.params.range_max,
            sampling_strategy="random", seed=sampler.seed, rows=shard(np.arange(len(texts))),
            progress=PartialState().is_main_process,
        )  # fmt: skip
        found = all_reduce(torch.from_numpy(mined.indices + 1)).numpy() - 1  # of others' queries it has -1
        negatives.append(gallery[found])
    return np.concatenate(negatives)
