"""Anybody's rankings: every kind of file gives the numbers of the features behind it; bad files give one sentence."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import normalize

from cirlib.benchmarks import Benchmark, Triplet, load_benchmark
from cirlib.retrieval.measures import CIRR_MEAN
from cirlib.retrieval.ranks import chance_average_precision
from cirlib.retrieval.scoring import RunError, main, score, score_run
from cirlib.retrieval.server_files import write_cirr
from cirlib.study.parameters import Evaluation

IDS = [f"image-{i}" for i in range(70)]
REMOVED, KEPT = Evaluation(), Evaluation(reference="kept")


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


QUERIES, IMAGES = unit(30, 8), unit(70, 8, seed=1)


@pytest.fixture
def hats(make_benchmark):
    """30 queries, from image i to image i + 1 of 70."""
    return make_benchmark([(IDS[i], IDS[i + 1], "is x") for i in range(30)], IDS)


def full_lists(benchmark: Benchmark) -> dict[str, list[str]]:
    """Every query's whole gallery, sorted by score."""
    order = (QUERIES.double() @ IMAGES.double().T).argsort(1, descending=True).tolist()
    return {t.id: [IDS[row] for row in rows] for t, rows in zip(benchmark.triplets, order, strict=True)}


def assert_equal(got, wanted) -> None:
    assert got.top == wanted.top
    assert got.reference_removed == wanted.reference_removed
    for metric in wanted.metrics:
        np.testing.assert_allclose(got.values(metric), wanted.values(metric), err_msg=metric)


# ------------------------------------------------------------------ what is right
@pytest.mark.parametrize("rules", [REMOVED, KEPT])
@pytest.mark.parametrize("length", [70, 51])
def test_ranked_ids_score_as_the_features_behind_them(hats, tmp_path, write_json, rules, length):
    lists = {query: images[:length] for query, images in full_lists(hats).items()}
    path = write_json(tmp_path / "run.json", dict(reversed(lists.items())))
    wanted = score("run", "hat", QUERIES, IMAGES, hats, rules)
    for run in (path, str(path), lists):
        got = score_run(run, hats, reference=rules.reference)
        assert_equal(got, wanted)
    assert got.protocol == f"original gallery, reference {rules.reference}"
    assert (got.method, got.category) == ("run", "hat")


def test_the_place_in_a_list_counts_without_the_reference_when_that_is_removed(make_benchmark):
    benchmark = make_benchmark([("a", "b", "is x"), ("b", "c", "is y")], ["a", "b", "c"])
    lists = {"hat-query-0": ["a", "b", "c"], "hat-query-1": ["b", "a", "c"]}
    assert score_run(lists, benchmark).ranks.above.tolist() == [0, 1]
    assert score_run(lists, benchmark, reference="kept").ranks.above.tolist() == [1, 2]
    without = {"hat-query-0": ["b", "c"], "hat-query-1": ["a", "c"]}
    assert score_run(without, benchmark).ranks.above.tolist() == [0, 1]


def test_a_target_beyond_the_end_of_a_list_is_in_no_recall(make_benchmark):
    benchmark = make_benchmark([(IDS[0], IDS[60], "is x")], IDS)
    got = score_run({"hat-query-0": IDS[1:51]}, benchmark)
    assert [got.recall(k).item() for k in (1, 5, 10, 50)] == [0, 0, 0, 0]


def test_whole_numbers_are_ids(make_benchmark):
    benchmark = make_benchmark([("7", "8", "is x")], ["7", "8", "9"])
    assert score_run({"hat-query-0": [9, 8]}, benchmark).ranks.above.tolist() == [1]


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("tokens", [(), (4,)])
@pytest.mark.parametrize("shuffled", [True, False])
@pytest.mark.parametrize("kind", [torch.float16, torch.float32, torch.float64])
def test_embeddings_of_every_form_score_alike(hats, tmp_path, suffix, tokens, shuffled, kind):
    images = unit(70, *tokens, 8, seed=1).to(kind)
    queries = QUERIES.to(kind)
    wanted = score("run", "hat", queries, images, hats, REMOVED)
    rng = np.random.default_rng(0)
    order = {"queries": rng.permutation(30), "gallery": rng.permutation(70)} if shuffled else {}
    names = {"queries": [t.id for t in hats.triplets], "gallery": IDS}
    arrays, ids = {"queries": queries, "gallery": images}, {}
    for side, rows in order.items():
        arrays[side] = arrays[side][torch.from_numpy(rows)].contiguous()
        ids["query_ids" if side == "queries" else "gallery_ids"] = [names[side][row] for row in rows]
    path = tmp_path / f"run{suffix}"
    if suffix == ".npz":
        np.savez(path, **{n: a.numpy() for n, a in arrays.items()}, **{n: np.array(i) for n, i in ids.items()})
    else:
        save_file(arrays, path, {name: json.dumps(own) for name, own in ids.items()})
    assert_equal(score_run(path, hats), wanted)
    assert_equal(score_run({**arrays, **ids}, hats), wanted)


def test_bfloat16_is_read_from_safetensors(hats, tmp_path):
    arrays = {"queries": QUERIES.bfloat16(), "gallery": IMAGES.bfloat16()}
    save_file(arrays, tmp_path / "run.safetensors")
    assert_equal(score_run(tmp_path / "run.safetensors", hats), score("run", "hat", *arrays.values(), hats, REMOVED))


@pytest.fixture
def cirr():
    """Three queries over 70 images, each with a subset of five."""
    targets, triplets = (3, 20, 43), []
    for i, target in enumerate(targets):
        subset = tuple(IDS[row] for row in range(target - 2, target + 3))
        triplets.append(Triplet(str(100 + i), IDS[60 + i], ("is x",), (IDS[target],), None, subset))
    return Benchmark("cirr", "val", triplets, IDS, dict.fromkeys(IDS, "no file"))


def test_cirr_lists_of_everything_score_as_the_features(cirr):
    order = (QUERIES[:3].double() @ IMAGES.double().T).argsort(1, descending=True).tolist()
    lists = {t.id: [IDS[row] for row in rows] for t, rows in zip(cirr.triplets, order, strict=True)}
    wanted = score("run", "cirr", QUERIES[:3], IMAGES, cirr, REMOVED)
    assert CIRR_MEAN in wanted.metrics
    assert_equal(score_run(lists, cirr), wanted)


def test_cirr_subset_recall_by_hand(cirr):
    fifty = [image for image in IDS if image not in {m for t in cirr.triplets for m in (*t.subset, t.reference)}][:50]
    first = [*fifty[:9], IDS[3], *fifty[9:49]]  # the target tenth, no other of its subset: first among those
    second = [IDS[22], IDS[18], *fifty[:48], IDS[20]]  # the target behind the fifty, third of its subset
    third = [IDS[41], IDS[42], *fifty[:48], IDS[44]]  # three others of the subset: the target is fourth or fifth
    got = score_run({"100": first, "101": second, "102": third}, cirr)
    assert [got.values(f"recall_subset@{k}").tolist() for k in (1, 2, 3)] == [[1, 0, 0], [1, 0, 0], [1, 1, 0]]
    assert [got.recall(k).tolist() for k in (5, 10, 50)] == [[0, 0, 0], [1, 0, 0], [1, 0, 0]]
    assert got.values(CIRR_MEAN).tolist() == [0.5, 0, 0]
    unsaid = score_run({"100": first, "101": second, "102": third[:-1] + fifty[48:49]}, cirr)
    assert unsaid.metrics == ["recall@1", "recall@5", "recall@10", "recall@50"]
    assert unsaid.note.startswith("No recall_subset for run: query '102' has neither its target nor three others")


def test_the_file_for_cirrs_server_is_a_run(cirr, tmp_path):
    ranked = {t.id: [image for image in IDS if image != t.reference][:50] for t in cirr.triplets}
    write_cirr(tmp_path / "recall.json", ranked, "recall", cirr)
    assert_equal(score_run(tmp_path / "recall.json", cirr), score_run(ranked, cirr))


def test_circo_lists_count_every_target(make_benchmark):
    one = make_benchmark([(IDS[0], IDS[1], "is x")], IDS)
    benchmark = replace(one, name="circo", triplets=[replace(one.triplets[0], targets=(IDS[1], IDS[2], IDS[69]))])
    got = score_run({"hat-query-0": [IDS[2], IDS[5], IDS[1], *IDS[6:60]]}, benchmark)
    # hits at 1 and 3 of three targets
    assert [got.values(f"map@{k}").item() for k in (5, 50)] == pytest.approx([(1 + 2 / 3) / 3] * 2)
    assert got.recall(5).item() == 1  # of the target that the caption was written for


# ------------------------------------------------------------------ what is wrong
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("hat-query-3") and None, "query 'hat-query-3' is missing, the first of 1"),
        (lambda r: r.update(other=IDS), "query 'other' is not in the benchmark"),
        (lambda r: r["hat-query-4"].__setitem__(5, "cat"), "query 'hat-query-4' has image 'cat', which is not in the"),
        (lambda r: r["hat-query-4"].append(IDS[9]), "query 'hat-query-4' has image 'image-9' more than once"),
        (
            lambda r: r.update({"hat-query-2": IDS[10:59]}),
            "has 49 images beside its reference .*, expected at least 50",
        ),
        (
            lambda r: r.update({"hat-query-2": IDS[2:52]}),
            "has 49 images beside its reference .*, expected at least 50",
        ),
        (
            lambda r: r.update({"hat-query-2": "image-3"}),
            "query 'hat-query-2': expected a list of ids, found 'image-3'",
        ),
        (lambda r: r.update({"hat-query-2": [None]}), r"query 'hat-query-2': expected an id \(text\), found None"),
        (lambda r: r.update({"hat-query-2": [["a"]]}), "query 'hat-query-2': expected an id"),
        (lambda r: [1], "expected an object from query id to a list of image ids, found"),
        (lambda r: {}, "query 'hat-query-0' is missing, the first of 30"),
    ],
)
def test_bad_lists_are_named(hats, tmp_path, write_json, change, message):
    lists = full_lists(hats)
    changed = change(lists)
    content = lists if changed is None else changed
    path = write_json(tmp_path / "run.json", content)
    with pytest.raises(RunError, match=rf"run\.json: .*{message}"):
        score_run(path, hats)
    if isinstance(content, dict):
        with pytest.raises(RunError, match=rf"the run: .*{message}"):
            score_run(content, hats)


def test_a_list_with_the_reference_kept_may_hold_it_and_needs_fifty(hats):
    lists = {query: images[:49] for query, images in full_lists(hats).items()}
    with pytest.raises(RunError, match=r"'hat-query-0' has 49 images, expected at least 50"):
        score_run(lists, hats, reference="kept")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": QUERIES[:29]}, "queries has 29 rows, the benchmark has 30"),
        ({"gallery": IMAGES[:60]}, "gallery has 60 rows, the benchmark has 70"),
        ({"gallery": IMAGES[:, :7]}, "queries are 8 wide and gallery 7"),
        ({"queries": QUERIES[:, None]}, r"queries has the shape \(30, 1, 8\), expected \(rows, D\)"),
        ({"gallery": IMAGES[:, 0]}, r"gallery has the shape \(70,\), expected \(rows, D\) or \(rows, T, D\)"),
        ({"gallery": IMAGES.long()}, "gallery must be floating-point numbers, found int64"),
        ({"gallery": IMAGES.where(torch.arange(70)[:, None] != 8, torch.nan)}, r"row 8 \('image-8'\), has NaN"),
        (
            {"queries": QUERIES.where(torch.arange(30)[:, None] != 2, -torch.inf)},
            r"row 2 \('hat-query-2'\), has NaN, inf",
        ),
        ({"gallery_ids": [*IDS[:69], "cat"]}, "gallery image 'cat' is not in the benchmark"),
        ({"gallery_ids": [*IDS[:69], IDS[0]]}, "gallery image 'image-0' appears more than once"),
        ({"gallery_ids": IDS[:69]}, "gallery has 70 rows, there are ids for 69"),
        ({"query_ids": [f"hat-query-{i}" for i in range(29)] + ["hat-query-0"]}, "query 'hat-query-0' appears more"),
    ],
)
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_bad_embeddings_are_named(hats, tmp_path, suffix, change, message):
    content = {"queries": QUERIES, "gallery": IMAGES, **change}
    arrays = {name: value.contiguous() for name, value in content.items() if isinstance(value, torch.Tensor)}
    ids = {name: value for name, value in content.items() if name not in arrays}
    path = tmp_path / f"run{suffix}"
    if suffix == ".npz":
        np.savez(path, **{n: a.numpy() for n, a in arrays.items()}, **{n: np.array(i) for n, i in ids.items()})
    else:
        save_file(arrays, path, {name: json.dumps(own) for name, own in ids.items()})
    with pytest.raises(RunError, match=message):
        score_run(path, hats)
    with pytest.raises(RunError, match=message):
        score_run(content, hats)


def test_images_and_their_ids_must_be_as_many_as_the_benchmarks(hats):
    content = {"queries": QUERIES, "gallery": IMAGES[:69], "gallery_ids": IDS[:69]}
    with pytest.raises(RunError, match="gallery image 'image-69' is missing, the first of 1"):
        score_run(content, hats)


def test_a_mapping_with_one_array_or_none_of_numbers_is_refused(hats):
    with pytest.raises(RunError, match="the run: no array 'gallery'"):
        score_run({"queries": QUERIES}, hats)
    with pytest.raises(RunError, match="gallery is no array of numbers"):
        score_run({"queries": QUERIES, "gallery": "features"}, hats)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", b"{", r"not a readable \.json file \(Expecting property name"),
        ("run.json", b"\xff\xfe\x00", r"not a readable \.json file"),
        ("run.json", b'{"a": [], "b": [], "a": []}', "query 'a' appears more than once"),
        ("run.npz", b"nonsense", r"not a readable \.npz file \(not an archive\)"),
        ("run.npz", b"", r"not a readable \.npz file"),
        ("run.safetensors", b"nonsense", r"not a readable \.safetensors file"),
        ("run.safetensors", b"", r"not a readable \.safetensors file"),
        ("run.txt", b"", r"expected a file that ends in \.json, \.npz, \.safetensors"),
        ("absent.json", None, r"No file .*absent\.json"),
    ],
)
def test_files_that_cannot_be_read_give_one_sentence(hats, tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(RunError, match=message) as caught:
        score_run(tmp_path / name, hats)
    assert len(str(caught.value).splitlines()) == 1


def test_archives_without_the_arrays_or_with_python_objects_give_one_sentence(hats, tmp_path):
    np.savez(tmp_path / "run.npz", queries=QUERIES.numpy())
    with pytest.raises(RunError, match=r"run\.npz: no array 'gallery'"):
        score_run(tmp_path / "run.npz", hats)
    objects = np.array([t.id for t in hats.triplets], dtype=object)
    np.savez(tmp_path / "run.npz", queries=QUERIES.numpy(), gallery=IMAGES.numpy(), query_ids=objects)
    with pytest.raises(RunError, match=r"run\.npz: not a readable \.npz file \(Object arrays"):
        score_run(tmp_path / "run.npz", hats)
    save_file({"gallery": IMAGES}, tmp_path / "run.safetensors")
    with pytest.raises(RunError, match=r"no array 'queries'"):
        score_run(tmp_path / "run.safetensors", hats)
    save_file({"gallery": IMAGES, "queries": QUERIES}, tmp_path / "run.safetensors", {"query_ids": "[1,"})
    with pytest.raises(RunError, match=r"not a readable \.safetensors file"):
        score_run(tmp_path / "run.safetensors", hats)


def test_a_split_without_targets_cannot_be_scored(small_fashioniq):
    benchmark = load_benchmark("fashioniq", small_fashioniq, split="test", category="dress")
    with pytest.raises(RunError, match="fashioniq test: query 'dress-test-0' has no public target"):
        score_run({}, benchmark)


# ------------------------------------------------------------------ the command line
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
    assert lines[3].split() == ["recall@1", "50.0", "[0.0,", "100.0]", "25"]
    assert lines[4].split() == ["recall@5", "100.0", "[100.0,", "100.0]", "100"]
    summary = pd.read_csv(out / "summary.csv")
    assert summary.loc[summary["category"] == "dress", "value"].tolist() == [0.5, 1, 1, 1]
    assert json.loads((out / "metrics.json").read_text())["run"]["dress/recall@1"] == 0.5
    assert sorted(file.name for file in out.iterdir()) == ["metrics.json", "summary.csv"]


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


def test_two_runs_over_several_categories_are_compared(small_fashioniq, lists_of, capsys):
    names = ("dress", "shirt", "toptee")
    runs, others = ([lists_of(c, place, str(place)) for c in names] for place in (0, 3))
    code = main(options(small_fashioniq, "--category", *names, "--run", *runs, "--against", *others))
    printed = capsys.readouterr().out
    assert code == 0
    assert "mean: 6 queries, 5 candidates" in printed
    row = next(line.split() for line in printed.splitlines() if line.split()[:3] == ["run", "against", "recall@1"])
    assert float(row[3]) == 50  # in each category one of two
    assert float(row[4]) == pytest.approx(0.25, abs=0.02)  # 2 of the 8 ways to sign three changes


def test_the_command_says_when_cirrs_subsets_are_not_told(cirr, tmp_path, write_json, capsys):
    records = [
        {
            "pairid": int(t.id), "reference": t.reference, "caption": "is x", "target_hard": t.targets[0],
            "img_set": {"members": [t.reference, *t.subset]},
        }
        for t in cirr.triplets
    ]  # fmt: skip
    write_json(tmp_path / "captions" / "cap.rc2.val.json", records)
    write_json(tmp_path / "image_splits" / "split.rc2.val.json", {i: f"./dev/{i}.png" for i in IDS})
    far = {t.id: [i for i in IDS if i not in (t.reference, *t.subset)] for t in cirr.triplets}
    run = write_json(tmp_path / "run.json", far)
    assert main(["--benchmark", "cirr", "--root", str(tmp_path), "--run", str(run)]) == 0
    printed = capsys.readouterr().out
    assert "No recall_subset for run: query '100' has neither its target nor three others of its subset" in printed
    whole = {t.id: [*far[t.id], *t.subset] for t in cirr.triplets}
    write_json(tmp_path / "run.json", whole)
    assert main(["--benchmark", "cirr", "--root", str(tmp_path), "--run", str(run)]) == 0
    printed = capsys.readouterr().out
    assert "No recall_subset" not in printed
    assert CIRR_MEAN in printed


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--category", "dress", "--run", "absent.json"), "No file absent.json"),
        (("--category", "coat", "--run", "absent.json"), "Unknown category 'coat': allowed are dress, shirt, toptee."),
        (("--category", "dress", "shirt", "--run", "absent.json"), "run: 1 files for 2 categories"),
        (("--category", "dress", "--split", "test", "--run", "absent.json"), "has no public target"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_code_2(small_fashioniq, capsys, more, message):
    assert main(options(small_fashioniq, *more)) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert len(printed.err.splitlines()) == 1


def test_numbers_too_large_to_score_are_one_sentence_too(small_fashioniq, tmp_path, capsys):
    benchmark = load_benchmark("fashioniq", small_fashioniq, category="dress")
    np.savez(tmp_path / "run.npz", queries=np.full((2, 3), 1e300), gallery=np.ones((len(benchmark.gallery), 3)))
    assert main(options(small_fashioniq, "--category", "dress", "--run", str(tmp_path / "run.npz"))) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.slow
def test_the_module_runs_as_a_command(small_fashioniq, lists_of):
    command = [
        sys.executable,
        "-m",
        "cirlib.retrieval.scoring",
        *options(small_fashioniq, "--category", "dress", "--run"),
    ]
    done = subprocess.run([*command, lists_of("dress", 1, "a")], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("dress: 2 queries, 4 candidates")
    failed = subprocess.run([*command, "absent.json"], capture_output=True, text=True)
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr == "No file absent.json: expected ranked ids or embeddings.\n"


# ------------------------------------------------------------------ the real annotations
def test_perfect_lists_of_real_fashioniq_are_found_wholly(real_data):
    benchmark = load_benchmark("fashioniq", real_data("fashioniq"), category="dress")
    rest = benchmark.gallery[:52]
    lists = {
        t.id: [*t.targets, *(i for i in rest if i not in (*t.targets, t.reference))] for t in benchmark.triplets
    }  # fmt: skip
    got = score_run(lists, benchmark)
    assert len(got.ranks) == 2017
    assert got.recall(1).mean() == 1


# ------------------------------------------------------------------ what would be wrong without a word


def test_arrays_of_another_name_are_refused(make_benchmark, tmp_path):
    benchmark = make_benchmark([(IDS[0], IDS[1], "is x")], IDS)
    arrays = {"queries": np.ones((1, 4), np.float32), "gallery": np.ones((len(IDS), 4), np.float32)}
    np.savez(tmp_path / "run.npz", **arrays, galery_ids=np.array(IDS))
    save_file(
        {k: torch.from_numpy(v) for k, v in arrays.items()} | {"ids": torch.arange(3)}, tmp_path / "run.safetensors"
    )
    for name, array in (("run.npz", "galery_ids"), ("run.safetensors", "ids")):
        with pytest.raises(RunError, match=rf"{name}: array '{array}' is not known, allowed are queries, gallery"):
            score_run(tmp_path / name, benchmark)


def test_ids_that_are_numbers_may_be_tensors(make_benchmark, tmp_path):
    ids = [str(i) for i in range(60)]
    benchmark = make_benchmark([("0", "1", "is x"), ("2", "3", "is y")], ids)
    benchmark = replace(benchmark, triplets=[replace(t, id=str(i)) for i, t in enumerate(benchmark.triplets)])
    generator = torch.Generator().manual_seed(0)
    gallery = torch.nn.functional.normalize(torch.randn(60, 8, generator=generator), dim=-1)
    queries, order = gallery[[1, 3]], torch.randperm(60, generator=generator)
    save_file(
        {
            "queries": queries[[1, 0]],
            "query_ids": torch.tensor([1, 0]),
            "gallery": gallery[order],
            "gallery_ids": order,
        },
        tmp_path / "run.safetensors",
    )
    assert score_run(tmp_path / "run.safetensors", benchmark).recall(1).tolist() == [1, 1]


def test_circos_reference_stays_unless_it_is_removed(make_benchmark):
    one = make_benchmark([(IDS[0], IDS[1], "is x")], IDS)
    benchmark = replace(one, name="circo")
    run = {"hat-query-0": IDS[:50]}  # the reference first, as the server takes it
    assert score_run(run, benchmark).recall(1).item() == 0
    assert "reference kept" in score_run(run, benchmark).protocol
    assert score_run({"hat-query-0": IDS[:51]}, benchmark, reference="removed").recall(1).item() == 1
    with pytest.raises(RunError, match=r"49 images beside its reference \(which is removed; it counts with"):
        score_run(run, benchmark, reference="removed")


def test_circos_precision_of_a_model_that_knows_nothing_is_chance_whatever_the_order(make_benchmark):
    one = make_benchmark([(IDS[0], IDS[1], "is x"), (IDS[5], IDS[2], "is y")], IDS)
    triplets = [replace(one.triplets[0], targets=(IDS[1], IDS[2], IDS[69])), one.triplets[1]]
    for gallery in (IDS, IDS[::-1]):
        benchmark = replace(one, name="circo", triplets=triplets, gallery=list(gallery))
        got = score_run(
            {"queries": np.zeros((2, 4), np.float32), "gallery": np.ones((len(IDS), 4), np.float32)}, benchmark
        )
        for k in (5, 10, 25, 50):
            expected = [chance_average_precision(k, n, len(IDS)) for n in (3, 1)]
            assert got.values(f"map@{k}").tolist() == pytest.approx(expected)


def test_joined_categories_say_so(small_fashioniq):
    benchmark = load_benchmark("fashioniq", small_fashioniq)
    size = len(benchmark.gallery)
    run = {"queries": np.ones((len(benchmark.triplets), 4), np.float32), "gallery": np.ones((size, 4), np.float32)}
    assert score_run(run, benchmark).protocol.endswith(", categories joined")


def test_keys_that_are_the_same_text_are_one_query_twice(make_benchmark):
    benchmark = make_benchmark([(IDS[0], IDS[1], "is x")], IDS)
    benchmark = replace(benchmark, triplets=[replace(benchmark.triplets[0], id="1")])
    with pytest.raises(RunError, match="query '1' appears more than once"):
        score_run({1: IDS[1:60], "1": IDS[1:60]}, benchmark)


@pytest.mark.parametrize("run", [None, [], ("a",), 3])
def test_what_is_no_run_is_refused(make_benchmark, run):
    with pytest.raises(RunError, match="expected a file or its content"):
        score_run(run, make_benchmark([(IDS[0], IDS[1], "is x")], IDS))


# ------------------------------------------------------------------ damaged files and outputs


def test_a_damaged_archive_is_a_sentence(make_benchmark, tmp_path):
    benchmark = make_benchmark([(IDS[0], IDS[1], "is x")], IDS)
    rng = np.random.default_rng(0)
    np.savez_compressed(tmp_path / "run.npz", queries=rng.random((1, 64)), gallery=rng.random((len(IDS), 64)))
    data = bytearray((tmp_path / "run.npz").read_bytes())
    data[2000:2040] = b"\xff" * 40
    (tmp_path / "run.npz").write_bytes(data)
    with pytest.raises(RunError, match=r"run\.npz: not a readable \.npz file"):
        score_run(tmp_path / "run.npz", benchmark)


def test_numbers_of_the_other_byte_order_are_numbers(make_benchmark):
    benchmark = make_benchmark([(IDS[0], IDS[1], "is x")], IDS)
    gallery = np.eye(len(IDS), 80)
    got = score_run({"queries": gallery[1:2].astype(">f4"), "gallery": gallery.astype(">f8")}, benchmark)
    assert got.recall(1).item() == 1


def test_an_output_that_is_a_file_is_refused_before_anything_is_scored(small_fashioniq, tmp_path, capsys):
    (tmp_path / "out").write_text("")
    code = main(
        options(small_fashioniq, "--category", "dress", "--run", "nowhere.json", "--out", str(tmp_path / "out"))
    )
    assert code == 2
    assert capsys.readouterr().err.strip().endswith("out is a file, expected a folder")


def test_paired_tests_of_two_runs_are_written(small_fashioniq, lists_of, tmp_path):
    runs = [lists_of("dress", place, str(place)) for place in (0, 3)]
    main(
        options(small_fashioniq, "--category", "dress", "--run", runs[0], "--against", runs[1], "--out", str(tmp_path))
    )
    assert "p_holm" in (tmp_path / "tests.csv").read_text()


def test_a_category_named_twice_is_refused(small_fashioniq, lists_of, capsys):
    run = lists_of("dress", 0, "0")
    assert main(options(small_fashioniq, "--category", "dress", "dress", "--run", run, run)) == 2
    assert "category 'dress' is there twice for 'run'" in capsys.readouterr().err


def test_a_reader_that_has_enough_is_no_error(small_fashioniq, lists_of):
    command = [sys.executable, "-m", "cirlib.retrieval.scoring",
               *options(small_fashioniq, "--category", "dress", "--run", lists_of("dress", 0, "0"))]  # fmt: skip
    done = subprocess.run(f"{shlex.join(map(str, command))} | true", shell=True, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
