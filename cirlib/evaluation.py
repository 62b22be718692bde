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
  run.npz          queries (N, D) and gallery (M, D) or (M, T, D), scored by their dot product: give unit vectors
                   where a cosine is meant. Rows in the benchmark's order, or query_ids (N,) and gallery_ids (M,).
  run.safetensors  the same; ids that are texts go into the metadata, as JSON lists

  A query's id is "dress-val-0" for the first entry of FashionIQ's cap.dress.val.json, CIRR's pairid, CIRCO's id.
  CIRR's recall_subset wants lists that hold the target or three others of its subset.

examples:
  one category:     --benchmark fashioniq --root data/fashioniq/raw --category dress --run mine.json
  all three, and their mean:  --category dress shirt toptee --run dress.npz shirt.npz toptee.npz
  two methods:      --run mine.json --against theirs.json
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
        if options.server_files:
            for file in write_server_files(options.run[0], benchmarks[0], options.server_files):
                print(f"wrote {file}")
            return 0
        scored = _score_files("run", options.run, benchmarks, options.reference)
        tests = None
        if options.against:
            scored += _score_files("against", options.against, benchmarks, options.reference)
            tests = compare(scored, "against", [m for m in scored[0].metrics if all(m in o.metrics for o in scored)])
        summary = summarise(scored)
        if options.out:
            write_table(summary.round(6), options.out / "summary.csv")
            if tests is not None:
                write_table(tests, options.out / "tests.csv")
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
    add("--run", required=True, nargs="+", metavar="FILE", help=".json of ids; .npz or .safetensors of embeddings")
    add("--against", nargs="+", metavar="FILE", help="another run, compared with a paired test")
    add("--out", type=Path, metavar="DIR", help="where to write summary.csv and tests.csv")
    add("--server-files", type=Path, metavar="DIR", help="of cirr and circo: write what their servers take instead")
    return parser


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
