"""The search page of 06_search: pick or upload a reference, type an edit, compare two methods, go on from a result."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ipywidgets as widgets
import numpy as np
from PIL import Image, ImageOps

from cirlib.app.search import MOST_BYTES, Found, Hit, Reference, Search, SearchError
from cirlib.figures import heated
from cirlib.study.methods import method_label
from cirlib.study.pictures import open_rgb

ALL = "all categories"
SIDE = 112  # pixels of a thumbnail
OFFERED = 8  # references to pick from at a time
WORDS = "Type what should be different, for example: is blue with long sleeves"
STYLE = """<style>
.cir-page { max-width: 1180px; }
.cir-page .widget-box, .cir-page .jupyter-widget-box { overflow: visible; min-width: 0; }
.cir-page .cir-tile { width: 112px !important; height: 138px !important; padding: 114px 2px 2px !important; margin: 3px;
  line-height: 20px; background-color: transparent; background-repeat: no-repeat; background-position: top center;
  background-size: 112px 112px; font-size: 12px; border-radius: 6px; color: var(--jp-ui-font-color1, #222); }
.cir-page .cir-bare { height: 116px !important; }
@media (max-width: 480px) { .cir-page .cir-tile { width: 84px !important; height: 106px !important;
  padding-top: 84px !important; background-size: 84px 84px; } .cir-page .cir-bare { height: 88px !important; } }
.cir-page .cir-tile:hover, .cir-page .cir-tile:focus-visible { outline: 2px solid #0072B2; box-shadow: none; }
.cir-page .cir-wrap { flex-flow: row wrap; }
.cir-page .cir-side { flex: 1 1 340px; min-width: 0; margin-right: 12px; }
.cir-page .cir-status { color: var(--jp-ui-font-color1, #222); min-height: 22px; }
.cir-page .cir-error { color: var(--jp-error-color1, #b00020); font-weight: 600; }
.cir-page table { border-collapse: collapse; font-size: 12px; color: var(--jp-ui-font-color1, #222); }
.cir-page td, .cir-page th { padding: 2px 10px 2px 0; text-align: right; }
.cir-page figure { display: inline-block; margin: 6px 10px 0 0; font-size: 12px;
  color: var(--jp-ui-font-color2, #555); }
</style>"""


@dataclass(frozen=True)
class Turn:
    """One step of a conversation: from a reference, with an edit (empty before one was typed)."""

    reference: Reference
    text: str


class Tiles:
    """Pictures in a row that can be clicked: buttons whose background is a thumbnail."""

    def __init__(self, name: str, clicked: Callable[[int], None]) -> None:
        self.name, self.clicked = name, clicked
        self.style = widgets.HTML()
        self.row = widgets.Box()
        self.row.add_class("cir-wrap")
        self.widget = widgets.VBox([self.style, self.row])

    def show(self, pictures: Sequence[Image.Image], captions: Sequence[str], hints: Sequence[str]) -> None:
        """As many tiles as pictures; ``captions`` stand under them, ``hints`` appear over them."""
        rules, buttons = [], []
        for number, (picture, caption, hint) in enumerate(zip(pictures, captions, hints, strict=True)):
            rules.append(f".cir-{self.name}-{number} {{ background-image: url({thumbnail(picture)}); }}")
            button = widgets.Button(description=caption, tooltip=hint)
            for name in ("cir-tile", f"cir-{self.name}-{number}", *(() if caption else ("cir-bare",))):
                button.add_class(name)
            button.on_click(lambda _, number=number: self.clicked(number))
            buttons.append(button)
        self.style.value = f"<style>{' '.join(rules)}</style>"
        self.row.children = buttons


class Column:
    """One method's answer: which method, its best images, the time it took, and why."""

    def __init__(self, page: SearchPage, name: str, method: str) -> None:
        self.page, self.found = page, None
        options = [(method_label(m), m) for m in page.search.methods]
        self.method = widgets.Dropdown(options=options, value=method, description="method")
        self.method.observe(lambda _: self.answer(), "value")
        self.time = widgets.HTML()
        self.tiles = Tiles(name, lambda number: page.go_on(self.found.hits[number]))
        self.why = widgets.HTML()
        self.reasons = widgets.Accordion([self.why], titles=("why these",), selected_index=None)
        self.reasons.observe(lambda _: self._explain(), "selected_index")
        self.widget = widgets.VBox([widgets.Box([self.method, self.time]), self.tiles.widget, self.reasons])
        self.widget.add_class("cir-side")

    def answer(self) -> None:
        """Searches as the page asks; before an edit was typed there is nothing to show."""
        if not self.page.turn.text:
            self.found = None
            self.tiles.show([], [], [])
            self.time.value, self.why.value = "", ""
            return
        self.found = self.page.ask(self.method.value)
        hits = self.found.hits
        self.tiles.show(
            [open_rgb(hit.file) for hit in hits],
            [f"{rank} · {hit.score:.3f}" for rank, hit in enumerate(hits, start=1)],
            [f"rank {rank}, {hit.image}: go on from this one" for rank, hit in enumerate(hits, start=1)],
        )
        self.time.value = f"{self.found.milliseconds:.0f}&nbsp;ms"
        self._explain()

    def _explain(self) -> None:
        if self.found is None or self.reasons.selected_index is None:
            return
        turn, best = self.page.turn, self.found.hits[0]
        looks = self.page.search.look(turn.reference, turn.text, self.found.method, best.image)
        self.why.value = parts_table(self.found) + (attention_html(turn.reference, best, looks) if looks else "")


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
            if method not in search.methods:
                raise SearchError(f"There is no method {method!r}, there are: {', '.join(search.methods)}.")
            search.warm(method)
        self.search, self.hits = search, hits
        self.random = np.random.default_rng(search.study.seed)
        self.offered: list[str] = []
        triplet = search.example()
        self.turns = [Turn(search.reference(triplet.reference), " ".join(" and ".join(triplet.captions).split()))]
        self._controls()
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
        self.reference.value = picture_html(self.turn.reference.picture, self.turn.reference.image or "your picture")
        self.edit.value = self.turn.text
        self.back.disabled = len(self.turns) == 1
        self.history.show(
            [turn.reference.picture for turn in self.turns[:-1]],
            [turn.text[:14] + "…" * (len(turn.text) > 14) for turn in self.turns[:-1]],
            [f"back to here: {turn.text}" for turn in self.turns[:-1]],
        )
        self._tell(self._answer)

    def type(self, text: str) -> None:
        """Searches with another edit of the same reference."""
        if " ".join(text.split()) == self.turn.text and text.strip():
            return
        self.turns[-1] = Turn(self.turn.reference, " ".join(text.split()))
        self._tell(self._answer)

    def pick(self, image: str) -> None:
        """Starts anew from a gallery image, with the edit as it is."""
        self._start(lambda: self.search.reference(image))

    def upload(self, content: bytes, name: str) -> None:
        """Starts anew from a picture of one's own."""
        self._start(lambda: self.search.upload(content, name))

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
        pool = self.search.images if self.category.value == ALL else self.search.galleries[self.category.value]
        self.offered = self.random.permutation(pool)[:OFFERED].tolist()
        pictures = [open_rgb(self.search.files[image]) for image in self.offered]
        self.picks.show(pictures, [""] * len(pictures), [f"start from {image}" for image in self.offered])

    def _controls(self) -> None:
        wide = widgets.Layout(width="auto")
        self.reference, self.status = widgets.HTML(), widgets.HTML()
        self.edit = widgets.Text(placeholder=WORDS, continuous_update=False, layout=wide)
        self.edit.observe(lambda change: self.type(change.new), "value")
        self.go = widgets.Button(description="Search", button_style="primary", icon="search")
        self.go.on_click(lambda _: self._tell(self._answer))
        self.balance = widgets.FloatSlider(
            value=0, min=-1, max=1, step=0.25, continuous_update=False, readout=False, description="picture",
            tooltip="left: the picture counts more; middle: as the study has it; right: the words count more",
        )  # fmt: skip
        self.balance.observe(lambda _: self._tell(self._answer), "value")
        names = list(self.search.galleries)
        options = [*names, ALL] if len(names) > 1 else names
        self.category = widgets.Dropdown(options=options, description="category")
        self.category.observe(lambda _: (self.shuffle(), self._tell(self._answer)), "value")
        self.other = widgets.Button(description="Other references", icon="random")
        self.other.on_click(lambda _: self.shuffle())
        self.file = widgets.FileUpload(accept="image/*", description="Upload", tooltip=f"up to {MOST_BYTES >> 20} MB")
        self.file.observe(self._uploaded, "value")
        self.back = widgets.Button(description="Back", icon="arrow-left")
        self.back.on_click(lambda _: self.go_back())
        self.picks = Tiles("picks", lambda number: self.pick(self.offered[number]))
        self.history = Tiles("history", self.go_back)
        self.status.add_class("cir-status")

    def _layout(self) -> widgets.Widget:
        balance = widgets.Box([self.balance, widgets.Label("words")])
        ask = widgets.VBox([self.edit, _wrapped(self.go, balance), self.status], layout={"flex": "1 1 340px"})
        start = _wrapped(self.category, self.other, self.file, self.back)
        parts = [
            widgets.HTML(STYLE),
            start,
            self.picks.widget,
            _wrapped(self.reference, ask),
            self.history.widget,
            _wrapped(*(column.widget for column in self.columns)),
        ]
        return widgets.VBox(parts).add_class("cir-page")

    def _uploaded(self, change: dict) -> None:
        if change["new"]:
            first = change["new"][0]
            self.file.value = ()
            self.upload(bytes(first["content"]), first["name"])

    def _start(self, open_reference: Callable[[], Reference]) -> None:
        def start() -> None:
            self.turns = [Turn(open_reference(), self.turn.text)]
            self.refresh()

        self._tell(start)

    def _answer(self) -> None:
        for column in self.columns:
            column.answer()
        if not self.turn.text:
            self.status.value = WORDS

    def _tell(self, act: Callable[[], None]) -> None:
        """Does something; what cannot be done is a sentence on the page."""
        self.status.value = ""
        try:
            act()
        except SearchError as error:
            self.status.value = f'<span class="cir-error" role="alert">{html.escape(str(error))}</span>'


def thumbnail(picture: Image.Image, side: int = SIDE) -> str:
    """The picture, letterboxed to a square, as a data address."""
    boxed, content = ImageOps.pad(picture, (2 * side, 2 * side), color="#F3F3F3"), io.BytesIO()
    boxed.save(content, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"


def picture_html(picture: Image.Image, name: str, side: int = 168) -> str:
    """A picture with its name under it."""
    image = f'<img src="{thumbnail(picture, side)}" width="{side}" height="{side}" alt="{html.escape(name)}">'
    return f"<figure>{image}<br>{html.escape(name)}</figure>"


def parts_table(found: Found) -> str:
    """What each hit scores with both, with the picture alone, with the words alone."""
    rows = "".join(
        f"<tr><th scope=row>{rank}</th><td>{hit.score:.3f}</td><td>{hit.picture_alone:.3f}</td>"
        f"<td>{hit.words_alone:.3f}</td></tr>"
        for rank, hit in enumerate(found.hits, start=1)
    )
    head = "".join(f"<th scope=col>{name}</th>" for name in ("rank", "score", "picture alone", "words alone"))
    return f"<table><tr>{head}</tr>{rows}</table>"


def attention_html(reference: Reference, hit: Hit, looks: tuple[np.ndarray, np.ndarray]) -> str:
    """Where the query tokens look: over the reference with the edit, over the best result."""
    over, found = (
        heated(image, heat) for image, heat in zip((reference.picture, open_rgb(hit.file)), looks, strict=True)
    )
    return picture_html(over, "where it looks, with the edit") + picture_html(found, "and in the first result")


def _wrapped(*children: widgets.Widget) -> widgets.Box:
    return widgets.Box(children, layout={"align_items": "flex-start"}).add_class("cir-wrap")
