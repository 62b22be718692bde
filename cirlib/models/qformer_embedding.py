"""The study's Q-Former, opened, and what it makes of stored image tokens: query and target embeddings."""

import numpy as np
import torch
from torch import Tensor

from cirlib.models.devices import DTYPES, autocast, best_device, precision_here
from cirlib.models.feature_store import ImageFeatures
from cirlib.models.prepared import Prepared
from cirlib.models.qformer import QFormerComposer, QFormerSettings, blip2_qformer, load_weights, mini_qformer
from cirlib.models.weights import ModelError, quiet_transformers
from cirlib.study.processes import all_reduce, shard


def new_composer(prepared: Prepared) -> QFormerComposer:
    """The Q-Former the study starts from, on the best device.

    >>> new_composer(prepared).settings
    QFormerSettings(fusion='one_pass', target='max')
    """
    params, models = prepared.stage.study.qformer, prepared.stage.study.models
    settings = QFormerSettings(params.fusion, params.target)
    if models.fusion == "mini":
        composer = mini_qformer(params.num_query_tokens, params.width, settings, params.layers)
    else:
        learns = {"ln_vision": models.trains_ln_vision, "prompts": params.sprc_terms > 0}
        composer = blip2_qformer(prepared.local_name(models.fusion), settings, **learns)
    if models.fusion_checkpoint:
        load_weights(composer, prepared.stage.root / models.fusion_checkpoint)
    if params.gradient_checkpointing:
        with quiet_transformers():  # it warns of adapters, which there are none of
            composer.qformer.activation_checkpointing_enable()
    composer.dtype = DTYPES[precision_here(models.precision)]
    return composer.to(best_device())


def trained_composer(prepared: Prepared, name: str) -> QFormerComposer:
    """A Q-Former of the study, by its method's name, as it was left to be used.

    >>> trained_composer(prepared, "qformer")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    cirlib.study.errors.StageError: qformer needs .../qformer, which is missing: run `dvc repro qformer` first
    """
    folder = prepared.stage.require(prepared.stage.results("qformer") / "checkpoints" / name, "qformer")
    composer = new_composer(prepared)
    try:
        load_weights(composer, folder)
    except ModelError as error:
        raise ModelError(f"{error}: `dvc repro qformer` brings it back") from error
    return composer.eval()


def pretrains(prepared: Prepared) -> bool:
    """Whether the study trains its Q-Former on image-caption pairs before any triplet.

    >>> pretrains(prepared)
    True
    """
    asked = prepared.splits.train and prepared.stage.study.qformer.pretraining_epochs
    return bool(asked) and len(prepared.pairs) > 1


def pretrained_composer(prepared: Prepared) -> QFormerComposer:
    """The Q-Former before any triplet: as the study pretrained it, else as it starts.

    >>> pretrained_composer(prepared)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    cirlib.study.errors.StageError: qformer needs .../qformer_pretrained, which is missing: run `dvc repro ...
    """
    return trained_composer(prepared, "qformer_pretrained") if pretrains(prepared) else new_composer(prepared).eval()


def embed_queries(
    composer: QFormerComposer, tokens: ImageFeatures, references: np.ndarray, texts: list[str], batch_size: int = 256
) -> Tensor:
    """Query embeddings (N, D) on the CPU for reference rows of ``tokens`` and texts.

    >>> embed_queries(new_composer(prepared), prepared.tokens, np.array([0, 1]), ["is blue", "is red"]).shape
    torch.Size([2, 16])
    """
    return _in_batches(composer, tokens, references, texts, batch_size)


def embed_gallery(composer: QFormerComposer, tokens: ImageFeatures, rows: np.ndarray, batch_size: int = 256) -> Tensor:
    """Target embeddings (M, D) or (M, Q, D) on the CPU for rows of ``tokens``.

    >>> embed_gallery(new_composer(prepared), prepared.tokens, np.arange(5)).shape
    torch.Size([5, 2, 16])
    """
    return _in_batches(composer, tokens, rows, None, batch_size)


@torch.inference_mode()
def _in_batches(
    composer: QFormerComposer, tokens: ImageFeatures, rows: np.ndarray, texts: list[str] | None, batch_size: int
) -> Tensor:
    """Several processes do some of the batches each."""

    def embed(part: slice) -> Tensor:
        images = tokens.read(rows[part], composer.device)
        return composer.embed_targets(images) if texts is None else composer.embed_queries(images, texts[part])

    with autocast(composer.device, composer.dtype):
        whole = torch.zeros(len(rows), *embed(slice(0, 1)).shape[1:])
        for start in shard(range(0, len(rows), batch_size)):
            part = slice(start, start + batch_size)
            whole[part] = embed(part).float().cpu()
    return all_reduce(whole)
