"""Letters that the style's font lacks: drawn with an installed one, or said in a sentence."""

from collections.abc import Callable
from pathlib import Path

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager

from cirlib import figures
from cirlib.figures import fonts


@pytest.fixture
def install(tmp_path: Path, monkeypatch):
    """Makes a font with a filled square for each of some letters the only one of the system."""

    def make(letters: str) -> None:
        pen = TTGlyphPen(None)
        for at, corner in enumerate(((0, 0), (0, 900), (900, 900), (900, 0))):
            (pen.lineTo if at else pen.moveTo)(corner)
        pen.closePath()
        square, names = pen.glyph(), [".notdef", *(f"u{ord(letter):X}" for letter in letters)]
        builder = FontBuilder(1000, isTTF=True)
        builder.setupGlyphOrder(names)
        builder.setupCharacterMap(dict(zip(map(ord, letters), names[1:], strict=True)))
        builder.setupGlyf(dict.fromkeys(names, square))
        builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
        builder.setupHorizontalHeader(ascent=900, descent=-100)
        family = f"Squares {len(letters)}"
        builder.setupNameTable({"familyName": family, "styleName": "Regular", "psName": family.replace(" ", "")})
        builder.setupOS2(usWeightClass=400)
        builder.setupPost()
        builder.save(tmp_path / "squares.ttf")
        monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(tmp_path / "squares.ttf")])
        fonts._families.cache_clear()
        fonts._letters.cache_clear()

    known = list(font_manager.fontManager.ttflist)
    yield make
    font_manager.fontManager.ttflist = known
    fonts._families.cache_clear()


@pytest.fixture
def draw(images, tmp_path) -> Callable[[str], tuple[bytes, list[str]]]:
    """The picture of an edit, and the fonts that it is written in."""

    def saved(text: str) -> tuple[bytes, list[str]]:
        figure = figures.picture_grid([[figures.Picture(images[0], "reference"), text]], "Asked")
        figures.save(figure, tmp_path / "a.png")
        return (tmp_path / "a.png").read_bytes(), figure.axes[1].texts[0].get_fontfamily()

    return saved


def test_letters_that_the_font_lacks_are_drawn_with_an_installed_one(install, draw, capsys):
    install("赤青红")
    shown, families = draw("赤 red")
    assert "Squares 3" in families and not capsys.readouterr().out
    assert draw("red")[1] == ["DejaVu Sans"]
    install("x")
    assert draw("赤 red")[0] != shown


def test_letters_that_no_font_has_are_named_once_with_the_remedy(install, draw, capsys, recwarn):
    install("青")
    draw("赤い服 👗")
    (said,) = capsys.readouterr().out.splitlines()
    assert "赤" in said and "👗" in said and "sudo apt install fonts-noto-cjk" in said
    assert not [str(warning.message) for warning in recwarn]


def test_long_edits_without_spaces_stay_in_their_tile(images):
    figure = figures.picture_grid([[figures.Picture(images[0], "reference"), "赤" * 60]], "Asked")
    text, tile = figure.axes[1].texts[0], figure.axes[1].get_window_extent()
    assert len(text.get_text().splitlines()) >= 3
    assert text.get_window_extent().width <= tile.width
