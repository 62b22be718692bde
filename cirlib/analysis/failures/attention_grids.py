"""Where the Q-Former's query tokens look, over the reference with its edit and over the target."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cirlib.analysis.failures.examples import Query, edit_text
from cirlib.benchmarks import join_captions
from cirlib.figures import AttentionRow
from cirlib.models.attention import attention_maps
from cirlib.models.qformer import QFormerComposer
from cirlib.models.qformer_embedding import Features


def attention_rows(
    composer: QFormerComposer, store: Features, queries: Sequence[Query], style: str
) -> list[AttentionRow]:
    """A row a query: over the reference all tokens and the one least like the rest, over the target all and the best.

    The best is the token of the target that the query scores by (none of them where a target is one vector).

    Args:
        style: how captions are joined; of several texts the first is shown.
    """
    if not queries:
        return []
    triplets = [one.benchmark.triplets[row] for one, row in queries]
    texts = [join_captions(triplet.captions, style)[0] for triplet in triplets]
    references = store.read(store.rows([triplet.reference for triplet in triplets]), composer.device)
    targets = store.read(store.rows([triplet.targets[0] for triplet in triplets]), composer.device)
    before, after = attention_maps(composer, references, texts).cpu(), attention_maps(composer, targets).cpu()
    best = best_tokens(composer, references, texts, targets)
    return [
        AttentionRow(
            reference=one.benchmark.path(triplet.reference),
            text=edit_text(triplet),
            target=one.benchmark.path(triplet.targets[0]),
            on_reference={"all tokens": _mean(maps), "the odd one": maps[odd_token(maps)].numpy()},
            on_target={"all tokens ": _mean(seen)} | ({} if best is None else {"the best": seen[best[number]].numpy()}),
            title=f"{one.category}: {'found' if one.target_ranks[row] <= 10 else 'missed'}, rank {one.target_ranks[row]:,}",
        )
        for number, ((one, row), triplet, maps, seen) in enumerate(zip(queries, triplets, before, after, strict=True))
    ]


@torch.inference_mode()
def best_tokens(composer: QFormerComposer, references: Tensor, texts: Sequence[str], targets: Tensor) -> Tensor | None:
    """The target token that each query scores by, (B,); None where a target is one vector."""
    embedded = composer.embed_targets(targets)
    if embedded.ndim == 2:
        return None
    queries = composer.embed_queries(references, texts)  # (B, D)
    return torch.einsum("bd,bqd->bq", queries, embedded).argmax(1)


def odd_token(maps: Tensor) -> int:
    """The token whose map (of Q, S, S) is furthest from the mean of all in total variation."""
    return int((maps - maps.mean(0)).abs().sum((1, 2)).argmax())


def _mean(maps: Tensor) -> np.ndarray:
    return maps.mean(0).numpy()
