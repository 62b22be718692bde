"""A run as files that the test servers of CIRR and CIRCO take, in their exact formats."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cirlib.benchmarks import Benchmark
from cirlib.benchmarks.cirr import VERSION
from cirlib.retrieval.ranks import top_rows
from cirlib.retrieval.run_files import DEPTH, Embeddings, Lists, RunError, read_run
from cirlib.study.files import write_json

SUBSET_DEPTH = 3  # members of its subset that CIRR's server wants of each query


def write_server_files(run: str | Path | Mapping[str, Any], benchmark: Benchmark, folder: Path) -> list[Path]:
    """Writes ranked ids or embeddings as a test server takes them; nothing is written where a check fails.

    CIRR: ``recall.json``, 50 images of the gallery a query, and ``recall_subset.json``, 3 of its subset, never the
    reference: ``{"version": "rc2", "metric": …, pairid: [image name, …], …}``. CIRCO: ``circo.json``, 50 a query, the
    reference may be among them: ``{query id: [image number, …], …}``.

    >>> write_server_files("mine.json", make_scored("sum", "hat", [0]).benchmark, folder)
    Traceback (most recent call last):
    cirlib.retrieval.run_files.RunError: custom has no test server, allowed are cirr and circo.
    """
    if benchmark.name not in ("cirr", "circo"):
        raise RunError(f"{benchmark.name} has no test server, allowed are cirr and circo.")
    if not benchmark.complete or len(benchmark.gallery) <= DEPTH:
        raise RunError(f"{benchmark.name} {benchmark.split} is incomplete: the server ranks in all the gallery.")
    is_cirr, ids = benchmark.name == "cirr", [triplet.id for triplet in benchmark.triplets]
    lists = read_run(run, benchmark, removed=is_cirr)
    if isinstance(lists, Embeddings):
        exclude = [benchmark.gallery_index[triplet.reference] for triplet in benchmark.triplets] if is_cirr else None
        best = top_rows(*lists, exclude, len(benchmark.gallery) if is_cirr else DEPTH)
        lists = [[benchmark.gallery[i] for i in rows] for rows in best]
    first = [images[:DEPTH] for images in lists]
    if is_cirr:
        metrics = {"recall": first, "recall_subset": _of_subsets(lists, benchmark)}
        contents = {m: {"version": VERSION, "metric": m, **dict(zip(ids, metrics[m], strict=True))} for m in metrics}
    else:
        contents = {"circo": {n: list(map(int, images)) for n, images in zip(ids, first, strict=True)}}
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        write_json(content, folder / f"{name}.json", indent=None)
    return [folder / f"{name}.json" for name in contents]


def _of_subsets(lists: Lists, benchmark: Benchmark) -> Lists:
    """The first members of each query's subset."""
    best = []
    for images, triplet in zip(lists, benchmark.triplets, strict=True):
        members = [image for image in images if image in triplet.subset][:SUBSET_DEPTH]
        if len(members) < SUBSET_DEPTH:
            raise RunError(
                f"query {triplet.id!r} has {len(members)} members of its subset, the server wants {SUBSET_DEPTH}: put "
                "the subset's members, in their order, behind the first 50."
            )
        best.append(members)
    return best
