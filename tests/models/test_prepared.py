"""What data preparation leaves: which images are needed, which towers are meant, what is said where it is missing."""

import json
from dataclasses import replace

import pytest
import torch

from cirlib.models.blip2 import Blip2Vision
from cirlib.models.mini import MiniVision
from cirlib.models.prepared import Prepared, open_prepared
from cirlib.study.errors import StageError
from cirlib.study.provenance import write_provenance

CATEGORIES = ("hat", "shoe")


def test_every_image_of_queries_galleries_and_pairs_is_needed(custom_stage):
    wanted = {f"{c}-{s}-{i}" for c in CATEGORIES for s, size in (("train", 8), ("val", 6)) for i in range(size)}
    for gallery in ("original", "val_split"):  # a smaller gallery does not leave images out
        images = Prepared(custom_stage("data_prep", evaluation={"gallery": gallery})).images
        assert set(images) == wanted | {f"pair-{i}" for i in range(6)}
        assert all(path.is_file() and path.stem == image for image, path in images.items())


def test_before_data_preparation_the_command_is_named(unprepared, make_store):
    stage = unprepared.stage
    with pytest.raises(StageError, match=r"needs results/small/provenance/data_prep\.json, .*: run `dvc repro"):
        open_prepared(stage)
    write_provenance(stage, {})
    for name in ("tokens", "clip"):
        with pytest.raises(
            StageError, match=f"needs data/small/prepared/{name}/store.json, .*run `dvc repro data_prep` first"
        ):
            open_prepared(stage)
        make_store(stage.data / name, ["a"], torch.zeros(1, 3))
    assert len(open_prepared(stage).clip) == 1
    larger = stage.study.model_copy(update={"models": stage.study.models.model_copy(update={"image_size": 96})})
    with pytest.raises(StageError, match=r"with models\.image_size=64, now it is 96: run `dvc repro data_prep`"):
        open_prepared(replace(stage, study=larger))
    with pytest.raises(
        StageError, match=r"needs data/small/prepared/two_towers\.safetensors, which is missing: run `dvc repro"
    ):
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


def test_the_hash_of_the_annotations_tells_of_any_change_in_what_later_stages_read(unprepared):
    images, seen = unprepared.stage.images, [unprepared.annotations, Prepared(unprepared.stage).annotations]
    queries = "captions/cap.hat.val.json"
    changes = [("pairs.json", "caption"), *((queries, key) for key in ("captions", "target", "candidate"))]
    for name, key in changes:
        rows = json.loads((images / name).read_text())
        rows[0][key] = rows[1][key]
        (images / name).write_text(json.dumps(rows))
        seen.append(Prepared(unprepared.stage).annotations)
    gallery = images / "image_splits" / "split.hat.val.json"
    gallery.write_text(json.dumps(json.loads(gallery.read_text())[::-1]))
    seen.append(Prepared(unprepared.stage).annotations)
    (images / "attributes.json").write_text('{"hat-val-0": {"colour": "red"}}')
    seen.append(Prepared(unprepared.stage).annotations)
    assert seen[0] == seen[1] and len(set(seen)) == 7
