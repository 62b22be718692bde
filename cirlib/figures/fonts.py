"""Letters that the style's own font lacks, as Chinese and Japanese ones: drawn with what fonts the system has."""

from functools import cache
from unicodedata import category

from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

FONT = "DejaVu Sans"


def use_installed_fonts(figure: Figure) -> bool:
    """Lets the figure's texts fall back to installed fonts where `FONT` lacks a letter; whether that was needed.

    What no font has is said in a sentence.

    >>> use_installed_fonts(Figure())
    False
    """
    texts = figure.findobj(Text)
    letters = frozenset(letter for text in texts for letter in text.get_text() if category(letter)[0] not in "CZ")
    lacking = frozenset(letters - _letters(font_manager.findfont(FONT)))
    if not lacking:
        return False
    families, left = _families(lacking)
    for text in texts:
        if lacking & set(text.get_text()):
            text.set_fontfamily([FONT, *families])
    if left:
        some = " ".join(sorted(left)[:5])
        print(
            f"No installed font has {some}: `sudo apt install fonts-noto-cjk fonts-symbola`, then draw the figure again"
        )
    return True


@cache
def _families(lacking: frozenset[str]) -> tuple[list[str], frozenset[str]]:
    """The fewest installed families that have the letters, and those that none has."""
    families, left = [], lacking
    files = sorted(font_manager.findSystemFonts())  # not matplotlib's own list, which is kept from long ago
    while files and left & _letters(best := max(files, key=lambda file: len(left & _letters(file)))):
        left -= _letters(best)
        font_manager.fontManager.addfont(best)
        families.append(FT2Font(best).family_name)
    return families, left


@cache
def _letters(file: str) -> frozenset[str]:
    """What can be drawn with a font; nothing with those that are pictures, as of emoji in colour."""
    try:
        font = FT2Font(file)
        return frozenset(map(chr, font.get_charmap())) if font.scalable else frozenset()
    except (RuntimeError, OSError):
        return frozenset()
