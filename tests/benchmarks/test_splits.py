"""The parts of a study's data: what is held out, which categories and galleries, and what happens without files."""

import json

import pytest

from cirlib.benchmarks import BenchmarkError
from cirlib.benchmarks.acquisition import missing_images
from cirlib.benchmarks.splits import hold_out, load_splits


@pytest.fixture
def twenty(make_benchmark):
    ids = [f"i{n}" for n in range(21)]
    return make_benchmark([(ids[n], ids[n + 1], f"is {n}") for n in range(20)], ids)


def ids_of(part) -> list[str]:
    return [triplet.id for triplet in part.triplets]


# ------------------------------------------------------------------ holding out


@pytest.mark.parametrize(("fraction", "held"), [(0.1, 2), (0.25, 5), (0.13, 3), (0.01, 1), (0.49, 10)])
def test_what_is_held_out_and_the_rest_are_all_there_is_in_its_order(twenty, fraction, held):
    train, dev = hold_out(twenty, fraction, seed=0)
    assert len(dev.triplets) == held
    assert sorted(ids_of(train) + ids_of(dev)) == sorted(ids_of(twenty))
    for part in (train, dev):
        assert part.gallery == twenty.gallery
        assert ids_of(part) == [i for i in ids_of(twenty) if i in ids_of(part)]


def test_the_seed_alone_decides_what_is_held_out(twenty):
    first, again = (ids_of(hold_out(twenty, 0.3, seed=0)[1]) for _ in range(2))
    assert first == again
    drawn = {tuple(ids_of(hold_out(twenty, 0.3, seed=seed)[1])) for seed in range(5)}
    assert len(drawn) == 5
    assert tuple(ids_of(twenty)[:6]) not in drawn  # not just the first ones


# ------------------------------------------------------------------ a study's parts


def test_train_and_dev_are_of_the_train_split_and_the_reported_one_is_another(custom_stage):
    splits = load_splits(custom_stage(data={"dev_fraction": 0.3}))
    assert list(splits.train) == list(splits.dev) == list(splits.reported) == ["hat", "shoe"]
    for category in ("hat", "shoe"):
        train, dev, reported = (getattr(splits, name)[category] for name in ("train", "dev", "reported"))
        assert sorted(ids_of(train) + ids_of(dev)) == [f"{category}-train-{i}" for i in range(7)]
        assert len(dev.triplets) == 2
        assert ids_of(reported) == [f"{category}-val-{i}" for i in range(3)]
        assert reported.gallery == [f"{category}-val-{i}" for i in range(6)]
        # of the nine train images only those in queries are asked for
        assert train.gallery == dev.gallery == [f"{category}-train-{i}" for i in range(8)]


def test_the_gallery_is_the_studys_unless_another_is_asked_for(custom_stage):
    stage = custom_stage(evaluation={"gallery": "val_split"})
    assert len(load_splits(stage).reported["hat"].gallery) == 4
    assert len(load_splits(stage, "original").reported["hat"].gallery) == 6
    assert len(load_splits(stage, "original").train["hat"].gallery) == 8


def test_only_the_categories_asked_for_are_loaded(custom_stage):
    splits = load_splits(custom_stage(data={"categories": ["shoe"]}))
    assert list(splits.train) == list(splits.dev) == list(splits.reported) == ["shoe"]


def test_data_without_a_train_split_has_no_train_and_dev(custom_stage):
    stage = custom_stage()
    for file in (stage.images / "captions").glob("cap.*.train.json"):
        file.unlink()
    splits = load_splits(stage)
    assert (splits.train, splits.dev) == ({}, {})
    assert set(splits.images()) == {f"{c}-val-{i}" for c in ("hat", "shoe") for i in range(6)}


def test_missing_images_stop_the_study_unless_its_parameter_allows_them(custom_stage):
    stage = custom_stage()
    (stage.images / "images" / "shoe-val-1.jpg").unlink()
    (stage.images / "images" / "hat-train-8.jpg").unlink()  # in no query
    told = r"1 of 6 gallery images are missing.*`dvc checkout`.*set data\.allow_missing to true"
    with pytest.raises(BenchmarkError, match=told):
        load_splits(stage)
    splits = load_splits(custom_stage(data={"allow_missing": True}))
    part = splits.reported["shoe"]
    assert ids_of(part) == ["shoe-val-2"]  # image 1 was the target of query 0 and the reference of query 1
    assert (part.complete, len(part.gallery)) == (False, 5)
    assert splits.train["hat"].complete


# ------------------------------------------------------------------ benchmarks without categories


def touch(folder, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def test_cirr_is_one_category_of_its_own_name(custom_stage, tmp_path, write_json):
    """Five train and two val queries over six images each; empty image files."""
    for split, folder, queries in (("train", "train", 5), ("val", "dev", 2)):
        ids = [f"{folder}-{i}-img0" for i in range(6)]
        query = {"caption": "dogs", "img_set": {"members": ids}}
        records = [query | {"pairid": i, "reference": ids[i], "target_hard": ids[i + 1]} for i in range(queries)]
        write_json(tmp_path / "cirr" / "captions" / f"cap.rc2.{split}.json", records)
        write_json(tmp_path / "cirr" / "image_splits" / f"split.rc2.{split}.json", {i: f"./{i}.png" for i in ids})
        touch(tmp_path / "cirr" / folder, *(f"{image}.png" for image in ids))
    splits = load_splits(custom_stage(data={"benchmark": "cirr", "root": "cirr", "dev_fraction": 0.4}))
    assert list(splits.train) == list(splits.dev) == list(splits.reported) == ["cirr"]
    assert (len(splits.train["cirr"].triplets), len(splits.dev["cirr"].triplets)) == (3, 2)
    assert len(splits.train["cirr"].gallery) == 6
    assert ids_of(splits.reported["cirr"]) == ["0", "1"]


def test_a_split_without_public_targets_cannot_be_reported(custom_stage, small_fashioniq):
    for file in (small_fashioniq / "image_splits").glob("*.json"):
        touch(small_fashioniq / "images", *(f"{image}.jpg" for image in json.loads(file.read_text())))
    stage = custom_stage(data={"benchmark": "fashioniq", "root": ".", "split": "test", "allow_missing": True})
    with pytest.raises(BenchmarkError, match=r"fashioniq test has no public targets.*set data\.split to val"):
        load_splits(stage)


def test_circo_has_nothing_to_train_on(custom_stage, tmp_path, write_json, monkeypatch):
    monkeypatch.setattr("cirlib.benchmarks.circo.GALLERY_SIZE", 2)
    record = {"id": 5, "relative_caption": "is running", "reference_img_id": 12, "gt_img_ids": [7]}
    write_json(tmp_path / "circo" / "annotations" / "val.json", [record])
    touch(tmp_path / "circo" / "images", "000000000007.jpg", "000000000012.jpg")
    splits = load_splits(custom_stage(data={"benchmark": "circo", "root": "circo"}))
    assert (splits.train, splits.dev) == ({}, {})
    assert splits.reported["circo"].gallery == ["7", "12"]


def test_a_train_split_that_stays_aside_is_not_read_and_its_images_are_not_wanted(custom_stage):
    stage = custom_stage(data={"train": False})
    for file in (stage.images / "captions").glob("cap.*.train.json"):
        file.write_text("no JSON")
    splits = load_splits(stage)
    assert not splits.train and not splits.dev and list(splits.reported) == ["hat", "shoe"]
    assert missing_images(stage) == []
