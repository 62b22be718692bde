"""The CIRR loader."""

from __future__ import annotations

import json

import pytest

from cirlib.benchmarks import BenchmarkError, categories, drop_missing, load_benchmark


# ------------------------------------------------------------------ the real annotations
@pytest.mark.parametrize(("split", "queries", "images"), [("val", 4_181, 2_297), ("test1", 4_148, 2_315)])
def test_real_annotations_have_the_published_counts(real_data, split, queries, images):
    loaded = load_benchmark("cirr", real_data("cirr"), split=split)
    assert (len(loaded.triplets), len(loaded.gallery)) == (queries, images)


@pytest.mark.parametrize("split", ["val", "test1"])
def test_real_subsets_are_the_five_images_beside_the_reference(real_data, split):
    for triplet in load_benchmark("cirr", real_data("cirr"), split=split).triplets:
        assert len(set(triplet.subset)) == 5
        assert triplet.reference not in triplet.subset
        assert set(triplet.targets) <= set(triplet.subset)


def test_real_soft_targets_of_one_are_sometimes_several_and_the_hard_one_is_scored(real_data):
    root = real_data("cirr")
    records = json.loads((root / "captions" / "cap.rc2.val.json").read_text())
    several = [r for r in records if list(r["target_soft"].values()).count(1.0) > 1]
    assert len(several) == 37
    scored = {t.id: t.targets for t in load_benchmark("cirr", root).triplets}
    assert all(scored[str(r["pairid"])] == (r["target_hard"],) for r in records)


# ------------------------------------------------------------------ small data
IDS = [f"dev-{i}-0-img0" for i in range(7)]


@pytest.fixture
def small_cirr(tmp_path, write_json):
    """Two val queries and one of test1; seven images; no files."""
    query = {"pairid": 12, "reference": IDS[1], "caption": "two dogs", "img_set": {"members": IDS[:6]}}
    answer = {"target_hard": IDS[3], "target_soft": {IDS[3]: 1.0, IDS[0]: 1.0}}
    other = {**query, **answer, "pairid": 10, "target_hard": IDS[0]}
    write_json(tmp_path / "captions" / "cap.rc2.val.json", [{**query, **answer}, other])
    write_json(tmp_path / "captions" / "cap.rc2.test1.json", [query])
    for split in ("val", "test1"):
        write_json(tmp_path / "image_splits" / f"split.rc2.{split}.json", {i: f"./dev/{i}.png" for i in IDS})
    return tmp_path


def test_a_query_is_known_by_its_pairid_and_keeps_its_subset_in_file_order(small_cirr):
    first = load_benchmark("cirr", small_cirr).triplets[0]
    assert (first.id, first.reference, first.captions, first.targets) == (
        "12", IDS[1], ("two dogs",), (IDS[3],),
    )  # fmt: skip
    assert first.subset == (IDS[0], IDS[2], IDS[3], IDS[4], IDS[5])
    assert first.category is None
    assert categories("cirr", small_cirr) == []


def test_test_split_has_no_targets(small_cirr):
    assert load_benchmark("cirr", small_cirr, split="test1").triplets[0].targets == ()


@pytest.mark.parametrize("place", ["images/dev", "images", "img_raw/dev", "dev", "images/dev/34"])
def test_images_are_found_in_every_usual_place(small_cirr, write_image, place):
    path = write_image(small_cirr / place / f"{IDS[2]}.jpg")  # the split file says .png
    val = load_benchmark("cirr", small_cirr)
    assert val.path(IDS[2]) == path
    assert len(val.missing) == 6


def test_dropping_a_missing_image_takes_it_out_of_subsets(small_cirr, write_image):
    for image in IDS[:5] + IDS[6:]:
        write_image(small_cirr / "images" / f"{image}.png")
    rest = drop_missing(load_benchmark("cirr", small_cirr))
    assert len(rest.triplets) == 2
    assert IDS[5] not in rest.triplets[0].subset
    assert (rest.complete, len(rest.gallery)) == (False, 6)


def test_what_cirr_does_not_have_is_refused(small_cirr):
    with pytest.raises(BenchmarkError, match="cirr has no categories"):
        load_benchmark("cirr", small_cirr, category="dress")
    with pytest.raises(BenchmarkError, match=r"Unknown protocol of cirr 'val_split': allowed are original"):
        load_benchmark("cirr", small_cirr, protocol="val_split")
    with pytest.raises(BenchmarkError, match=r"Unknown split 'test': allowed are train, val, test1"):
        load_benchmark("cirr", small_cirr, split="test")
    with pytest.raises(BenchmarkError, match=r"No file .*cap\.rc2\.train\.json"):
        load_benchmark("cirr", small_cirr, split="train")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"pairid": "12"}, "record 0: 'pairid' must be a valid integer, found '12'"),
        ({"pairid": True}, "record 0: 'pairid' must be a valid integer"),
        ({"pairid": 10}, "1 query ids appear more than once, the first is '10'"),
        ({"img_set": {}}, "record 0: 'img_set.members' is required"),
        ({"img_set": {"members": [IDS[0]]}}, "record 0: the reference must be one of 'members'"),
        ({"img_set": {"members": [IDS[1], "x"]}}, "1 subset members are not in .*'x' of query '12'"),
        ({"target_hard": "x"}, "1 targets are not in .*'x' of query '12'"),
    ],
)
def test_bad_records_are_refused(small_cirr, write_json, change, sentence):
    path = small_cirr / "captions" / "cap.rc2.val.json"
    first, *others = json.loads(path.read_text())
    write_json(path, [first | change, *others])
    with pytest.raises(BenchmarkError, match=sentence):
        load_benchmark("cirr", small_cirr)


def test_a_bad_split_file_is_refused(small_cirr, write_json):
    write_json(small_cirr / "image_splits" / "split.rc2.val.json", {"a": 3})
    with pytest.raises(BenchmarkError, match=r"split\.rc2\.val\.json: 'a' must be a valid string, found 3"):
        load_benchmark("cirr", small_cirr)
