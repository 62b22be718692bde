"""The FashionIQ loader, also for custom data in its files."""

import pytest

from cirlib.benchmarks import BenchmarkError, Triplet, categories, load_benchmark

CATEGORIES = ["dress", "shirt", "toptee"]


# ------------------------------------------------------------------ the real annotations
def test_all_categories_together_join_the_real_galleries_without_repeats(real_data):
    root = real_data("fashioniq")
    together = load_benchmark("fashioniq", root)
    assert len(together.triplets) == 6_016
    assert len(together.gallery) == len(set(together.gallery)) == 15_415
    assert together.categories == categories("fashioniq", root) == CATEGORIES


def test_real_train_split_under_val_split_asks_only_for_the_images_of_its_triplets(real_data):
    train = load_benchmark("fashioniq", real_data("fashioniq"), split="train", protocol="val_split")
    assert (len(train.triplets), len(train.gallery)) == (18_000, 25_136)
    assert {(len(t.captions), len(t.targets)) for t in train.triplets} == {(2, 1)}


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
    assert list(restricted.images) == restricted.gallery == [order[0], order[1], order[3], order[4]]


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
    assert categories("custom", tmp_path) == load_benchmark("custom", tmp_path).categories == ["bags.small", "shoes"]


def test_fashioniq_without_one_of_its_categories_is_refused_only_when_all_are_asked_for(small_fashioniq):
    (small_fashioniq / "captions" / "cap.shirt.val.json").unlink()
    assert load_benchmark("fashioniq", small_fashioniq, category="dress").categories == ["dress"]
    assert load_benchmark("custom", small_fashioniq).categories == ["dress", "toptee"]
    with pytest.raises(BenchmarkError, match=r"No file .*cap\.shirt\.val\.json: expected .*dress, toptee"):
        load_benchmark("fashioniq", small_fashioniq)


# ------------------------------------------------------------------ images
def test_images_are_found_whatever_their_extension_and_the_nearest_of_a_name_counts(small_fashioniq, write_image):
    names = ["dress-val-0.jpg", "dress-val-1.PNG", "dress-val-2.JPEG", "deeper/dress-val-3.webp"]
    paths = [write_image(small_fashioniq / "images" / name) for name in names]
    write_image(small_fashioniq / "images" / "a" / "dress-val-0.jpg", seed=1)
    (small_fashioniq / "images" / "dress-val-4.txt").write_text("no picture")
    val = load_benchmark("fashioniq", small_fashioniq, category="dress")
    assert [val.path(f"dress-val-{i}") for i in range(4)] == paths
    assert val.missing["dress-val-4"].startswith("images/dress-val-4.txt is there, but is not of a format that is read")


def test_without_an_images_folder_every_image_is_missing_and_says_so(small_fashioniq):
    val = load_benchmark("fashioniq", small_fashioniq, category="dress")
    assert list(val.missing) == val.gallery
    with pytest.raises(BenchmarkError, match=r"'dress-val-1' is missing: no folder .*images"):
        val.path("dress-val-1")
    with pytest.raises(BenchmarkError, match="'nobody' is missing: it is not in the gallery"):
        val.path("nobody")


# ------------------------------------------------------------------ refusals
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"name": "fashion"}, r"Unknown benchmark 'fashion'.*fashioniq, cirr, circo, custom"),
        ({"split": "dev"}, r"Unknown split 'dev'.*train, val, test"),
        ({"category": "hat"}, r"No file .*cap\.hat\.val\.json.*dress, shirt, toptee"),
        ({"protocol": "union"}, r"Unknown protocol of fashioniq 'union'.*original, val_split"),
        ({"root": "nowhere"}, r"No file nowhere/captions/cap\.dress\.val\.json"),
        ({"root": "nowhere", "name": "custom"}, r"No file nowhere/captions/cap\.\*\.val\.json"),
    ],
)
def test_unknown_names_and_files_are_refused_with_those_allowed(small_fashioniq, arguments, sentence):
    with pytest.raises(BenchmarkError, match=sentence):
        load_benchmark(**{"name": "fashioniq", "root": small_fashioniq, **arguments})
