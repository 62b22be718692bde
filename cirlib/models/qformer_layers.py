"""What of the Q-Former is not transformers' own: how texts come in, and a last layer without what nobody reads."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerLayer, Blip2TextEmbeddings

READ_AT_ONCE = 128  # texts read ahead


class TextEmbeddings(Blip2TextEmbeddings):
    """BLIP-2's: word and position embeddings behind the queries."""

    def forward(self, ids: Tensor, mask: Tensor, queries: Tensor) -> Tensor:
        """Ids and mask (B, L) and queries (B, Q, H) to the Q-Former's input (B, Q + L, H)."""
        return super().forward(input_ids=ids, query_embeds=queries)

    def around(self, ids: Tensor, prompts: Tensor) -> Tensor:
        """The start token, ``prompts`` (B, Q, H), then the rest of the text, numbered through: (B, Q + L, H)."""
        words = self.word_embeddings(ids)  # (B, L, H)
        mixed = torch.cat([words[:, :1], prompts, words[:, 1:]], dim=1)
        return mixed + self.position_embeddings.weight[: mixed.shape[1]]


class FrozenTextStates(nn.Module):
    """MiniLM below its last ``layers``, frozen: what it makes of a text, behind the queries. Copies share it."""

    def __init__(self, minilm: nn.Module, layers: int) -> None:
        super().__init__()
        self.lower = minilm.requires_grad_(False)
        del minilm.encoder.layer[len(minilm.encoder.layer) - layers :]
        self.known: dict[tuple[int, ...], Tensor] = {}  # token ids of a text read ahead → its states (L, H)

    def __deepcopy__(self, memo: dict) -> "FrozenTextStates":
        return self

    def hand_over_norm(self) -> nn.Module:
        """Its last norm, which it leaves to the Q-Former, whose input norm it becomes."""
        last = self.lower.encoder.layer[-1].output if len(self.lower.encoder.layer) else self.lower.embeddings
        norm, last.LayerNorm = last.LayerNorm, nn.Identity()
        return norm

    def forward(self, ids: Tensor, mask: Tensor, queries: Tensor) -> Tensor:
        """As :class:`TextEmbeddings`."""
        texts = _unpadded(ids, mask)
        if all(text in self.known for text in texts):
            states = pad_sequence([self.known[text] for text in texts], batch_first=True)
        else:
            states = self._read(ids, mask)
        return torch.cat([queries, states.to(queries.dtype)], dim=1)

    def mask(self, ids: Tensor) -> Tensor:
        """Which of padded ids (N, L) are a text's."""
        return (ids != self.lower.config.pad_token_id).long()

    def read_ahead(self, ids: Tensor, mask: Tensor) -> None:
        """Reads texts (N, L) once; of those that were read ahead before only these stay known.

        In an order of their own, so that a training which goes on after a stop reads the same to the last bit.
        """
        wanted = sorted(set(_unpadded(ids, mask)), key=lambda text: (len(text), text))
        if wanted == list(self.known):
            return
        self.known = {}
        for start in range(0, len(wanted), READ_AT_ONCE):
            rows = [torch.tensor(text) for text in wanted[start : start + READ_AT_ONCE]]
            ids, mask = pad_sequence(rows, True), pad_sequence([torch.ones_like(row) for row in rows], True)
            device = next(self.parameters()).device
            for row, states in zip(rows, self._read(ids.to(device), mask.to(device)), strict=True):
                self.known[tuple(row.tolist())] = states[: len(row)]

    @torch.no_grad()
    def _read(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.lower(input_ids=ids, attention_mask=mask).last_hidden_state


def _unpadded(ids: Tensor, mask: Tensor) -> list[tuple[int, ...]]:
    return [tuple(row[:count]) for row, count in zip(ids.tolist(), mask.sum(1).tolist(), strict=True)]


class LastLayer(Blip2QFormerLayer):
    """The Q-Former's last layer, which computes only those of its states that are read."""

    def forward(
        self, states: Tensor, mask: Tensor | None = None, image: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None, query_length: int = 0, read: slice = slice(None), **options: Any,
    ) -> Tensor:  # fmt: skip
        """States (B, Q + L, H) to those of the places ``read``, which are queries where there are any."""
        if mask is not None and mask.shape[2] > 1:  # (B, 1, Q + L, Q + L) or (B, 1, 1, Q + L)
            mask = mask[:, :, read]
        own = self.attention(states[:, read], None, states, mask, **options)
        if query_length == 0:
            return self.feed_forward_chunk(own)
        if self.has_cross_attention:
            own = self.crossattention(own, None, image, encoder_attention_mask, **options)
        return self.feed_forward_chunk_query(own)
