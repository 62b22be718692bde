"""Image families: queries whose images hang together are not independent of each other."""

from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from cirlib.benchmarks.base import Triplet

LARGEST = 0.1  # of all queries: what hangs together by more (CIRR's images nearly all do) is no family


def families(triplets: Sequence[Triplet]) -> np.ndarray:
    """The family of each query, (N,), numbered from 0.

    Queries are of one family where a chain of shared images, as reference or first target, joins them; where such a
    chain takes in more than a tenth of all queries, those of them that share the reference.

    >>> families(prepared.splits.reported["hat"].triplets).shape
    (3,)
    """
    references = _numbers([triplet.reference for triplet in triplets])  # (N,)
    ends = [triplet.reference for triplet in triplets] + [t.targets[0] if t.targets else t.reference for t in triplets]
    images, size = _numbers(ends), len(triplets)
    links = coo_array((np.ones(size), (images[:size], images[size:])), shape=(len(ends), len(ends)))
    chain = connected_components(links, directed=False)[1][images[:size]]  # (N,)
    counts = np.bincount(chain)[chain]
    return _numbers([(c, r if n > LARGEST * size else -1) for c, r, n in zip(chain, references, counts, strict=True)])


def _numbers(names: Sequence) -> np.ndarray:
    """Equal names to equal numbers, in the order of their first appearance."""
    known = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([known[name] for name in names], dtype=int)
