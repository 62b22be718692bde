"""Anybody's rankings scored on a benchmark.

``python -m cirlib.evaluation --benchmark fashioniq --root DIR --category dress --run run.json``; ``--help`` says more,
:mod:`cirlib.retrieval.run_files` what a run file holds.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from cirlib import figures
from cirlib.benchmarks import NAMES, Benchmark, load_benchmark
from cirlib.benchmarks.base import PROTOCOLS_OF_GALLERY
from cirlib.benchmarks.protocols import REFERENCES
from cirlib.retrieval.percent_tables import percent_table
from cirlib.retrieval.run_files import RunError
from cirlib.retrieval.scoring import Scored, compare, result_table, score_run, summarise
from cirlib.retrieval.server_files import write_server_files
from cirlib.study.files import write_table

HELP = """\
what a run file holds:
  run.json         {query id: [image id, ...], ...}, best first, at least 50 images beside the reference
  run.trec, .run   TREC's six columns: query Q0 image rank score tag; the higher score comes first,
                   of equal scores the first line
  run.parquet      the columns query, image, and score (or rank)
  run.npz          queries (N, D) and gallery (M, D) or (M, T, D), scored by their dot product: give unit vectors
                   where a cosine is meant. Rows in the benchmark's order, or query_ids (N,) and gallery_ids (M,).
  run.safetensors  the same; ids that are texts go into the metadata, as JSON lists

  A query's id is "dress-val-0" for the first entry of FashionIQ's cap.dress.val.json, CIRR's pairid, CIRCO's id.
  CIRR's recall_subset wants lists that hold the target or three others of its subset.

examples:
  one category:     --benchmark fashioniq --root data/fashioniq/raw --category dress --run mine.json
  all three, and their mean:  --category dress shirt toptee --run dress.npz shirt.npz toptee.npz
  two methods:      --run mine.json --against theirs.json
  a leaderboard:    --run ours=ours.trec --run theirs=theirs.parquet --run mine.json --out results
  a server's file:  --benchmark cirr --root data/cirr/raw --split test1 --run mine.npz --server-files out
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Scores ranked ids or embeddings on a benchmark: numbers with 95 % intervals, chance and protocol."""
    options = _parser().parse_args(arguments)
    try:
        for folder in filter(None, (options.out, options.server_files)):
            folder.mkdir(parents=True, exist_ok=True)
        benchmarks = [
            load_benchmark(options.benchmark, options.root, split=options.split, category=c, protocol=options.protocol)
            for c in options.category
        ]
        named = [_named(files, "run" if len(options.run) == 1 else "") for files in options.run]
        if options.server_files:
            for file in write_server_files(named[0][1][0], benchmarks[0], options.server_files):
                print(f"wrote {file}")
            return 0
        named += [_named(options.against, "against")] if options.against else []
        runs = dict(named)
        if len(runs) < len(named):
            raise RunError(
                "two runs have one name: give each its own, as in --run ours=run.json --run theirs=run.json."
            )
        scored = [
            one for name, files in runs.items() for one in _score_files(name, files, benchmarks, options.reference)
        ]
        metrics = [m for m in scored[0].metrics if all(m in one.metrics for one in scored)]
        base = named[-1 if options.against else 0][0]
        tests = compare(scored, base, metrics) if len(runs) > 1 else None
        summary = summarise(scored)
        if options.out:
            write_table(summary.round(6), options.out / "summary.csv")
            if tests is not None:
                write_table(tests, options.out / "tests.csv")
                figures.save(figures.recall_bars(summary), options.out / "recall.png")
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    try:
        _show(scored, summary, tests)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, as `head`, had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cirlib.evaluation", description=main.__doc__, epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--benchmark", required=True, choices=NAMES)
    add("--root", required=True, help="the folder with the benchmark's annotations")
    add("--split", default="val", help="default: val")
    add("--category", nargs="+", default=[None], help="one a run file; without, all with their galleries joined")
    add("--protocol", default="original", choices=PROTOCOLS_OF_GALLERY, help="the gallery; default: original")
    add("--reference", choices=REFERENCES, help="in each query's own ranking; default: removed, for circo kept")
    run = "a file of ranked ids or of embeddings, [NAME=]FILE"
    add("--run", required=True, nargs="+", action="append", metavar="FILE", help=run)
    add("--against", nargs="+", metavar="FILE", help="the run that the others are tested against; else the first")
    add("--out", type=Path, metavar="DIR", help="where to write summary.csv, of several runs tests.csv and recall.png")
    add("--server-files", type=Path, metavar="DIR", help="of cirr and circo: write what their servers take instead")
    return parser


def _named(files: Sequence[str], usual: str) -> tuple[str, list[str]]:
    """A run's name and its files: what stands before its first file, else the ``usual`` or that file's own."""
    name, _, first = files[0].partition("=")
    if first and name and "/" not in name and not Path(files[0]).is_file():  # paths may hold = too
        return name, [first, *files[1:]]
    return usual or Path(files[0]).stem, list(files)


def _score_files(
    method: str, files: Sequence[str], benchmarks: Sequence[Benchmark], reference: str | None
) -> list[Scored]:
    if len(files) != len(benchmarks):
        raise RunError(f"{method}: {len(files)} files for {len(benchmarks)} categories, expected one file each.")
    pairs = zip(files, benchmarks, strict=True)
    return [score_run(file, benchmark, method=method, reference=reference) for file, benchmark in pairs]


def _show(scored: Sequence[Scored], summary: pd.DataFrame, tests: pd.DataFrame | None) -> None:
    """Prints a table a category and, of two runs, the paired tests."""
    categories = list(dict.fromkeys(summary["category"]))
    for category in categories if len(categories) > 2 else categories[:1]:
        first = summary[summary["category"] == category].iloc[0]
        incomplete = "" if first["complete"] else "; INCOMPLETE: part of the benchmark is missing"
        print(f"{category}: {first['queries']} queries, {first['gallery']} candidates; {first['protocol']}{incomplete}")
        print("percent [95 % interval]\n" + result_table(summary, category).T.rename_axis(None).to_string() + "\n")
    for note in dict.fromkeys(one.note for one in scored if one.note):
        print(note + "\n")
    if tests is not None:
        print(percent_table(tests).to_string(index=False))


if __name__ == "__main__":
    sys.exit(main())
