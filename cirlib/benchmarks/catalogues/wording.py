"""The rules that turn a catalogue's titles and attributes into words: descriptions of an item, and edits between two.

An edit tells one to four differences of the target from the reference: another kind, colour or attribute, a detail or a
fragment of the title that only the target has, or what it lacks. Everything that is said is open to change here.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from cirlib.benchmarks.edit_writer import Phrase, contrast, join_phrases, mend, pick, two_sentences

# Different words for one value: no edit leads from one to the other, and either may be said.
SYNONYMS = (
    ("grey", "gray"), ("beige", "sand"), ("burgundy", "wine red", "maroon"), ("navy", "navy blue"),
    ("khaki", "army green"), ("multicolour", "multicoloured", "colourful"),
    ("crew", "round", "crew neck", "round neck"), ("stand collar", "stand-up collar", "mandarin collar"),
    ("turtleneck", "roll neck", "polo neck"), ("off-shoulder", "bardot"), ("hood", "hooded"),
    ("checked", "check", "checkered", "plaid"), ("striped", "stripes"), ("floral", "flowers", "flowered"),
    ("polka dots", "dots", "dotted", "polka dot"), ("camouflage", "camo"), ("plain", "solid", "solid colour"),
    ("print", "printed"), ("t-shirt", "tee", "tshirt"), ("sweater", "jumper", "pullover"), ("trousers", "pants"),
    ("sneakers", "trainers"), ("long-sleeve top", "longsleeve", "long sleeve"),
    ("joggers", "sweatpants", "jogging bottoms", "track pants"), ("vest", "gilet"), ("dress", "frock"),
    ("short", "short sleeve"), ("long", "long sleeve"), ("sleeveless", "no sleeves"),
    ("elbow", "half", "elbow length"),
)  # fmt: skip
LIGHTNESS = {  # of colours that can be told as darker or lighter, 0 to 100; "dark" and "light" before one move it
    "black": 5, "charcoal": 22, "navy": 15, "brown": 32, "burgundy": 24, "plum": 28, "purple": 38, "green": 45,
    "blue": 42, "red": 45, "teal": 42, "olive": 42, "grey": 55, "khaki": 58, "orange": 65, "turquoise": 68,
    "coral": 68, "tan": 68, "pink": 75, "lilac": 76, "beige": 84, "yellow": 86, "cream": 94, "white": 98,
}  # fmt: skip
SHADES = ("light", "pale", "dark", "deep")
ORDERS: tuple[tuple[tuple[str, ...], tuple[Phrase, ...], tuple[Phrase, ...]], ...] = (  # values, if less, if more
    (
        ("sleeveless", "cap", "short", "elbow", "three-quarter", "long"),
        (("has", "shorter sleeves"),),
        (("has", "longer sleeves"),),
    ),
    (
        ("cropped", "mini", "above the knee", "knee length", "midi", "maxi"),
        (("is", "shorter"), ("is", "not as long")),
        (("is", "longer"), ("has", "more length")),
    ),
    (
        ("fitted", "slim", "regular", "loose", "oversized"),
        (("is", "tighter"), ("is", "more fitted")),
        (("is", "looser"), ("is", "wider")),
    ),
)
UNSAID = ("none", "no", "n/a", "na", "-", "–", "null", "nan", "false")  # the same as an empty cell
NOTHING = {"", "plain", "solid", *UNSAID}  # values that say there is nothing to see
PLURAL = re.compile(r"(?:[^s]s|shoes|jeans)$")
COMPARED, CONTRASTED, KEPT = 0.2, 0.2, 0.3  # chances of a comparison, of saying what goes, and of what stays
KEPT_BUT = ("the same {s} but ", "also {s}, but ", "still {s}, ", "keep the {s}, ", "{s} again but ", "same {s}, ")
KEPT_AS = (
    "the same {s} but {n}", "the same {s} as {n}", "{n} in the same {s}", "also {s}, but {n}", "{n}, {s} too",
    "similar {s} but on {n}", "keep the {s}, make it {n}",
)  # fmt: skip
COLOURED, MORE = 0.85, 3  # chance that a new colour is told (a new kind always is), and of the rest so many at most


@dataclass(frozen=True)
class Item:
    """One picture of a catalogue and what is written about it, in lower case; synonyms are one value."""

    id: str
    title: str = ""
    kind: str = ""
    colour: str = ""
    accents: tuple[str, ...] = ()  # further colours
    values: Mapping[str, str] = field(default_factory=dict)  # attribute → value, "" where the cell was empty
    details: tuple[str, ...] = ()  # what has no column of its own, in fragments

    @property
    def nouns(self) -> tuple[str, ...]:
        """Words for the thing itself."""
        return (self.kind,) if self.kind else ("item", "piece")

    @property
    def fragments(self) -> tuple[str, ...]:
        """The details, and the title's parts."""
        return tuple(dict.fromkeys((*self.details, *title_parts(self.title)[1:])))

    def words(self) -> set[str]:
        """Every word that is written about it."""
        said = (self.title, self.kind, self.colour, *self.accents, *self.values.values(), *self.details)
        return set(re.findall(r"[^\W_]+", " ".join(said)))


_MAIN = {word: group[0] for group in SYNONYMS for word in group} | dict.fromkeys(UNSAID, "")
_WAYS = {group[0]: group for group in SYNONYMS}


def canonical(value: str) -> str:
    """A value in lower case, without odd spaces, the first of its synonyms.

    >>> canonical(" Stand-up  Collar"), canonical("Gray")
    ('stand collar', 'grey')
    """
    text = " ".join(value.lower().replace("_", " ").split())
    return _MAIN.get(text, text)


def attribute(name: str, value: str) -> tuple[str, str]:
    """A column and its cell as an attribute and its value: of what is there or not, its name.

    >>> attribute("Has_Hood", "TRUE"), attribute("Hood", "no"), attribute("Neck", "V-neck")
    (('hood', 'hood'), ('hood', ''), ('neck', 'v-neck'))
    """
    name, value = re.sub(r"^(?:has|is|with) ", "", canonical(name)), canonical(value)
    return name, name if value in ("yes", "true") else value


def from_title(item: Item) -> Item:
    """``item`` with its kind and its colour out of the title, where they have no column.

    >>> from_title(Item("a", "dark blue coat with a hood"))
    Item(id='a', title='dark blue coat with a hood', kind='coat', colour='dark blue', accents=(), values={}, details=())
    """
    words = (title_parts(item.title) or [""])[0].split()
    said = [n for n, word in enumerate(words) if canonical(word) in LIGHTNESS]
    start = said[0] - bool(said[0] and words[said[0] - 1] in SHADES) if said else 0
    colour = item.colour or (" ".join(words[start : said[0] + 1]) if said else "")
    kinds = [
        canonical(word) for word in words if canonical(word) not in (*LIGHTNESS, *SHADES) and not re.search(r"\d", word)
    ]
    kind = item.kind or (kinds or [""])[-1]
    return replace(item, kind=kind, colour=colour)


def title_parts(title: str) -> list[str]:
    """A title's head ("grey t-shirt") and what stands behind "with", "and", "in" or a comma.

    >>> title_parts("grey t-shirt with white stripes and a pocket")
    ['grey t-shirt', 'white stripes', 'pocket']
    """
    parts = re.split(r"\s+(?:with|and|featuring|in)\s+|\s*[,;|–:(/)]\s*|\s+-\s+", title)
    return [text for part in parts if (text := re.sub(r"^(?:a|an|the)\s+", "", part).strip())]


def describe(rng: np.random.Generator, item: Item) -> str:
    """A description of one item: its title, its attributes as a sentence, or both, some details left out.

    >>> describe(np.random.default_rng(1), Item("a", kind="coat", colour="red", values={"neck": "hood"}))
    'a photo of a red coat'
    """
    style = rng.random()
    if item.title and (style < 0.35 or not item.kind):
        return item.title
    told = [n for n, value in item.values.items() if value not in NOTHING and rng.random() < 0.75]
    phrases = [_value(rng, name, item.values[name]) for name in rng.permutation(told).tolist()]
    before = [words for verb, words in phrases if verb == "is"]
    after = [words for verb, words in phrases if verb == "has"]
    after += [fragment for fragment in item.fragments if rng.random() < 0.5]
    after += [f"{colour} details" for colour in item.accents if rng.random() < 0.4]
    colour = [_said(rng, item.colour)] if item.colour and rng.random() < 0.9 else []
    head = item.title if item.title and style < 0.6 else " ".join([*before, *colour, _said(rng, pick(rng, item.nouns))])
    rng.shuffle(after)
    text = pick(rng, ("", "a ", "a ", "a photo of a ")) + head if not PLURAL.search(head) else head
    return mend(text + (" with " + ", ".join(after[:3]) if after else ""))


def edit_captions(rng: np.random.Generator, reference: Item, target: Item) -> tuple[str, str]:
    """Two sentences that lead from one item to another; ValueError where nothing can be told.

    >>> edit_captions(np.random.default_rng(0), Item("a", colour="red"), Item("b", colour="blue"))
    ('the piece is blue instead of red', 'is blue in colour')
    """
    units = differences(reference, target)
    first = [unit for unit in units if unit[0] == "kind" or (unit[0] == "colour" and rng.random() < COLOURED)]
    rest = [unit for unit in units if unit not in first]
    told = first + [rest[i] for i in rng.permutation(len(rest))[: rng.integers(1, MORE + 1)]]
    captions = two_sentences(rng, told or units, lambda share: _sentence(rng, reference, target, share))
    return captions[0].text, captions[1].text


def differences(reference: Item, target: Item) -> list[tuple[str, ...]]:
    """What an edit can tell, each as (sort, name or text).

    >>> differences(Item("a", colour="red"), Item("b", colour="blue", details=("zip",)))
    [('colour', ''), ('detail', 'zip')]
    """
    old, known, own = reference.values, reference.words(), target.words()
    units = [("kind", "")] if target.kind not in ("", reference.kind) else []
    units += [("colour", "")] if target.colour not in ("", reference.colour) else []
    units += [("accent", c) for c in target.accents if c not in (*reference.accents, reference.colour)]
    changed = [name for name, value in target.values.items() if value != old.get(name, "")]
    units += [("value", name) for name in changed if not {target.values[name], old.get(name, "")} <= NOTHING]
    units += [("detail", text) for text in target.fragments if set(text.split()) - known]
    units += [("lacks", text) for text in reference.details[:2] if not set(text.split()) & own]
    return units + [("title", "")] * (target.title not in ("", reference.title, target.kind))


def _sentence(rng: np.random.Generator, reference: Item, target: Item, units: list[tuple[str, ...]]) -> str:
    """The units as one sentence, sometimes behind what stays as it is."""
    kinds = [unit for unit in units if unit[0] == "kind"]
    phrases = [_phrase(rng, reference, target, unit) for unit in units]
    kept = _kept(reference, target)
    if not kept or rng.random() > (0.6 if kinds else KEPT):
        return join_phrases(rng, phrases, target.nouns)
    same = pick(rng, kept)
    if kinds:
        noun = f"a {target.kind}" if not PLURAL.search(target.kind) else target.kind
        rest = [words for (verb, words), unit in zip(phrases, units, strict=True) if unit not in kinds]
        return mend(", ".join([pick(rng, KEPT_AS).format(s=same, n=noun), *rest]))
    return mend(pick(rng, KEPT_BUT).format(s=same) + join_phrases(rng, phrases, target.nouns))


def _kept(reference: Item, target: Item) -> list[str]:
    """What both have, in words."""
    same = [target.colour] if target.colour and target.colour == reference.colour else []
    both = {n: v for n, v in target.values.items() if v not in NOTHING and v == reference.values.get(n)}
    same += [words for n, v in both.items() for words in ((v,) if n in v else (v, f"{v} {n}"))]
    same += [target.kind] if target.kind and target.kind == reference.kind else []
    return same


def _phrase(rng: np.random.Generator, reference: Item, target: Item, unit: tuple[str, ...]) -> Phrase:
    sort, name = unit
    if sort == "kind":
        words = _said(rng, target.kind)
        return "is", words if PLURAL.search(words) else contrast(
            rng, f"a {words}", f"a {reference.kind or 'thing'}", CONTRASTED
        )
    if sort == "colour":
        return _colour(rng, reference.colour, target.colour)
    if sort == "accent":
        return "has", pick(rng, (name, f"{name} details", f"{name} accents", f"some {name}"))
    if sort == "value":
        return _change(rng, name, reference.values.get(name, ""), target.values[name])
    if sort == "title":
        head = title_parts(target.title) or [target.title]
        return "is", pick(rng, (f"a {head[0]}", f"a {target.title}", head[0]))
    if sort == "lacks":
        return "has", f"no {name}"
    return pick(rng, ("has", "has", "is")), name if PLURAL.search(name) or rng.random() < 0.6 else f"a {name}"


def _colour(rng: np.random.Generator, old: str, new: str) -> Phrase:
    step = lightness(new) - lightness(old) if old else 0.0
    if abs(step) > 15 and rng.random() < COMPARED:
        return "is", ("lighter" if step > 0 else "darker") + pick(rng, ("", " in colour"))
    said = _said(rng, new)
    words = contrast(rng, said, old, CONTRASTED) if old else said
    return pick(rng, (("is", words), ("is", words), ("is", f"{said} in colour"), ("has", f"a {said} colour")))


def lightness(colour: str) -> float:
    """How light the words of a colour sound, 0 to 100; nan of words that name none.

    >>> lightness("dark green") < lightness("green") < lightness("mint green")
    False
    """
    *before, last = colour.split() or [""]
    known = [LIGHTNESS[w] for w in (last, *before) if w in LIGHTNESS]
    step = 20 * (bool({*SHADES[:2]} & {*before}) - bool({*SHADES[2:]} & {*before}))
    return known[0] + step if known else float("nan")


def _change(rng: np.random.Generator, name: str, old: str, new: str) -> Phrase:
    """An attribute's new value: by itself, against the old one, by a comparison, or as what is gone."""
    if new in NOTHING:
        gone: tuple[Phrase, ...] = (("has", f"no {old}" if name in old else f"no {old} {name}"), ("has", f"no {old}"))
        return pick(rng, (*gone, ("is", "plain"), ("is", "plain")) if new == "plain" else gone)
    for order, less, more in ORDERS:
        if {old, new} <= set(order) and rng.random() < COMPARED:
            return pick(rng, more if order.index(new) > order.index(old) else less)
    verb, words = _value(rng, name, new)
    return verb, contrast(rng, words, old, CONTRASTED) if old not in NOTHING else words


def _value(rng: np.random.Generator, name: str, value: str) -> Phrase:
    """A value in words: "striped", "a v-neck", "short sleeves", "a crew neck"."""
    said, noun = _said(rng, value), name.removesuffix("_type")
    if noun.rstrip("s") in said:
        return ("has", said if PLURAL.search(said) else f"a {said}")
    named = f"{said} {noun}" if PLURAL.search(noun) else f"a {said} {noun}"
    if value.endswith(("ed", "less", "al")):
        return pick(rng, (("is", said), ("has", named)))
    return "has", pick(rng, (named, named, said))


def _said(rng: np.random.Generator, value: str) -> str:
    """The value, or one of its synonyms."""
    return value if rng.random() < 0.7 else pick(rng, _WAYS.get(value, (value,)))
