"""How a crowd worker would write about garments: edits from one to another, and whole descriptions.

A change is told in units: one attribute, or a pattern or graphic together with the second colour that it
shows. Each unit becomes a phrase for "is" or for "has", and phrases are joined to a sentence.
"""

import numpy as np

from cirlib.benchmarks.edit_writer import Caption, Phrase, contrast, join_phrases, mend, pick, two_sentences
from cirlib.benchmarks.garments.attributes import (
    ATTRIBUTES,
    COLOURS,
    VALUES,
    Garment,
    difference,
    luminance,
)

NOUNS = {"dress": ("dress", "dress"), "shirt": ("shirt", "shirt"), "toptee": ("top", "blouse")}
# value → ways to say it; {c} is where the second colour goes, "" when it is not mentioned
PHRASES: dict[str, dict[str, tuple[Phrase, ...]]] = {
    "colour": {name: (("is", name),) for name in COLOURS},
    "pattern": {
        "horizontal stripes": (("has", "{c}horizontal stripes"), ("has", "{c}stripes across")),
        "vertical stripes": (("has", "{c}vertical stripes"), ("has", "{c}stripes going down")),
        "polka dots": (("has", "{c}polka dots"), ("has", "{c}dots")),
        "checks": (("has", "{c}checks"), ("has", "a {c}plaid pattern")),
        "floral": (("has", "a {c}floral print"), ("has", "a {c}flower pattern")),
        "color block": (("has", "a {c}color block"), ("has", "{c}color blocking")),
        "zigzag": (("has", "{c}zigzags"), ("has", "a {c}zigzag pattern")),
    },
    "sleeves": {
        "sleeveless": (("is", "sleeveless"), ("has", "no sleeves")),
        "cap": (("has", "cap sleeves"), ("has", "tiny sleeves")),
        "short": (("has", "short sleeves"), ("is", "short sleeved")),
        "three-quarter": (("has", "three-quarter sleeves"), ("has", "3/4 sleeves")),
        "long": (("has", "long sleeves"), ("is", "long sleeved")),
    },
    "neckline": {
        "crew": (("has", "a crew neck"), ("has", "a round neck")),
        "v-neck": (("has", "a v-neck"), ("has", "a v neckline")),
        "scoop": (("has", "a scoop neck"), ("has", "a low neckline")),
        "boat": (("has", "a boat neck"), ("has", "a wide neckline")),
        "square": (("has", "a square neck"), ("has", "a square neckline")),
        "collar": (("has", "a collar"), ("has", "a pointed collar")),
        "stand": (("has", "a stand-up collar"), ("has", "a mandarin collar")),
    },
    "length": {
        "mini": (("is", "mini length"), ("is", "mini")),
        "knee": (("is", "knee length"), ("has", "a knee length hem")),
        "midi": (("is", "midi length"), ("has", "a mid-calf hem")),
        "maxi": (("is", "maxi length"), ("is", "floor length")),
        "cropped": (("is", "cropped"), ("has", "a cropped hem")),
        "regular": (("is", "regular length"), ("has", "a regular length")),
        "tunic": (("is", "tunic length"), ("has", "a tunic length")),
    },
    "fit": {
        "fitted": (("is", "fitted"), ("has", "a fitted waist")),
        "straight": (("is", "straight cut"), ("has", "a straight shape")),
        "flared": (("is", "flared"), ("has", "a flared shape")),
    },
    "graphic": {
        "star": (("has", "a {c}star"), ("has", "a {c}star graphic")),
        "heart": (("has", "a {c}heart"), ("has", "a {c}heart graphic")),
        "text": (("has", "{c}lettering"), ("has", "{c}text")),
        "circle": (("has", "a {c}round logo"), ("has", "a {c}circle")),
        "flower": (("has", "a {c}flower"), ("has", "one big {c}flower")),
    },
    "extra": {
        "belt": (("has", "a belt"), ("has", "a waist belt")),
        "buttons": (("has", "buttons"), ("has", "front buttons")),
        "pocket": (("has", "a pocket"), ("has", "a chest pocket")),
        "zipper": (("has", "a zipper"), ("has", "a front zipper")),
        "ruffle": (("has", "a ruffled hem"), ("has", "ruffles")),
        "bow": (("has", "a bow"), ("has", "a neck bow")),
    },
}
# attribute → (phrases when the value goes down its ordered list, phrases when it goes up)
RELATIVE: dict[str, tuple[tuple[Phrase, ...], tuple[Phrase, ...]]] = {
    "sleeves": ((("has", "shorter sleeves"),), (("has", "longer sleeves"),)),
    "length": ((("is", "shorter"),), (("is", "longer"),)),
    "fit": ((("is", "tighter"), ("is", "more fitted")), (("is", "looser"), ("is", "more flowing"))),
}
DARKER: tuple[Phrase, ...] = (("is", "darker"), ("is", "a darker color"))
LIGHTER: tuple[Phrase, ...] = (("is", "lighter"), ("is", "a brighter color"))
COMPARED = 0.25  # chance that a change which can be told by a comparison is told so
CONTRASTED = 0.08  # chance that a new value is told with what it replaces


def edit_captions(rng: np.random.Generator, reference: Garment, target: Garment) -> tuple[Caption, Caption]:
    """Two sentences that lead from the reference to the target, as two of FashionIQ's workers write them.

    Each names changes that the other does not; together they name most, not all: a worker overlooks some. A change is
    told by its new value or, where values have an order, sometimes only by a comparison. Neither sentence claims a
    change that did not happen. Raises ValueError where the two garments do not differ.

    >>> from dataclasses import replace
    >>> other = replace(garment, colour="white" if garment.colour != "white" else "red")
    >>> edit_captions(np.random.default_rng(0), garment, other)[0].mentions
    frozenset({'colour'})
    """
    return two_sentences(rng, _units(reference, target), lambda units: _sentence(rng, reference, target, units))


def _units(reference: Garment, target: Garment) -> list[tuple[str, ...]]:
    """Changed attributes, grouped by what one phrase says; the second colour goes with what shows it."""
    changed = difference(reference, target)
    carrier = _carrier(changed, target) if "second_colour" in changed else None
    units: list[tuple[str, ...]] = []
    for name in ATTRIBUTES:
        if name == carrier:
            units.append((name, "second_colour"))
        elif name in changed and not (name == "second_colour" and carrier):
            units.append((name,))
    return units


def _carrier(changed: frozenset[str], target: Garment) -> str | None:
    """The changed attribute whose phrase also tells the new second colour (or that it is gone)."""
    if "pattern" in changed and target.pattern != "plain":
        return "pattern"
    if "graphic" in changed and target.graphic != "none":
        return "graphic"
    if target.second_colour is None:
        return "pattern" if "pattern" in changed else "graphic"
    return None


def _sentence(rng: np.random.Generator, reference: Garment, target: Garment, units: list[tuple[str, ...]]) -> str:
    return join_phrases(rng, [_phrase(rng, reference, target, unit) for unit in units], NOUNS[target.category])


def _phrase(rng: np.random.Generator, reference: Garment, target: Garment, unit: tuple[str, ...]) -> Phrase:
    """One phrase for one unit: its new value, or a comparison where there is one."""
    relative = _relative(reference, target, unit[0])
    if relative and rng.random() < COMPARED:
        return pick(rng, relative)
    if unit == ("second_colour",):
        return _recoloured(rng, reference, target)
    new, old = getattr(target, unit[0]), getattr(reference, unit[0])
    if new in ("none", "plain"):
        return _gone(rng, target, unit[0], old)
    colour = f"{target.second_colour} " if "second_colour" in unit else ""
    verb, words = pick(rng, PHRASES[unit[0]][new])
    return verb, _contrast(rng, unit[0], verb, words, old).format(c=colour)


def _contrast(rng: np.random.Generator, name: str, verb: str, words: str, old: str) -> str:
    """The phrase for the new value, sometimes with what it replaces."""
    same = [text for old_verb, text in PHRASES[name].get(old, ()) if old_verb == verb]
    if not same or any(text.startswith("no ") for text in (words, *same)):
        return words
    return contrast(rng, words, same[0].replace("{c}", ""), CONTRASTED)


def _recoloured(rng: np.random.Generator, reference: Garment, target: Garment) -> Phrase:
    """Only the second colour changed: say it of the pattern, or else of the graphic."""
    name = "pattern" if target.pattern != "plain" else "graphic"
    verb, words = pick(rng, PHRASES[name][getattr(target, name)])
    tail = pick(rng, ("", f" instead of {reference.second_colour}"))
    return verb, words.format(c=f"{target.second_colour} ") + tail


def _gone(rng: np.random.Generator, target: Garment, name: str, old: str) -> Phrase:
    """The pattern, graphic or extra is no longer there."""
    noun = PHRASES[name][old][0][1].format(c="").removeprefix("a ").removeprefix("one ")
    options: list[Phrase] = [("has", f"no {noun}"), ("has", f"no {noun}")]
    if name == "graphic":
        options.append(("has", "no graphic"))
    if name == "pattern":
        options += [("is", "plain"), ("is", "a solid color")] if target.graphic == "none" else []
    return pick(rng, options)


def _relative(reference: Garment, target: Garment, name: str) -> list[Phrase]:
    """Comparisons that are true of this change: longer, shorter, darker, tighter, …"""
    new, old = getattr(target, name), getattr(reference, name)
    if name == "colour":
        step = luminance(new) - luminance(old)
        return list(LIGHTER if step > 0 else DARKER) if abs(step) > 60 else []
    if name == "sleeves" and "sleeveless" in (new, old):
        return [("has", "sleeves")] if old == "sleeveless" else []
    if name not in RELATIVE:
        return []
    order = VALUES[target.category][name]
    return list(RELATIVE[name][int(order.index(new) > order.index(old))])


def full_caption(rng: np.random.Generator, garment: Garment) -> Caption:
    """A description of one (visible) garment; most attributes are named, some are left out.

    >>> garment.colour in full_caption(np.random.default_rng(1), garment).text
    True
    """
    named = [name for name in ATTRIBUTES if rng.random() < 0.85 and _speakable(garment, name)]
    if not set(named) & {"pattern", "graphic"} and "second_colour" in named:
        named.remove("second_colour")
    colour = f"{garment.second_colour} " if "second_colour" in named else ""
    order = rng.permutation([name for name in named if name not in ("colour", "second_colour")])
    phrases = [pick(rng, _ways(garment, str(name))) for name in order]
    text = _description(rng, garment, "colour" in named, phrases).format(c=colour)
    return Caption(mend(text), frozenset(named))


def _speakable(garment: Garment, name: str) -> bool:
    value = getattr(garment, name)
    return value not in (None, "none") and not (value == "plain" and garment.graphic != "none")


def _ways(garment: Garment, name: str) -> tuple[Phrase, ...]:
    value = getattr(garment, name)
    return (("is", "plain"), ("is", "solid colored")) if value == "plain" else PHRASES[name][value]


def _description(rng: np.random.Generator, garment: Garment, coloured: bool, phrases: list[Phrase]) -> str:
    """The noun, its adjectives before it and its features after it, in one of several orders."""
    adjectives = [words for verb, words in phrases if verb == "is"]
    if coloured:
        adjectives.insert(int(rng.integers(len(adjectives) + 1)), garment.colour)
    noun = pick(rng, NOUNS[garment.category])
    features = [words for verb, words in phrases if verb == "has"]
    tail = ", ".join(features[:-1]) + (" and " if len(features) > 1 else "") + "".join(features[-1:])
    if adjectives and rng.random() < 0.3:
        text = f"this {noun} is {' and '.join(adjectives)}"
        return f"{text}, it has {tail}" if tail else text
    start = pick(rng, ("a ", "a ", "", "a photo of a "))
    return f"{start}{' '.join([*adjectives, noun])}" + (f" with {tail}" if tail else "")
