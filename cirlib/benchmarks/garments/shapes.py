"""The outlines of a garment's parts, in garment units.

x goes to the right of the centre line, y down from the shoulders; a dress is about 0.7 wide there.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cirlib.benchmarks.garments.attributes import Garment

Points = NDArray[np.float64]  # (n, 2)
LENGTHS = {
    "mini": 1.22,
    "knee": 1.56,
    "midi": 1.95,
    "maxi": 2.38,
    "cropped": 0.7,
    "regular": 0.98,
    "tunic": 1.32,
}
SLEEVES = {"short": 0.36, "three-quarter": 0.68, "long": 1.0}
SHOULDER = {"dress": 0.34, "shirt": 0.41, "toptee": 0.35}
CUFF = {"dress": (0.19, 0.11), "shirt": (0.25, 0.16), "toptee": (0.18, 0.15)}  # width of short, long
NECKS = {  # half width, depth
    "crew": (0.14, 0.10),
    "v-neck": (0.14, 0.31),
    "scoop": (0.18, 0.25),
    "boat": (0.25, 0.05),
    "square": (0.17, 0.20),
    "collar": (0.13, 0.15),
    "stand": (0.12, 0.07),
}
HEIGHTS = (0.36, 0.66, 0.95, 1.40, 2.40)
PROFILES = {  # half width of the body at HEIGHTS
    ("dress", "fitted"): (0.30, 0.21, 0.30, 0.28, 0.25),
    ("dress", "straight"): (0.31, 0.29, 0.32, 0.34, 0.37),
    ("dress", "flared"): (0.30, 0.22, 0.39, 0.56, 0.84),
    ("shirt", "fitted"): (0.37, 0.30, 0.34, 0.37, 0.40),
    ("shirt", "straight"): (0.41, 0.41, 0.41, 0.42, 0.45),
    ("shirt", "flared"): (0.40, 0.46, 0.56, 0.66, 0.80),
    ("toptee", "fitted"): (0.30, 0.22, 0.29, 0.33, 0.36),
    ("toptee", "straight"): (0.32, 0.32, 0.33, 0.34, 0.36),
    ("toptee", "flared"): (0.31, 0.40, 0.53, 0.66, 0.80),
}


_STEPS = np.linspace(0, 1, 8, endpoint=False)
_SPLINE = 0.5 * np.stack(
    [
        -_STEPS + 2 * _STEPS**2 - _STEPS**3,
        2 - 5 * _STEPS**2 + 3 * _STEPS**3,
        _STEPS + 4 * _STEPS**2 - 3 * _STEPS**3,
        -(_STEPS**2) + _STEPS**3,
    ],
    axis=1,
)  # (8, 4) Catmull-Rom weights
CIRCLE = np.stack([np.cos(np.linspace(0, 2 * np.pi, 25)), np.sin(np.linspace(0, 2 * np.pi, 25))], axis=1)


def curve(*points: tuple[float, float]) -> Points:
    """A smooth line through the points, (8 (k - 1) + 1, 2).

    >>> curve((0, 0), (1, 1), (2, 0)).shape
    (17, 2)
    """
    knots = np.array([points[0], *points, points[-1]])
    windows = np.stack([knots[i : len(knots) - 3 + i] for i in range(4)], axis=1)  # (k - 1, 4, 2)
    return np.concatenate([(_SPLINE @ windows).reshape(-1, 2), knots[-1:]])


def mirrored(points: Points) -> Points:
    """The same line on the wearer's other side, walked the other way.

    >>> mirrored(np.array([(1, 2), (3, 4)])).tolist()
    [[-3, 4], [-1, 2]]
    """
    return points[::-1] * (-1, 1)


@dataclass(frozen=True)
class Cut:
    """The outlines of a garment's parts."""

    body: Points
    neck: Points  # front neckline, left to right
    back: Points  # the inside of the back, seen through the neckline
    hem: Points  # right to left
    armhole: Points  # right one
    sleeve: Points | None  # right one
    neck_depth: float
    length: float
    trim: float  # what hangs below the hem
    profile: tuple[float, ...]

    def half_width(self, y: float | Points) -> float | Points:
        """Half the body's width at a height."""
        return np.interp(y, HEIGHTS, self.profile)

    @property
    def extent(self) -> tuple[float, float]:
        """The largest distance of any part from the centre line, and the lowest point of any."""
        parts = self.body if self.sleeve is None else np.concatenate([self.body, self.sleeve])
        reach, bottom = parts.max(axis=0).tolist()
        return reach, bottom


def cut_garment(garment: Garment, arm_angle: float) -> Cut:
    """The outlines for this garment; `arm_angle` is how far the sleeves hang down, in radians.

    >>> cut_garment(garment, 1.0).body.shape[1]
    2
    """
    neck_half, depth = NECKS[garment.neckline]
    length, profile = LENGTHS[garment.length], PROFILES[garment.category, garment.fit]
    bare = garment.sleeves == "sleeveless"
    tip = (max(neck_half + 0.08, SHOULDER[garment.category] - (0.11 if bare else 0.0)), 0.05)
    armhole = curve(tip, (tip[0] - 0.035, 0.2), (profile[0], HEIGHTS[0]))
    side = _side(profile, length)
    hem = _hem(garment, float(side[-1, 0]), length)
    neck = _neckline(garment.neckline, neck_half, depth)
    right = np.concatenate([[(neck_half, 0.0)], armhole, side])
    body = np.concatenate([right, hem, mirrored(right), neck])
    back = np.concatenate([neck, curve((neck_half, 0), (0, 0.035 if depth > 0.06 else 0.015), (-neck_half, 0))])
    trim = 0.17 if garment.extra == "ruffle" else 0.0
    sleeve = None if bare else _sleeve(garment, tip, profile[0], arm_angle)
    return Cut(body, neck, back, hem, armhole, sleeve, depth, length, trim, profile)


def _side(profile: tuple[float, ...], length: float) -> Points:
    above = [(x, y) for x, y in zip(profile, HEIGHTS, strict=True) if y < length - 0.1]
    return curve(*above, (float(np.interp(length, HEIGHTS, profile)), length))


def _hem(garment: Garment, half: float, length: float) -> Points:
    """The lower edge: a shirt's tail, or a gentle arc that grows with the flare."""
    if garment.category == "shirt":
        return curve((half, length), (half * 0.5, length + 0.06), (-half * 0.5, length + 0.06), (-half, length))
    sag = 0.03 + 0.08 * half
    return curve((half, length), (half * 0.5, length + sag), (-half * 0.5, length + sag), (-half, length))


def _neckline(kind: str, half: float, depth: float) -> Points:
    if kind in ("v-neck", "collar"):
        return np.array([(-half, 0), (0, depth), (half, 0)])
    if kind == "square":
        return np.array([(-half, 0), (-half * 0.93, depth), (half * 0.93, depth), (half, 0)])
    angles = np.linspace(np.pi, 0, 17)
    return np.stack([half * np.cos(angles), depth * np.sin(angles)], axis=1)


def _sleeve(garment: Garment, tip: tuple[float, float], armpit: float, angle: float) -> Points:
    """The right sleeve, from the shoulder along the arm and back to the armpit."""
    start, end = np.array(tip), np.array((armpit - 0.02, HEIGHTS[0]))
    if garment.sleeves == "cap":
        return np.concatenate([curve(tip, tuple(start + (0.1, 0.09)), tuple(start + (0.06, 0.2))), [end - (0.01, 0.1)]])
    reach = SLEEVES[garment.sleeves]
    along, inward = np.array((np.cos(angle), np.sin(angle))), np.array((-np.sin(angle), np.cos(angle)))
    width = np.interp(reach, (0.36, 1.0), CUFF[garment.category])
    outer = start + reach * along
    inner = outer + width * inward
    bulge = start + 0.4 * reach * along - 0.025 * inward
    upper, lower = (
        curve(tip, tuple(bulge), tuple(outer)),
        curve(tuple(inner), tuple((inner + end) / 2), tuple(end)),
    )
    return np.concatenate([upper, lower])
