"""What data preparation leaves: which images are needed, which towers are meant, what is said where it is missing."""

import json
from pathlib import Path

import pytest
import torch

from cirlib.models.blip2 import Blip2Vision
from cirlib.models.mini import MiniVision
from cirlib.models.prepared import Prepared, open_prepared
from cirlib.study.errors import StageError

CATEGORIES = ("hat", "shoe")


def test_every_image_of_queries_galleries_and_pairs_is_needed(custom_stage):
    wanted = {f"{c}-{s}-{i}" for c in CATEGORIES for s, size in (("train", 8), ("val", 6)) for i in range(size)}
    for gallery in ("original", "val_split"):  # a smaller gallery does not leave images out
        images = Prepared(custom_stage("data_prep", evaluation={"gallery": gallery})).images
        assert set(images) == wanted | {f"pair-{i}" for i in range(6)}
        assert all(path.is_file() and path.stem == image for image, path in images.items())


def test_pairs_are_read_where_there_are_any(unprepared):
    assert [pair["image"] for pair in unprepared.pairs("alignment")] == [f"pair-{i}" for i in range(4)]
    (unprepared.stage.images / "pairs" / "pretraining.json").unlink()
    assert unprepared.pairs("pretraining") == []


def test_before_data_preparation_the_command_is_named(unprepared, make_store):
    stage = unprepared.stage
    for name, array in (("tokens", torch.zeros(1, 2, 3)), ("clip", torch.zeros(1, 3))):
        with pytest.raises(StageError) as caught:
            open_prepared(stage)
        assert str(caught.value) == (
            f"data_prep needs data/small/{name}/store.json, which is missing: run `dvc repro data_prep` first"
        )
        make_store(stage.data / name, ["a"], array)
    opened = open_prepared(stage)
    assert (len(opened.tokens), len(opened.clip)) == (1, 1)
    with pytest.raises(StageError, match=r"needs data/small/two_towers\.safetensors, which is missing: run `dvc repro"):
        unprepared.towers()


def test_the_towers_are_those_the_study_names(unprepared, custom_stage, tiny_blip2, tiny_clip):
    tower = unprepared.vision_tower()
    assert isinstance(tower, MiniVision) and tower.shape == (4, 1280)
    name, file = tiny_clip
    models = {"fusion": str(tiny_blip2), "clip": name, "clip_pretrained": str(file)}
    brought = Prepared(custom_stage("data_prep", models=models))
    assert isinstance(brought.vision_tower(), Blip2Vision)
    assert brought.towers().shape == (12,)


def test_models_in_the_projects_folder_are_found_from_anywhere(unprepared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path.parent)
    (unprepared.stage.root / "models" / "mine").mkdir(parents=True)
    here = f"{unprepared.stage.root}/models/mine"
    names = [unprepared.local_name(n) for n in ("models/mine", "local-dir:models/mine", "ViT-B-32", here, None)]
    assert names == [here, f"local-dir:{here}", "ViT-B-32", here, None]


def take_from_the_second(file: Path, key: str) -> None:
    rows = json.loads(file.read_text())
    rows[0][key] = rows[1][key]
    file.write_text(json.dumps(rows))


def test_the_hash_of_the_annotations_tells_of_any_change_in_what_later_stages_read(unprepared):
    images, seen = unprepared.stage.images, set()

    def look() -> None:
        seen.add(Prepared(unprepared.stage).annotations)

    look()
    look()
    assert len(seen) == 1
    (images / "attributes.json").write_text('{"hat-val-0": {"colour": "red"}}')
    look()
    take_from_the_second(images / "pairs" / "pretraining.json", "caption")
    look()
    for key in ("captions", "target", "candidate"):
        take_from_the_second(images / "captions" / "cap.hat.val.json", key)
        look()
    gallery = images / "image_splits" / "split.hat.val.json"
    gallery.write_text(json.dumps(json.loads(gallery.read_text())[::-1]))
    look()
    assert len(seen) == 7
