"""Which garments, queries and pairs there are: all of it decided before a picture is drawn.

Images come in families. A family is one garment and variations of it, so that around every target stand
pictures that share the edit but not the rest, and pictures that share the rest but not the edit.
"""

import hashlib
import itertools
from base64 import b32encode
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from cirlib.benchmarks.base import BenchmarkError
from cirlib.benchmarks.edit_writer import Caption, pick
from cirlib.benchmarks.garments.attributes import (
    ATTRIBUTES,
    CATEGORIES,
    VALUES,
    Garment,
    contrasting,
    difference,
    random_garment,
    visible,
)
from cirlib.benchmarks.garments.captions import edit_captions, full_caption
from cirlib.study.parameters import Drawing

SPLITS = ("train", "val")
STREAMS = {name: code for code, name in enumerate((*SPLITS, "pairs", "pictures"))}
VERSION = 4  # of the drawings and captions: raise it when the same arguments give other files
ALWAYS = ("colour", "pattern")  # vary in every family, as they do in a shop
ACTIVE = 6  # attributes that vary within a family
ALTERNATIVES = 2  # other values each of them takes there
STYLE = 6  # near-twins in a row: variations of one garment of the family
STYLE_CHANGES = 4  # of a style's first garment from the family's, at most
TWIN_CHANGES = 2  # of a twin from its style's first garment, at most
MIN_EDITS, MAX_EDITS = 3, 4  # from a query's reference to its target


@dataclass(frozen=True)
class CatalogueImage:
    """One image of the catalogue: its id, what it shows, and the seed of everything else in it."""

    id: str
    garment: Garment
    seed: tuple[int, ...]


@dataclass(frozen=True)
class CatalogueQuery:
    """An edit from one image to another, in two sentences."""

    reference: CatalogueImage
    target: CatalogueImage
    captions: tuple[Caption, Caption]


@dataclass(frozen=True)
class Collection:
    """All of one category and split: families in order, and the queries within them."""

    category: str
    split: str
    images: list[CatalogueImage]
    queries: list[CatalogueQuery]


@dataclass(frozen=True)
class Pair:
    """An image and a whole description of it."""

    image: CatalogueImage
    caption: Caption


@dataclass(frozen=True)
class Catalogue:
    """Everything `draw_garments` writes."""

    collections: list[Collection]
    pairs: list[Pair]

    @property
    def images(self) -> list[CatalogueImage]:
        """Every image, each once."""
        listed = [image for collection in self.collections for image in collection.images]
        return listed + [pair.image for pair in self.pairs]


def plan_catalogue(sizes: Drawing, *, seed: int = 0) -> Catalogue:
    """What `draw_garments` would draw: every garment, query and caption, without a picture or a file.

    The train images are rounded up to whole families.

    Raises:
        BenchmarkError: the images of a split give too few pairs for its queries.

    >>> sizes = Drawing(train_images=24, train_triplets=2, val_queries=1, gallery_size=24, pairs=1)
    >>> len(plan_catalogue(sizes).images)
    148
    """
    family = sizes.family_size
    train_images = -(-sizes.train_images // family) * family
    counts = {"train": (train_images, sizes.train_triplets), "val": (sizes.gallery_size, sizes.val_queries)}
    collections = [
        _collection(category, split, *counts[split], family, seed)
        for category, split in itertools.product(CATEGORIES, SPLITS)
    ]
    return Catalogue(collections, _pairs(sizes.pairs, seed))


def _random(seed: int, stream: str, *place: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence((seed, STREAMS[stream], *place)))


def _collection(category: str, split: str, size: int, queries: int, family_size: int, seed: int) -> Collection:
    code = CATEGORIES.index(category)
    families = _families(_random(seed, split, code), category, size, family_size)
    garments = [garment for family in families for garment in family]
    images = [_catalogue_image(garment, (seed, STREAMS[split], code, i)) for i, garment in enumerate(garments)]
    pairs = list(itertools.islice(_spread_pairs(_random(seed, split, code, size), families), queries))
    if len(pairs) < queries:
        raise BenchmarkError(
            f"data_prep.drawing: {queries} {split} queries do not fit: {size} {category} images in families of "
            f"{family_size} give only {len(pairs)} pairs {MIN_EDITS} to {MAX_EDITS} attributes apart."
        )
    rng = _random(seed, split, code, size, queries)
    return Collection(category, split, images, [_query(rng, images[i], images[j]) for i, j in pairs])


def _catalogue_image(garment: Garment, seed: tuple[int, ...]) -> CatalogueImage:
    """The id comes from all that the picture depends on but its size."""
    digest = hashlib.sha256(repr((VERSION, seed, garment)).encode()).digest()
    return CatalogueImage("G" + b32encode(digest).decode()[:9], garment, seed)


def _query(rng: np.random.Generator, reference: CatalogueImage, target: CatalogueImage) -> CatalogueQuery:
    return CatalogueQuery(reference, target, edit_captions(rng, reference.garment, target.garment))


def _families(rng: np.random.Generator, category: str, size: int, family_size: int) -> list[list[Garment]]:
    """`size` garments that all differ, in families of `family_size`; the last one may be smaller."""
    taken: set[Garment] = set()
    families = []
    for start in range(0, size, family_size):
        families.append(_family(rng, category, min(family_size, size - start), taken))
    return families


def _family(rng: np.random.Generator, category: str, size: int, taken: set[Garment]) -> list[Garment]:
    """Styles of one garment and near-twins of each, none of them in `taken`, to which they are added."""
    base = random_garment(rng, category)
    pool = _alternatives(rng, base)
    members: list[Garment] = []
    while len(members) < size:
        style = _variation(rng, base, pool, STYLE_CHANGES) if members else base
        drawn = [style, *(_variation(rng, style, pool, TWIN_CHANGES) for _ in range(4 * STYLE))]
        twins = [twin for twin in dict.fromkeys(map(visible, drawn)) if twin not in taken]
        members += twins[: min(STYLE, size - len(members))]
        taken.update(members)
    return members


def _alternatives(rng: np.random.Generator, base: Garment) -> dict[str, list[str]]:
    """The attributes that vary in this garment's family, and the few other values they take."""
    others = rng.permutation([name for name in ATTRIBUTES if name not in ALWAYS]).tolist()
    pool = {}
    for name in [*ALWAYS, *others][:ACTIVE]:
        values = sorted(set(VALUES[base.category][name]) - {getattr(base, name)})
        pool[name] = rng.permutation(values)[:ALTERNATIVES].tolist()
    return pool


def _variation(rng: np.random.Generator, base: Garment, pool: dict[str, list[str]], most: int) -> Garment:
    """The base with one to `most` attributes changed to a value of the pool, its two colours easy to tell apart."""
    while True:
        names = rng.permutation(list(pool))[: rng.integers(1, most + 1)].tolist()
        varied = replace(base, **{name: pick(rng, pool[name]) for name in names})
        if contrasting(varied.colour, str(varied.second_colour)):
            return varied


def _spread_pairs(rng: np.random.Generator, families: list[list[Garment]]) -> Iterator[tuple[int, int]]:
    """(reference, target) rows, each pair once: one from each family in turn, members used evenly."""
    orders, start = [], 0
    for family in families:
        orders.append([(start + i, start + j) for i, j in _family_pairs(rng, family)])
        start += len(family)
    for turn in itertools.zip_longest(*orders):
        yield from (pair for pair in turn if pair is not None)


def _family_pairs(rng: np.random.Generator, family: list[Garment]) -> list[tuple[int, int]]:
    """All pairs `MIN_EDITS` to `MAX_EDITS` attributes apart, in an order whose every beginning is well mixed:
    each member about equally often on either side, and each number of changes about equally often."""
    ordered = list(itertools.permutations(range(len(family)), 2))
    steps = np.array([len(difference(family[i], family[j])) for i, j in ordered], dtype=int)
    waits = rng.exponential(size=len(steps)) * np.bincount(steps, minlength=1)[steps]
    shuffled = [ordered[k] for k in np.argsort(waits) if MIN_EDITS <= steps[k] <= MAX_EDITS]
    uses = np.zeros((2, len(family)), dtype=int)
    rounds = []
    for i, j in shuffled:
        rounds.append(max(uses[0, i], uses[1, j]))
        uses[0, i] = uses[1, j] = rounds[-1] + 1
    return [shuffled[k] for k in np.argsort(rounds, kind="stable")]


def _pairs(count: int, seed: int) -> list[Pair]:
    """Independent garments of all categories in turn, each with a description."""
    pairs = []
    for i in range(count):
        place = (seed, STREAMS["pairs"], i)
        rng = _random(seed, "pairs", i, 1)
        garment = visible(random_garment(rng, CATEGORIES[i % len(CATEGORIES)]))
        pairs.append(Pair(_catalogue_image(garment, place), full_caption(rng, garment)))
    return pairs
