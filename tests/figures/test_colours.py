"""The methods' colours as people with each kind of colour blindness see them (Machado et al., 2009, severity 1)."""

from itertools import combinations

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from cirlib.figures.recall_plots import SOURCES
from cirlib.study.method_registry import METHODS

SEEN = {
    "everybody": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = TO_XYZ.sum(1)


def lab(colour: str, seen: np.ndarray) -> np.ndarray:
    """CIELAB, in which a distance of some 2 is just noticed."""
    value = np.array(to_rgb(colour))
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    ratio = TO_XYZ @ np.clip(np.asarray(seen) @ linear, 0, 1) / WHITE
    x, y, z = np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


NAMED = {
    "methods": {name: method.colour for name, method in METHODS.items() if method.colour},
    "sources": {name: colour for name, (_, colour) in SOURCES.items()},
}


@pytest.mark.parametrize("kind", SEEN)
@pytest.mark.parametrize("named", NAMED)
def test_any_two_colours_are_told_apart(kind, named):
    seen = {name: lab(colour, SEEN[kind]) for name, colour in NAMED[named].items()}
    assert {(a, b) for a, b in combinations(seen, 2) if np.linalg.norm(seen[a] - seen[b]) < 10} == set()
