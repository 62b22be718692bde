"""Data preparation: how images are encoded, the towers aligned, and what is counted."""

import json
import shutil

import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from cirlib.models import preparation
from cirlib.models.image_encoding import ImageEncoder, LiveFeatures
from cirlib.models.preparation import (
    align_towers,
    count,
    encode_tokens,
    encode_two_towers,
    example_triplets,
    write_report,
)
from cirlib.models.prepared import Prepared
from cirlib.study.errors import ResourceError
from cirlib.study.pictures import open_rgb


def encoded(tower: ImageEncoder, prepared: Prepared, ids: list[str]) -> Tensor:
    """What a tower makes of the pictures themselves."""
    pixels = torch.stack([tower.transform(open_rgb(prepared.images[image])) for image in ids])
    with torch.inference_mode():
        return tower.encode_pixels(pixels).cpu()


# ------------------------------------------------------------------ counts and the report


def test_queries_and_galleries_are_counted_and_gaps_told(custom_stage):
    stage = custom_stage("data_prep", data={"allow_missing": True})
    (stage.images / "images" / "hat-val-5.jpg").unlink()
    assert count(Prepared(stage)).values.tolist() == [
        ["train", "hat", 6, 8, True],
        ["train", "shoe", 6, 8, True],
        ["dev", "hat", 1, 8, True],
        ["dev", "shoe", 1, 8, True],
        ["reported", "hat", 3, 5, False],
        ["reported", "shoe", 3, 6, True],
    ]


def test_examples_are_drawn_from_every_category_and_by_the_seed(unprepared):
    parts = unprepared.splits.reported
    rows = example_triplets(parts, 5, seed=0)
    assert [path.stem.split("-")[0] for path, _, _ in rows] == ["hat", "shoe", "hat", "shoe", "hat"]
    for reference, text, target in rows:
        category, split, number = reference.stem.split("-")
        assert text == f"Is {number} sizes bigger and has stripes"
        assert target == reference.with_name(f"{category}-{split}-{int(number) + 1}.jpg")
    assert example_triplets(parts, 5, seed=0) == rows


def test_the_report_has_the_counts_and_the_keys_of_what_later_stages_read(unprepared, make_store, tmp_path):
    data = unprepared.stage.data
    make_store(data / "tokens", ["a", "b", "c"], torch.zeros(3, 2, 3), key="tokens")
    make_store(data / "clip", ["a", "b", "c"], torch.zeros(3, 3), key="clip")
    write_report(unprepared, tmp_path)
    contents = json.loads((tmp_path / "contents.json").read_text())
    assert contents == {"annotations": unprepared.annotations, "tokens": "tokens", "embeddings": "clip"}
    assert pd.read_csv(tmp_path / "counts.csv").equals(count(unprepared))


def test_without_stored_tokens_the_report_tells_of_a_changed_picture(custom_stage, make_store, tmp_path):
    stage, reports = custom_stage("data_prep", models={"cache_tokens": False}), []
    make_store(stage.data / "clip", ["a"], torch.zeros(1, 3))
    for _ in range(2):
        write_report(Prepared(stage), tmp_path)
        reports.append(json.loads((tmp_path / "contents.json").read_text()))
        Image.new("RGB", (32, 32), "red").save(stage.images / "images" / "hat-val-0.jpg")
    assert {name for name in reports[0] if reports[0][name] != reports[1][name]} == {"tokens"}


# ------------------------------------------------------------------ encoding


def test_models_that_are_brought_along_encode_every_image_and_are_not_aligned(custom_stage, tiny_blip2, tiny_clip):
    name, file = tiny_clip
    models = {"fusion": str(tiny_blip2), "clip": name, "clip_pretrained": str(file), "precision": "fp32"}
    brought = Prepared(custom_stage("data_prep", models=models, data_prep={"batch_size": 8, "num_workers": 0}))
    tokens, embeddings = encode_tokens(brought), encode_two_towers(brought)
    assert tokens.ids == embeddings.ids == list(brought.images)
    some = ["pair-3", "hat-val-5"]
    torch.testing.assert_close(tokens[some], encoded(brought.vision_tower(), brought, some), atol=0.01, rtol=2e-3)
    torch.testing.assert_close(embeddings[some], encoded(brought.towers(), brought, some), atol=2e-3, rtol=2e-3)
    assert (brought.tokens.key, brought.clip.key) == (tokens.key, embeddings.key)
    assert align_towers(brought).empty


def test_the_mini_towers_are_aligned_and_share_the_stored_tokens(unprepared, custom_stage, monkeypatch):
    tokens, history = encode_tokens(unprepared), align_towers(unprepared)
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    with monkeypatch.context() as patch:  # no second pass over the pictures
        patch.setattr(preparation, "encode_images", None)
        embeddings = encode_two_towers(unprepared)
    assert embeddings.ids == tokens.ids
    towers, some = unprepared.towers(), ["shoe-val-5", "pair-0", "hat-train-2"]
    with torch.inference_mode():
        expected = F.normalize(towers.model.visual.head(tokens[some].mean(1).to(towers.device)), dim=-1).cpu()
    torch.testing.assert_close(embeddings[some], expected, atol=2e-3, rtol=0)
    torch.testing.assert_close(encoded(towers, unprepared, some), expected, atol=5e-3, rtol=0)

    shutil.move(unprepared.stage.data / "two_towers.safetensors", unprepared.stage.root / "given.safetensors")
    models = {"image_size": 64, "precision": "fp32", "clip_pretrained": "given.safetensors"}
    given = Prepared(custom_stage("data_prep", models=models))  # a saved alignment is used and not made again
    assert align_towers(given).empty
    assert given.towers().key == towers.key


def test_without_a_cache_nothing_is_written_and_the_same_is_read(prepared, custom_stage, capsys):
    models = {"image_size": 64, "precision": "fp32", "cache_tokens": False}
    stage = custom_stage("data_prep", models=models)
    live = encode_tokens(Prepared(stage))
    assert isinstance(live, LiveFeatures)
    assert "models.cache_tokens is false" in capsys.readouterr().out
    assert not (stage.data / "tokens").exists()
    some = ["hat-val-0", "pair-2"]
    torch.testing.assert_close(live[some], prepared.tokens[some], atol=2e-2, rtol=2e-3)


def test_a_disk_that_is_too_small_is_refused_before_anything_is_encoded(unprepared, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 0))
    monkeypatch.setattr(preparation, "encode_images", None)
    with pytest.raises(ResourceError, match=r"models\.cache_tokens to false"):
        encode_tokens(unprepared)
