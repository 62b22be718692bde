"""The CIRR loader."""

import json

import pytest

from cirlib.benchmarks import BenchmarkError, categories, load_benchmark

IDS = [f"dev-{i}-0-img0" for i in range(7)]


@pytest.mark.parametrize("split", ["val", "test1"])
def test_real_subsets_are_the_five_images_beside_the_reference(real_data, split):
    for triplet in load_benchmark("cirr", real_data("cirr"), split=split).triplets:
        assert len(set(triplet.subset)) == 5
        assert triplet.reference not in triplet.subset
        assert set(triplet.targets) <= set(triplet.subset)


def test_real_soft_targets_of_one_are_sometimes_several_and_the_hard_one_is_scored(real_data):
    root = real_data("cirr")
    records = json.loads((root / "captions" / "cap.rc2.val.json").read_text())
    assert len([r for r in records if list(r["target_soft"].values()).count(1.0) > 1]) == 37
    scored = {t.id: t.targets for t in load_benchmark("cirr", root).triplets}
    assert all(scored[str(r["pairid"])] == (r["target_hard"],) for r in records)


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
    assert (first.id, first.reference, first.captions, first.targets) == ("12", IDS[1], ("two dogs",), (IDS[3],))
    assert first.subset == (IDS[0], IDS[2], IDS[3], IDS[4], IDS[5])
    assert first.category is None and categories("cirr", small_cirr) == []
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
    rest = load_benchmark("cirr", small_cirr).drop_missing(allow=True)
    assert [len(t.subset) for t in rest.triplets] == [4, 4]
    assert (rest.complete, len(rest.gallery)) == (False, 6)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"category": "dress"}, "cirr has no categories"),
        ({"protocol": "val_split"}, "Unknown protocol of cirr 'val_split': allowed are original"),
        ({"split": "test"}, "Unknown split 'test': allowed are train, val, test1"),
        ({"split": "train"}, r"No file .*cap\.rc2\.train\.json"),
    ],
)
def test_what_cirr_does_not_have_is_refused(small_cirr, arguments, sentence):
    with pytest.raises(BenchmarkError, match=sentence):
        load_benchmark("cirr", small_cirr, **arguments)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"pairid": "12"}, "0, 'pairid': Input should be a valid integer, found '12'"),
        ({"pairid": 10}, "2 queries have the id of another, as '10'"),
        ({"img_set": {}}, "0, 'img_set', 'members': Field required"),
        ({"img_set": {"members": [IDS[1], "x"]}}, "outside the gallery of 7, as '12 names x'"),
        ({"target_hard": "x"}, "outside the gallery of 7, as '12 names x'"),
    ],
)
def test_bad_records_are_refused(small_cirr, write_json, change, sentence):
    path = small_cirr / "captions" / "cap.rc2.val.json"
    first, *others = json.loads(path.read_text())
    write_json(path, [first | change, *others])
    with pytest.raises(BenchmarkError, match=sentence):
        load_benchmark("cirr", small_cirr)
