"""Which words a text has: what a sentence encoder, which knows their meaning, blurs where a shop's words are few."""

import re
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEAST = 3  # texts that have a word, below which it is not one of the vocabulary


class WordCounts(nn.Module):
    """The vocabulary of ``texts``; rare words count more (their inverse document frequency).

    >>> words = WordCounts(["red coat", "red hat", "red dress"])
    >>> words(["Red or blue", "blue"])
    tensor([[1.],
            [0.]])
    """

    def __init__(self, texts: Sequence[str]) -> None:
        super().__init__()
        counts = Counter(word for text in texts for word in _words(text))
        self.rows = {word: row for row, word in enumerate(sorted(w for w, n in counts.items() if n >= LEAST))}
        shares = torch.tensor([counts[word] / len(texts) for word in self.rows])
        self.register_buffer("rarity", 1 - shares.log())  # (V,)

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Texts as vectors of length one, (B, V); zero where none of the words is known."""
        found = torch.zeros(len(texts), len(self.rows), device=self.rarity.device)
        for row, text in enumerate(texts):
            found[row, [self.rows[word] for word in _words(text) if word in self.rows]] = 1
        return F.normalize(found * self.rarity, dim=-1)


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))
