"""Which items make an edit: pairs that share some attributes, or look alike, or are another kind of the same look."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.sparse import csr_array

from cirlib.benchmarks.catalogues.wording import Item, describe, differences, edit_captions
from cirlib.study.pictures import open_rgb

NEAREST = 6  # of an item by one kind of likeness, among which its partner is drawn
SIDE = 8  # pixels of the thumbnail by which pictures are alike
WAYS = ("kind", "look", "across")  # by attributes within a kind; by the picture; by attributes across kinds
CHANCES = (0.5, 0.25, 0.25)
SEEN = 0.5  # what the picture counts beside what is said


def thumbnail(file: Path) -> np.ndarray | None:
    """A small picture (SIDE * SIDE * 3,) in [0, 1], alike where colours and outlines are; None: it cannot be decoded.

    >>> thumbnail(write_image(folder / "a.png")).shape
    (192,)
    """
    try:
        small = open_rgb(file).resize((SIDE, SIDE), Image.Resampling.BOX)
    except Exception:  # Pillow's decoders raise many types on damaged data
        return None
    return np.asarray(small, np.float32).ravel() / 255


def made_pairs(items: Sequence[Item], captions: int, seed: int) -> list[dict[str, str]]:
    """So many different descriptions of each item, as ``{"image": id, "caption": text}``.

    >>> made_pairs([Item("a", title="red coat")], 2, seed=0)
    [{'image': 'a', 'caption': 'red coat'}]
    """
    rng = np.random.default_rng((seed, 0))
    texts = {item.id: sorted({describe(rng, item) for _ in range(2 * captions)})[:captions] for item in items}
    return [{"image": image, "caption": text} for image, said in texts.items() for text in said if text]


def made_edits(items: Sequence[Item], looks: np.ndarray, count: int, seed: int) -> list[dict[str, object]]:
    """About ``count`` edits between ``items``, whose thumbnails are ``looks`` (N, P): records of a captions file.

    Every item is a target about equally often; each pair is told both ways round.

    >>> items = [Item(str(n), kind="coat", colour=c) for n, c in enumerate(("red", "blue"))]
    >>> [edit["candidate"] for edit in made_edits(items, np.zeros((2, 3)), 2, seed=0)]
    ['1', '0']
    """
    rng, edits, seen = np.random.default_rng((seed, 1)), [], set()
    partner = _partners(items, looks)
    for target in _in_turns(rng, len(items), 2 * count):
        if len(edits) >= count:
            break
        reference = partner(rng, target)
        if reference is None or (reference, target) in seen:
            continue
        for a, b in ((reference, target), (target, reference)):
            seen.add((a, b))
            if differences(items[a], items[b]):
                captions = edit_captions(rng, items[a], items[b])
                edits.append({"candidate": items[a].id, "target": items[b].id, "captions": list(captions)})
    return edits


def _in_turns(rng: np.random.Generator, size: int, count: int) -> Iterator[int]:
    for _ in range(-(-count // max(size, 1))):
        yield from rng.permutation(size).tolist()


def _partners(items: Sequence[Item], looks: np.ndarray) -> Callable[[np.random.Generator, int], int | None]:
    """A function that draws an item to start from, for the target in a row."""
    said, kinds = _likeness(items), np.array([item.kind for item in items])
    looks = looks - looks.mean(0)
    looks = looks / np.linalg.norm(looks, axis=1, keepdims=True).clip(1e-9)

    def draw(rng: np.random.Generator, target: int) -> int | None:
        way, same = rng.choice(WAYS, p=CHANCES), kinds == kinds[target]
        seen = looks @ looks[target]  # (N,)
        scores = seen if way == "look" else said[target] + SEEN * seen
        allowed = np.ones_like(same) if way == "look" else (same if way == "kind" else ~same)
        allowed[target] = False
        near = np.flatnonzero(allowed)
        return int(rng.choice(near[np.argsort(-scores[near], kind="stable")][:NEAREST])) if len(near) else None

    return draw


def _likeness(items: Sequence[Item]) -> np.ndarray:
    """Cosine (N, N) of what is said of two items, rare values and words counting more."""
    said = [_tokens(item) for item in items]
    number = {token: n for n, token in enumerate(sorted(set().union(*said)))}
    rows = np.repeat(np.arange(len(items)), [len(tokens) for tokens in said])
    columns = [number[token] for tokens in said for token in sorted(tokens)]
    counts = np.bincount(columns, minlength=len(number))
    weights = np.log(len(items) / counts)[columns]
    table = csr_array((weights, (rows, columns)), shape=(len(items), len(number)))
    lengths = np.sqrt(table.multiply(table).sum(1)).clip(1e-9)
    return (table @ table.T).toarray() / lengths[:, None] / lengths[None]


def _tokens(item: Item) -> set[str]:
    values = {f"{name}={value}" for name, value in item.values.items() if value}
    return values | {f"colour={item.colour}"} | item.words()
