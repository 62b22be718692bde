"""BLIP-2's Q-Former (Li et al., 2023) as a composer: reference tokens and an edit become one query embedding."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer, Blip2QFormerConfig, Blip2QFormerModel

from cirlib.benchmarks.caption_joining import clean_caption
from cirlib.models.blip2 import load_blip2, own_state
from cirlib.models.devices import autocast
from cirlib.models.length_groups import by_length, quarters
from cirlib.models.mini import IMAGE_WIDTH
from cirlib.models.qformer_layers import FrozenTextStates, LastLayer, TextEmbeddings
from cirlib.models.weights import ModelError, minilm_folder, quiet_transformers
from cirlib.study.files import replace_file

MAX_TOKENS = 32  # of a text


@dataclass(frozen=True)
class QFormerSettings:
    """How the Q-Former fuses and what stands for a target.

    ``one_pass``: mean of the query states under the vision projection (our own). ``covr``: mean of their normalised
    *text* projections; a target is that of its normalised projections by the model as it came, which does not learn
    (CoVR: Ventura et al., 2024). ``two_pass``: the fused states replace the query tokens in a second, imageless pass
    with the same text, whose [CLS] state is projected (SPRC: Bai et al., 2024). ``max``: every projected state, scored
    by the best; ``mean``: their mean.
    """

    fusion: Literal["one_pass", "covr", "two_pass"] = "one_pass"
    target: Literal["max", "mean"] = "max"


class FrozenTargets(nn.Module):
    """The image side of a composer as it is now; it does not learn."""

    def __init__(self, composer: "QFormerComposer") -> None:
        super().__init__()
        for name in ("query_tokens", "image_norm", "qformer", "vision_projection"):
            setattr(self, name, deepcopy(getattr(composer, name)))
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> nn.Module:
        return super().train(False)


class QFormerComposer(nn.Module):
    """The trainable part of BLIP-2: query tokens, text embeddings, Q-Former and the two projections.

    Shapes: B batch, Q query tokens, L text tokens, T image tokens of C channels, D embedding width.
    """

    def __init__(
        self, config: Blip2QFormerConfig, num_query_tokens: int, width: int, tokenizer, settings: QFormerSettings,
        embeddings: nn.Module | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.query_tokens = nn.Parameter(torch.empty(1, num_query_tokens, config.hidden_size).normal_(0, 0.02))
        self.embeddings = TextEmbeddings(config) if embeddings is None else embeddings
        self.qformer = Blip2QFormerModel(config)
        self.qformer.encoder.layer[-1].__class__ = LastLayer
        self.vision_projection = nn.Linear(config.hidden_size, width)
        self.text_projection = nn.Linear(config.hidden_size, width)
        self.raw_temperature = nn.Parameter(torch.tensor(0.07))  # not its logarithm: a rate of 1e-5 would not move that
        self.image_norm: nn.Module = nn.Identity()  # BLIP-2's ln_vision where that learns
        self.prompt_tokens: nn.Parameter | None = None  # (1, Q, H), for SPRC's two further terms of the loss
        self.frozen: FrozenTargets | None = None  # covr's
        self.clean: Callable[[str], str] = str  # what is done to a text before it is tokenized
        self.tokenizer, self.settings = tokenizer, settings
        self.dtype: torch.dtype | None = None  # of its matrix products outside of training; None: the device's best

    @property
    def device(self) -> torch.device:
        return self.query_tokens.device

    @property
    def temperature(self) -> Tensor:
        """The learned temperature, kept in [0.01, 0.5]; outside of it the gradient still leads back."""
        raw = self.raw_temperature
        return raw + (raw.clamp(0.01, 0.5) - raw).detach()

    def embed_queries(self, reference: Tensor, texts: Sequence[str], terms: bool = False) -> Tensor:
        """Reference tokens (B, T, C) and B texts to normalised query embeddings (B, D).

        ``terms``: (B, 2 D + 1), with what SPRC's loss reads beside: the text with the prompt tokens in it, normalised
        (B, D), and the squared distance of the mean fused state from the mean prompt token, a channel (B, 1).
        """

        def embed(rows: list[int]) -> Tensor:
            return self._embed_group(reference[rows], *self.tokenize([texts[i] for i in rows]), terms)

        return by_length(embed, texts, quarters(texts))

    def _embed_group(self, reference: Tensor, ids: Tensor, mask: Tensor, terms: bool = False) -> Tensor:
        fused = self.fuse(reference, ids, mask)  # (B, Q, H)
        if self.settings.fusion == "one_pass":
            query = F.normalize(self.vision_projection(fused).mean(1), dim=-1)
        elif self.settings.fusion == "covr":
            query = F.normalize(F.normalize(self.text_projection(fused), dim=-1).mean(1), dim=-1)
        else:
            start = self._read(ids, mask, fused, slice(fused.shape[1], fused.shape[1] + 1))  # (B, 1, H)
            query = F.normalize(self.text_projection(start[:, 0]), dim=-1)
        if not terms:
            return query
        prompts = self.prompt_tokens.expand(len(ids), -1, -1)
        start = self._states(self.embeddings.around(ids.to(self.device), prompts), mask, slice(1))  # (B, 1, H)
        relation = F.normalize(self.text_projection(start[:, 0]), dim=-1)
        apart = (fused.mean(1) - prompts.mean(1).detach()).square().mean(1, keepdim=True)  # (B, 1)
        return torch.cat([query, relation, apart], dim=1)

    def embed_targets(self, images: Tensor) -> Tensor:
        """Image tokens (B, T, C) to normalised target embeddings: (B, Q, D) for ``max``, (B, D) for ``mean``."""
        side = self.frozen or self
        queries = side.query_tokens.expand(len(images), -1, -1)
        states = side.qformer(query_embeds=queries, encoder_hidden_states=side.image_norm(images)).last_hidden_state
        projected = side.vision_projection(states)  # (B, Q, D)
        if self.settings.fusion == "covr":
            projected = F.normalize(projected, dim=-1)
        return F.normalize(projected if self.settings.target == "max" else projected.mean(1), dim=-1)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts alone to normalised embeddings (B, D): the projected [CLS] state of an imageless pass."""

        def embed(rows: list[int]) -> Tensor:
            ids, mask = self.tokenize([texts[i] for i in rows])
            start = self._read(ids, mask, self.query_tokens[:, :0].expand(len(ids), -1, -1), slice(1))  # (B, 1, H)
            return F.normalize(self.text_projection(start[:, 0]), dim=-1)

        return by_length(embed, texts, quarters(texts))

    def read_ahead(self, texts: Sequence[str]) -> None:
        """Has the frozen layers below a mini Q-Former read texts once that it will be given often."""
        if isinstance(self.embeddings, FrozenTextStates) and texts:
            with autocast(self.device, self.dtype):
                self.embeddings.read_ahead(*self.tokenize(texts))

    def fuse(self, reference: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """The query states (B, Q, H) after one pass with the reference tokens (B, T, C) and tokenized texts."""
        queries = self.query_tokens.expand(len(reference), -1, -1)
        return self._read(ids, mask, queries, slice(queries.shape[1]), self.image_norm(reference))

    def _read(self, ids: Tensor, mask: Tensor, queries: Tensor, read: slice, image: Tensor | None = None) -> Tensor:
        """The states of the places ``read`` after one pass over ``queries`` (B, Q, H) and texts (B, L)."""
        return self._states(self.embeddings(ids.to(self.device), mask.to(self.device), queries), mask, read, image)

    def _states(self, embedded: Tensor, mask: Tensor, read: slice, image: Tensor | None = None) -> Tensor:
        """The states of the places ``read`` after one pass over ``embedded`` (B, Q + L, H), texts with ``mask`` (B, L).

        Without an image every token goes through the text feed-forward, as in BLIP-2.
        """
        mask, count = mask.to(self.device), embedded.shape[1] - mask.shape[1]
        return self.qformer(
            query_embeds=embedded,
            query_length=0 if image is None else count,
            attention_mask=torch.cat([mask.new_ones(len(mask), count), mask], dim=1),
            encoder_hidden_states=image,
            read=read,
        ).last_hidden_state

    @torch.inference_mode()
    def attention_maps(self, images: Tensor, texts: Sequence[str] | None = None) -> Tensor:
        """Each query token's attention over the image in the last cross-attention layer, mean of the heads.

        Args:
            images: tokens (B, T, C); T is a square number, or one more for a leading class token; else a ValueError.
            texts: B edits: how a reference is read with its edit. None: how a target is read, without text.

        Returns:
            maps (B, Q, S, S), row by row from the top left; each sums to 1, less what went to the class token.
        """
        side = isqrt(images.shape[1])
        extra = images.shape[1] - side * side
        if extra > 1:
            raise ValueError(f"image tokens must be a square grid, with or without a class token, got {images.shape}")
        qformer = (self.frozen or self if texts is None else self).qformer
        layer = [layer for layer in qformer.encoder.layer if layer.has_cross_attention][-1]
        seen: list[Tensor] = []  # (B, heads, Q, T)
        handle = layer.crossattention.attention.register_forward_hook(lambda _module, _args, out: seen.append(out[1]))
        kernel = qformer.config._attn_implementation
        qformer.set_attn_implementation("eager")  # the one kernel that gives its weights
        try:
            self.embed_targets(images) if texts is None else self.fuse(images, *self.tokenize(texts))
        finally:
            qformer.set_attn_implementation(kernel)
            handle.remove()
        return seen[0].float().mean(1)[:, :, extra:].unflatten(2, (side, side))

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids and mask, (B, L) each, on the CPU."""
        options = {"truncation": True, "max_length": MAX_TOKENS, "padding": True, "return_tensors": "pt"}
        batch = self.tokenizer([self.clean(text) for text in texts], **options)
        return batch["input_ids"], batch["attention_mask"]


def mini_qformer(num_query_tokens: int, width: int, settings: QFormerSettings, layers: int = 6) -> QFormerComposer:
    """A Q-Former initialised from MiniLM as BLIP-2's is from BERT, on EfficientNet's 1,280-channel grid.

    It takes the place of MiniLM's last ``layers`` (1 to 6); those below read the text alone and stay frozen. The text
    path is MiniLM itself, the query feed-forwards start as copies of it, cross-attention starts random.

    >>> mini_qformer(8, 16, QFormerSettings(), layers=2).embed_targets(torch.ones(2, 4, 1280)).shape
    torch.Size([2, 8, 16])
    """
    with quiet_transformers():
        options = {"attn_implementation": "eager", "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        minilm = AutoModel.from_pretrained(minilm_folder(), add_pooling_layer=False, **options)
    upper = minilm.encoder.layer[-layers:].state_dict()
    frozen = FrozenTextStates(minilm, layers)
    shared = ("vocab_size", "hidden_size", "num_attention_heads", "intermediate_size")
    config = Blip2QFormerConfig(
        **{name: getattr(minilm.config, name) for name in (*shared, "max_position_embeddings", "layer_norm_eps")},
        num_hidden_layers=layers,
        cross_attention_frequency=2,
        encoder_hidden_size=IMAGE_WIDTH,
        use_qformer_text_input=True,
        attention_probs_dropout_prob=0.0,
        hidden_dropout_prob=0.0,
        attn_implementation="eager",  # on CPUs the fused kernel's backward is the slower one at these lengths
    )
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
    composer = QFormerComposer(config, num_query_tokens, width, tokenizer, settings, frozen)
    composer.qformer.layernorm.load_state_dict(frozen.hand_over_norm().state_dict())
    state = composer.qformer.encoder.layer.state_dict()
    for name in state:  # MiniLM's feed-forwards go twice, for text and for queries
        source = name.replace("_query.", ".").replace(".attention.attention.", ".attention.self.")
        state[name] = upper.get(source, state[name])
    composer.qformer.encoder.layer.load_state_dict(state)
    return composer


def blip2_qformer(
    name: str, settings: QFormerSettings, *, ln_vision: bool = False, prompts: bool = False
) -> QFormerComposer:
    """The pretrained Q-Former of ``Blip2ForImageTextRetrieval`` ``name``, with its heads and query tokens.

    ``ln_vision``: the last norm of the vision tower is a part of it and learns, so that it takes tokens from before.
    ``prompts``: it has prompt tokens, those of a converted SPRC or random ones.

    >>> blip2_qformer(str(tiny_blip2), QFormerSettings()).query_tokens.shape
    torch.Size([1, 4, 32])
    """
    model, processor = load_blip2(name)
    config, width = model.config, model.config.image_text_hidden_size
    composer = QFormerComposer(config.qformer_config, config.num_query_tokens, width, processor.tokenizer, settings)
    composer.clean = clean_caption
    if ln_vision:
        composer.image_norm = model.vision_model.post_layernorm
    if prompts:
        composer.prompt_tokens = nn.Parameter(torch.empty_like(composer.query_tokens).normal_(0, 0.02))
    composer.load_state_dict(model.state_dict() | own_state(name), strict=False)  # the tower and a head are left out
    composer.frozen = FrozenTargets(composer) if settings.fusion == "covr" else None
    return composer


def save_weights(composer: QFormerComposer, folder: Path) -> None:
    """Writes ``model.safetensors`` into ``folder``.

    >>> save_weights(composer, folder)
    """
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / "model.safetensors", lambda path: save_file(composer.state_dict(), path))


def load_weights(composer: QFormerComposer, folder: Path) -> None:
    """Puts the weights saved in ``folder`` into ``composer``; a ModelError where they are missing or do not fit.

    >>> save_weights(composer, folder)
    >>> load_weights(composer, folder)
    """
    try:
        state = load_file(folder / "model.safetensors")
        if composer.prompt_tokens is None:  # which only SPRC's loss reads
            state.pop("prompt_tokens", None)
        composer.load_state_dict(state)
    except (RuntimeError, OSError, SafetensorError) as error:
        raise ModelError.because(f"no Q-Former of this study could be loaded from {folder}", error) from error
