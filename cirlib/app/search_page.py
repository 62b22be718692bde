"""What the search page shows: references to pick from, a conversation of edits, two methods' results and why.

The address of a page says all that stands on it, so that the browser goes back and forth and an answer can be linked.
"""

import hashlib
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import jinja2
import numpy as np
from PIL import Image

from cirlib.app.search import Hit, Reference, Search
from cirlib.figures import heated
from cirlib.study.errors import StudyError
from cirlib.study.method_registry import method_label

HITS = 10  # of each method
OFFERED = 8  # references to pick from at a time
KEPT = 100  # uploads of all visitors
TEMPLATES = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)

Turn = tuple[str, str]  # from a reference, with an edit; empty before one was typed


@dataclass(frozen=True)
class View:
    """What a page shows: the turns of a conversation, and how the last edit is answered."""

    turns: tuple[Turn, ...]
    category: str  # empty: all
    left: str
    right: str
    balance: float = 0.0
    offer: int = 0  # other references to pick from with each

    @property
    def asked(self) -> tuple[Turn, ...]:
        """The turns up to the last with an edit: its results stand there until another is typed."""
        return self.turns[: max((number for number, turn in enumerate(self.turns, start=1) if turn[1]), default=0)]

    def address(self, **changes: Any) -> str:
        """Of the page with ``changes``.

        >>> View((("d1", "is red"),), "dress", "sum", "slerp").address(offer=1)
        '?category=dress&left=sum&right=slerp&balance=0.0&offer=1&reference=d1&text=is+red'
        """
        shown = replace(self, **changes)
        values = {name: getattr(shown, name) for name in ("category", "left", "right", "balance", "offer")}
        references, texts = zip(*shown.turns, strict=True)
        return f"?{urlencode(values | {'reference': references, 'text': texts}, doseq=True)}"


@dataclass
class SearchSite:
    """What all visitors share: the search with its models, and the pictures that they uploaded."""

    search: Search
    first: View
    known: dict[Turn, tuple[str, ...]]  # the study's own queries → their targets
    uploads: dict[str, Reference] = field(default_factory=dict)

    def reference(self, image: str) -> Reference:
        """A picture of the gallery, or one that was uploaded."""
        return self.uploads[image] if image in self.uploads else self.search.reference(image)

    def upload(self, content: bytes, name: str) -> str:
        """Keeps a picture for a while; what it is called from now on."""
        image = f"upload-{hashlib.sha256(content).hexdigest()[:16]}"
        self.uploads[image] = self.search.upload(content, name)
        self.uploads[image].picture.thumbnail((800, 800))  # what is kept of it
        if len(self.uploads) > KEPT:
            del self.uploads[next(iter(self.uploads))]
        return image

    def offered(self, view: View) -> list[str]:
        """References to pick from."""
        pool = self.search.galleries.get(view.category, self.search.images)
        order = np.random.default_rng(self.search.study.seed + view.offer).permutation(len(pool))
        return [pool[row] for row in order[:OFFERED]]

    def page(self, view: View) -> str:
        """A view as HTML; what cannot be searched is a sentence on it."""
        columns, error = [], ""
        try:
            self.reference(view.turns[-1][0])
            columns = [self._column(view, side) for side in ("left", "right") if view.asked]
        except StudyError as problem:
            error = str(problem)
        texts = {"error": error, "in_words": in_words, "method_label": method_label}
        return TEMPLATES.get_template("search_page.html").render(texts, site=self, view=view, columns=columns)

    def _column(self, view: View, side: str) -> dict[str, Any]:
        """One method's answer to the last edit, and the time it took."""
        (image, text), method, start = view.asked[-1], getattr(view, side), time.perf_counter()
        options = {"category": view.category or None, "balance": view.balance, "count": HITS}
        hits = self.search.search(self.reference(image), text, method, **options)
        milliseconds = 1000 * (time.perf_counter() - start)
        return {"side": side, "method": method, "hits": hits, "milliseconds": milliseconds}

    def attention(self, image: str, text: str, method: str, found: str) -> list[Image.Image]:
        """Where a method looks: over the reference, with the edit, and over the image that it found."""
        reference = self.reference(image)
        pictures = [reference.picture, self.search.reference(found).picture]
        maps = self.search.attention(reference, text, method, found)
        return [heated(picture, heat) for picture, heat in zip(pictures, maps, strict=True)] if maps else pictures


def open_site(search: Search, left: str, right: str | None = None) -> SearchSite:
    """The page of a search, with the methods ``left`` and ``right`` (None: the best trained one); loads both.

    >>> open_site(Search(prepared), "sum")
    Traceback (most recent call last):
    cirlib.study.errors.StageError: qformer needs results/small/zero_shot/weights.json, which is missing: ...
    """
    right = right or search.best_trained
    for method in (left, right):  # so that the time of its first answer is that of an answer
        search.search(search.reference(search.images[0]), "warm", method)
    triplets = [triplet for part in search.prepared.splits.reported.values() for triplet in part.triplets]
    known = {(t.reference, " ".join(" and ".join(t.captions).split())): t.targets for t in triplets}
    return SearchSite(search, View((next(iter(known)),), next(iter(search.galleries)), left, right), known)


def in_words(hit: Hit) -> str:
    """The numbers of a hit in a sentence.

    >>> in_words(Hit("d1", Path("d1.jpg"), score=0.71, picture_alone=0.4, words_alone=0.62))
    '0.710 with both, 0.400 with the picture alone, 0.620 with the words alone: the words say more for it.'
    """
    gap = hit.words_alone - hit.picture_alone
    more = "the words say" if gap > 0 else "the picture says"
    said = f"{more} more for it" if abs(gap) > 0.02 else "both say as much for it"
    parts = f"{hit.picture_alone:.3f} with the picture alone, {hit.words_alone:.3f} with the words alone"
    return f"{hit.score:.3f} with both, {parts}: {said}."
