"""The parts of a study's data: what is held out, which categories and galleries, and what happens without files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cirlib.benchmarks import BenchmarkError
from cirlib.benchmarks.splits import hold_out, load_splits
from cirlib.study.parameters import Study


@pytest.fixture
def twenty(make_benchmark):
    ids = [f"i{n}" for n in range(21)]
    return make_benchmark([(ids[n], ids[n + 1], f"is {n}") for n in range(20)], ids)


def ids_of(part) -> list[str]:
    return [triplet.id for triplet in part.triplets]


# ------------------------------------------------------------------ holding out


@pytest.mark.parametrize(("fraction", "held"), [(0.1, 2), (0.25, 5), (0.13, 3), (0.01, 1), (0.49, 10)])
def test_what_is_held_out_and_the_rest_are_disjoint_and_all_there_is(twenty, fraction, held):
    train, dev = hold_out(twenty, fraction, seed=0)
    assert len(dev.triplets) == held
    assert not set(ids_of(train)) & set(ids_of(dev))
    assert sorted(ids_of(train) + ids_of(dev)) == sorted(ids_of(twenty))


def test_both_parts_keep_the_order_of_the_queries_and_the_whole_gallery(twenty):
    for part in hold_out(twenty, 0.3, seed=0):
        assert part.gallery == twenty.gallery
        places = [ids_of(twenty).index(i) for i in ids_of(part)]
        assert places == sorted(places)


def test_the_seed_alone_decides_what_is_held_out(twenty):
    first, again = (ids_of(hold_out(twenty, 0.3, seed=0)[1]) for _ in range(2))
    assert first == again
    drawn = {tuple(ids_of(hold_out(twenty, 0.3, seed=seed)[1])) for seed in range(5)}
    assert len(drawn) == 5
    assert ids_of(twenty)[:6] not in [list(one) for one in drawn]  # not just the first ones


# ------------------------------------------------------------------ a study's parts


def test_train_and_dev_are_of_the_train_split_and_the_reported_one_is_another(custom_stage):
    stage = custom_stage(data={"dev_fraction": 0.3})
    splits = load_splits(stage.study, stage.images)
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
    assert len(load_splits(stage.study, stage.images).reported["hat"].gallery) == 4
    assert len(load_splits(stage.study, stage.images, gallery="original").reported["hat"].gallery) == 6
    assert len(load_splits(stage.study, stage.images, gallery="original").train["hat"].gallery) == 8


def test_only_the_categories_asked_for_are_loaded(custom_stage):
    stage = custom_stage(data={"categories": ["shoe"]})
    splits = load_splits(stage.study, stage.images)
    assert list(splits.train) == list(splits.dev) == list(splits.reported) == ["shoe"]


def test_data_without_a_train_split_has_no_train_and_dev(custom_stage):
    stage = custom_stage()
    for file in (stage.images / "captions").glob("cap.*.train.json"):
        file.unlink()
    splits = load_splits(stage.study, stage.images)
    assert (splits.train, splits.dev) == ({}, {})
    assert set(splits.images()) == {f"{c}-val-{i}" for c in ("hat", "shoe") for i in range(6)}


def test_missing_images_stop_the_study_with_the_parameter_that_allows_them(custom_stage):
    stage = custom_stage()
    (stage.images / "images" / "shoe-val-1.jpg").unlink()
    with pytest.raises(BenchmarkError, match=r"1 of 6 gallery images are missing.*Set data\.allow_missing to true"):
        load_splits(stage.study, stage.images)
    allowed = custom_stage(data={"allow_missing": True})
    part = load_splits(allowed.study, allowed.images).reported["shoe"]
    assert ids_of(part) == ["shoe-val-2"]  # image 1 was the target of query 0 and the reference of query 1
    assert not part.complete
    assert len(part.gallery) == 5


def test_a_train_image_in_no_query_may_be_missing(custom_stage):
    stage = custom_stage()
    (stage.images / "images" / "hat-train-8.jpg").unlink()
    assert len(load_splits(stage.study, stage.images).train["hat"].gallery) == 8


# ------------------------------------------------------------------ benchmarks without categories


def study_of(benchmark: str) -> Study:
    return Study.model_validate({"name": "x", "data": {"benchmark": benchmark, "root": "x", "dev_fraction": 0.4}})


@pytest.fixture
def small_cirr(tmp_path, write_json) -> Path:
    """Five train and two val queries over six images each; empty image files."""
    for split, folder, queries in (("train", "train", 5), ("val", "dev", 2)):
        ids = [f"{folder}-{i}-img0" for i in range(6)]
        records = [
            {
                "pairid": i, "reference": ids[i], "target_hard": ids[i + 1], "caption": f"{i} dogs",
                "img_set": {"members": ids},
            }
            for i in range(queries)
        ]  # fmt: skip
        write_json(tmp_path / "captions" / f"cap.rc2.{split}.json", records)
        files = {i: f"./{folder}/{i}.png" for i in ids}
        write_json(tmp_path / "image_splits" / f"split.rc2.{split}.json", files)
        for image in ids:
            path = tmp_path / folder / f"{image}.png"
            path.parent.mkdir(exist_ok=True)
            path.touch()
    return tmp_path


def test_cirr_is_one_category_of_its_own_name(small_cirr):
    splits = load_splits(study_of("cirr"), small_cirr)
    assert list(splits.train) == list(splits.dev) == list(splits.reported) == ["cirr"]
    assert (len(splits.train["cirr"].triplets), len(splits.dev["cirr"].triplets)) == (3, 2)
    assert len(splits.train["cirr"].gallery) == 6
    assert ids_of(splits.reported["cirr"]) == ["0", "1"]


def test_a_split_without_public_targets_cannot_be_reported(small_fashioniq):
    study = Study.model_validate({"name": "x", "data": {"root": "x", "split": "test", "allow_missing": True}})
    for file in (small_fashioniq / "image_splits").glob("*.json"):
        for image in json.loads(file.read_text()):
            (small_fashioniq / "images").mkdir(exist_ok=True)
            (small_fashioniq / "images" / f"{image}.jpg").touch()
    with pytest.raises(BenchmarkError, match=r"fashioniq test has no public targets.*set data\.split to val"):
        load_splits(study, small_fashioniq)


def test_circo_has_nothing_to_train_on(tmp_path, write_json, monkeypatch):
    monkeypatch.setattr("cirlib.benchmarks.circo.GALLERY_SIZE", 2)
    record = {"id": 5, "shared_concept": "a dog", "relative_caption": "is running", "reference_img_id": 12}
    write_json(tmp_path / "annotations" / "val.json", [{**record, "target_img_id": 7, "gt_img_ids": [7]}])
    write_json(tmp_path / "annotations" / "image_info_unlabeled2017.json", {"images": [{"id": 7}, {"id": 12}]})
    (tmp_path / "images").mkdir()
    for number in (7, 12):
        (tmp_path / "images" / f"{number:012}.jpg").touch()
    splits = load_splits(study_of("circo"), tmp_path)
    assert (splits.train, splits.dev) == ({}, {})
    assert splits.reported["circo"].gallery == ["7", "12"]
