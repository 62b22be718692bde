"""The audit of a study's data."""

import json
import shutil

import pytest

from cirlib.benchmarks import categories, load_benchmark
from cirlib.benchmarks.audit import Audit, audit


def audited(name, root, splits=("train", "val"), only=None) -> Audit:
    """Every split and category of a benchmark."""
    parts = [
        load_benchmark(name, root, split=split, category=category)
        for split in splits
        for category in only or categories(name, root, split) or [None]
    ]
    return audit(parts, only)


def row(report, split, category):
    return report.table.set_index(["split", "category"]).loc[(split, category)]


def overlap(report, first, second):
    """(galleries, triplets_in_gallery, triplets) of two (split, category) pairs."""
    table = report.overlaps.set_index(["first_split", "first_category", "second_split", "second_category"])
    return tuple(table.loc[(*first, *second)])


# ------------------------------------------------------------------ the real annotations
@pytest.fixture(scope="module")
def fashioniq(real_data):
    return audited("fashioniq", real_data("fashioniq"), ("train", "val", "test"))


def test_real_annotations_have_every_published_count(fashioniq, real_data):
    assert fashioniq.verdict() == "Every count is as published."
    assert audited("cirr", real_data("cirr"), ("val", "test1")).mismatches == []


def test_real_fashioniq_odd_captions(fashioniq):
    total = fashioniq.table.groupby("split").sum(numeric_only=True)
    assert total["empty_captions"][["val", "train"]].tolist() == [3, 12]
    assert total["identical_captions"][["val", "train"]].tolist() == [17, 112]


def test_real_fashioniq_leaks(fashioniq):
    assert overlap(fashioniq, ("train", "all"), ("val", "all")) == (811, 400, 212)
    for category in ("dress", "shirt", "toptee"):
        assert overlap(fashioniq, ("train", category), ("val", category)) == (0, 0, 0)
    assert overlap(fashioniq, ("val", "shirt"), ("val", "toptee"))[0] == 121
    assert overlap(fashioniq, ("val", "dress"), ("val", "shirt"))[0] == 0


def test_real_fashioniq_without_images_is_reported_as_all_missing(fashioniq):
    assert not fashioniq.complete
    val = fashioniq.table.query("split == 'val'")
    assert val["missing"].tolist() == val["gallery"].tolist()
    assert val["lost_queries"].tolist() == val["queries"].tolist()
    assert fashioniq.table.query("split == 'train'")["missing"].sum() == 7_757 + 8_988 + 8_695


# ------------------------------------------------------------------ small data
@pytest.fixture
def with_images(small_fashioniq, write_image):
    """The small data with a picture for every id of train and val."""
    ids = set()
    for path in (small_fashioniq / "image_splits").glob("split.*.json"):
        ids.update(json.loads(path.read_text()))
    for seed, image in enumerate(sorted(i for i in ids if "test" not in i)):
        write_image(small_fashioniq / "images" / f"{image}.png", seed)
    return small_fashioniq


def test_a_whole_study_is_complete_and_reports_no_gaps(with_images):
    report = audited("fashioniq", with_images)
    assert report.complete and report.gaps().empty
    assert row(report, "val", "dress")[["exact_groups", "near_pairs", "duplicated_targets"]].tolist() == [0, 0, 0]
    assert row(report, "train", "dress")[["exact_groups", "duplicated_targets"]].isna().all()


def test_missing_and_undecodable_images_are_counted_with_what_they_cost(with_images):
    images = with_images / "images"
    (images / "dress-val-2.png").unlink()  # target of the first query
    (images / "dress-val-1.png").write_text("<html>moved</html>")  # reference of the second
    (images / "dress-val-4.png").write_bytes(b"")  # of no query
    report = audited("fashioniq", with_images)
    assert row(report, "val", "dress")[["missing", "undecodable", "lost_queries"]].tolist() == [1, 2, 2]
    assert list(report.missing) == ["dress-val-2"]
    assert list(report.undecodable) == ["dress-val-1", "dress-val-4"] and not report.complete
    assert report.gaps()["kind"].tolist() == ["missing", "undecodable", "undecodable"]


def test_duplicates_in_a_gallery_and_targets_with_a_twin_are_counted(with_images):
    images = with_images / "images"
    shutil.copy(images / "dress-val-2.png", images / "dress-val-4.png")
    dress = row(audited("fashioniq", with_images), "val", "dress")
    assert dress[["exact_groups", "exact_images", "duplicated_targets"]].tolist() == [1, 2, 1]


def test_captions_are_described(small_fashioniq, write_json):
    captions = [["", "is blue"], ["is red.", " is red. "], ["a b c", "d"]]
    queries = [{"candidate": "dress-val-0", "target": "dress-val-1", "captions": pair} for pair in captions]
    write_json(small_fashioniq / "captions" / "cap.dress.val.json", queries)
    dress = row(audited("fashioniq", small_fashioniq, ("val",)), "val", "dress")
    assert dress[["empty_captions", "identical_captions", "max_words"]].tolist() == [1, 1, 5]
    assert dress["mean_words"] == pytest.approx((2 + 5 + 5) / 3)


def test_images_shared_between_parts_are_counted_at_three_levels(small_fashioniq):
    report = audited("fashioniq", small_fashioniq)
    assert len(report.overlaps) == 15 + 1
    assert overlap(report, ("train", "shirt"), ("val", "toptee")) == (1, 0, 0)
    assert overlap(report, ("train", "all"), ("val", "all")) == (1, 0, 0)
    assert overlap(report, ("val", "shirt"), ("val", "toptee")) == (1, 0, 0)
    assert len(report.leaks()) == 3


def test_counts_unlike_the_published_ones_are_said(small_fashioniq):
    (small_fashioniq / "captions" / "cap.shirt.val.json").unlink()
    report = audited("fashioniq", small_fashioniq, ("val",))
    assert "val dress queries: 2, expected 2017." in report.mismatches
    assert "val toptee val split gallery: 4, expected 2902." in report.mismatches
    assert "val shirt queries: 0, expected 2038." in report.mismatches
    assert len(report.mismatches) == 9 and report.verdict().startswith("Not as published: val dress")
    assert len(audited("fashioniq", small_fashioniq, ("val",), ["dress"]).mismatches) == 3
    assert audited("custom", small_fashioniq, ("val",)).verdict() == "No counts are published for these data."


def test_the_files_have_the_columns_that_others_read(with_images, tmp_path):
    report = audited("fashioniq", with_images)
    report.write(tmp_path)
    heads = {file.name: file.read_text().splitlines()[0] for file in tmp_path.glob("*.csv")}
    assert heads["audit.csv"] == (
        "split,category,queries,gallery,val_split_gallery,empty_captions,identical_captions,repeated_queries,"
        "mean_words,max_words,missing,undecodable,lost_queries,duplicated_targets,exact_groups,exact_images,"
        "near_pairs,near_images"
    )
    columns = "first_split,first_category,second_split,second_category,galleries,triplets_in_gallery,triplets"
    assert heads["overlaps.csv"] == columns
    assert (tmp_path / "missing_images.csv").read_text() == "image,kind,reason\n"
