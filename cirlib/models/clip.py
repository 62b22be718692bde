"""Two-tower encoders, CLIP and its kin through open_clip, and the zero-shot composers that mix their embeddings."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy, deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open_clip
import torch
from open_clip.tokenizer import HFTokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from cirlib.models.devices import autocast
from cirlib.models.length_groups import by_length
from cirlib.models.transforms import image_transform
from cirlib.models.weights import ModelError, fingerprint


@dataclass
class TwoTowers:
    """A CLIP-like model: an ``ImageEncoder`` that also reads texts; both sides are L2-normalised unless asked."""

    model: nn.Module
    tokenizer: Callable
    transform: Callable
    key: str
    device: torch.device
    dtype: torch.dtype
    normalizes: bool = True  # its image embeddings
    context: Tensor | None = None  # (M, H), learned vectors that every text is read with, behind its start token

    def __post_init__(self) -> None:
        self.model = self.model.to(self.device).eval()
        text = getattr(self.model, "text", self.model)  # a CLIP is its own text tower
        is_clips = hasattr(text, "token_embedding")
        self.word_embeddings: nn.Embedding = (
            text.token_embedding if is_clips else text.transformer.get_input_embeddings()
        )
        self.shape = (text.output_dim if hasattr(text, "output_dim") else text.text_projection.shape[-1],)

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) to embeddings (B, D)."""
        with autocast(self.device, self.dtype):
            return self.model.encode_image(pixels.to(self.device), normalize=self.normalizes).float()

    def encode_texts(self, texts: Sequence[str], batch_size: int = 64, normalize: bool = True) -> Tensor:
        """Texts to embeddings (N, D), on the CPU. Texts of like length go through together."""

        def embed(rows: list[int]) -> Tensor:
            return self.text_features([texts[i] for i in rows], normalize).cpu()

        with torch.no_grad():
            return by_length(embed, texts, batch_size) if texts else torch.empty(0, *self.shape)

    def text_features(self, texts: list[str], normalize: bool = True) -> Tensor:
        """Texts to embeddings (B, D) with gradients, on the model's device."""
        with autocast(self.device, self.dtype), self._with_context():
            return self.model.encode_text(self.tokenize(texts).to(self.device), normalize=normalize).float()

    def tokenize(self, texts: list[str]) -> Tensor:
        """Token ids (B, L); where padding is masked (Hugging Face text towers), L is the longest text's.

        The start token stands again in every place of the context. Too long a text ends earlier, in its end token.
        """
        count = 0 if self.context is None else len(self.context)
        ids = self.tokenizer(texts, self.tokenizer.context_length - count)
        if isinstance(self.tokenizer, HFTokenizer):
            ids = ids[:, : int((ids != self.tokenizer.tokenizer.pad_token_id).sum(1).max())]
        return torch.cat([ids[:, :1].expand(-1, count), ids], dim=1)

    @contextmanager
    def _with_context(self) -> Iterator[None]:
        """Inside, the text tower reads the context in its places, whatever else it does with positions and masks."""

        def put_in(_module: nn.Module, _args: tuple, words: Tensor) -> Tensor:  # (B, L, H)
            context = self.context.to(words.dtype).expand(len(words), -1, -1)  # (B, M, H)
            return torch.cat([words[:, :1], context, words[:, 1 + context.shape[1] :]], dim=1)

        hook = None if self.context is None else self.word_embeddings.register_forward_hook(put_in)
        try:
            yield
        finally:
            if hook is not None:
                hook.remove()


def trainable_texts(towers: TwoTowers) -> TwoTowers:
    """A copy of ``towers`` whose text side learns; it has no picture side, and the logit scale is frozen.

    >>> trainable_texts(prepared.towers()).model.logit_scale.requires_grad
    False
    """
    copied = copy(towers)
    copied.model = deepcopy(towers.model, {id(towers.model.visual): nn.Identity()}).requires_grad_(True)
    copied.model.logit_scale.requires_grad_(False)
    copied.__post_init__()
    return copied


def load_clip(
    model: str, pretrained: str | None, *, device: torch.device, dtype: torch.dtype, fit: str = "model"
) -> TwoTowers:
    """A pretrained CLIP of open_clip, by architecture and tag or weights file; a ModelError where it cannot be had.

    Of a tag it has the activation that its weights were trained with; of a file the architecture's own, which for
    OpenAI's is that of ``ViT-L-14-quickgelu``. ``fit``: how pictures become pixels, ``model`` (as open_clip does for
    these weights) or one of :func:`~cirlib.models.transforms.image_transform`.

    >>> load_clip("ViT-B-23", "openai", device=torch.device("cpu"), dtype=torch.float32)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    cirlib.models.weights.ModelError: CLIP 'ViT-B-23' with weights 'openai' could not be loaded: ... Available: ...
    """
    quick = {"force_quick_gelu": _wants_quick_gelu(model, pretrained)}
    try:
        net, _, transform = open_clip.create_model_and_transforms(
            model, pretrained=pretrained, require_pretrained=True, **quick
        )
        tokenizer = open_clip.get_tokenizer(model)
    except Exception as error:  # a broken weights file gives nearly any
        raise ModelError.because(f"CLIP {model!r} with weights {pretrained!r} could not be loaded", error) from error
    if fit != "model":
        pixels = net.visual.preprocess_cfg
        transform = image_transform(fit, int(np.max(pixels["size"])), pixels["mean"], pixels["std"])
    key = f"open_clip {model} {pretrained} {fingerprint(net)} {dtype} {transform}"
    return TwoTowers(net, tokenizer, transform, key, device, dtype)


def check_clip(model: str, pretrained: str | None) -> None:
    """A ModelError where open_clip knows no such architecture, or no such weights of it; one with a colon is a place.

    >>> check_clip("ViT-B-32", "openai")
    """
    if ":" in model or (pretrained and Path(pretrained).is_file()):
        return
    if model not in (known := open_clip.list_models()):
        raise ModelError(f"models.clip is {model!r}, which is none of open_clip's: {', '.join(known)}")
    if pretrained not in (tags := open_clip.list_pretrained_tags_by_model(model)):
        allowed = f"a file, or one of {', '.join(tags)}"
        raise ModelError(f"models.clip_pretrained is {pretrained!r}; allowed for {model} is {allowed}")


def _wants_quick_gelu(model: str, pretrained: str | None) -> bool:
    """Whether weights of open_clip's, by tag, want QuickGELU; a ModelError where the architecture cannot give GELU."""
    weights = open_clip.get_pretrained_cfg(model, pretrained or "")  # {} of what is no tag
    wanted = weights.get("quick_gelu", False)
    if weights and not wanted and open_clip.get_model_config(model).get("quick_gelu", False):
        raise ModelError(f"CLIP {model!r} computes QuickGELU, open_clip names GELU for its weights {pretrained!r}")
    return wanted


def weighted_sum(image: Tensor, text: Tensor, weight: float) -> Tensor:
    """``(1 - weight) · image + weight · text``, normalised: of (N, D) each, (N, D); ``weight`` in [0, 1].

    >>> weighted_sum(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), 0.5)
    tensor([[0.7071, 0.7071]])
    """
    return F.normalize((1 - weight) * image + weight * text, dim=-1)


def slerp(image: Tensor, text: Tensor, weight: float) -> Tensor:
    """Spherical interpolation from image (0) to text (1) along the great circle (Jang et al., 2024, Eq. 2).

    Of (N, D) each, normalised; where two are parallel it falls back to :func:`weighted_sum`, its limit.

    >>> slerp(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), 1 / 3)  # 30 of 90 degrees
    tensor([[0.8660, 0.5000]])
    """
    cosine = (image * text).sum(-1, keepdim=True).clamp(-1, 1)  # (N, 1)
    angle = torch.acos(cosine)
    sine = torch.sin(angle)
    mixed = (torch.sin((1 - weight) * angle) * image + torch.sin(weight * angle) * text) / sine
    return F.normalize(torch.where(sine > 1e-4, mixed, (1 - weight) * image + weight * text), dim=-1)
