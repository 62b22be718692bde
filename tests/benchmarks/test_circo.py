"""The CIRCO loader."""

from __future__ import annotations

import json
import shutil

import pytest

from cirlib.benchmarks import BenchmarkError, drop_missing, load_benchmark, require_complete
from cirlib.benchmarks.circo import GALLERY_SIZE

INFO = "COCO2017_unlabeled/annotations/image_info_unlabeled2017.json"


# ------------------------------------------------------------------ the real annotations
@pytest.fixture
def real_circo(real_data, tmp_path, write_json):
    """The real annotations beside a stand-in for COCO's info file of the published length."""
    shutil.copytree(real_data("circo") / "annotations", tmp_path / "annotations")
    used: dict[int, None] = {}
    for split in ("val", "test"):
        for record in json.loads((tmp_path / "annotations" / f"{split}.json").read_text()):
            used.update(dict.fromkeys([record["reference_img_id"], *record.get("gt_img_ids", [])]))
    others = (i for i in range(1, 10**6) if i not in used)
    ids = [*used, *(next(others) for _ in range(GALLERY_SIZE - len(used)))]
    write_json(tmp_path / INFO, {"images": [{"id": i} for i in ids]})
    return tmp_path


def test_real_annotations_have_the_published_counts(real_circo):
    val = load_benchmark("circo", real_circo)
    counts = [len(t.targets) for t in val.triplets]
    assert len(counts) == 220
    assert round(sum(counts) / len(counts), 2) == 4.16
    assert max(counts) == 14
    test = load_benchmark("circo", real_circo, split="test")
    assert len(test.triplets) == 800
    assert all(t.targets == () for t in test.triplets)
    assert len(val.gallery) == len(test.gallery) == 123_403


def test_real_first_target_is_the_one_the_caption_was_written_for(real_circo):
    records = json.loads((real_circo / "annotations" / "val.json").read_text())
    triplets = load_benchmark("circo", real_circo).triplets
    assert [t.targets[0] for t in triplets] == [str(r["target_img_id"]) for r in records]


# ------------------------------------------------------------------ small data
@pytest.fixture
def small_circo(tmp_path, write_json):
    """Two val queries over images 7, 12, 300 and 4000; no info file, no images."""
    base = {"shared_concept": "a dog", "relative_caption": "is running"}
    val = [
        {**base, "id": 5, "reference_img_id": 12, "target_img_id": 300, "gt_img_ids": [300, 7]},
        {**base, "id": 6, "reference_img_id": 7, "target_img_id": 4000, "gt_img_ids": [4000]},
    ]
    write_json(tmp_path / "annotations" / "val.json", val)
    write_json(tmp_path / "annotations" / "test.json", [{**base, "id": 0, "reference_img_id": 12}])
    return tmp_path


def put_images(root, write_image, folder="COCO2017_unlabeled/unlabeled2017", ids=(4000, 300, 12, 7)):
    return [write_image(root / folder / f"{i:012d}.jpg") for i in ids]


def test_ids_are_numbers_as_text_in_the_order_of_the_info_file(small_circo, write_json, write_image):
    write_json(small_circo / INFO, {"images": [{"id": i} for i in (300, 7, 4000, 12)]})
    paths = put_images(small_circo, write_image)
    val = load_benchmark("circo", small_circo)
    assert val.gallery == ["300", "7", "4000", "12"]
    assert val.path("4000") == paths[0]
    first = val.triplets[0]
    assert (first.id, first.reference, first.captions, first.targets) == (
        "5", "12", ("is running",), ("300", "7"),
    )  # fmt: skip


def test_only_the_whole_of_coco_is_complete(small_circo, write_json, monkeypatch):
    write_json(small_circo / INFO, {"images": [{"id": i} for i in (300, 7, 4000, 12)]})
    assert not load_benchmark("circo", small_circo).complete
    monkeypatch.setattr("cirlib.benchmarks.circo.GALLERY_SIZE", 4)
    assert load_benchmark("circo", small_circo).complete


@pytest.mark.parametrize("folder", ["COCO2017_unlabeled/unlabeled2017", "unlabeled2017", "images"])
def test_without_the_info_file_the_folder_is_the_gallery_but_not_known_to_be_whole(small_circo, write_image, folder):
    put_images(small_circo, write_image, folder)
    (small_circo / folder / "cover.jpg").write_bytes(b"not a COCO image")
    val = load_benchmark("circo", small_circo)
    assert val.gallery == ["7", "12", "300", "4000"]
    assert not val.complete
    with pytest.raises(BenchmarkError, match=r"known to be partial.*data\.allow_missing"):
        require_complete(val)


def test_without_info_file_and_images_the_error_says_what_is_expected_where(small_circo):
    with pytest.raises(BenchmarkError, match=r"expected COCO's info file .*image_info_unlabeled2017\.json"):
        load_benchmark("circo", small_circo)


def test_a_query_survives_as_long_as_one_target_is_there(small_circo, write_json, write_image):
    write_json(small_circo / INFO, {"images": [{"id": i} for i in (300, 7, 4000, 12)]})
    put_images(small_circo, write_image, ids=(7, 12))
    rest = drop_missing(load_benchmark("circo", small_circo))
    assert [(t.id, t.targets) for t in rest.triplets] == [("5", ("7",))]
    assert (rest.complete, rest.gallery) == (False, ["7", "12"])


def test_an_annotated_image_outside_the_gallery_is_refused(small_circo, write_image):
    put_images(small_circo, write_image, ids=(7, 12, 300))
    with pytest.raises(BenchmarkError, match=r"1 targets are not in .*'4000' of query '6'"):
        load_benchmark("circo", small_circo)


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (3, "'images' must be a valid array"),
        ([{"id": "7"}], "record 0: 'images.id' must be a valid integer"),
        ([{"id": 7}, {"id": 7}], "'images' must appear once each: 1 do not"),
        ([], "the gallery is empty"),
    ],
)
def test_a_bad_info_file_is_refused(small_circo, write_json, images, sentence):
    write_json(small_circo / INFO, {"images": images})
    with pytest.raises(BenchmarkError, match=sentence):
        load_benchmark("circo", small_circo)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"id": 6}, "1 query ids appear more than once"),
        ({"gt_img_ids": []}, "record 0: 'gt_img_ids' must have at least 1 item"),
        ({"gt_img_ids": [300, 300]}, "1 targets of 5 appear more than once, the first is '300'"),
        ({"gt_img_ids": [12]}, "own reference as a target"),
        ({"relative_caption": None}, "record 0: 'relative_caption' must be a valid string, found None"),
    ],
)
def test_bad_records_are_refused(small_circo, write_image, write_json, change, sentence):
    put_images(small_circo, write_image)
    path = small_circo / "annotations" / "val.json"
    first, second = json.loads(path.read_text())
    write_json(path, [first | change, second])
    with pytest.raises(BenchmarkError, match=sentence):
        load_benchmark("circo", small_circo)
