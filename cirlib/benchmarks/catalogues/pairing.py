"""Which items make an edit. A shopper starts from what is near: what looks alike, or is of a kind and shares much."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from scipy.sparse import csr_array

from cirlib.benchmarks.catalogues.wording import Item, describe, differences, edit_captions

WITHIN_KIND = 0.5  # of the pairs: the partner is of the same kind, near by attributes and look; else by its look alone
NEAR_IN_KIND, NEAR_BY_LOOK = 12, 40  # of the nearest so many one is drawn
MOST = 0.1  # of all items, that count as near by their look


def made_pairs(items: Sequence[Item], captions: int, seed: int) -> list[dict[str, str]]:
    """So many different descriptions of each item, as ``{"image": id, "caption": text}``.

    >>> made_pairs([Item("a", title="red coat")], 2, seed=0)
    [{'image': 'a', 'caption': 'red coat'}]
    """
    rng = np.random.default_rng((seed, 0))
    texts = {item.id: sorted({describe(rng, item) for _ in range(2 * captions)})[:captions] for item in items}
    return [{"image": image, "caption": text} for image, said in texts.items() for text in said if text]


def made_edits(items: Sequence[Item], looks: np.ndarray, count: int, seed: int) -> list[dict[str, object]]:
    """About ``count`` edits between ``items``, whose pictures are ``looks`` (N, P): records of a captions file.

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
    looks = (looks - looks.mean(0)) / (looks.std(0) + 1e-3)
    looks = looks / np.linalg.norm(looks, axis=1, keepdims=True).clip(1e-9)
    by_look = min(NEAR_BY_LOOK, max(NEAR_IN_KIND, round(MOST * len(items))))

    def draw(rng: np.random.Generator, target: int) -> int | None:
        scores = looks @ looks[target]  # (N,)
        if of_kind := rng.random() < WITHIN_KIND:
            scores = np.where(kinds == kinds[target], scores + said[target], -np.inf)
        scores[target] = -np.inf
        near = np.argsort(-scores, kind="stable")[: NEAR_IN_KIND if of_kind else by_look]
        near = near[np.isfinite(scores[near])]
        return int(rng.choice(near)) if len(near) else None

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
