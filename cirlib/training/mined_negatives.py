"""Hard negatives for the Q-Former's fine-tuning, mined anew each epoch by the model in training."""

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState

from cirlib.models.qformer import QFormerComposer
from cirlib.models.qformer_embedding import embed_gallery, embed_queries
from cirlib.retrieval.hard_negatives import MARGIN, copies, fill_at_random, mine_hard_negatives
from cirlib.study.processes import all_reduce, shard
from cirlib.training.batches import TripletSampler


def mine_for_triplets(composer: QFormerComposer, sampler: TripletSampler, epoch: int) -> np.ndarray:
    """Negatives of the train queries of ``epoch`` among their category's images: rows of the store, never its own two.

    Of N train queries and K negatives (N, K); queries that the epoch does not read have -1.

    They are drawn at random from the hardest: ``qformer.sampling`` band draws from ``range_max`` of them, margin from
    those that score at least :data:`MARGIN` less than the target, never a copy of it under another id; where there are
    too few, any are drawn. As in the score, an image counts by its best token; a query's text is the one that the epoch
    trains on. Of several processes each searches for a part; all get the whole.

    >>> mine_for_triplets(composer, TripletSampler(prepared.tokens, prepared.splits.train, stage.study), 1).shape
    (12, 2)
    """
    params, end = sampler.params, 0
    negatives, read = np.full((len(sampler.triplets), params.hard_negatives), -1), np.concatenate(sampler.rows(epoch))
    drawn = dict(zip(read, (text for batch in sampler.batches(epoch) for text in batch.texts), strict=True))
    composer.read_ahead(list(drawn.values()))
    rule = {"range_max": params.range_max} if params.sampling == "band" else {"absolute_margin": MARGIN}
    composer.eval()
    for part in sampler.parts.values():
        start, end = end, end + len(part.triplets)
        own = np.sort(read[(start <= read) & (read < end)])  # (n,)
        references, gallery = sampler.references[own], sampler.tokens.rows(part.gallery)  # (n,), (M,)
        texts = [drawn[row] for row in own]
        where = pd.Index(gallery)
        targets, seen = (where.get_indexer(rows) for rows in (sampler.targets[own], references))  # (n,) both
        images = embed_gallery(composer, sampler.tokens, gallery)  # (M, Q, D) or (M, D)
        left_out = np.column_stack([seen, copies(images, targets)])  # (n, 1 + C)
        mined = mine_hard_negatives(
            embed_queries(composer, sampler.tokens, references, texts), images,  # (n, D)
            targets, excluded=left_out, num_negatives=params.hard_negatives, sampling_strategy="random",
            seed=sampler.seed, rows=shard(np.arange(len(texts))), progress=PartialState().is_main_process, **rule,
        )  # fmt: skip
        found = all_reduce(torch.from_numpy(mined.indices + 1)).numpy() - 1  # of others' queries it has -1
        fill_at_random(found, np.column_stack([targets, left_out]), len(gallery), sampler.seed)
        negatives[own] = gallery[found]
    return negatives
