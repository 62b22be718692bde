"""The search page of 06_search: pick or upload a reference, type an edit, compare two methods, go on from a result."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import ipywidgets as widgets
import numpy as np
from PIL import Image, ImageOps

from cirlib.app.search import MOST_BYTES, Found, Hit, Reference, Search, SearchError
from cirlib.figures import heated
from cirlib.study.methods import method_label
from cirlib.study.pictures import open_rgb

ALL = "all categories"
OFFERED = 8  # references to pick from at a time
WORDS = "Type what should be different, for example: is blue with long sleeves"
BALANCE = "left: the picture counts more; middle: as the study has it; right: the words count more"
STYLE = Path(__file__).with_name("search_page.css")


@dataclass(frozen=True)
class Turn:
    """One step of a conversation: from a reference, with an edit (empty before one was typed)."""

    reference: Reference
    text: str


class Tiles:
    """Pictures in a row that can be clicked: buttons whose background is a thumbnail."""

    def __init__(self, name: str, clicked: Callable[[int], None]) -> None:
        self.name, self.clicked = name, clicked
        self.style, self.row = widgets.HTML(), _wrapped()
        self.widget = widgets.VBox([self.style, self.row])

    def show(self, pictures: Sequence[Image.Image], captions: Sequence[str], hints: Sequence[str]) -> None:
        """As many tiles as pictures; ``captions`` stand under them, ``hints`` appear over them."""
        rules, buttons = [], []
        for number, (picture, caption, hint) in enumerate(zip(pictures, captions, hints, strict=True)):
            rules.append(f".cir-{self.name}-{number} {{ background-image: url({_thumbnail(picture, 112)}); }}")
            button = widgets.Button(description=caption, tooltip=hint)
            button.add_class("cir-tile").add_class(f"cir-{self.name}-{number}")
            if not caption:
                button.add_class("cir-bare")
            button.on_click(lambda _, number=number: self.clicked(number))
            buttons.append(button)
        self.style.value, self.row.children = f"<style>{' '.join(rules)}</style>", buttons


class Column:
    """One method's answer: which method, its best images, the time it took, and why."""

    def __init__(self, page: SearchPage, name: str, method: str) -> None:
        self.page, self.found = page, None
        options = [(method_label(m), m) for m in page.search.methods]
        self.method = widgets.Dropdown(options=options, value=method, description="method")
        self.method.observe(lambda _: self.answer(), "value")
        self.time, self.why = widgets.HTML(), widgets.HTML()
        self.tiles = Tiles(name, lambda number: page.go_on(self.found.hits[number]))
        self.reasons = widgets.Accordion([self.why], titles=("why these",), selected_index=None)
        self.reasons.observe(lambda _: self._explain(), "selected_index")
        self.widget = widgets.VBox([widgets.Box([self.method, self.time]), self.tiles.widget, self.reasons])
        self.widget.add_class("cir-side")

    def answer(self) -> None:
        """Searches as the page asks; before an edit was typed there is nothing to show."""
        self.found = self.page.ask(self.method.value) if self.page.turn.text else None
        hits = self.found.hits if self.found else []
        self.tiles.show(
            [open_rgb(hit.file) for hit in hits],
            [f"{rank} · {hit.score:.3f}" for rank, hit in enumerate(hits, start=1)],
            [f"rank {rank}, {hit.image}: go on from this one" for rank, hit in enumerate(hits, start=1)],
        )
        self.time.value = f"{self.found.milliseconds:.0f}&nbsp;ms" if self.found else ""
        self._explain()

    def _explain(self) -> None:
        self.why.value = ""
        if self.found is None or self.reasons.selected_index is None:
            return
        turn, best = self.page.turn, self.found.hits[0]
        maps = self.page.search.attention(turn.reference, turn.text, self.found.method, best.image)
        self.why.value = _parts_table(self.found) + (_attention(turn.reference, best, *maps) if maps else "")


class SearchPage:
    """The whole page; show :attr:`widget`.

    Args:
        left, right: methods of the two columns.
        hits: results shown of each.

    Raises:
        SearchError: there is no such method.
    """

    def __init__(self, search: Search, left: str, right: str, hits: int = 10) -> None:
        for method in (left, right):
            search.warm(method)
        self.search, self.hits = search, hits
        self.random = np.random.default_rng(search.study.seed)
        self.offered: list[str] = []
        triplet = next(iter(search.prepared.splits.reported.values())).triplets[0]
        self.turns = [Turn(search.reference(triplet.reference), " ".join(" and ".join(triplet.captions).split()))]
        self._make_controls()
        self.columns = [Column(self, "left", left), Column(self, "right", right)]
        self.widget = self._layout()
        self.shuffle()
        self.refresh()

    @property
    def turn(self) -> Turn:
        """Where the conversation is."""
        return self.turns[-1]

    def ask(self, method: str) -> Found:
        """A method's answer to the turn."""
        category = None if self.category.value == ALL else self.category.value
        options = {"category": category, "balance": self.balance.value, "count": self.hits}
        return self.search.search(self.turn.reference, self.turn.text, method, **options)

    def refresh(self) -> None:
        """Shows the turn: its reference, its edit, what each method finds, and the way here."""
        self.reference.value = _figure(self.turn.reference.picture, self.turn.reference.image or "your picture")
        self.edit.value = self.turn.text
        self.back.disabled = len(self.turns) == 1
        self.history.show(
            [turn.reference.picture for turn in self.turns[:-1]],
            [turn.text[:14] + "…" * (len(turn.text) > 14) for turn in self.turns[:-1]],
            [f"back to here: {turn.text}" for turn in self.turns[:-1]],
        )
        self._try(self._answer)

    def type(self, text: str) -> None:
        """Searches with another edit of the same reference."""
        text = " ".join(text.split())
        if not text or text != self.turn.text:
            self.turns[-1] = Turn(self.turn.reference, text)
            self._try(self._answer)

    def start(self, open_reference: Callable[[], Reference]) -> None:
        """Starts anew from a gallery image or a picture of one's own, with the edit as it is."""

        def begin() -> None:
            self.turns = [Turn(open_reference(), self.turn.text)]
            self.refresh()

        self._try(begin)

    def go_on(self, hit: Hit) -> None:
        """Makes a result the next reference; the edit is to be typed."""
        self.turns.append(Turn(self.search.reference(hit.image), ""))
        self.refresh()

    def go_back(self, number: int = -1) -> None:
        """Back to a turn, by default the one before."""
        if len(self.turns) > 1:
            del self.turns[range(len(self.turns) - 1)[number] + 1 :]
            self.refresh()

    def shuffle(self) -> None:
        """Offers other references of the category."""
        pool = self.search.galleries.get(self.category.value, self.search.images)
        self.offered = self.random.permutation(pool)[:OFFERED].tolist()
        pictures = [open_rgb(self.search.files[image]) for image in self.offered]
        self.picks.show(pictures, [""] * len(pictures), [f"start from {image}" for image in self.offered])

    def _make_controls(self) -> None:
        def act(widget: widgets.Widget, does: Callable[[], None]) -> widgets.Widget:
            if isinstance(widget, widgets.Button):
                widget.on_click(lambda _: does())
            else:
                widget.observe(lambda _: does(), "value")
            return widget

        def search() -> None:
            self._try(self._answer)

        wide, names = widgets.Layout(width="auto"), list(self.search.galleries)
        self.reference, self.status = widgets.HTML(), widgets.HTML().add_class("cir-status")
        edit = widgets.Text(placeholder=WORDS, continuous_update=False, layout=wide)
        self.edit = act(edit, lambda: self.type(edit.value))
        self.go = act(widgets.Button(description="Search", button_style="primary", icon="search"), search)
        self.balance = act(widgets.FloatSlider(
            value=0, min=-1, max=1, step=0.25, continuous_update=False, readout=False, description="picture",
            tooltip=BALANCE,
        ), search)  # fmt: skip
        category = widgets.Dropdown(options=[*names, ALL] if len(names) > 1 else names, description="category")
        self.category = act(category, lambda: (self.shuffle(), search()))
        self.other = act(widgets.Button(description="Other references", icon="random"), self.shuffle)
        self.file = act(
            widgets.FileUpload(accept="image/*", description="Upload", tooltip=f"up to {MOST_BYTES >> 20} MB"),
            self._upload,
        )
        self.back = act(widgets.Button(description="Back", icon="arrow-left"), self.go_back)
        self.picks = Tiles("picks", lambda n: self.start(lambda: self.search.reference(self.offered[n])))
        self.history = Tiles("history", self.go_back)

    def _layout(self) -> widgets.Widget:
        balance = widgets.Box([self.balance, widgets.Label("words")])
        ask = widgets.VBox([self.edit, _wrapped(self.go, balance), self.status], layout={"flex": "1 1 340px"})
        return widgets.VBox([
            widgets.HTML(f"<style>{STYLE.read_text(encoding='utf-8')}</style>"),
            _wrapped(self.category, self.other, self.file, self.back),
            self.picks.widget,
            _wrapped(self.reference, ask),
            self.history.widget,
            _wrapped(*(column.widget for column in self.columns)),
        ]).add_class("cir-page")  # fmt: skip

    def _upload(self) -> None:
        if self.file.value:
            first, self.file.value = self.file.value[0], ()
            self.start(lambda: self.search.upload(bytes(first["content"]), first["name"]))

    def _answer(self) -> None:
        for column in self.columns:
            column.answer()
        if not self.turn.text:
            self.status.value = WORDS

    def _try(self, act: Callable[[], None]) -> None:
        """Does something; what cannot be done is a sentence on the page."""
        self.status.value = ""
        try:
            act()
        except SearchError as error:
            self.status.value = f'<span class="cir-error" role="alert">{html.escape(str(error))}</span>'


def _thumbnail(picture: Image.Image, side: int) -> str:
    """The picture, letterboxed to a square, as a data address."""
    boxed, content = ImageOps.pad(picture, (2 * side, 2 * side), color="#F3F3F3"), io.BytesIO()
    boxed.save(content, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"


def _figure(picture: Image.Image, name: str, side: int = 168) -> str:
    image = f'<img src="{_thumbnail(picture, side)}" width="{side}" height="{side}" alt="{html.escape(name)}">'
    return f"<figure>{image}<br>{html.escape(name)}</figure>"


def _parts_table(found: Found) -> str:
    """What each hit scores with both, with the picture alone, with the words alone."""
    rows = "".join(
        f"<tr><th scope=row>{rank}</th><td>{hit.score:.3f}</td><td>{hit.picture_alone:.3f}</td>"
        f"<td>{hit.words_alone:.3f}</td></tr>"
        for rank, hit in enumerate(found.hits, start=1)
    )
    head = "".join(f"<th scope=col>{name}</th>" for name in ("rank", "score", "picture alone", "words alone"))
    return f"<table><tr>{head}</tr>{rows}</table>"


def _attention(reference: Reference, hit: Hit, over: np.ndarray, found: np.ndarray) -> str:
    """The query tokens' attention over the reference with the edit, and over the best result."""
    before = _figure(heated(reference.picture, over), "where it looks, with the edit")
    return before + _figure(heated(open_rgb(hit.file), found), "and in the first result")


def _wrapped(*children: widgets.Widget) -> widgets.Box:
    return widgets.Box(children, layout={"align_items": "flex-start"}).add_class("cir-wrap")
