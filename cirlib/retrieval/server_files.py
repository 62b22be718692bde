"""A run as the files that the test servers of CIRR and CIRCO take, in their exact formats."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cirlib.benchmarks import Benchmark
from cirlib.benchmarks.cirr import VERSION
from cirlib.retrieval.ranks import top_rows
from cirlib.retrieval.run_files import DEPTH, Embeddings, Lists, RunError, read_run
from cirlib.retrieval.similarity import similarity
from cirlib.study.files import write_json

SUBSET_DEPTH = 3  # members of its subset that CIRR's server wants of each query


def write_server_files(run: str | Path | Mapping[str, Any], benchmark: Benchmark, folder: Path) -> list[Path]:
    """Writes what a test server takes, checked first; nothing is written where a check fails.

    CIRR: ``recall.json``, 50 images of the gallery a query, and ``recall_subset.json``, 3 of its subset, never the
    reference: ``{"version": "rc2", "metric": …, pairid: [image name, …], …}``. CIRCO: ``circo.json``, 50 a query, the
    reference may be among them: ``{query id: [image number, …], …}``.

    Args:
        run: ranked ids or embeddings, see :mod:`cirlib.retrieval.run_files`.

    Raises:
        RunError: the run is not as it must be, or the benchmark has no server or is not complete.

    >>> write_server_files("mine.json", make_scored("sum", "hat", [0]).benchmark, folder)
    Traceback (most recent call last):
    cirlib.retrieval.run_files.RunError: custom has no test server, allowed are cirr and circo.
    """
    if benchmark.name not in ("cirr", "circo"):
        raise RunError(f"{benchmark.name} has no test server, allowed are cirr and circo.")
    if not benchmark.complete or len(benchmark.gallery) <= DEPTH:
        raise RunError(
            f"{benchmark.name} {benchmark.split} is incomplete: the server wants every query ranked in all the gallery."
        )
    found, ids = read_run(run, benchmark, removed=benchmark.name == "cirr"), [t.id for t in benchmark.triplets]
    best = _best(found, benchmark)
    if benchmark.name == "circo":
        contents = {"circo": {n: list(map(int, images)) for n, images in zip(ids, best, strict=True)}}
    else:
        lists = {"recall": best, "recall_subset": _best_of_subsets(found, benchmark)}
        contents = {m: {"version": VERSION, "metric": m, **dict(zip(ids, lists[m], strict=True))} for m in lists}
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        write_json(content, folder / f"{name}.json", indent=None)
    return [folder / f"{name}.json" for name in contents]


def _best(found: Embeddings | Lists, benchmark: Benchmark) -> Lists:
    """The first images of each query; of CIRR without its reference."""
    if not isinstance(found, Embeddings):
        return [images[:DEPTH] for images in found]
    row = benchmark.gallery_index
    exclude = [row[triplet.reference] for triplet in benchmark.triplets] if benchmark.name == "cirr" else None
    return [[benchmark.gallery[i] for i in rows] for rows in top_rows(found.queries, found.gallery, exclude, DEPTH)]


def _best_of_subsets(found: Embeddings | Lists, benchmark: Benchmark) -> Lists:
    """The first members of each query's subset."""
    lists = []
    for n, triplet in enumerate(benchmark.triplets):
        if isinstance(found, Embeddings):
            images = found.gallery[[benchmark.gallery_index[image] for image in triplet.subset]]
            scores = similarity(found.queries[n : n + 1].double(), images.double())[0]  # (S,)
            members = [triplet.subset[i] for i in scores.argsort(descending=True, stable=True).tolist()]
        else:
            members = [image for image in found[n] if image in triplet.subset]
        if len(members) < SUBSET_DEPTH:
            raise RunError(
                f"query {triplet.id!r} has {len(members)} members of its subset, the server wants {SUBSET_DEPTH}: put "
                "the subset's members, in their order, behind the first 50."
            )
        lists.append(members[:SUBSET_DEPTH])
    return lists
