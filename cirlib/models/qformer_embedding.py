"""The study's Q-Former, opened, and what it makes of stored image tokens: query and target embeddings."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from cirlib.models.devices import autocast, best_device, dtype_of
from cirlib.models.feature_store import ImageFeatures
from cirlib.models.prepared import Prepared
from cirlib.models.qformer import QFormerComposer, QFormerSettings, build_qformer, load_weights
from cirlib.models.weights import quiet_transformers
from cirlib.study.processes import all_reduce, shard


def new_composer(prepared: Prepared) -> QFormerComposer:
    """The Q-Former the study starts from, on the best device.

    >>> new_composer(prepared).settings
    QFormerSettings(fusion='one_pass', target='max')
    """
    stage, params, models = prepared.stage, prepared.stage.study.qformer, prepared.stage.study.models
    settings = QFormerSettings(params.fusion, params.target)
    checkpoint = models.fusion_checkpoint and stage.root / models.fusion_checkpoint
    sizes = {"num_query_tokens": params.num_query_tokens, "width": params.width}
    composer = build_qformer(prepared.local_name(models.fusion), checkpoint, settings, **sizes)
    if params.gradient_checkpointing:
        with quiet_transformers():  # it warns of adapters, which there are none of
            composer.qformer.activation_checkpointing_enable()
    composer.dtype = dtype_of(models.precision)
    return composer.to(best_device())


def trained_composer(prepared: Prepared, name: str) -> QFormerComposer:
    """A Q-Former as the study's training left it, to be used: ``qformer``, ``qformer_hard_negatives``, ``pretrained``.

    >>> trained_composer(prepared, "qformer")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    cirlib.study.errors.StageError: qformer needs .../qformer, which is missing: run `dvc repro qformer` first
    """
    folder = prepared.stage.require(prepared.stage.results("qformer") / "checkpoints" / name, "qformer")
    composer = new_composer(prepared)
    load_weights(composer, folder)
    return composer.eval()


def embed_queries(
    composer: QFormerComposer, tokens: ImageFeatures, references: np.ndarray, texts: list[str], batch_size: int = 256
) -> Tensor:
    """Query embeddings (N, D) on the CPU for reference rows of ``tokens`` and texts.

    >>> embed_queries(new_composer(prepared), prepared.tokens, np.array([0, 1]), ["is blue", "is red"]).shape
    torch.Size([2, 16])
    """

    def embed(part: slice) -> Tensor:
        return composer.embed_queries(tokens.read(references[part], composer.device), texts[part])

    return _in_batches(composer, embed, len(texts), batch_size)


def embed_gallery(composer: QFormerComposer, tokens: ImageFeatures, rows: np.ndarray, batch_size: int = 256) -> Tensor:
    """Target embeddings (M, D) or (M, Q, D) on the CPU for rows of ``tokens``.

    >>> embed_gallery(new_composer(prepared), prepared.tokens, np.arange(5)).shape
    torch.Size([5, 2, 16])
    """

    def embed(part: slice) -> Tensor:
        return composer.embed_targets(tokens.read(rows[part], composer.device))

    return _in_batches(composer, embed, len(rows), batch_size)


@torch.inference_mode()
def _in_batches(composer: QFormerComposer, embed: Callable[[slice], Tensor], count: int, batch_size: int) -> Tensor:
    """What ``embed`` gives for ``count`` rows, on the CPU; of several processes each does some of the batches."""
    with autocast(composer.device, composer.dtype):
        whole = torch.zeros(count, *embed(slice(0, 1)).shape[1:])
        for start in shard(range(0, count, batch_size)):
            rows = slice(start, min(start + batch_size, count))
            whole[rows] = embed(rows).float().cpu()
    return all_reduce(whole)
