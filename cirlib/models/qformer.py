"""The Q-Former as a composer: reference tokens and a typed edit become one query embedding.

Li et al., BLIP-2 (2023) for the module; SPRC (Bai et al., 2024) and CoVR (Ventura et al., 2024) for the two
ways to fuse.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
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
from cirlib.models.mini import IMAGE_WIDTH
from cirlib.models.weights import ModelError, minilm_folder, quiet_transformers
from cirlib.study.files import replace_file, write_json

MAX_TOKENS = 32  # of a text


@dataclass(frozen=True)
class QFormerSettings:
    """How the Q-Former fuses and what stands for a target.

    Attributes:
        fusion: ``one_pass``: mean of the projected query states (CoVR). ``two_pass``: the fused states replace the
            query tokens in a second, imageless pass with the same text, whose [CLS] state is projected (SPRC).
        target: ``max``: every projected state, scored by the best; ``mean``: their mean.
    """

    fusion: Literal["one_pass", "two_pass"] = "one_pass"
    target: Literal["max", "mean"] = "max"


class QFormerComposer(nn.Module):
    """The trainable part of BLIP-2: query tokens, text embeddings, Q-Former and the two projections.

    Shapes: B batch, Q query tokens, L text tokens, T image tokens of C channels, D embedding width.
    """

    def __init__(
        self, config: Blip2QFormerConfig, num_query_tokens: int, width: int, tokenizer, settings: QFormerSettings
    ) -> None:
        super().__init__()
        self.query_tokens = nn.Parameter(torch.empty(1, num_query_tokens, config.hidden_size).normal_(0, 0.02))
        self.embeddings = Blip2TextEmbeddings(config)
        self.qformer = Blip2QFormerModel(config)
        self.vision_projection = nn.Linear(config.hidden_size, width)
        self.text_projection = nn.Linear(config.hidden_size, width)
        self.log_temperature = nn.Parameter(torch.tensor(0.07).log())
        self.tokenizer, self.settings = tokenizer, settings
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
        fused = self.fuse(reference, ids, mask)  # (B, Q, H)
        if self.settings.fusion == "one_pass":
            return F.normalize(self.vision_projection(fused).mean(1), dim=-1)
        states = self._read(ids, mask, fused)  # (B, Q + L, H)
        return F.normalize(self.text_projection(states[:, fused.shape[1]]), dim=-1)

    def embed_targets(self, images: Tensor) -> Tensor:
        """Image tokens (B, T, C) to normalised target embeddings: (B, Q, D) for ``max``, (B, D) for ``mean``."""
        queries = self.query_tokens.expand(len(images), -1, -1)
        states = self.qformer(query_embeds=queries, encoder_hidden_states=images).last_hidden_state
        projected = self.vision_projection(states)  # (B, Q, D)
        return F.normalize(projected if self.settings.target == "max" else projected.mean(1), dim=-1)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts alone to normalised embeddings (B, D): the projected [CLS] state of an imageless pass."""
        ids, mask = self.tokenize(texts)
        states = self._read(ids, mask, self.query_tokens[:, :0].expand(len(ids), -1, -1))  # (B, L, H)
        return F.normalize(self.text_projection(states[:, 0]), dim=-1)

    def fuse(self, reference: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """The query states (B, Q, H) after one pass with the reference tokens (B, T, C) and tokenized texts."""
        queries = self.query_tokens.expand(len(reference), -1, -1)
        return self._read(ids, mask, queries, reference)[:, : queries.shape[1]]

    def _read(self, ids: Tensor, mask: Tensor, queries: Tensor, image: Tensor | None = None) -> Tensor:
        """The states (B, Q + L, H) after one pass over ``queries`` (B, Q, H) and texts (B, L).

        Without an image every token goes through the text feed-forward, as in BLIP-2.
        """
        count = queries.shape[1]
        return self.qformer(
            query_embeds=self.embeddings(input_ids=ids, query_embeds=queries),
            query_length=0 if image is None else count,
            attention_mask=torch.cat([mask.new_ones(len(mask), count), mask], dim=1),
            encoder_hidden_states=image,
        ).last_hidden_state

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids and mask, (B, L) each, on the module's device."""
        return self._pad(self._encode(texts))

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self.tokenizer(list(texts), truncation=True, max_length=MAX_TOKENS)["input_ids"]

    def _pad(self, encoded: list[list[int]]) -> tuple[Tensor, Tensor]:
        batch = self.tokenizer.pad({"input_ids": encoded}, return_tensors="pt").to(self.device)
        return batch["input_ids"], batch["attention_mask"]


def mean_token(images: Tensor) -> Tensor:
    """Target embeddings (M, D), or (M, Q, D) as the normalised mean of their tokens, for what wants one an image.

    >>> mean_token(torch.tensor([[[3.0, 0.0], [3.0, 8.0]]]))
    tensor([[0.6000, 0.8000]])
    """
    return images if images.ndim == 2 else F.normalize(images.mean(1), dim=-1)


def mini_qformer(num_query_tokens: int, width: int, settings: QFormerSettings) -> QFormerComposer:
    """A 6-layer Q-Former initialised from MiniLM as BLIP-2's is from BERT, on EfficientNet's 1,280-channel grid.

    The text path is MiniLM itself, the query feed-forwards start as copies of it, cross-attention starts random.

    >>> mini_qformer(8, 16, QFormerSettings()).embed_targets(torch.ones(2, 4, 1280)).shape
    torch.Size([2, 8, 16])
    """
    with quiet_transformers():
        text = AutoModel.from_pretrained(minilm_folder())
    shared = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    config = Blip2QFormerConfig(
        **{name: getattr(text.config, name) for name in (*shared, "max_position_embeddings", "layer_norm_eps")},
        cross_attention_frequency=2,
        encoder_hidden_size=IMAGE_WIDTH,
        use_qformer_text_input=True,
        attention_probs_dropout_prob=0.0,
        hidden_dropout_prob=0.0,
        attn_implementation="eager",  # on CPUs the fused kernel's backward is the slower one at these lengths
    )
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
    composer = QFormerComposer(config, num_query_tokens, width, tokenizer, settings)
    _copy_bert(text.state_dict(), composer)
    return composer


def _copy_bert(bert: dict[str, Tensor], composer: QFormerComposer) -> None:
    """Puts BERT's tensors under the Q-Former's names: feed-forwards go twice, for text and for queries."""
    embeddings = composer.embeddings
    embeddings.word_embeddings.weight.data.copy_(bert["embeddings.word_embeddings.weight"])
    positions = bert["embeddings.position_embeddings.weight"] + bert["embeddings.token_type_embeddings.weight"][0]
    embeddings.position_embeddings.weight.data.copy_(positions)  # BERT's one token type is added to them
    state = composer.qformer.state_dict()
    for name in state:
        source = name.replace("_query.", ".").replace(".attention.attention.", ".attention.self.")
        source = source.replace("layernorm.", "embeddings.LayerNorm.")
        state[name] = bert.get(source, state[name])
    composer.qformer.load_state_dict(state)


def blip2_qformer(name: str, settings: QFormerSettings) -> QFormerComposer:
    """The pretrained Q-Former of ``Blip2ForImageTextRetrieval`` ``name``, with its heads and query tokens.

    >>> blip2_qformer(str(tiny_blip2), QFormerSettings()).query_tokens.shape
    torch.Size([1, 4, 32])
    """
    model, processor = load_blip2(name)
    config, width = model.config, model.config.image_text_hidden_size
    composer = QFormerComposer(config.qformer_config, config.num_query_tokens, width, processor.tokenizer, settings)
    for part in ("embeddings", "qformer", "vision_projection", "text_projection"):
        getattr(composer, part).load_state_dict(getattr(model, part).state_dict())
    composer.query_tokens.data.copy_(model.query_tokens)
    return composer


def build_qformer(
    fusion: str, checkpoint: Path | None, settings: QFormerSettings, *, num_query_tokens: int, width: int
) -> QFormerComposer:
    """``mini`` or a BLIP-2 id or folder, then a trained checkpoint if given; that of a mini one decides its sizes.

    >>> build_qformer("mini", None, QFormerSettings(), num_query_tokens=3, width=16).query_tokens.shape
    torch.Size([1, 3, 384])
    """
    saved = _read_settings(checkpoint) if checkpoint is not None else {}
    if fusion == "mini":
        sizes = saved.get("num_query_tokens", num_query_tokens), saved.get("width", width)
        composer = mini_qformer(*sizes, settings)
    else:
        composer = blip2_qformer(fusion, settings)
    if checkpoint is not None:
        load_weights(composer, checkpoint)
    return composer


def save_weights(composer: QFormerComposer, folder: Path) -> None:
    """Writes ``model.safetensors`` and ``settings.json`` into ``folder``.

    >>> save_weights(composer, folder)
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().cpu().contiguous() for k, v in composer.state_dict().items()}
    replace_file(folder / "model.safetensors", lambda path: save_file(tensors, path))
    sizes = {"num_query_tokens": composer.query_tokens.shape[1], "width": composer.vision_projection.out_features}
    write_json(asdict(composer.settings) | sizes, folder / "settings.json")


def load_weights(composer: QFormerComposer, folder: Path) -> None:
    """Puts the weights saved in ``folder`` into ``composer``; a ModelError where they are missing or do not fit.

    >>> save_weights(composer, folder)
    >>> load_weights(composer, folder)
    """
    _read_settings(folder)
    try:
        composer.load_state_dict(load_file(folder / "model.safetensors"))
    except (RuntimeError, OSError, SafetensorError) as error:
        raise ModelError.because(f"the Q-Former in {folder} does not fit", error) from error


def _read_settings(folder: Path) -> dict:
    path = folder / "settings.json"
    if not path.is_file():
        raise ModelError(f"no trained Q-Former in {folder} (it holds no settings.json)")
    return json.loads(path.read_text())
