"""Every composer and every loss learns 64 triplets by heart: what cannot is broken, however its loss falls."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cirlib.losses import dpo_loss, info_nce
from cirlib.losses.recall_at_k import recall_at_k_loss
from cirlib.models.qformer import FrozenTargets, QFormerSettings
from cirlib.retrieval.similarity import similarity
from cirlib.training.batches import Batch, batch_loss

COUNT = 64
TEXTS = [f"{word} {number}" for word in ("red", "long", "dots", "plain") for number in range(16)]
ROWS = torch.arange(COUNT)


def learn(learns: list[nn.Parameter], loss: Callable[[], Tensor], scores: Callable[[], Tensor], lr: float) -> float:
    """Recall@1 when all is found, or after 300 steps; ``scores`` of every query and target, (64, 64)."""
    optimizer, found = torch.optim.Adam(learns, lr), 0.0
    for _ in range(300):
        optimizer.zero_grad()
        loss().backward()
        nn.utils.clip_grad_norm_(learns, 1.0)
        optimizer.step()
        with torch.no_grad():
            found = float((scores().cpu().argmax(1) == ROWS).float().mean())
        if found == 1:
            break
    return found


# ------------------------------------------------------------------ composers


class Store:
    """The tokens (4, 6) of 64 references, then of their targets."""

    features = torch.randn(2 * COUNT, 4, 6, generator=torch.Generator().manual_seed(0))

    def read(self, rows: np.ndarray, device: torch.device) -> Tensor:
        return self.features[rows].to(device)


FORMS = [("one_pass max", 0, 0.0), ("one_pass mean", 0, 0.0), ("covr mean", 0, 0.0), ("two_pass mean", 0, 0.0)]
FORMS += [("two_pass max", negatives, terms) for negatives in (0, 2) for terms in (0.0, 1.0)]


@pytest.mark.slow
@pytest.mark.parametrize(("fusion", "negatives", "sprc_terms"), FORMS)
def test_every_composer_learns_64_triplets_by_heart(composer, fusion, negatives, sprc_terms):
    composer.settings = QFormerSettings(*fusion.split())
    composer.prompt_tokens = nn.Parameter(torch.full_like(composer.query_tokens, 0.1))
    composer.frozen = FrozenTargets(composer) if "covr" in fusion else None
    composer.embeddings.requires_grad_(False)  # half of the time, and not needed
    rows = np.arange(COUNT)
    mined = np.stack([np.roll(rows, 1 + k) for k in range(negatives)], 1) + COUNT if negatives else None
    batch = Batch(rows, rows + COUNT, TEXTS, mined)

    def scores() -> Tensor:
        references, targets = Store.features.to(composer.device).split(COUNT)
        return similarity(composer.embed_queries(references, TEXTS), composer.embed_targets(targets))

    learns = [parameter for parameter in composer.parameters() if parameter.requires_grad]
    assert learn(learns, lambda: batch_loss(composer, Store(), batch, sprc_terms=sprc_terms), scores, 0.01) == 1


# ------------------------------------------------------------------ losses, on vectors that are free to move


def in_batch(queries: Tensor, targets: Tensor) -> Tensor:
    return info_nce(queries, targets)


def symmetric(queries: Tensor, targets: Tensor) -> Tensor:
    return info_nce(queries, targets, symmetric=True)


def recall(queries: Tensor, targets: Tensor) -> Tensor:
    scores = F.normalize(queries, dim=-1) @ F.normalize(targets, dim=-1).T
    return recall_at_k_loss(scores, ROWS, temperature=0.1, rank_temperature=8.0)  # gradients from far behind too


def dpo(kind: str) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(queries: Tensor, targets: Tensor) -> Tensor:
        scores = F.normalize(queries, dim=-1) @ F.normalize(targets, dim=-1).T
        rejected = scores[~torch.eye(COUNT, dtype=torch.bool)].view(COUNT, -1)
        start = torch.zeros(COUNT), torch.zeros_like(rejected)
        return dpo_loss(scores.diagonal(), rejected, *start, beta=10.0, loss_type=kind)[0].mean()

    return loss


LOSSES = {loss.__name__: loss for loss in (in_batch, symmetric, recall)}
LOSSES |= {kind: dpo(kind) for kind in ("sigmoid", "hinge", "ipo")}


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_learns_64_triplets_by_heart(loss):
    generator = torch.Generator().manual_seed(0)
    learns = [nn.Parameter(torch.randn(COUNT, 16, generator=generator)) for _ in range(2)]

    def scores() -> Tensor:
        return F.normalize(learns[0], dim=-1) @ F.normalize(learns[1], dim=-1).T

    assert learn(learns, lambda: LOSSES[loss](*learns), scores, 0.1) == 1
