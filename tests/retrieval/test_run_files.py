"""Anybody's rankings: every kind of file gives the numbers of the features behind it; bad files give one sentence."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import normalize

from cirlib.benchmarks import Benchmark, load_benchmark
from cirlib.retrieval.run_files import RunError
from cirlib.retrieval.scoring import score, score_run
from cirlib.study.parameters import Evaluation

IDS = [f"image-{i}" for i in range(70)]
REMOVED, KEPT = Evaluation(), Evaluation(reference="kept")


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


QUERIES, IMAGES = unit(30, 8), unit(70, 8, seed=1)


def write_arrays(path, content) -> None:
    """An archive of arrays and ids; of .safetensors the ids go into the metadata."""
    arrays = {name: value.contiguous() for name, value in content.items() if isinstance(value, torch.Tensor)}
    ids = {name: value for name, value in content.items() if name not in arrays}
    if path.suffix == ".npz":
        np.savez(path, **{n: a.numpy() for n, a in arrays.items()}, **{n: np.array(i) for n, i in ids.items()})
    else:
        save_file(arrays, path, {name: json.dumps(own) for name, own in ids.items()})


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


@pytest.mark.parametrize(("rules", "length"), [(REMOVED, 70), (KEPT, 70), (REMOVED, 51)])
def test_ranked_ids_score_as_the_features_behind_them(hats, tmp_path, write_json, rules, length):
    lists = {query: images[:length] for query, images in full_lists(hats).items()}
    path = write_json(tmp_path / "run.json", dict(reversed(lists.items())))
    wanted = score("run", "hat", QUERIES, IMAGES, hats, rules)
    for run in (path, lists):
        got = score_run(run, hats, reference=rules.reference)
        assert_equal(got, wanted)
    assert got.protocol == f"original gallery, reference {rules.reference}"
    assert (got.method, got.category) == ("run", "hat")


def test_a_target_beyond_the_end_of_a_list_counts_as_the_last(make_benchmark):
    benchmark = make_benchmark([(IDS[0], IDS[60], "is x")], IDS)
    assert score_run({"hat-query-0": IDS[1:51]}, benchmark).ranks.above.tolist() == [69]


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("tokens", [(), (4,)])
@pytest.mark.parametrize("shuffled", [True, False])
@pytest.mark.parametrize("kind", [torch.float16, torch.float64])
def test_embeddings_of_every_form_score_alike(hats, tmp_path, suffix, tokens, shuffled, kind):
    content = {"queries": QUERIES.to(kind), "gallery": unit(70, *tokens, 8, seed=1).to(kind)}
    wanted = score("run", "hat", *content.values(), hats, REMOVED)
    if shuffled:
        rng = np.random.default_rng(0)
        names = {"queries": [t.id for t in hats.triplets], "gallery": IDS}
        for side, key in (("queries", "query_ids"), ("gallery", "gallery_ids")):
            rows = rng.permutation(len(names[side]))
            content |= {side: content[side][torch.from_numpy(rows)], key: [names[side][row] for row in rows]}
    write_arrays(tmp_path / f"run{suffix}", content)
    assert_equal(score_run(tmp_path / f"run{suffix}", hats), wanted)
    assert_equal(score_run(content, hats), wanted)


def test_ids_may_be_numbers(make_benchmark):
    ids = [str(i) for i in range(60)]
    benchmark = make_benchmark([("0", "1", "is x"), ("2", "3", "is y")], ids)
    benchmark = replace(benchmark, triplets=[replace(t, id=str(i)) for i, t in enumerate(benchmark.triplets)])
    assert score_run({0: range(1, 60), 1: [3, *range(4, 60)]}, benchmark).recall(1).tolist() == [1, 1]
    gallery, order = unit(60, 8), torch.randperm(60)
    run = {"queries": gallery[[3, 1]], "query_ids": torch.tensor([1, 0]), "gallery": gallery[order]}
    assert score_run(run | {"gallery_ids": order}, benchmark).recall(1).tolist() == [1, 1]


def test_circos_reference_stays_unless_it_is_removed(make_benchmark):
    one = make_benchmark([(IDS[0], IDS[1], "is x")], IDS)
    benchmark = replace(one, name="circo")
    run = {"hat-query-0": IDS[:50]}  # the reference first, as the server takes it
    assert score_run(run, benchmark).recall(1).item() == 0
    assert "reference kept" in score_run(run, benchmark).protocol
    assert score_run({"hat-query-0": IDS[:51]}, benchmark, reference="removed").recall(1).item() == 1
    with pytest.raises(RunError, match=r"49 images beside its reference \(which is removed; it counts with"):
        score_run(run, benchmark, reference="removed")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("hat-query-3") and None, "query 'hat-query-3' is missing, the first of 1"),
        (lambda r: r.update(other=IDS), "query 'other' is not in the benchmark"),
        (lambda r: r["hat-query-4"].__setitem__(5, "cat"), "query 'hat-query-4' has image 'cat', which is not in the"),
        (lambda r: r["hat-query-4"].append(IDS[9]), "query 'hat-query-4': image 'image-9' appears more than once"),
        (lambda r: r.update({"hat-query-2": IDS[2:52]}), "has 49 images beside its reference .*, expected at least 50"),
        (lambda r: r.update({"hat-query-2": [None]}), "'hat-query-2': 0: Input should be a valid string, found 'None'"),
        (lambda r: [1], "expected an object from query id to a list of image ids: Input should be a valid dict"),
    ],
)
def test_bad_lists_are_named(hats, tmp_path, write_json, change, message):
    lists = full_lists(hats)
    changed = change(lists)
    content = lists if changed is None else changed
    with pytest.raises(RunError, match=rf"run\.json: .*{message}"):
        score_run(write_json(tmp_path / "run.json", content), hats)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": QUERIES[:29]}, "query: 29 rows, the benchmark has 30"),
        ({"gallery": IMAGES[:, :7]}, r"expected queries .*got \(30, 8\) and \(70, 7\)"),
        ({"gallery": IMAGES.long()}, r"gallery must be .* floating-point numbers, got (torch\.)?int64"),
        ({"gallery": IMAGES.where(torch.arange(70)[:, None] != 8, torch.nan)}, "gallery row 8 has NaN"),
        ({"gallery_ids": [*IDS[:69], "cat"]}, "gallery id 'cat' is not in the benchmark"),
        ({"gallery_ids": [*IDS[:69], IDS[0]]}, "gallery id 'image-0' appears more than once"),
        ({"gallery_ids": IDS[:69]}, "gallery: 70 rows, there are ids for 69"),
        ({"gallery": IMAGES[:69], "gallery_ids": IDS[:69]}, "gallery id 'image-69' is missing, the first of 1"),
        ({"galery_ids": IDS}, "array 'galery_ids' is not known, allowed are queries, gallery"),
    ],
)
def test_bad_embeddings_are_named(hats, tmp_path, change, message):
    content = {"queries": QUERIES, "gallery": IMAGES, **change}
    write_arrays(tmp_path / "run.npz", content)
    for run, name in ((tmp_path / "run.npz", r"run\.npz"), (content, "the run")):
        with pytest.raises(RunError, match=f"{name}: {message}"):
            score_run(run, hats)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", b"{", r"not a readable \.json file \(Expecting property name"),
        ("run.json", b'{"a": [], "b": [], "a": []}', "query 'a' appears more than once"),
        ("run.npz", b"nonsense", r"not a readable \.npz file \(File is not a zip file\)"),
        ("run.safetensors", b"", r"not a readable \.safetensors file"),
        ("run.txt", b"", r"expected a file that ends in \.json"),
        ("absent.json", None, r"absent\.json: no such file"),
    ],
)
def test_files_that_cannot_be_read_give_one_sentence(hats, tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(RunError, match=message) as caught:
        score_run(tmp_path / name, hats)
    assert len(str(caught.value).splitlines()) == 1


def test_archives_that_are_damaged_or_lack_an_array_give_one_sentence(hats, tmp_path):
    write_arrays(tmp_path / "lacking.npz", {"gallery": IMAGES})
    save_file({"gallery": IMAGES, "queries": QUERIES}, tmp_path / "ids.safetensors", {"query_ids": "[1,"})
    np.savez_compressed(tmp_path / "spoilt.npz", queries=QUERIES.numpy(), gallery=IMAGES.numpy())
    data = bytearray((tmp_path / "spoilt.npz").read_bytes())
    data[300:340] = b"\xff" * 40
    (tmp_path / "spoilt.npz").write_bytes(data)
    said = {"lacking.npz": "no array 'queries'", "ids.safetensors": "not a readable", "spoilt.npz": "not a readable"}
    for name, message in said.items():
        with pytest.raises(RunError, match=rf"{name}: {message}"):
            score_run(tmp_path / name, hats)


def test_a_split_without_targets_cannot_be_scored(small_fashioniq):
    benchmark = load_benchmark("fashioniq", small_fashioniq, split="test", category="dress")
    with pytest.raises(RunError, match="fashioniq test: query 'dress-test-0' has no public target"):
        score_run({}, benchmark)


@pytest.mark.parametrize("kind", ["U", "S"])
def test_ids_as_pandas_and_h5py_hold_them_are_read_or_refused_with_the_remedy(hats, tmp_path, kind):
    ids = {"query_ids": [t.id for t in hats.triplets], "gallery_ids": hats.gallery}
    arrays = {"queries": QUERIES.numpy(), "gallery": IMAGES.numpy()}
    np.savez(tmp_path / "run.npz", **arrays, **{name: np.array(own, dtype=kind) for name, own in ids.items()})
    assert_equal(score_run(tmp_path / "run.npz", hats), score("run", "hat", QUERIES, IMAGES, hats, REMOVED))
    np.savez(tmp_path / "run.npz", **arrays, **{name: np.array(own, dtype=object) for name, own in ids.items()})
    with pytest.raises(
        RunError, match=r"Python objects, as columns of pandas are: save ids as numpy\.array\(ids, dtype=str"
    ):
        score_run(tmp_path / "run.npz", hats)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_does_not_count(hats, tmp_path, encoding):
    (tmp_path / "run.json").write_text(json.dumps(full_lists(hats)), encoding=encoding)
    assert_equal(score_run(tmp_path / "run.json", hats), score("run", "hat", QUERIES, IMAGES, hats, REMOVED))


def test_ids_in_a_trec_file_that_look_like_nothing_or_a_number_stay_ids(make_benchmark, tmp_path):
    ids = ["NA", "null", "007", "1e3", *IDS[:60]]
    benchmark = make_benchmark([("NA", "007", "is x")], ids)
    lines = [
        f"hat-query-0 Q0 {image} {rank} {-rank / 2} tag" for rank, image in enumerate(["null", "007", "1e3", *IDS[:60]])
    ]
    (tmp_path / "mine.trec").write_text("\n".join(lines), encoding="utf-8-sig")
    assert score_run(tmp_path / "mine.trec", benchmark).ranks.above.tolist() == [1]


@pytest.mark.parametrize("score", ["abc", "100,5", "-", ""])
def test_a_score_that_is_no_number_is_named_instead_of_sorted_as_text(make_benchmark, tmp_path, score):
    lines = [f"hat-query-0\tQ0\t{image}\t1\t{score if image == IDS[3] else 1.5}\ttag" for image in IDS]
    (tmp_path / "mine.trec").write_text("\n".join(lines))
    with pytest.raises(RunError, match=r"query 'hat-query-0', image '.*', score '.*': expected two ids and a number"):
        score_run(tmp_path / "mine.trec", make_benchmark([(IDS[0], IDS[1], "is x")], IDS))


@pytest.mark.parametrize("columns", [4, 7])
def test_a_trec_file_has_six_columns_or_lacks_the_tag(make_benchmark, tmp_path, columns):
    benchmark = make_benchmark([(IDS[0], IDS[1], "is x")], IDS)
    rows = [["hat-query-0", "Q0", image, "1", str(-n), "tag", "more"] for n, image in enumerate(IDS)]
    for kept in (5, columns):
        (tmp_path / f"{kept}.trec").write_text("\n".join(" ".join(row[:kept]) for row in rows))
    assert score_run(tmp_path / "5.trec", benchmark).ranks.above.tolist() == [0]
    with pytest.raises(RunError, match=f"{columns} columns, expected six: query Q0 image rank score tag"):
        score_run(tmp_path / f"{columns}.trec", benchmark)


@pytest.mark.parametrize("column", ["query", "image"])
def test_a_row_without_an_id_is_not_left_out_in_silence(make_benchmark, tmp_path, column):
    table = pd.DataFrame({"query": "hat-query-0", "image": IDS, "score": range(len(IDS))})
    table.loc[3, column] = None
    table.to_parquet(tmp_path / "mine.parquet")
    with pytest.raises(RunError, match="score 3: expected two ids and a number"):
        score_run(tmp_path / "mine.parquet", make_benchmark([(IDS[0], IDS[1], "is x")], IDS))
