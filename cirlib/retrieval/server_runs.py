"""A run as the files that the test servers of CIRR and CIRCO take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from cirlib.benchmarks import Benchmark
from cirlib.retrieval.ranking import top_rows
from cirlib.retrieval.ranks import Array
from cirlib.retrieval.run_files import Embeddings, Lists, RunError, read_run
from cirlib.retrieval.server_files import CIRCO_LENGTH, CIRR_LENGTHS, write_circo, write_cirr


def write_server_files(run: str | Path, benchmark: Benchmark, folder: Path) -> list[Path]:
    """Writes ``recall.json`` and ``recall_subset.json`` of CIRR, or ``circo.json``, checked first.

    Args:
        run: ranked ids or embeddings, see :mod:`cirlib.retrieval.run_files`.

    Raises:
        RunError: the run is not as it must be, or the benchmark has no server.
        BenchmarkError: the benchmark is not complete, or a list is not as the server wants it.
    """
    if benchmark.name not in ("cirr", "circo"):
        raise RunError(f"{benchmark.name} has no test server, allowed are cirr and circo.")
    found = read_run(run, benchmark, removed=benchmark.name == "cirr")
    ids = [triplet.id for triplet in benchmark.triplets]
    if benchmark.name == "circo":
        lists = _best(found, benchmark, CIRCO_LENGTH)
        write_circo(folder / "circo.json", dict(zip(ids, lists, strict=True)), benchmark)
        return [folder / "circo.json"]
    files = []
    for metric, length in CIRR_LENGTHS.items():
        lists = _best(found, benchmark, length) if metric == "recall" else _best_of_subsets(found, benchmark, length)
        files.append(folder / f"{metric}.json")
        write_cirr(files[-1], dict(zip(ids, lists, strict=True)), metric, benchmark)
    return files


def _best(found: Embeddings | Lists, benchmark: Benchmark, length: int) -> Lists:
    """The first images of each query; of CIRR without its reference."""
    if not isinstance(found, Embeddings):
        return [images[:length] for images in found]
    row = benchmark.gallery_index
    exclude = [row[triplet.reference] for triplet in benchmark.triplets] if benchmark.name == "cirr" else None
    return [[benchmark.gallery[i] for i in rows] for rows in top_rows(found.queries, found.gallery, exclude, length)]


def _best_of_subsets(found: Embeddings | Lists, benchmark: Benchmark, length: int) -> Lists:
    """The first members of each query's subset."""
    subsets = [triplet.subset for triplet in benchmark.triplets]
    if isinstance(found, Embeddings):
        ordered = [
            _by_score(query, found.gallery, members, benchmark)
            for query, members in zip(found.queries, subsets, strict=True)
        ]
    else:
        ordered = [[image for image in images if image in set(s)] for images, s in zip(found, subsets, strict=True)]
    for triplet, images in zip(benchmark.triplets, ordered, strict=True):
        if len(images) < length:
            raise RunError(
                f"query {triplet.id!r} has {len(images)} members of its subset, the server wants {length}: put the "
                "subset's members, in their order, behind the first 50."
            )
    return [images[:length] for images in ordered]


def _by_score(query: torch.Tensor, gallery: Array, members: Sequence[str], benchmark: Benchmark) -> list[str]:
    rows = [benchmark.gallery_index[image] for image in members]
    scores = torch.as_tensor(gallery[rows]).double() @ query.double()  # (S,) or (S, T)
    scores = scores.amax(1) if scores.ndim == 2 else scores
    return [members[i] for i in scores.argsort(descending=True, stable=True).tolist()]
