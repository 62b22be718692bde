"""How a query's captions become the text that a model reads, in evaluation and in training."""

import random
import re
from collections.abc import Sequence

import numpy as np

from .base import Benchmark, check_choice

CAPTION_STYLES = ("and", "both_orders", "first", "template", "raw")
STRIPPED = ".?, "  # from both ends of a caption


def join_captions(captions: Sequence[str], style: str) -> tuple[str, ...]:
    """A query's captions as the texts a model reads; the normalised features of several are averaged.

    But for "raw", each caption first loses the characters `.?, ` at both ends, and but for "and" one that is then empty
    is dropped; with none left the result is `("",)` in every style.

    - "and": CLIP4Cir's and SPRC's: one text, its first caption as `str.capitalize` makes it. As there, the "and" stays
      beside an empty caption (3 of FashionIQ's 6,016 val queries).
    - "both_orders": `("cap1 and cap2", "cap2 and cap1")`, unchanged in case.
    - "first": `("cap1",)`, the first caption that is not empty.
    - "template": SEARLE's sentence in both orders. Its pseudo-word for the reference becomes the word
      "something" for models that have none: `("a photo of something that cap1 and cap2", …)`.
    - "raw": the captions as they are written, `("cap1 and cap2",)`: how CIRR's and CIRCO's reach CLIP in public code,
      and FashionIQ's CoVR.

    Orders that give the same text are given once.

    >>> join_captions(["is Blue.", "has dots"], "and")
    ('Is blue and has dots',)
    """
    check_choice(style, CAPTION_STYLES, "caption style")
    if style == "raw":
        return (" and ".join(captions),)
    parts = _clean(captions)
    if not parts:
        return ("",)
    if style == "first":
        return (parts[0],)
    if style == "and":
        return (_sentence([caption.strip(STRIPPED) for caption in captions]),)
    orders = tuple(dict.fromkeys((" and ".join(parts), " and ".join(reversed(parts)))))
    return orders if style == "both_orders" else tuple(f"a photo of something that {o}" for o in orders)


def query_texts(benchmark: Benchmark, style: str) -> tuple[list[str], np.ndarray]:
    """The texts of all queries, flat, and for each text the query (row) it belongs to.

    >>> query_texts(prepared.splits.reported["hat"], "first")[1]
    array([0, 1, 2])
    """
    joined = [join_captions(triplet.captions, style) for triplet in benchmark.triplets]
    rows = np.repeat(np.arange(len(joined)), [len(texts) for texts in joined])
    return [text for texts in joined for text in texts], rows


def sample_join(captions: Sequence[str], rng: np.random.Generator | random.Random, single: float = 0.5) -> str:
    """A text for training: "A" or "B" with the probability ``single``, else "A and B" or "B and A".

    At 0.5 each has probability 1/4 (CLIP4Cir, SPRC). Stripping and capitals as in `join_captions(captions, "and")`; an
    empty caption is dropped, of which nothing could be learned.

    >>> sample_join(["is red"], np.random.default_rng(0))
    'Is red'
    """
    parts = _clean(captions)
    if not parts:
        return ""
    alone, draw = rng.random() < single, rng.random()
    return parts[int(draw * len(parts))].capitalize() if alone else _sentence(parts if draw < 0.5 else parts[::-1])


def clean_caption(text: str) -> str:
    """A text as LAVIS cleans it for BLIP-2: small letters, blanks for `.!"()*#:;~`, at most 50 words.

    >>> clean_caption('Is pink: with bows. "Long" ')
    'is pink with bows long'
    """
    text = re.sub(r"\s{2,}", " ", re.sub(r"[.!\"()*#:;~]", " ", text.lower())).rstrip("\n").strip(" ")
    return " ".join(text.split(" ")[:50])


def _clean(captions: Sequence[str]) -> list[str]:
    return [text for caption in captions if (text := caption.strip(STRIPPED))]


def _sentence(parts: Sequence[str]) -> str:
    return " and ".join([parts[0].capitalize(), *parts[1:]])
