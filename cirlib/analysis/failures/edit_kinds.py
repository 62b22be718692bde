"""What an edit speaks of, read from its captions with an open list of words, ``edit_lexicon.csv``."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

LEXICON = Path(__file__).with_name("edit_lexicon.csv")
UNCLASSIFIED = "unclassified"
SEVERAL = "several at once"
_LONGEST = 3  # words of a term
# a sleeve's length is no length
_SLEEVE_LENGTH = re.compile(r"\b(?:long|longer|short|shorter)(?= (?!and )(?:\w+ )?sleev)")


@cache
def lexicon() -> dict[str, dict[str, tuple[str, ...]]]:
    """Group → kind → terms. Group ``subject``: what changes; ``manner``: how that is said.

    A term is a word or a phrase; ``*`` at its end allows more letters.
    """
    groups: dict[str, dict[str, tuple[str, ...]]] = {}
    with LEXICON.open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            terms = tuple(term.strip() for term in row["terms"].split(";"))
            groups.setdefault(row["group"], {})[row["kind"]] = terms
    return groups


def subjects(captions: Sequence[str]) -> list[str]:
    """What the edit changes: ``colour``, ``sleeves``, …, each once in the lexicon's order; maybe none."""
    return _found("subject", captions)


def edit_kinds(captions: Sequence[str]) -> list[str]:
    """Every kind the edit is of: its subjects, ``negation``, ``comparison``, ``several at once``.

    ``["unclassified", …]`` where no subject is recognised.
    """
    changed = subjects(captions)
    several = [SEVERAL] if len(changed) > 1 else []
    return [*(changed or [UNCLASSIFIED]), *_found("manner", captions), *several]


def kind_names() -> list[str]:
    """All kinds in the order in which tables and figures list them."""
    groups = lexicon()
    return [*groups["subject"], UNCLASSIFIED, *groups["manner"], SEVERAL]


def unclassified_share(edits: Sequence[Sequence[str]]) -> float:
    """The share of edits none of whose words is known, in [0, 1]; 0 where there are no edits."""
    return sum(not subjects(captions) for captions in edits) / max(1, len(edits))


def _found(group: str, captions: Sequence[str]) -> list[str]:
    spoken = {kind for caption in captions for kind in _read(group, caption)}
    return [kind for kind in lexicon()[group] if kind in spoken]


def _read(group: str, caption: str) -> Iterator[str]:
    """The kinds of the terms in ``caption``; a phrase counts before its words: "tunic length" is a length, no tunic."""
    words = _SLEEVE_LENGTH.sub("", " ".join(re.findall(r"[\w']+", caption.lower().replace("’", "'")))).split()
    whole, beginnings = _terms(group)
    place = 0
    while place < len(words):
        for size in range(min(_LONGEST, len(words) - place), 0, -1):
            phrase = " ".join(words[place : place + size])
            kind = whole.get(phrase) or next((beginnings[b] for b in _beginnings(phrase) if b in beginnings), None)
            if kind:
                yield kind
                break
        place += size


def _beginnings(phrase: str) -> Iterator[str]:
    """Longest first, down to one letter of the last word."""
    return (phrase[:end] for end in range(len(phrase), phrase.rfind(" ") + 1, -1))


@cache
def _terms(group: str) -> tuple[dict[str, str], dict[str, str]]:
    """Term → kind: of whole terms, and of those that may go on."""
    terms = [(term, kind) for kind, terms in lexicon()[group].items() for term in terms]
    beginnings = {term[:-1]: kind for term, kind in terms if term.endswith("*")}
    return {term: kind for term, kind in terms if not term.endswith("*")}, beginnings
