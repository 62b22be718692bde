"""What an edit speaks of, read from its captions with an open list of words, ``edit_lexicon.csv``."""

import re
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path

import pandas as pd

LEXICON = Path(__file__).with_name("edit_lexicon.csv")
UNCLASSIFIED = "unclassified"
_LONGEST = 3  # words of a term
# a sleeve's length is no length
_SLEEVE_LENGTH = re.compile(r"\b(?:long|longer|short|shorter)(?= (?!and )(?:\w+ )?sleev)")


@cache
def _lexicon(group: str) -> dict[str, str]:
    """Term → kind, of a group of kinds: ``subject`` (what changes) or ``manner`` (how that is said).

    A term is a word or a phrase; ``*`` at its end allows more letters.
    """
    table = pd.read_csv(LEXICON)
    rows = table[table["group"] == group].itertuples()
    return {term.strip(): row.kind for row in rows for term in row.terms.split(";")}


def subjects(captions: Sequence[str]) -> list[str]:
    """What the edit changes by its words: ``colour``, ``sleeves``, …, each once in the lexicon's order; maybe none.

    >>> subjects(["is red", "has longer sleeves"])
    ['colour', 'sleeves']
    """
    return _found("subject", captions)


def manners(captions: Sequence[str]) -> list[str]:
    """How the edit is put: ``negation``, ``comparison``; maybe neither.

    >>> manners(["is not as long"])
    ['negation', 'comparison']
    """
    return _found("manner", captions)


def _found(group: str, captions: Sequence[str]) -> list[str]:
    spoken = {kind for caption in captions for kind in _read(group, caption)}
    return [kind for kind in dict.fromkeys(_lexicon(group).values()) if kind in spoken]


@lru_cache(100_000)  # the queries of a study are read once for each of its methods
def _read(group: str, caption: str) -> list[str]:
    """The kinds of the terms in ``caption``; a phrase counts before its words: "tunic length" is a length, no tunic."""
    terms, kinds = _lexicon(group), []
    words = _SLEEVE_LENGTH.sub("", " ".join(re.findall(r"[\w']+", caption.lower().replace("’", "'")))).split()
    start = 0
    while start < len(words):
        for size in range(min(_LONGEST, len(words) - start), 0, -1):
            phrase = " ".join(words[start : start + size])
            ends = range(len(phrase), phrase.rfind(" ") + 1, -1)  # the longest beginning first, down to one letter
            names = (phrase, *(f"{phrase[:end]}*" for end in ends))
            if kind := next((terms[name] for name in names if name in terms), None):
                kinds.append(kind)
                break
        start += size
    return kinds
