"""What a drawn garment is: the attributes a caption may speak of, and the values they take."""

import math
from dataclasses import dataclass, fields, replace
from operator import attrgetter

import numpy as np

from cirlib.benchmarks.edit_writer import pick

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (208, 36, 44),
    "burgundy": (112, 20, 48),
    "orange": (240, 124, 30),
    "yellow": (246, 208, 58),
    "olive": (116, 120, 48),
    "green": (36, 150, 82),
    "teal": (14, 126, 134),
    "light blue": (148, 200, 236),
    "blue": (40, 92, 208),
    "navy": (26, 36, 92),
    "purple": (112, 48, 152),
    "lavender": (192, 172, 230),
    "pink": (244, 140, 178),
    "brown": (122, 76, 44),
    "beige": (220, 198, 162),
    "white": (247, 246, 242),
    "gray": (146, 149, 154),
    "black": (36, 36, 41),
}
CATEGORIES = ("dress", "shirt", "toptee")
COLOURS = tuple(PALETTE)
PATTERNS = (
    "horizontal stripes",
    "vertical stripes",
    "polka dots",
    "checks",
    "floral",
    "color block",
    "zigzag",
)
FITS = ("fitted", "straight", "flared")
# Per category, the values each attribute may take, a frequent one more than once; sleeves, length and fit
# go from small to large.
VALUES: dict[str, dict[str, tuple[str, ...]]] = {
    "dress": {
        "sleeves": ("sleeveless", "cap", "short", "three-quarter", "long"),
        "neckline": ("crew", "v-neck", "scoop", "boat", "square"),
        "length": ("mini", "knee", "midi", "maxi"),
        "graphic": ("none", "none", "none", "flower", "heart"),
        "extra": ("none", "belt", "buttons", "ruffle", "bow"),
    },
    "shirt": {
        "sleeves": ("sleeveless", "short", "three-quarter", "long"),
        "neckline": ("crew", "v-neck", "collar", "stand"),
        "length": ("cropped", "regular", "tunic"),
        "graphic": ("none", "none", "star", "heart", "text", "circle", "flower"),
        "extra": ("none", "buttons", "pocket", "zipper"),
    },
    "toptee": {
        "sleeves": ("sleeveless", "cap", "short", "three-quarter", "long"),
        "neckline": ("crew", "v-neck", "scoop", "boat", "square"),
        "length": ("cropped", "regular", "tunic"),
        "graphic": ("none", "none", "star", "heart", "text", "circle", "flower"),
        "extra": ("none", "belt", "buttons", "ruffle", "bow"),
    },
}
for _values in VALUES.values():
    _values |= {
        "colour": COLOURS,
        "pattern": ("plain", "plain", *PATTERNS),
        "second_colour": COLOURS,
        "fit": FITS,
    }


@dataclass(frozen=True)
class Garment:
    """Everything a caption may speak of. `second_colour` is None where nothing shows it."""

    category: str
    colour: str
    pattern: str
    second_colour: str | None
    sleeves: str
    neckline: str
    length: str
    fit: str
    graphic: str
    extra: str


ATTRIBUTES = tuple(field.name for field in fields(Garment) if field.name != "category")
_values_of = attrgetter(*ATTRIBUTES)


def luminance(colour: str) -> float:
    """How bright a palette colour looks, 0 to 255 (Rec. 601 weights).

    >>> luminance("white") > luminance("navy")
    True
    """
    red, green, blue = PALETTE[colour]
    return 0.299 * red + 0.587 * green + 0.114 * blue


def contrasting(first: str, second: str) -> bool:
    """True where the two palette colours are easy to tell apart when one is drawn on the other.

    >>> contrasting("white", "navy"), contrasting("navy", "navy")
    (True, False)
    """
    distance = math.dist(PALETTE[first], PALETTE[second])
    return distance > 110 and abs(luminance(first) - luminance(second)) > 25


def random_garment(rng: np.random.Generator, category: str) -> Garment:
    """A garment of this category with every attribute drawn at random; the second colour is always set.

    >>> random_garment(np.random.default_rng(0), "dress").category
    'dress'
    """
    while True:
        values = {name: pick(rng, VALUES[category][name]) for name in ATTRIBUTES}
        if contrasting(values["colour"], values["second_colour"]):
            return Garment(category=category, **values)


def visible(garment: Garment) -> Garment:
    """The garment without a second colour where neither a pattern nor a graphic shows it.

    >>> visible(replace(garment, pattern="plain", graphic="none")).second_colour is None
    True
    """
    hidden = garment.pattern == "plain" and garment.graphic == "none"
    return replace(garment, second_colour=None) if hidden else garment


def difference(reference: Garment, target: Garment) -> frozenset[str]:
    """Names of the attributes in which the two garments differ.

    >>> difference(garment, replace(garment, length="other"))
    frozenset({'length'})
    """
    both = zip(ATTRIBUTES, _values_of(reference), _values_of(target), strict=True)
    return frozenset(name for name, old, new in both if old != new)
