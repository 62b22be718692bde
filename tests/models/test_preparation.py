"""Data preparation: which images are needed, how they are encoded, and what is counted."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from cirlib.models import preparation
from cirlib.models.blip2 import Blip2Vision
from cirlib.models.clip import load_clip
from cirlib.models.devices import best_device
from cirlib.models.mini import MiniVision
from cirlib.models.preparation import align_towers, contents, count, encode_tokens, encode_two_towers, example_triplets, pooled_tokens, write_report
from cirlib.models.prepared import Prepared, needed_images, open_prepared, vision_tower
from cirlib.study.errors import StageError
from cirlib.study.pictures import open_rgb

CATEGORIES = ("hat", "shoe")
FAST = {"batch_size": 8, "num_workers": 0}


@pytest.fixture
def prepared(custom_stage) -> Prepared:
    return Prepared(custom_stage("data_prep"))


# ------------------------------------------------------------------ what is there


def test_every_image_of_queries_galleries_and_pairs_is_needed(prepared):
    images = needed_images(prepared)
    wanted = {f"{c}-{s}-{i}" for c in CATEGORIES for s, size in (("train", 8), ("val", 6)) for i in range(size)}
    assert set(images) == wanted | {f"pair-{i}" for i in range(6)}
    assert all(path.is_file() and path.stem == image for image, path in images.items())


def test_a_smaller_gallery_protocol_does_not_leave_images_out(custom_stage):
    stage = custom_stage("data_prep", evaluation={"gallery": "val_split"})
    assert "hat-val-5" in needed_images(Prepared(stage))  # in no query


def test_pairs_are_read_where_there_are_any(prepared):
    assert [pair["image"] for pair in prepared.pairs("alignment")] == [f"pair-{i}" for i in range(4)]
    assert len(prepared.pairs("pretraining")) == 6
    (prepared.stage.images / "pairs" / "pretraining.json").unlink()
    assert prepared.pairs("pretraining") == []


def test_queries_and_galleries_are_counted_by_part_and_category(prepared):
    table = count(prepared)
    assert table.values.tolist() == [
        ["train", "hat", 6, 8, True],
        ["train", "shoe", 6, 8, True],
        ["dev", "hat", 1, 8, True],
        ["dev", "shoe", 1, 8, True],
        ["reported", "hat", 3, 6, True],
        ["reported", "shoe", 3, 6, True],
    ]
    assert table.columns.tolist() == ["part", "category", "queries", "gallery", "complete"]


def test_a_part_with_images_missing_is_counted_as_incomplete(custom_stage):
    stage = custom_stage("data_prep", data={"allow_missing": True})
    (stage.images / "images" / "hat-val-5.jpg").unlink()
    table = count(Prepared(stage)).set_index(["part", "category"])
    assert table.loc[("reported", "hat"), ["queries", "gallery", "complete"]].tolist() == [3, 5, False]
    assert table.loc[("reported", "shoe"), "complete"]


def test_examples_are_drawn_from_every_category_and_by_the_seed(prepared):
    parts = prepared.splits.reported
    rows = example_triplets(parts, 5, seed=0)
    folder = prepared.stage.images / "images"
    assert [path.stem.split("-")[0] for path, _, _ in rows] == ["hat", "shoe", "hat", "shoe", "hat"]
    for reference, text, target in rows:
        category, split, number = reference.stem.split("-")
        assert text == f"Is {number} sizes bigger and has stripes"
        assert target == folder / f"{category}-{split}-{int(number) + 1}.jpg"
        assert reference.is_file()
    assert example_triplets(parts, 5, seed=0) == rows
    assert any(example_triplets(parts, 5, seed=seed) != rows for seed in (1, 2))


def test_before_data_preparation_the_command_is_named(prepared, make_store):
    stage = prepared.stage
    sentence = "data_prep needs data/small/{}/store.json, which is missing: run `dvc repro data_prep` first"
    with pytest.raises(StageError) as caught:
        open_prepared(stage)
    assert str(caught.value) == sentence.format("tokens")
    make_store(stage.data / "tokens", ["a"], torch.zeros(1, 2, 3))
    with pytest.raises(StageError) as caught:
        open_prepared(stage)
    assert str(caught.value) == sentence.format("clip")
    make_store(stage.data / "clip", ["a", "b"], torch.zeros(2, 3))
    opened = open_prepared(stage)
    assert (len(opened.tokens), len(opened.clip)) == (1, 2)


def test_the_report_has_the_counts_and_their_sums(prepared, make_store, tmp_path):
    make_store(prepared.stage.data / "tokens", ["a", "b", "c"], torch.zeros(3, 2, 3))
    make_store(prepared.stage.data / "clip", ["a", "b", "c"], torch.zeros(3, 3))
    write_report(prepared, tmp_path)
    assert json.loads((tmp_path / "contents.json").read_text()) == contents(prepared)
    assert pd.read_csv(tmp_path / "counts.csv").equals(count(prepared))
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics == {"queries": {"train": 12, "dev": 2, "reported": 6}, "images": 3}


def take_from_the_second(file: Path, key: str) -> None:
    rows = json.loads(file.read_text())
    rows[0][key] = rows[1][key]
    file.write_text(json.dumps(rows))


def test_the_contents_tell_of_any_change_in_what_later_stages_read(prepared, make_store):
    stage, store = prepared.stage, torch.zeros(1, 2, 3)
    make_store(stage.data / "clip", ["a"], store[0], key="clip")
    make_store(stage.data / "tokens", ["a"], store, key="tokens")
    before = contents(prepared)
    assert contents(Prepared(stage)) == before
    assert (before["tokens"], before["embeddings"]) == ("tokens", "clip")
    seen = {before["annotations"]}
    (stage.images / "attributes.json").write_text('{"hat-val-0": {"colour": "red"}}')
    seen.add(contents(Prepared(stage))["annotations"])
    take_from_the_second(stage.images / "pairs" / "pretraining.json", "caption")
    seen.add(contents(Prepared(stage))["annotations"])
    for key in ("captions", "target", "candidate"):
        take_from_the_second(stage.images / "captions" / "cap.hat.val.json", key)
        seen.add(contents(Prepared(stage))["annotations"])
    gallery = stage.images / "image_splits" / "split.hat.val.json"
    gallery.write_text(json.dumps(json.loads(gallery.read_text())[::-1]))
    seen.add(contents(Prepared(stage))["annotations"])
    assert len(seen) == 7


def test_without_a_store_the_contents_tell_of_a_changed_picture(custom_stage, make_store):
    stage = custom_stage("data_prep", models={"cache_tokens": False}, data_prep=FAST)
    make_store(stage.data / "clip", ["a"], torch.zeros(1, 3))
    before = contents(Prepared(stage))
    picture = stage.images / "images" / "hat-val-0.jpg"
    Image.new("RGB", (32, 32), "red").save(picture)
    after = contents(Prepared(stage))
    assert after["tokens"] != before["tokens"]
    assert {**after, "tokens": before["tokens"]} == before


# ------------------------------------------------------------------ encoding with models that are brought along


@pytest.fixture
def brought(custom_stage, tiny_blip2, tiny_clip) -> Prepared:
    name, file = tiny_clip
    models = {"fusion": str(tiny_blip2), "clip": name, "clip_pretrained": str(file), "precision": "fp32"}
    return Prepared(custom_stage("data_prep", models=models, data_prep=FAST))


def test_every_image_is_encoded_by_both_models(brought, tiny_blip2, tiny_clip):
    images = needed_images(brought)
    tokens, embeddings = encode_tokens(brought, images), encode_two_towers(brought, images)
    assert tokens.ids == embeddings.ids == list(images)
    assert tokens.array.shape == (len(images), 5, 24)
    assert embeddings.array.shape == (len(images), 12)
    options = {"device": best_device(), "dtype": torch.float32}
    some = ["pair-3", "hat-val-5"]
    pictures = [open_rgb(images[image]) for image in some]
    vision, towers = Blip2Vision(str(tiny_blip2), **options), load_clip(tiny_clip[0], str(tiny_clip[1]), **options)
    with torch.inference_mode():
        expected = vision.encode_pixels(torch.stack([vision.transform(picture) for picture in pictures])).cpu()
        wanted = towers.encode_pixels(torch.stack([towers.transform(picture) for picture in pictures])).cpu()
    torch.testing.assert_close(tokens[some], expected, atol=0.01, rtol=2e-3)
    torch.testing.assert_close(embeddings[some], wanted, atol=2e-3, rtol=2e-3)
    assert brought.tokens.key == tokens.key
    assert brought.clip.key == embeddings.key


def test_models_that_are_brought_along_are_not_aligned(brought):
    table = align_towers(brought)
    assert table.columns.tolist() == ["epoch", "loss"]
    assert len(table) == 0
    assert not (brought.stage.data / "two_towers.safetensors").exists()


def test_an_image_is_the_mean_of_its_tokens(make_store, tmp_path):
    features = torch.arange(30.0).view(5, 3, 2)
    store = make_store(tmp_path / "store", list("abcde"), features)
    got = pooled_tokens(store, ["e", "a", "c"], chunk=2)
    assert torch.equal(got, torch.tensor([[26.0, 27.0], [2.0, 3.0], [14.0, 15.0]]))


# ------------------------------------------------------------------ encoding with the mini towers


@pytest.fixture
def mini(custom_stage) -> Prepared:
    """The mini pair at 64 pixels: 4 tokens an image."""
    models = {"image_size": 64, "clip_width": 16, "precision": "fp32"}
    block = {**FAST, "alignment_epochs": 3, "alignment_batch_size": 4, "alignment_lr": 0.001}
    return Prepared(custom_stage("data_prep", models=models, data_prep=block))


def test_the_vision_tower_is_the_one_the_study_names(mini, brought):
    tower = vision_tower(mini.stage)
    assert isinstance(tower, MiniVision)
    assert tower.shape == (4, 1280)
    assert isinstance(vision_tower(brought.stage), Blip2Vision)


def test_without_an_alignment_the_command_is_named(mini):
    with pytest.raises(StageError, match=r"needs data/small/two_towers\.safetensors, which is missing: run `dvc repro"):
        mini.towers()


def test_the_mini_towers_are_aligned_and_share_the_stored_tokens(mini, monkeypatch):
    images = needed_images(mini)
    tokens = encode_tokens(mini, images)
    history = align_towers(mini)
    assert history["epoch"].tolist() == [1, 2, 3]
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    with monkeypatch.context() as patch:  # no second pass over the pictures
        patch.setattr(preparation, "encode_images", None)
        embeddings = encode_two_towers(mini, images)
    assert embeddings.ids == tokens.ids
    towers = mini.towers()
    head = towers.model.visual.head
    some = ["shoe-val-5", "pair-0", "hat-train-2"]
    with torch.inference_mode():
        expected = F.normalize(head(tokens[some].mean(1).to(towers.device)), dim=-1).cpu()
    torch.testing.assert_close(embeddings[some], expected, atol=2e-3, rtol=0)
    # and that is what the two towers make of the picture itself
    pixels = torch.stack([towers.transform(open_rgb(images[image])) for image in some])
    with torch.inference_mode():
        torch.testing.assert_close(towers.encode_pixels(pixels).cpu(), expected, atol=5e-3, rtol=0)
    # the aligned captions are nearer to their own pictures than to others
    pairs = mini.pairs("alignment")
    texts = towers.encode_texts([pair["caption"] for pair in pairs])
    similar = texts @ embeddings[[pair["image"] for pair in pairs]].T
    assert similar.diagonal().mean() > similar.mean()


def test_a_saved_alignment_is_used_and_not_made_again(mini, custom_stage):
    encode_tokens(mini, needed_images(mini))
    align_towers(mini)
    saved = mini.stage.data / "two_towers.safetensors"
    moved = saved.rename(mini.stage.root / "given.safetensors")
    models = {"image_size": 64, "clip_pretrained": "given.safetensors"}
    given = Prepared(custom_stage("data_prep", models=models, data_prep=FAST))
    assert len(align_towers(given)) == 0
    assert not saved.exists()
    assert given.towers().shape == (16,)
    assert moved.is_file()
