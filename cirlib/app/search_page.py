"""The search page of 06_search: pick or upload a reference, type an edit, compare two methods, go on from a result."""

from __future__ import annotations

import base64
import html
import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import ipywidgets as widgets
import numpy as np
import pandas as pd
from PIL import Image, ImageOps

from cirlib.app.search import MOST_BYTES, Hit, Reference, Search
from cirlib.figures import heated
from cirlib.study.errors import StudyError
from cirlib.study.method_registry import method_label
from cirlib.study.pictures import open_rgb

ALL = "all categories"
OFFERED = 8  # references to pick from at a time
WORDS = "Type what should be different, for example: is blue with long sleeves"
BALANCE = "left: the picture counts more; middle: as the study has it; right: the words count more"
STYLE = Path(__file__).with_name("search_page.css")


class Turn(NamedTuple):
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
        self.page = page
        options = [(method_label(m), m) for m in page.search.methods]
        self.method = widgets.Dropdown(options=options, value=method, description="method")
        self.method.observe(lambda _: page.attempt(self.answer), "value")
        self.time, self.why = widgets.HTML(), widgets.HTML()
        self.tiles = Tiles(name, lambda number: page.attempt(lambda: page.go_on(self.hits[number])))
        self.reasons = widgets.Accordion([self.why], titles=("why these",), selected_index=None)
        self.reasons.observe(lambda _: page.attempt(self._explain), "selected_index")
        self.widget = widgets.VBox([widgets.Box([self.method, self.time]), self.tiles.widget, self.reasons])
        self.widget.add_class("cir-side")

    def answer(self) -> None:
        """Searches as the page asks; before an edit was typed there is nothing to show."""
        page, turn = self.page, self.page.turn
        category = None if page.category.value == ALL else page.category.value
        options = {"category": category, "balance": page.balance.value, "count": page.hits}
        start, ask = time.perf_counter(), page.search.search
        self.hits = ask(turn.reference, turn.text, self.method.value, **options) if turn.text else []
        seconds = time.perf_counter() - start
        self.tiles.show(
            [open_rgb(hit.file) for hit in self.hits],
            [f"{rank} · {hit.score:.3f}" for rank, hit in enumerate(self.hits, start=1)],
            [f"rank {rank}, {hit.image}: go on from this one" for rank, hit in enumerate(self.hits, start=1)],
        )
        self.time.value = f"{1000 * seconds:.0f}&nbsp;ms" if self.hits else ""
        self._explain()

    def _explain(self) -> None:
        self.why.value = ""
        if not self.hits or self.reasons.selected_index is None:
            return
        (reference, text), best = self.page.turn, self.hits[0]
        scores = [(hit.score, hit.picture_alone, hit.words_alone) for hit in self.hits]
        names = ["score", "picture alone", "words alone"]
        table = pd.DataFrame(scores, range(1, len(scores) + 1), names).rename_axis("rank", axis=1)
        self.why.value = table.to_html(float_format="{:.3f}".format, border=0)
        if maps := self.page.search.attention(reference, text, self.method.value, best.image):
            self.why.value += _figure(heated(reference.picture, maps[0]), "where it looks, with the edit")
            self.why.value += _figure(heated(open_rgb(best.file), maps[1]), "and in the first result")


class SearchPage:
    """The whole page; show :attr:`widget`. ``left``, ``right``: methods of the columns, with so many ``hits`` each."""

    def __init__(self, search: Search, left: str, right: str, hits: int = 10) -> None:
        for method in (left, right):  # loads it, so that the time of its first answer is that of an answer
            search.search(search.reference(search.images[0]), "warm", method)
        self.search, self.hits = search, hits
        self.random = np.random.default_rng(search.study.seed)
        triplet = next(iter(search.prepared.splits.reported.values())).triplets[0]
        first = Turn(search.reference(triplet.reference), " ".join(" and ".join(triplet.captions).split()))
        self.turns = [first]
        self._make_controls()
        self.columns = [Column(self, "left", left), Column(self, "right", right)]
        self.widget = self._layout()
        self.shuffle()
        self.show([first])

    @property
    def turn(self) -> Turn:
        """Where the conversation is."""
        return self.turns[-1]

    def show(self, turns: list[Turn]) -> None:
        """Shows a conversation: the last turn's reference and edit, what each method finds, and the way here."""
        self.turns = turns
        self.reference.value = _figure(self.turn.reference.picture, self.turn.reference.image or "your picture")
        self.edit.value = self.turn.text
        self.back.disabled = len(self.turns) == 1
        self.history.show(
            [turn.reference.picture for turn in self.turns[:-1]],
            [turn.text[:14] + "…" * (len(turn.text) > 14) for turn in self.turns[:-1]],
            [f"back to here: {turn.text}" for turn in self.turns[:-1]],
        )
        self._answer()

    def type(self, text: str) -> None:
        """Searches with another edit of the same reference."""
        text = " ".join(text.split())
        if text != self.turn.text:
            self.turns[-1] = Turn(self.turn.reference, text)
            self._answer()

    def start(self, open_reference: Callable[[], Reference]) -> None:
        """Starts anew from a gallery image or a picture of one's own, with the edit as it is."""
        self.attempt(lambda: self.show([Turn(open_reference(), self.turn.text)]))

    def go_on(self, hit: Hit) -> None:
        """Makes a result the next reference; the edit is to be typed."""
        self.show([*self.turns, Turn(self.search.reference(hit.image), "")])

    def shuffle(self) -> None:
        """Offers other references of the category."""
        pool = self.search.galleries.get(self.category.value, self.search.images)
        self.offered = self.random.permutation(pool)[:OFFERED].tolist()
        pictures = [open_rgb(self.search.files[image]) for image in self.offered]
        self.picks.show(pictures, [""] * len(pictures), [f"start from {image}" for image in self.offered])

    def _make_controls(self) -> None:
        def act(widget: widgets.Widget, does: Callable[[], None]) -> widgets.Widget:
            if isinstance(widget, widgets.Button):
                widget.on_click(lambda _: self.attempt(does))
            else:
                widget.observe(lambda _: self.attempt(does), "value")
            return widget

        names = list(self.search.galleries)
        self.reference, self.status = widgets.HTML(), widgets.HTML().add_class("cir-status")
        edit = widgets.Text(placeholder=WORDS, continuous_update=False, layout={"width": "auto"})
        self.edit = act(edit, lambda: self.type(edit.value))
        self.go = act(widgets.Button(description="Search", button_style="primary", icon="search"), self._answer)
        self.balance = act(widgets.FloatSlider(
            value=0, min=-1, max=1, step=0.25, continuous_update=False, readout=False, description="picture",
            tooltip=BALANCE,
        ), self._answer)  # fmt: skip
        category = widgets.Dropdown(options=[*names, ALL] if len(names) > 1 else names, description="category")
        self.category = act(category, lambda: (self.shuffle(), self._answer()))
        self.other = act(widgets.Button(description="Other references", icon="random"), self.shuffle)
        upload = widgets.FileUpload(accept="image/*", description="Upload", tooltip=f"up to {MOST_BYTES >> 20} MB")
        self.file = act(upload, self._upload)
        self.back = act(widgets.Button(description="Back", icon="arrow-left"), lambda: self.show(self.turns[:-1]))
        self.picks = Tiles("picks", lambda n: self.start(lambda: self.search.reference(self.offered[n])))
        self.history = Tiles("history", lambda n: self.attempt(lambda: self.show(self.turns[: n + 1])))

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
        self.attempt(lambda: [column.answer() for column in self.columns])
        if not self.turn.text:
            self.status.value = WORDS

    def attempt(self, act: Callable[[], None]) -> None:
        """Does something; what cannot be done is a sentence on the page."""
        self.status.value = ""
        try:
            act()
        except StudyError as error:
            self.status.value = f'<span class="cir-error" role="alert">{html.escape(str(error))}</span>'


def _thumbnail(picture: Image.Image, side: int) -> str:
    """The picture, letterboxed to a square, as a data address."""
    boxed, content = ImageOps.pad(picture, (2 * side, 2 * side), color="#F3F3F3"), io.BytesIO()
    boxed.save(content, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"


def _figure(picture: Image.Image, name: str, side: int = 168) -> str:
    image = f'<img src="{_thumbnail(picture, side)}" width="{side}" height="{side}" alt="{html.escape(name)}">'
    return f"<figure>{image}<br>{html.escape(name)}</figure>"


def _wrapped(*children: widgets.Widget) -> widgets.Box:
    return widgets.Box(children, layout={"align_items": "flex-start"}).add_class("cir-wrap")
