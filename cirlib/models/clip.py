"""Two-tower encoders: images and texts apart, into one space. CLIP through open_clip, or the mini towers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import open_clip
import torch
from open_clip.tokenizer import HFTokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from cirlib.models.devices import autocast
from cirlib.models.mini import ModelError, load_two_towers, minilm_folder, pixels_transform, reason, save_heads


class TwoTowers:
    """A CLIP-like model: an :class:`~cirlib.models.image_encoding.ImageEncoder` that also reads texts.

    Both sides are L2-normalised, so a dot product is the cosine similarity CLIP was trained on.
    """

    def __init__(self, model: nn.Module, tokenizer, transform, key: str, *, device: torch.device, dtype) -> None:
        self.model, self.tokenizer, self.transform, self.key = model.to(device).eval(), tokenizer, transform, key
        self.device, self.dtype = device, dtype
        self.shape = (embedding_width(model),)

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) to normalised embeddings (B, D)."""
        with autocast(self.device, self.dtype):
            return self.model.encode_image(pixels.to(self.device), normalize=True).float()

    def encode_texts(
        self, texts: Sequence[str], batch_size: int = 256, progress: bool = False, normalize: bool = True
    ) -> Tensor:
        """Texts to embeddings (N, D), on the CPU. Texts of like length go through together."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        starts = tqdm(range(0, len(texts), batch_size), desc="encoding texts", disable=not progress)
        features = torch.empty(len(texts), *self.shape)
        with torch.inference_mode():
            for rows in (order[i : i + batch_size] for i in starts):
                features[rows] = self.text_features([texts[i] for i in rows], normalize).cpu()
        return features

    def text_features(self, texts: list[str], normalize: bool = True) -> Tensor:
        """Texts to embeddings (B, D) with gradients, on the model's device."""
        with autocast(self.device, self.dtype):
            return self.model.encode_text(self.tokenize(texts).to(self.device), normalize=normalize).float()

    def tokenize(self, texts: list[str]) -> Tensor:
        """Token ids (B, L); where padding is masked (Hugging Face text towers), L is the longest text's."""
        ids = self.tokenizer(texts)
        if not isinstance(self.tokenizer, HFTokenizer):
            return ids
        longest = int((ids != self.tokenizer.tokenizer.pad_token_id).sum(1).max())
        return ids[:, :longest]


def embedding_width(model: nn.Module) -> int:
    """Width of the shared space of an open_clip model."""
    text = getattr(model, "text", None)
    if text is None:
        return model.text_projection.shape[-1]
    return text.output_dim if hasattr(text, "output_dim") else text.text_projection.shape[-1]


def load_clip(model: str, pretrained: str | None, *, device: torch.device, dtype: torch.dtype) -> TwoTowers:
    """A pretrained CLIP of open_clip, by architecture and tag or weights file.

    Raises:
        ModelError: open_clip knows no such pair, or the weights cannot be fetched.
    """
    if model not in open_clip.list_models() and not model.startswith(("hf-hub:", "local-dir:")):
        raise ModelError(f"open_clip knows no model {model!r}: `open_clip.list_models()` has the names")
    try:
        net, _, transform = open_clip.create_model_and_transforms(model, pretrained=pretrained, require_pretrained=True)
        tokenizer = open_clip.get_tokenizer(model)
    except Exception as error:  # a broken weights file gives nearly any
        raise ModelError(f"CLIP {model!r} with weights {pretrained!r} could not be loaded: {reason(error)}") from error
    key = f"open_clip {model} {pretrained} {fingerprint(net)} {dtype} {transform}"
    return TwoTowers(net, tokenizer, transform, key, device=device, dtype=dtype)


def load_mini_towers(path: Path, image_size: int, *, device: torch.device, dtype: torch.dtype) -> TwoTowers:
    """The mini two-tower model with the aligned heads saved at ``path``."""
    return wrap_mini_towers(load_two_towers(path), image_size, device=device, dtype=dtype)


def wrap_mini_towers(model: nn.Module, image_size: int, *, device: torch.device, dtype: torch.dtype) -> TwoTowers:
    """The mini two-tower ``model`` behind the common interface."""
    tokenizer = HFTokenizer(str(minilm_folder()), context_length=48)
    transform = pixels_transform(image_size)
    key = f"mini two towers {fingerprint(model)} {image_size} {dtype}"
    return TwoTowers(model, tokenizer, transform, key, device=device, dtype=dtype)


def fingerprint(model: nn.Module) -> str:
    """A short hash of every weight, so that features of other weights are never taken for these."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def align(
    model: open_clip.CustomTextCLIP,
    pooled: Tensor,
    texts: Tensor,
    *,
    epochs: int,
    lr: float,
    batch_size: int,
    seed: int,
) -> Iterator[dict[str, float]]:
    """Trains the two linear heads on frozen tower outputs with CLIP's loss; yields one record an epoch.

    Args:
        pooled: image tower outputs (N, 1280). texts: text tower outputs (N, 384), row for row.
    """
    image_head, text_head = model.visual.head, model.text.proj
    parameters = [*image_head.parameters(), *text_head.parameters(), model.logit_scale]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    loss_of = open_clip.ClipLoss()
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(1, epochs + 1):
        losses = []
        for rows in torch.randperm(len(pooled), generator=generator).split(batch_size):
            images = F.normalize(image_head(pooled[rows]), dim=-1)  # (B, D)
            captions = F.normalize(text_head(texts[rows]), dim=-1)  # (B, D)
            loss = loss_of(images, captions, model.logit_scale.exp())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            model.logit_scale.data.clamp_(0, 4.6052)  # CLIP caps the scale at 100
            losses.append(loss.item())
        schedule.step()
        yield {"epoch": epoch, "loss": sum(losses) / len(losses)}


__all__ = [
    "TwoTowers",
    "align",
    "embedding_width",
    "fingerprint",
    "load_clip",
    "load_mini_towers",
    "save_heads",
    "wrap_mini_towers",
]
