"""The audit of a study's data, and the image checks it stands on."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from cirlib.benchmarks.audit import audit
from cirlib.benchmarks.expected import Counts
from cirlib.benchmarks.image_checks import MAX_HASH_BITS, check_image, check_images, find_duplicates


# ------------------------------------------------------------------ the real annotations
@pytest.fixture(scope="module")
def fashioniq(real_data):
    return audit("fashioniq", real_data("fashioniq"), splits=("train", "val", "test"), check_decode=False)


def total(report, split, key):
    return sum(getattr(row, key) for row in report.splits if row.split == split)


def overlap(report, first, second):
    """(galleries, triplets_in_gallery, triplets) of two (split, category) pairs."""
    (found,) = [
        o
        for o in report.overlaps
        if ((o.first_split, o.first_category), (o.second_split, o.second_category)) == (first, second)
    ]
    return found.galleries, found.triplets_in_gallery, found.triplets


def test_real_fashioniq_has_every_published_count(fashioniq):
    assert fashioniq.mismatches == []


def test_real_fashioniq_unique_images(fashioniq):
    unique = {u.split: (u.gallery, u.triplets) for u in fashioniq.unique}
    assert unique["val"][0] == 15_415
    assert unique["all"][0] == 74_381
    assert unique["train"][1] == 25_136


def test_real_fashioniq_odd_captions(fashioniq):
    assert (total(fashioniq, "val", "empty_captions"), total(fashioniq, "train", "empty_captions")) == (3, 12)
    assert total(fashioniq, "val", "identical_captions") == 17
    assert total(fashioniq, "train", "identical_captions") == 112


def test_real_fashioniq_joined_val_captions_are_short(fashioniq):
    words = total(fashioniq, "val", "queries")
    rows = [row for row in fashioniq.splits if row.split == "val"]
    assert round(sum(row.mean_words * row.queries for row in rows) / words, 1) == 11.7
    assert max(row.max_words for row in rows) == 25


def test_real_fashioniq_leaks_from_train_to_val(fashioniq):
    assert overlap(fashioniq, ("train", "all"), ("val", "all")) == (811, 400, 212)
    for category in ("dress", "shirt", "toptee"):
        assert overlap(fashioniq, ("train", category), ("val", category)) == (0, 0, 0)


def test_real_shirt_and_toptee_share_121_val_images(fashioniq):
    assert overlap(fashioniq, ("val", "shirt"), ("val", "toptee"))[0] == 121
    assert overlap(fashioniq, ("val", "dress"), ("val", "shirt"))[0] == 0
    assert overlap(fashioniq, ("val", "dress"), ("val", "toptee"))[0] == 0


def test_real_fashioniq_without_images_is_reported_as_all_missing(fashioniq):
    assert not fashioniq.complete
    val = [row for row in fashioniq.splits if row.split == "val"]
    assert [row.missing for row in val] == [row.gallery for row in val]
    assert [row.lost_queries for row in val] == [row.queries for row in val]
    assert total(fashioniq, "train", "missing") == 7_757 + 8_988 + 8_695


def test_real_cirr_has_every_published_count(real_data):
    assert audit("cirr", real_data("cirr"), splits=("val", "test1"), check_decode=False).mismatches == []


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


def row(report, split, category):
    (found,) = [r for r in report.splits if (r.split, r.category) == (split, category)]
    return found


def test_a_whole_study_is_complete_and_reports_no_gaps(with_images):
    report = audit("fashioniq", with_images, expected={}, workers=2)
    assert report.complete
    assert report.missing == report.undecodable == {}
    assert report.checked == 3 * 4 + 3 * 5 + 1  # train: what queries use; val: all, "both" once
    assert row(report, "val", "dress").duplicates.exact_groups == 0
    assert row(report, "train", "dress").duplicates is None


def test_missing_and_undecodable_images_are_counted_with_what_they_cost(with_images):
    images = with_images / "images"
    (images / "dress-val-2.png").unlink()  # target of the first query
    (images / "dress-val-1.png").write_text("<html>moved</html>")  # reference of the second
    (images / "dress-val-4.png").write_bytes(b"")  # of no query
    report = audit("fashioniq", with_images, expected={})
    dress = row(report, "val", "dress")
    assert (dress.missing, dress.undecodable, dress.lost_queries) == (1, 2, 2)
    assert list(report.missing) == ["dress-val-2"]
    assert report.undecodable == {
        "dress-val-1": "the content is not an image of a known format",
        "dress-val-4": "the file is empty",
    }
    assert not report.complete


def test_an_image_of_no_train_query_is_not_missed(with_images):
    (with_images / "images" / "dress-train-4.png").unlink()
    assert audit("fashioniq", with_images, expected={}).complete


def test_without_decoding_no_image_is_opened(with_images):
    (with_images / "images" / "dress-val-1.png").write_text("<html>moved</html>")
    report = audit("fashioniq", with_images, expected={}, check_decode=False)
    assert (report.checked, report.undecodable) == (0, {})
    assert row(report, "val", "dress").duplicates is None


def test_duplicates_in_a_gallery_and_targets_with_a_twin_are_counted(with_images):
    images = with_images / "images"
    shutil.copy(images / "dress-val-2.png", images / "dress-val-4.png")
    dress = row(audit("fashioniq", with_images, expected={}), "val", "dress")
    assert (dress.duplicates.exact_groups, dress.duplicates.exact_images) == (1, 2)
    assert dress.duplicates.examples == (("dress-val-2", "dress-val-4"),)
    assert dress.duplicated_targets == 1


def test_captions_are_described(small_fashioniq, write_json):
    captions = [["", "is blue"], ["is red.", " is red. "], ["a b c", "d"]]
    queries = [{"candidate": "dress-val-0", "target": "dress-val-1", "captions": pair} for pair in captions]
    write_json(small_fashioniq / "captions" / "cap.dress.val.json", queries)
    dress = row(audit("fashioniq", small_fashioniq, splits=("val",), check_decode=False), "val", "dress")
    assert (dress.empty_captions, dress.identical_captions, dress.max_words) == (1, 1, 5)
    assert dress.mean_words == pytest.approx((2 + 5 + 5) / 3)


def test_images_shared_between_parts_are_counted_at_three_levels(small_fashioniq):
    report = audit("fashioniq", small_fashioniq, check_decode=False)
    assert overlap(report, ("train", "shirt"), ("val", "toptee")) == (1, 0, 0)
    assert overlap(report, ("train", "all"), ("val", "all")) == (1, 0, 0)
    assert overlap(report, ("val", "shirt"), ("val", "toptee")) == (1, 0, 0)


def test_counts_unlike_the_published_ones_are_said(small_fashioniq):
    report = audit("fashioniq", small_fashioniq, splits=("val",), check_decode=False)
    assert "val dress: queries 2, expected 2017." in report.mismatches
    assert "val toptee: val split gallery 4, expected 2902." in report.mismatches
    assert len(report.mismatches) == 9


def test_ones_own_expectation_replaces_the_published_one(small_fashioniq):
    expected = {("val", "dress"): Counts(2, 5, 4), ("val", "hat"): Counts(1, 1)}
    report = audit("custom", small_fashioniq, splits=("val",), expected=expected, check_decode=False)
    assert report.mismatches == ["val hat: no annotations, expected 1 queries."]
    assert audit("custom", small_fashioniq, splits=("val",), check_decode=False).mismatches == []


def test_one_category_can_be_looked_at_alone(small_fashioniq):
    report = audit("fashioniq", small_fashioniq, splits=("val",), categories=["dress"], check_decode=False)
    assert [r.category for r in report.splits] == ["dress"]
    assert len(report.mismatches) == 3


def test_test_split_has_no_val_split_gallery(small_fashioniq):
    report = audit("fashioniq", small_fashioniq, splits=("test",), expected={}, check_decode=False)
    assert row(report, "test", "dress").val_split_gallery is None


def test_the_report_is_a_table_and_json(with_images):
    report = audit("fashioniq", with_images, expected={})
    frame = report.to_frame()
    assert list(frame["category"]) == ["dress", "shirt", "toptee"] * 2
    assert frame.set_index(["split", "category"]).loc[("val", "dress"), "exact_images"] == 0
    assert len(report.overlap_frame()) == len(report.overlaps) == 15 + 1
    content = json.loads(json.dumps(report.to_dict()))
    assert content["complete"] is True
    assert content["splits"][3]["duplicates"]["near_pairs"] == 0


# ------------------------------------------------------------------ image files
@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "jpeg"])
def test_a_whole_image_passes_and_a_cut_off_one_does_not(tmp_path, write_image, extension):
    path = write_image(tmp_path / f"a.{extension}", size=(300, 400))
    assert check_image(path).problem is None
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    assert "cannot be decoded" in check_image(path).problem


def test_odd_colour_modes_pass(tmp_path):
    for mode in ("L", "RGBA", "P", "CMYK", "1", "I;16"):
        path = tmp_path / f"{mode.replace(';', '')}.{'tif' if mode == 'CMYK' else 'png'}"
        Image.new(mode, (40, 30)).save(path)
        assert check_image(path).problem is None, mode


def test_a_file_that_vanished_is_a_problem_not_an_exception(tmp_path):
    assert "cannot be read" in check_image(tmp_path / "gone.jpg").problem


def photo(seed=0, side=200):
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    return coarse.resize((side, side), Image.Resampling.BICUBIC)


def duplicates(tmp_path, pictures):
    files = {}
    for name, (picture, suffix, options) in pictures.items():
        files[name] = tmp_path / f"{name}.{suffix}"
        picture.save(files[name], **options)
    return find_duplicates(list(files), check_images(files))


def test_a_picture_saved_again_in_another_size_and_quality_is_a_near_duplicate(tmp_path):
    found = duplicates(
        tmp_path,
        {
            "a": (photo(), "png", {}),
            "other": (photo(1), "png", {}),
            "b": (photo().resize((150, 150)), "jpg", {"quality": 60}),
        },
    )
    assert (found.exact_groups, found.near_pairs, found.near_images) == (0, 1, 2)
    assert found.examples == (("a", "b"),)


def test_the_same_shape_in_another_colour_is_no_duplicate(tmp_path):
    def shirt(colour):
        picture = np.full((120, 120, 3), 250, np.uint8)
        picture[30:90, 40:80] = colour
        return Image.fromarray(picture)

    found = duplicates(tmp_path, {"red": (shirt((150, 20, 20)), "png", {}), "blue": (shirt((20, 20, 170)), "png", {})})
    assert found.near_pairs == 0


def test_copies_count_as_exact_and_only_their_first_is_compared_further(tmp_path):
    picture = (photo(), "png", {})
    again = (photo(), "jpg", {"quality": 90})
    found = duplicates(tmp_path, {"a": picture, "b": picture, "c": picture, "d": again})
    assert (found.exact_groups, found.exact_images) == (1, 3)
    assert (found.near_pairs, found.near_images) == (1, 2)
    assert found.examples == (("a", "b"), ("a", "c"), ("a", "d"))


def test_the_chunked_search_finds_what_the_full_matrix_finds(tmp_path):
    files = {}
    rng = np.random.default_rng(0)
    for i in range(150):  # 50 pictures in 3 versions with growing noise, over several chunks
        pixels = np.asarray(photo(i % 50, 64), np.int16) + rng.integers(-1, 2, (64, 64, 3)) * (i // 50) * 4
        files[str(i)] = tmp_path / f"{i}.png"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(files[str(i)])
    checks = check_images(files)
    bits = np.array([np.unpackbits(np.frombuffer(checks[i].bits, np.uint8)) for i in files])  # (150, 256)
    colours = np.array([np.frombuffer(checks[i].colours, np.uint8) for i in files], int)  # (150, 48)
    near = ((bits[:, None] != bits[None]).sum(2) <= MAX_HASH_BITS) & (
        np.abs(colours[:, None] - colours[None]).max(2) <= 12
    )
    found = find_duplicates(list(files), checks)
    assert found.near_pairs == np.triu(near, 1).sum() > 50
    assert (
        found.near_images == np.triu(near, 1).any(0).sum() + (np.triu(near, 1).any(1) & ~np.triu(near, 1).any(0)).sum()
    )


def test_a_gallery_without_usable_images_has_no_duplicates(tmp_path):
    found = find_duplicates(["a"], {"a": check_image(tmp_path / "a.jpg")})
    assert (found.exact_groups, found.near_pairs, found.examples) == (0, 0, ())
