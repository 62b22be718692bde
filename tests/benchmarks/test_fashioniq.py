"""The FashionIQ loader, also for custom data in its files."""

from __future__ import annotations

import json

import pytest

from cirlib.benchmarks import (
    BenchmarkError,
    Triplet,
    categories,
    load_benchmark,
)

CATEGORIES = ["dress", "shirt", "toptee"]


# ------------------------------------------------------------------ the real annotations
@pytest.mark.parametrize(
    ("category", "train", "val", "original", "val_split", "test", "test_gallery"),
    [
        ("dress", 5_985, 2_017, 3_817, 2_628, 2_024, 3_818),
        ("shirt", 5_988, 2_038, 6_346, 3_089, 2_038, 6_346),
        ("toptee", 6_027, 1_961, 5_373, 2_902, 2_056, 5_374),
    ],
)
def test_real_annotations_have_the_published_counts(
    real_data, category, train, val, original, val_split, test, test_gallery
):
    root = real_data("fashioniq")

    def load(split, protocol="original"):
        return load_benchmark("fashioniq", root, split=split, category=category, protocol=protocol)

    assert len(load("train").triplets) == train
    assert (len(load("val").triplets), len(load("val").gallery)) == (val, original)
    assert len(load("val", "val_split").gallery) == val_split
    assert (len(load("test").triplets), len(load("test").gallery)) == (test, test_gallery)


def test_all_categories_together_join_the_real_galleries_without_repeats(real_data):
    root = real_data("fashioniq")
    together = load_benchmark("fashioniq", root)
    assert len(together.triplets) == 6_016
    assert len(together.gallery) == len(set(together.gallery)) == 15_415
    assert together.categories == categories("fashioniq", root) == CATEGORIES
    assert len(load_benchmark("fashioniq", root, split="train").triplets) == 18_000


def test_real_train_split_under_val_split_asks_only_for_the_images_of_its_triplets(real_data):
    train = load_benchmark("fashioniq", real_data("fashioniq"), split="train", protocol="val_split")
    assert len(train.gallery) == 25_136


def test_real_queries_have_two_captions_and_a_target_that_is_not_the_reference(real_data):
    for split in ("train", "val"):
        for triplet in load_benchmark("fashioniq", real_data("fashioniq"), split=split).triplets:
            assert len(triplet.captions) == 2
            assert len(triplet.targets) == 1
            assert triplet.reference not in triplet.targets


# ------------------------------------------------------------------ what is loaded
def test_a_triplet_carries_what_the_file_says(small_fashioniq):
    val = load_benchmark("fashioniq", small_fashioniq, category="dress")
    assert val.triplets[0] == Triplet(
        "dress-val-0", "dress-val-0", ("is blue.", "has long sleeves"), ("dress-val-2",), "dress"
    )
    assert (val.name, val.split, val.protocol, val.complete) == ("fashioniq", "val", "original", True)


def test_gallery_keeps_the_order_of_the_split_file(small_fashioniq, write_json):
    order = ["dress-val-3", "dress-val-0", "dress-val-4", "dress-val-2", "dress-val-1"]
    write_json(small_fashioniq / "image_splits" / "split.dress.val.json", order)
    assert load_benchmark("fashioniq", small_fashioniq, category="dress").gallery == order
    restricted = load_benchmark("fashioniq", small_fashioniq, category="dress", protocol="val_split")
    assert restricted.gallery == [order[0], order[1], order[3], order[4]]
    assert list(restricted.images) == restricted.gallery


def test_test_split_has_no_targets_and_so_no_val_split(small_fashioniq):
    test = load_benchmark("fashioniq", small_fashioniq, split="test")
    assert all(t.targets == () for t in test.triplets)
    with pytest.raises(BenchmarkError, match=r"needs targets.*take 'original'"):
        load_benchmark("fashioniq", small_fashioniq, split="test", protocol="val_split")


def test_custom_data_bring_their_own_categories(tmp_path, write_json):
    for category in ("shoes", "bags.small"):
        query = {"candidate": f"{category}1", "target": f"{category}2", "captions": ["in red"]}
        write_json(tmp_path / "captions" / f"cap.{category}.val.json", [query])
        write_json(tmp_path / "image_splits" / f"split.{category}.val.json", [f"{category}1", f"{category}2"])
    assert categories("custom", tmp_path) == ["bags.small", "shoes"]
    val = load_benchmark("custom", tmp_path)
    assert val.categories == ["bags.small", "shoes"]
    assert val.triplets[1].captions == ("in red",)


def test_fashioniq_without_one_of_its_categories_is_refused_only_when_all_are_asked_for(small_fashioniq):
    (small_fashioniq / "captions" / "cap.shirt.val.json").unlink()
    assert load_benchmark("fashioniq", small_fashioniq, category="dress").categories == ["dress"]
    assert load_benchmark("custom", small_fashioniq).categories == ["dress", "toptee"]
    with pytest.raises(BenchmarkError, match=r"cap\.shirt\.val\.json"):
        load_benchmark("fashioniq", small_fashioniq)


# ------------------------------------------------------------------ images
def test_images_are_found_whatever_their_extension(small_fashioniq, write_image):
    names = ["dress-val-0.jpg", "dress-val-1.PNG", "dress-val-2.JPEG", "deeper/dress-val-3.webp"]
    paths = [write_image(small_fashioniq / "images" / name) for name in names]
    (small_fashioniq / "images" / "dress-val-4.txt").write_text("not an image")
    val = load_benchmark("fashioniq", small_fashioniq, category="dress")
    assert [val.path(f"dress-val-{i}") for i in range(4)] == paths
    assert val.missing == {"dress-val-4": "no file under images/ has this name"}


def test_the_same_name_twice_resolves_to_the_preferred_extension(small_fashioniq, write_image):
    for name in ("dress-val-0.webp", "dress-val-0.jpg", "a/dress-val-0.jpg"):
        write_image(small_fashioniq / "images" / name)
    val = load_benchmark("fashioniq", small_fashioniq, category="dress")
    assert val.path("dress-val-0") == small_fashioniq / "images" / "dress-val-0.jpg"


def test_without_an_images_folder_every_image_is_missing_and_says_so(small_fashioniq):
    val = load_benchmark("fashioniq", small_fashioniq, category="dress")
    assert list(val.missing) == val.gallery
    with pytest.raises(BenchmarkError, match=r"'dress-val-1' is missing: no folder .*images"):
        val.path("dress-val-1")
    with pytest.raises(BenchmarkError, match="no image has the id 'nobody'"):
        val.path("nobody")


# ------------------------------------------------------------------ refusals
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"name": "fashion"}, r"Unknown benchmark 'fashion'.*fashioniq, cirr, circo, custom"),
        ({"split": "dev"}, r"Unknown split 'dev'.*train, val, test"),
        ({"category": "hat"}, r"Unknown category 'hat'.*dress, shirt, toptee"),
        ({"protocol": "union"}, r"Unknown protocol 'union'.*original, val_split"),
    ],
)
def test_unknown_names_are_refused_with_those_allowed(small_fashioniq, arguments, sentence):
    asked = {"name": "fashioniq", **arguments}
    with pytest.raises(BenchmarkError, match=sentence):
        load_benchmark(asked.pop("name"), small_fashioniq, **asked)


def test_a_missing_root_or_file_is_named(small_fashioniq, tmp_path):
    with pytest.raises(BenchmarkError, match=r"No file .*nowhere"):
        load_benchmark("fashioniq", tmp_path / "nowhere")
    (small_fashioniq / "image_splits" / "split.dress.val.json").unlink()
    with pytest.raises(BenchmarkError, match=r"No file .*split\.dress\.val\.json: expected the image ids"):
        load_benchmark("fashioniq", small_fashioniq, category="dress")
    (small_fashioniq / "captions").rename(small_fashioniq / "texts")
    with pytest.raises(BenchmarkError, match=r"No file .*captions/cap\.dress\.val\.json"):
        load_benchmark("fashioniq", small_fashioniq)


def test_test_records_have_all_a_target_or_none(small_fashioniq):
    path = small_fashioniq / "captions" / "cap.dress.test.json"
    records = json.loads(path.read_text())
    records[0]["target"] = "dress-test-3"
    path.write_text(json.dumps(records))
    with pytest.raises(BenchmarkError, match="some records have a 'target' and some do not"):
        load_benchmark("fashioniq", small_fashioniq, split="test")
