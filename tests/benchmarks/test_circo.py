"""The CIRCO loader."""

import json
import shutil

import pytest

from cirlib.benchmarks import BenchmarkError, load_benchmark
from cirlib.benchmarks.audit import audit
from cirlib.benchmarks.circo import GALLERY_SIZE

INFO = "COCO2017_unlabeled/annotations/image_info_unlabeled2017.json"


def test_real_annotations_have_the_published_counts(real_data, tmp_path, write_json):
    """Beside a stand-in for COCO's info file of the published length."""
    shutil.copytree(real_data("circo") / "annotations", tmp_path / "annotations")
    records = {s: json.loads((tmp_path / "annotations" / f"{s}.json").read_text()) for s in ("val", "test")}
    used = {i for s in records for r in records[s] for i in (r["reference_img_id"], *r.get("gt_img_ids", []))}
    others = [i for i in range(GALLERY_SIZE) if i not in used][: GALLERY_SIZE - len(used)]
    others += range(10**7, 10**7 + GALLERY_SIZE - len(used) - len(others))
    write_json(tmp_path / INFO, {"images": [{"id": i} for i in (*used, *others)]})
    parts = [load_benchmark("circo", tmp_path, split=split) for split in ("val", "test")]
    assert audit(parts).mismatches == []
    targets = [t.targets for t in parts[0].triplets]
    assert round(sum(map(len, targets)) / len(targets), 2) == 4.16 and max(map(len, targets)) == 14
    assert [first for first, *_ in targets] == [str(r["target_img_id"]) for r in records["val"]]
    assert not any(t.targets for t in parts[1].triplets)


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
    return tmp_path


def put_images(root, write_image, folder="COCO2017_unlabeled/unlabeled2017", ids=(4000, 300, 12, 7)):
    return [write_image(root / folder / f"{i:012d}.jpg") for i in ids]


def test_ids_are_numbers_as_text_in_the_order_of_the_info_file(small_circo, write_json, write_image, monkeypatch):
    write_json(small_circo / INFO, {"images": [{"id": i} for i in (300, 7, 4000, 12)]})
    paths = put_images(small_circo, write_image)
    val = load_benchmark("circo", small_circo)
    assert val.gallery == ["300", "7", "4000", "12"]
    assert val.path("4000") == paths[0] and not val.complete
    first = val.triplets[0]
    assert (first.id, first.reference, first.captions, first.targets) == ("5", "12", ("is running",), ("300", "7"))
    monkeypatch.setattr("cirlib.benchmarks.circo.GALLERY_SIZE", 4)
    assert load_benchmark("circo", small_circo).complete


@pytest.mark.parametrize("folder", ["COCO2017_unlabeled/unlabeled2017", "unlabeled2017", "images"])
def test_without_the_info_file_the_folder_is_the_gallery_but_not_known_to_be_whole(small_circo, write_image, folder):
    put_images(small_circo, write_image, folder)
    (small_circo / folder / "cover.jpg").write_bytes(b"not a COCO image")
    val = load_benchmark("circo", small_circo)
    assert val.gallery == ["7", "12", "300", "4000"]
    with pytest.raises(BenchmarkError, match=r"known to be partial.*data\.allow_missing"):
        val.drop_missing()


def test_without_info_file_and_images_the_error_says_what_is_expected_where(small_circo):
    with pytest.raises(BenchmarkError, match=r"expected COCO's info file .*image_info_unlabeled2017\.json"):
        load_benchmark("circo", small_circo)


def test_a_query_survives_as_long_as_one_target_is_there(small_circo, write_json, write_image):
    write_json(small_circo / INFO, {"images": [{"id": i} for i in (300, 7, 4000, 12)]})
    put_images(small_circo, write_image, ids=(7, 12))
    rest = load_benchmark("circo", small_circo).drop_missing(allow=True)
    assert [(t.id, t.targets) for t in rest.triplets] == [("5", ("7",))]
    assert (rest.complete, rest.gallery) == (False, ["7", "12"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"id": 6}, "2 queries have the id of another"),
        ({"gt_img_ids": []}, "0, 'gt_img_ids': List should have at least 1 item"),
        ({"gt_img_ids": [300, 300]}, "1 queries have a target twice, as '5'"),
        ({"gt_img_ids": [8]}, "as '5 names 8'"),
        ({"relative_caption": None}, "0, 'relative_caption': Input should be a valid string, found None"),
    ],
)
def test_bad_records_are_refused(small_circo, write_image, write_json, change, sentence):
    put_images(small_circo, write_image)
    path = small_circo / "annotations" / "val.json"
    first, second = json.loads(path.read_text())
    write_json(path, [first | change, second])
    with pytest.raises(BenchmarkError, match=sentence):
        load_benchmark("circo", small_circo)
