"""The one writer of made edits: what changed, in units, becomes two sentences as two crowd workers write them.

What a unit is and how it is said is the vocabulary of its data: :mod:`cirlib.benchmarks.garments.captions` for drawn
garments, :mod:`cirlib.benchmarks.catalogues.wording` for a catalogue of photographs.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

T = TypeVar("T")
Phrase = tuple[str, str]  # ("is" | "has", the words that follow)
CONTRASTS = ("{new} instead of {old}", "{new} rather than {old}", "{new}, not {old},")
OPEN = re.compile(r"\b(no|not) | (instead of|rather than) ")  # without a verb what follows would be gone too
NAMED = 0.9  # chance that a change after the first two is named
STARTS = ("", "", "", "", "it ", "the {noun} ", "this one ")


@dataclass(frozen=True)
class Caption:
    """A sentence and the attributes it speaks of."""

    text: str
    mentions: frozenset[str]


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of the options, each equally likely.

    >>> pick(np.random.default_rng(0), ("red",))
    'red'
    """
    return options[int(rng.integers(len(options)))]


def two_sentences(
    rng: np.random.Generator, units: list[tuple[str, ...]], sentence: Callable[[list[tuple[str, ...]]], str]
) -> tuple[Caption, Caption]:
    """Two different sentences on the changes ``units``, each a group of attributes that one phrase tells.

    Each names changes that the other does not; together they name most, not all: a worker overlooks some. ``sentence``
    writes one on some of the units, differently each time. Raises ValueError where nothing changed.

    >>> said = iter(["is red", "has dots"])
    >>> two_sentences(np.random.default_rng(0), [("colour",), ("pattern",)], lambda share: next(said))[1].text
    'has dots'
    """
    if not units:
        raise ValueError("the two garments are the same: there is no edit to describe")
    shares = _shares(rng, units)
    texts = ["", ""]
    while texts[0] == texts[1]:
        texts = [sentence(share) for share in shares]
    first, second = (Caption(t, frozenset().union(*share)) for t, share in zip(texts, shares, strict=True))
    return first, second


def _shares(rng: np.random.Generator, units: list[tuple[str, ...]]) -> tuple[list, list]:
    """Which units the first and the second sentence take: none is empty, none is in both unless there is only one."""
    order = [units[i] for i in rng.permutation(len(units))]
    named = order[:2] + [unit for unit in order[2:] if rng.random() < NAMED]
    if len(named) == 1:
        return named, named
    cut = int(rng.integers(1, len(named)))
    return named[:cut], named[cut:]


def contrast(rng: np.random.Generator, new: str, old: str, chance: float) -> str:
    """The words for what is new, with so much chance beside those for what it replaces.

    >>> contrast(np.random.default_rng(0), "red", "blue", 1.0)
    'red rather than blue'
    """
    return pick(rng, CONTRASTS).format(new=new, old=old) if rng.random() < chance else new


def join_phrases(rng: np.random.Generator, phrases: list[Phrase], nouns: Sequence[str]) -> str:
    """Phrases to one sentence on a thing of one of the ``nouns``: "is blue with long sleeves", "blue, long sleeves", …

    >>> join_phrases(np.random.default_rng(0), [("is", "red"), ("has", "no belt"), ("has", "a hood")], ["coat"])
    'is red and has no belt and has a hood'
    """
    style = rng.random()
    if len(phrases) > 1 and style < 0.2:
        return mend(", ".join(words for _, words in phrases))
    start = pick(rng, STARTS).format(noun=pick(rng, nouns))
    qualities, features = (_told(verb, [words for own, words in phrases if own == verb]) for verb in ("is", "has"))
    if not (qualities and features):
        return mend(start + qualities + features)
    if style < 0.6 and not OPEN.search(qualities):
        return mend(f"{start}{qualities} with {features.removeprefix('has ')}")
    return mend(start + (f"{qualities} and {features}" if style < 0.8 else f"{features} and {qualities}"))


def _told(verb: str, words: list[str]) -> str:
    """Words behind their verb, which is said again where one before them names what is gone or replaced."""
    text = ""
    for said in words:
        text += f"{verb} {said}" if not text else f" and {verb} {said}" if OPEN.search(text) else f" and {said}"
    return text


def mend(text: str) -> str:
    """Mends articles ("a orange" → "an orange") and commas left at the end or doubled.

    >>> mend("has a orange bow,")
    'has an orange bow'
    """
    text = re.sub(r"\ba (?=[aeiou])", "an ", text)
    return re.sub(r",+(?=,|$)", "", text).strip()
