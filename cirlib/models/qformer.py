"""The Q-Former as a composer: reference tokens and a typed edit become one query embedding.

Li et al., BLIP-2 (2023) for the module; SPRC (Bai et al., 2024) and CoVR (Ventura et al., 2024) for the two
ways to fuse.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer, Blip2QFormerConfig, Blip2QFormerModel
from transformers.models.blip_2.modeling_blip_2 import Blip2TextEmbeddings

from cirlib.models.blip2 import load_blip2
from cirlib.models.mini import IMAGE_WIDTH, ModelError, minilm_folder, quiet_transformers, reason
from cirlib.study.files import replace_file, write_json


@dataclass(frozen=True)
class QFormerSettings:
    """How the Q-Former fuses and what stands for a target.

    Attributes:
        fusion: ``one_pass``: mean of the projected query states (CoVR). ``two_pass``: the fused states replace the
            query tokens in a second, imageless pass with the same text, whose [CLS] state is projected (SPRC).
        target: ``max``: every projected state, scored by the best; ``mean``: their mean.
        max_tokens: text tokens kept.
    """

    fusion: Literal["one_pass", "two_pass"] = "one_pass"
    target: Literal["max", "mean"] = "max"
    max_tokens: int = 32


class QFormerComposer(nn.Module):
    """The trainable part of BLIP-2: query tokens, text embeddings, Q-Former and the two projections.

    Shapes: B batch, Q query tokens, L text tokens, T image tokens of C channels, D embedding width.
    """

    def __init__(
        self, config: Blip2QFormerConfig, num_query_tokens: int, width: int, tokenizer, form: QFormerSettings
    ) -> None:
        super().__init__()
        self.query_tokens = nn.Parameter(torch.empty(1, num_query_tokens, config.hidden_size).normal_(0, 0.02))
        self.embeddings = Blip2TextEmbeddings(config)
        self.qformer = Blip2QFormerModel(config)
        self.vision_projection = nn.Linear(config.hidden_size, width)
        self.text_projection = nn.Linear(config.hidden_size, width)
        self.log_temperature = nn.Parameter(torch.tensor(0.07).log())
        self.tokenizer, self.settings = tokenizer, form
        self.dtype: torch.dtype | None = None  # of its matrix products outside of training; None: the device's best

    @property
    def device(self) -> torch.device:
        return self.query_tokens.device

    @property
    def temperature(self) -> Tensor:
        """The learned temperature, kept in [0.01, 0.5]."""
        return self.log_temperature.exp().clamp(0.01, 0.5)

    def embed_queries(self, reference: Tensor, texts: Sequence[str]) -> Tensor:
        """Reference tokens (B, T, C) and B texts to normalised query embeddings (B, D).

        Texts of like length go through together, so that little is computed on padding.
        """
        encoded = self._encode(texts)
        lengths = torch.tensor([len(ids) for ids in encoded])
        groups = lengths.argsort(stable=True).split(max(32, -(-len(texts) // 2)))
        parts = [self._embed_group(reference[rows], *self._pad([encoded[i] for i in rows])) for rows in groups]
        return torch.cat(parts)[torch.cat(groups).argsort().to(self.device)]

    def _embed_group(self, reference: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        fused = self._fuse(reference, ids, mask)  # (B, Q, H)
        if self.settings.fusion == "one_pass":
            return F.normalize(self.vision_projection(fused).mean(1), dim=-1)
        return F.normalize(self.text_projection(self._second_pass(fused, ids, mask)), dim=-1)

    def embed_targets(self, images: Tensor) -> Tensor:
        """Image tokens (B, T, C) to normalised target embeddings: (B, Q, D) for ``max``, (B, D) for ``mean``."""
        queries = self.query_tokens.expand(len(images), -1, -1)
        states = self.qformer(query_embeds=queries, encoder_hidden_states=images).last_hidden_state
        projected = self.vision_projection(states)  # (B, Q, D)
        return F.normalize(projected if self.settings.target == "max" else projected.mean(1), dim=-1)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts alone to normalised embeddings (B, D): the projected [CLS] state of an imageless pass."""
        ids, mask = self.tokenize(texts)
        states = self.qformer(query_embeds=self.embeddings(input_ids=ids), query_length=0, attention_mask=mask)
        return F.normalize(self.text_projection(states.last_hidden_state[:, 0]), dim=-1)

    def fuse(self, reference: Tensor, texts: Sequence[str]) -> Tensor:
        """The query states (B, Q, H) after one pass with the reference tokens (B, T, C) and B texts."""
        return self._fuse(reference, *self.tokenize(texts))

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids and mask, (B, L) each, on the module's device."""
        return self._pad(self._encode(texts))

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self.tokenizer(list(texts), truncation=True, max_length=self.settings.max_tokens)["input_ids"]

    def _pad(self, encoded: list[list[int]]) -> tuple[Tensor, Tensor]:
        batch = self.tokenizer.pad({"input_ids": encoded}, return_tensors="pt").to(self.device)
        return batch["input_ids"], batch["attention_mask"]

    def _fuse(self, reference: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """The query states after one pass with text and image, (B, Q, H)."""
        queries = self.query_tokens.expand(len(reference), -1, -1)
        size = queries.shape[1]
        states = self.qformer(
            query_embeds=self.embeddings(input_ids=ids, query_embeds=queries),
            query_length=size,
            attention_mask=_with_queries(mask, size),
            encoder_hidden_states=reference,
        ).last_hidden_state  # (B, Q + L, H)
        return states[:, :size]

    def _second_pass(self, fused: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """The text's [CLS] state after an imageless pass in which ``fused`` stands for the query tokens, (B, H).

        ``query_length=0`` sends every token through the text feed-forward, as BLIP-2 does without an image.
        """
        size = fused.shape[1]
        states = self.qformer(
            query_embeds=self.embeddings(input_ids=ids, query_embeds=fused),
            query_length=0,
            attention_mask=_with_queries(mask, size),
        ).last_hidden_state
        return states[:, size]


def mean_token(images: Tensor) -> Tensor:
    """Target embeddings (M, D), or (M, Q, D) as the normalised mean of their tokens, for what wants one an image."""
    return images if images.ndim == 2 else F.normalize(images.mean(1), dim=-1)


def _with_queries(mask: Tensor, queries: int) -> Tensor:
    """Text mask (B, L) to the mask of query and text tokens (B, Q + L)."""
    return torch.cat([mask.new_ones(len(mask), queries), mask], dim=1)


def mini_qformer(num_query_tokens: int, width: int, form: QFormerSettings) -> QFormerComposer:
    """A 6-layer Q-Former initialised from MiniLM, cross-attending to EfficientNet's 1,280-channel grid.

    As BLIP-2 does with BERT: the text path is MiniLM itself, the query feed-forwards start as copies of it,
    cross-attention starts random.
    """
    with quiet_transformers():
        text = AutoModel.from_pretrained(minilm_folder())
    bert = text.config
    config = Blip2QFormerConfig(
        vocab_size=bert.vocab_size,
        hidden_size=bert.hidden_size,
        num_hidden_layers=bert.num_hidden_layers,
        num_attention_heads=bert.num_attention_heads,
        intermediate_size=bert.intermediate_size,
        max_position_embeddings=bert.max_position_embeddings,
        layer_norm_eps=bert.layer_norm_eps,
        cross_attention_frequency=2,
        encoder_hidden_size=IMAGE_WIDTH,
        use_qformer_text_input=True,
        attention_probs_dropout_prob=0.0,
        hidden_dropout_prob=0.0,
        attn_implementation="eager",  # on CPUs the fused kernel's backward is the slower one at these lengths
    )
    composer = QFormerComposer(config, num_query_tokens, width, AutoTokenizer.from_pretrained(minilm_folder()), form)
    _copy_bert(text.state_dict(), composer)
    return composer


def _copy_bert(bert: dict[str, Tensor], composer: QFormerComposer) -> None:
    """Puts BERT's tensors under the Q-Former's names; its one token type is added to the positions."""
    embeddings = composer.embeddings
    embeddings.word_embeddings.weight.data.copy_(bert["embeddings.word_embeddings.weight"])
    positions = bert["embeddings.position_embeddings.weight"] + bert["embeddings.token_type_embeddings.weight"][0]
    embeddings.position_embeddings.weight.data.copy_(positions)
    state = composer.qformer.state_dict()
    for name in ("weight", "bias"):
        state[f"layernorm.{name}"] = bert[f"embeddings.LayerNorm.{name}"]
    for name, tensor in bert.items():
        if name.startswith("encoder.layer."):
            state |= dict.fromkeys(_qformer_names(name), tensor)
    composer.qformer.load_state_dict(state)


def _qformer_names(bert_name: str) -> list[str]:
    """Where one of BERT's encoder tensors goes: feed-forwards go twice, for text and for queries."""
    if ".attention.self." in bert_name:
        return [bert_name.replace(".attention.self.", ".attention.attention.")]
    if ".intermediate." in bert_name:
        return [bert_name, bert_name.replace(".intermediate.", ".intermediate_query.")]
    if ".output." in bert_name and ".attention.output." not in bert_name:
        return [bert_name, bert_name.replace(".output.", ".output_query.")]
    return [bert_name]


def blip2_qformer(name: str, form: QFormerSettings) -> QFormerComposer:
    """The pretrained Q-Former of ``Blip2ForImageTextRetrieval`` ``name``, with its heads and query tokens."""
    model, processor = load_blip2(name)
    config = model.config
    composer = QFormerComposer(
        config.qformer_config,
        config.num_query_tokens,
        config.image_text_hidden_size,
        processor.tokenizer,
        form,
    )
    for part in ("embeddings", "qformer", "vision_projection", "text_projection"):
        getattr(composer, part).load_state_dict(getattr(model, part).state_dict())
    composer.query_tokens.data.copy_(model.query_tokens)
    return composer


def build_qformer(
    fusion: str, checkpoint: Path | None, form: QFormerSettings, *, num_query_tokens: int, width: int
) -> QFormerComposer:
    """The Q-Former a study starts from: ``mini`` or a BLIP-2 id or folder, then a trained checkpoint if given."""
    if fusion == "mini":
        if checkpoint is not None and checkpoint.is_dir():
            saved = _read_settings(checkpoint)
            num_query_tokens, width = saved["num_query_tokens"], saved["width"]
        composer = mini_qformer(num_query_tokens, width, form)
    else:
        composer = blip2_qformer(fusion, form)
    if checkpoint is not None:
        load_weights(composer, checkpoint)
    return composer


def save_weights(composer: QFormerComposer, folder: Path) -> None:
    """Writes ``model.safetensors`` and ``settings.json`` into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().cpu().contiguous() for k, v in composer.state_dict().items()}
    replace_file(folder / "model.safetensors", lambda path: save_file(tensors, path))
    settings = {
        "fusion": composer.settings.fusion,
        "target": composer.settings.target,
        "max_tokens": composer.settings.max_tokens,
        "num_query_tokens": composer.query_tokens.shape[1],
        "width": composer.vision_projection.out_features,
        "image_width": composer.qformer.config.encoder_hidden_size,
    }
    write_json(settings, folder / "settings.json")


def load_weights(composer: QFormerComposer, folder: Path) -> None:
    """Puts the weights saved in ``folder`` into ``composer``.

    Raises:
        ModelError: there are none, or they are of another size.
    """
    _read_settings(folder)
    try:
        composer.load_state_dict(load_file(folder / "model.safetensors"))
    except (RuntimeError, OSError, SafetensorError) as error:
        raise ModelError(f"the Q-Former in {folder} does not fit: {reason(error)}") from error


def _read_settings(folder: Path) -> dict:
    path = folder / "settings.json"
    if not path.is_file():
        raise ModelError(f"no trained Q-Former in {folder} (it holds no settings.json)")
    return json.loads(path.read_text())
