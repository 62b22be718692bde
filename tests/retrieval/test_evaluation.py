"""``python -m cirlib.evaluation``: what it prints, writes and refuses."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from cirlib.benchmarks import load_benchmark
from cirlib.evaluation import main


def options(root, *more: str) -> list[str]:
    return ["--benchmark", "fashioniq", "--root", str(root), "--split", "val", *more]


@pytest.fixture
def lists_of(small_fashioniq, write_json):
    """Writes lists for a category: its first query's target at ``place`` (from 0), its second's first."""

    def make(category: str, place: int, name: str) -> str:
        benchmark = load_benchmark("fashioniq", small_fashioniq, category=category)
        lists = {}
        for triplet, at in zip(benchmark.triplets, (place, 0), strict=True):
            others = [i for i in benchmark.gallery if i not in (triplet.reference, *triplet.targets)]
            lists[triplet.id] = [*others[:at], *triplet.targets, *others[at:]]
        return str(write_json(small_fashioniq / "runs" / f"{category}-{name}.json", lists))

    return make


def test_the_command_prints_numbers_with_intervals_chance_and_protocol(small_fashioniq, lists_of, tmp_path, capsys):
    out = tmp_path / "out" / "new"
    code = main(options(small_fashioniq, "--category", "dress", "--run", lists_of("dress", 2, "a"), "--out", str(out)))
    printed = capsys.readouterr()
    assert (code, printed.err) == (0, "")
    lines = printed.out.splitlines()
    assert lines[0] == "dress: 2 queries, 4 candidates; original gallery, reference removed"
    assert lines[3].split() == ["recall@1", "50.0", "[1.3,", "98.7]", "25"]
    assert lines[4].split() == ["recall@5", "100.0", "[15.8,", "100.0]", "100"]
    summary = pd.read_csv(out / "summary.csv")
    assert summary.loc[summary["category"] == "dress", "value"].tolist() == [0.5, 1, 1, 1]
    assert [file.name for file in out.iterdir()] == ["summary.csv"]


def test_the_reference_and_the_gallery_are_as_asked(small_fashioniq, lists_of, capsys):
    run = lists_of("dress", 0, "a")
    benchmark = load_benchmark("fashioniq", small_fashioniq, category="dress")
    lists = json.loads(Path(run).read_text())
    for triplet in benchmark.triplets:
        lists[triplet.id].insert(0, triplet.reference)
    Path(run).write_text(json.dumps(lists))
    more = ("--category", "dress", "--run", run)
    assert main(options(small_fashioniq, *more, "--reference", "kept")) == 0
    printed = capsys.readouterr().out
    assert "5 candidates; original gallery, reference kept" in printed
    assert next(line.split()[1] for line in printed.splitlines() if line.startswith("recall@1 ")) == "0.0"
    assert main(options(small_fashioniq, *more, "--protocol", "val_split")) == 2
    assert "is not in the gallery" in capsys.readouterr().err


def test_two_runs_over_several_categories_are_compared(small_fashioniq, lists_of, tmp_path, capsys):
    names = ("dress", "shirt", "toptee")
    runs, others = ([lists_of(c, place, str(place)) for c in names] for place in (0, 3))
    code = main(
        options(small_fashioniq, "--category", *names, "--run", *runs, "--against", *others, "--out", str(tmp_path))
    )
    printed = capsys.readouterr().out
    assert code == 0
    assert "mean: 6 queries, 5 candidates" in printed
    row = next(line.split() for line in printed.splitlines() if line.split()[:3] == ["run", "against", "recall@1"])
    assert "p_holm" in (tmp_path / "tests.csv").read_text()
    assert row[3] == "+50.0" and row[4].startswith("[")  # points: in each category one of two
    assert float(row[6]) == pytest.approx(0.25, abs=0.02)  # 2 of the 8 ways to sign three changes


def test_several_runs_give_one_table_a_figure_and_tests_against_the_first(small_fashioniq, lists_of, tmp_path, capsys):
    runs = [
        "--run",
        f"ours={lists_of('dress', 0, 'a')}",
        "--run",
        lists_of("dress", 3, "b"),
        "--run",
        lists_of("dress", 2, "c"),
    ]
    assert main(options(small_fashioniq, "--category", "dress", *runs, "--out", str(tmp_path))) == 0
    printed = capsys.readouterr().out
    assert next(line.split() for line in printed.splitlines() if "ours" in line)[:2] == ["ours", "dress-b"]
    tests = pd.read_csv(tmp_path / "tests.csv")
    assert set(tests["method"]) == {"dress-b", "dress-c"} and set(tests["against"]) == {"ours"}
    assert (tmp_path / "recall.png").read_bytes().startswith(b"\x89PNG")
    assert main(options(small_fashioniq, "--category", "dress", *runs[:2], *runs[:2])) == 2
    assert "two runs have one name" in capsys.readouterr().err


def test_a_name_stands_before_any_run_and_a_path_may_hold_an_equals_sign(small_fashioniq, lists_of, tmp_path, capsys):
    run = Path(lists_of("dress", 0, "a"))
    odd, plain = tmp_path / "lr=1e-5" / "a=b.json", tmp_path / "against.json"
    odd.parent.mkdir()
    for file in (odd, plain):
        file.write_text(run.read_text())

    def names(*more: str) -> list[str]:
        assert main(options(small_fashioniq, "--category", "dress", *map(str, more))) == 0
        return capsys.readouterr().out.splitlines()[2].split()[:-1]

    assert names("--run", odd) == ["run"]
    assert names("--run", f"ours={odd}") == ["ours"]
    assert names("--run", odd, "--run", plain) == ["a=b", "against"]
    assert names("--run", run, "--against", f"theirs={odd}") == ["run", "theirs"]
    assert (
        main(
            options(
                small_fashioniq, "--category", "dress", "--run", str(plain), "--run", str(run), "--against", str(odd)
            )
        )
        == 2
    )
    assert "two runs have one name" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["trec", "run", "parquet", "ranked parquet"])
def test_trec_files_and_parquet_score_as_the_lists_they_hold(small_fashioniq, lists_of, tmp_path, capsys, form):
    lists = json.loads(Path(run := lists_of("dress", 2, "a")).read_text())
    rows = [
        (query, "Q0", image, rank, -rank / 3, "mine") for query in lists for rank, image in enumerate(lists[query], 1)
    ]
    table = pd.DataFrame(rows, columns=["query", "Q0", "image", "rank", "score", "tag"]).sample(frac=1, random_state=0)
    file = tmp_path / f"mine.{form.split()[-1]}"
    if form in ("trec", "run"):
        table.assign(rank=1).to_csv(file, sep=" ", header=False, index=False)  # the score decides
    else:
        table.drop(columns="score" if "ranked" in form else "rank").to_parquet(file)
    printed = [
        main(options(small_fashioniq, "--category", "dress", "--run", one)) or capsys.readouterr().out
        for one in (run, str(file))
    ]
    assert printed[0] == printed[1]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--category", "dress", "--run", "absent.json"), "absent.json: no such file"),
        (("--category", "coat", "--run", "absent.json"), "dress, shirt, toptee"),
        (("--category", "dress", "shirt", "--run", "absent.json"), "run: 1 files for 2 categories"),
        (("--category", "dress", "--split", "test", "--run", "absent.json"), "has no public target"),
        (("--category", "dress", "--run", "absent.json", "--out", __file__), "File exists"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_code_2(small_fashioniq, capsys, more, message):
    assert main(options(small_fashioniq, *more)) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert len(printed.err.splitlines()) == 1


def test_a_reader_that_has_enough_is_no_error(small_fashioniq, lists_of):
    command = [sys.executable, "-m", "cirlib.evaluation",
               *options(small_fashioniq, "--category", "dress", "--run", lists_of("dress", 0, "0"))]  # fmt: skip
    done = subprocess.run(f"{shlex.join(map(str, command))} | true", shell=True, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
