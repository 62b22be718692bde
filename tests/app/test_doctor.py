"""What a machine lacks is told before a study is started; times are of steps that were run here."""

import re
import stat
import sys
from collections import namedtuple

import httpx
import open_clip
import pytest
import torch

from cirlib.app import doctor
from cirlib.app.doctor import Finding, examine
from cirlib.app.full_size import StageProbe
from cirlib.models import devices
from cirlib.models.devices import best_device, listed_gpus, precision_here
from cirlib.study.errors import ParameterError, ResourceError
from cirlib.study.stage import project_root


@pytest.fixture
def smi(tmp_path, monkeypatch) -> None:
    """A driver that lists a GPU which torch cannot use, as an old one does."""
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(f"#!{sys.executable}\nprint('NVIDIA A10, 23028 MiB, 470.82.01')\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tool.parent))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    devices.listed_gpus.cache_clear()
    yield
    devices.listed_gpus.cache_clear()


@pytest.fixture
def real(custom_stage, tiny_blip2, tiny_clip):
    """The small study with a tiny BLIP-2 and CLIP, as the doctor sees a study of real models."""
    models = {
        "fusion": str(tiny_blip2),
        "clip": tiny_clip[0],
        "clip_pretrained": str(tiny_clip[1]),
        "precision": "fp32",
    }
    qformer = {"sprc_terms": 1.0, "fusion": "two_pass", "epochs": 3, "hard_negatives": 1}
    return custom_stage("data_prep", models=models, qformer=qformer, dpo={"grid": "full", "grid_edits": 10})


def found(stage) -> dict[str, Finding]:
    return {finding.what: finding for finding in examine(stage.study, stage.root)}


@pytest.mark.usefixtures("smi")
def test_a_listed_gpu_that_torch_cannot_use_stops_training_and_doctor(real, monkeypatch):
    assert listed_gpus() == ("NVIDIA A10, 23028 MiB, 470.82.01",)
    with pytest.raises(ResourceError, match=r"nvidia-smi lists NVIDIA A10.*cannot use: it is built .*Install a driver"):
        best_device()
    findings = list(examine(real.study, real.root))
    assert len(findings) == 1 and findings[0].stops and str(findings[0]).startswith("STOP GPU")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert best_device().type == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="batches on a GPU are the study's own")
def test_every_long_stage_is_timed_by_steps_of_its_true_size(real):
    said = found(real)
    assert not any(finding.stops for finding in said.values()), said
    for what, unit, count in (("image tokens", "images", 28), ("Q-Former", "triplets", 2 * 3 * 14)):
        assert f"{unit} a second in batches of 2: {count} take" in said[what].said
    runs = r"([\d.]+) edits a second in batches of 2: 1,440 take ([\d.]+) h"  # 72 of 10 edits and 2 epochs
    speed, hours = map(float, re.match(runs, said["both_towers of the grid"].said).groups())
    assert hours == pytest.approx(1440 / speed / 3600, rel=0.01, abs=0.06)  # both are rounded


def test_data_that_is_not_there_stops_but_where_it_is_made_or_fetched(real, custom_stage, monkeypatch):
    monkeypatch.setattr(doctor, "probes", lambda *_: [])
    assert found(real)["data"] == Finding("data", "28 images, 0 of them missing, 14 queries to train on")
    picture = next((real.root / real.study.data.root / "images").rglob("*-val-*"))
    picture.unlink()
    said = "28 images, 1 of them missing, 14 queries to train on: name data.images, or set data.allow_missing=true"
    assert found(real)["data"] == Finding("data", said, stops=True)
    nowhere = found(custom_stage("data_prep", data={"root": "nowhere"}))["data"]
    assert nowhere.stops and "nowhere/captions" in nowhere.said and nowhere.said.endswith("has what goes where")
    fetched = {"root": "nowhere", "benchmark": "fashioniq", "fetch": True, "train": False}
    said = found(custom_stage("data_prep", data=fetched))
    assert said["data"] == Finding("data", "is not there yet: data preparation fetches it")
    monkeypatch.setattr(doctor, "probes", lambda *_: [StageProbe("images", None, 1, "images", 1)])
    monkeypatch.setattr(doctor, "_measured", lambda probe, _device: Finding(probe.name, "not run"))
    assert "of 15,415 images" in found(custom_stage("data_prep", data=fetched))["disk"].said


def test_a_catalogue_stops_without_its_folder_and_table_and_its_own_edits_are_not_what_is_trained_on(custom_stage):
    stage = custom_stage("data_prep", data={"root": "shop", "catalogue": {}})
    assert found(stage)["data"].stops and f"no folder {stage.root / 'shop'}: data.root" in found(stage)["data"].said
    (stage.root / "raw").rename(stage.root / "shop")
    assert found(stage)["data"].stops and "expected one table" in found(stage)["data"].said
    (stage.root / "shop" / "mine.csv").write_text("image,title")
    assert found(stage)["data"] == Finding("data", "is not there yet: data preparation makes it")


def test_of_the_small_models_no_size_is_made_up(custom_stage):
    said = found(custom_stage("data_prep"))
    assert "this study needs none" in said["GPU"].said or torch.cuda.is_available()
    assert said["disk"].said.endswith(" GB free") and "images" not in said["disk"].said
    assert "not measured" in said["hours"].said


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU computes in fp16")
@pytest.mark.parametrize(
    ("block", "asked", "said"),
    [
        ("models", {"precision": "fp16"}, "models.precision is fp16, which wants a GPU"),
        ("qformer", {"methods": ["combinr"]}, "methods: 'combinr' cannot be added. Allowed: prompt_tuned"),
    ],
)
def test_what_a_later_stage_would_refuse_stops(custom_stage, block, asked, said):
    finding = found(custom_stage("data_prep", **{block: asked}))["precision, methods"]
    assert finding.stops and said in finding.said
    assert found(custom_stage("data_prep"))["precision, methods"].said == f"{precision_here('auto')}, prompt_tuned"


def test_outside_a_project_the_command_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        doctor.main()
    assert capsys.readouterr().err.startswith("no params.yaml and dvc.yaml at or above ")


def test_what_an_earlier_study_trains_stops_where_it_is_not_there(custom_stage):
    models = {"clip_pretrained": "raw/heads", "fusion_checkpoint": "results/other/qformer"}
    stage = custom_stage("data_prep", models=models)
    folder = stage.root / "results/other/qformer"
    folder.mkdir(parents=True)
    for missing, name in ((folder / "model.safetensors", "fusion_checkpoint"), (stage.root / "raw/heads", "clip_")):
        (finding,) = [finding for finding in found(stage).values() if finding.stops]
        assert finding.said.startswith(f"models.{name}") and finding.said.endswith(f"there is no file {missing}")
        missing.touch()
    assert not [finding for finding in found(stage).values() if finding.stops]


def test_of_a_study_that_wants_a_value_its_own_file_is_named():
    with pytest.raises(ParameterError, match=r"^conf/study/catalogue\.yaml: one of data\.root and"):
        doctor._study("catalogue", project_root())


@pytest.mark.parametrize("study", ["circo", "sprc_released"])
def test_a_study_that_trains_nothing_asks_for_no_training(study, monkeypatch):
    monkeypatch.setattr(doctor, "_measured", lambda probe, _device: Finding(probe.name, "not run"))
    monkeypatch.setattr(doctor, "_source", lambda name, _root: Finding(name, "not asked"))
    said = {finding.what: finding for finding in examine(doctor._study(study, project_root()), project_root())}
    assert "image tokens" in said and not {"Q-Former", "both_towers of the grid"} & {*said}
    assert "0 GB of trainings" in said["disk"].said


def test_a_model_that_cannot_be_built_stops_in_one_sentence(real):
    models = real.study.models.model_copy(update={"clip": "local-dir:nowhere"})
    said = found(type(real)(**vars(real) | {"study": real.study.model_copy(update={"models": models})}))
    grid = said["both_towers of the grid"]
    assert grid.stops and grid.said.startswith("cannot be run: ") and "\n" not in grid.said


def test_without_training_there_is_no_stage_of_it(real):
    study = real.study.model_copy(update={"data": real.study.data.model_copy(update={"train": False})})
    assert not {"Q-Former", "both_towers of the grid"} & {finding.what for finding in examine(study, real.root)}


def test_the_small_grid_trains_no_image_tower(real, monkeypatch):
    monkeypatch.setattr(doctor, "_measured", lambda probe, _device: Finding(probe.name, "not run"))
    study = real.study.model_copy(update={"dpo": real.study.dpo.model_copy(update={"grid": "small"})})
    assert "both_towers of the grid" not in {finding.what for finding in examine(study, real.root)}


def test_a_small_disk_a_small_memory_and_a_missing_model_stop(real, monkeypatch):
    disk = namedtuple("Disk", "f_bavail f_frsize")
    monkeypatch.setattr(doctor.os, "statvfs", lambda _: disk(1_000_000, 1000))
    monkeypatch.setattr(doctor.psutil, "virtual_memory", lambda: namedtuple("Memory", "total")(8_000_000_000))
    models = real.study.models.model_copy(update={"clip": "local-dir:nowhere", "clip_pretrained": None})
    study = real.study.model_copy(update={"models": models})
    monkeypatch.setattr(doctor, "probes", lambda *_: [])
    said = {finding.what: finding for finding in examine(study, real.root)}
    assert {what for what, finding in said.items() if finding.stops} == {
        "disk", "memory of the machine", "local-dir:nowhere"
    }  # fmt: skip
    assert "12 GB of trainings" in said["disk"].said
    assert " 1 GB free: make room, or set models.cache_tokens=false" in said["disk"].said
    assert said["memory of the machine"].said == "8 GB, 16 GB wanted"


@pytest.mark.parametrize("answers", [True, False])
def test_a_hub_that_does_not_answer_stops_where_the_model_is_not_in_its_cache(tmp_path, monkeypatch, answers):
    monkeypatch.setenv("HF_HOME", str(tmp_path))

    def head(url: str, **_options: object) -> httpx.Response:
        if not answers:
            raise httpx.ConnectError("no route")
        return httpx.Response(200, request=httpx.Request("HEAD", url))

    monkeypatch.setattr(httpx, "head", head)
    assert doctor._source("owner/model@abc", tmp_path).stops is not answers
    (tmp_path / "hub/models--owner--model/snapshots/abc").mkdir(parents=True)
    (tmp_path / "hub/models--owner--model/snapshots/abc/model.safetensors").touch()
    assert doctor._source("owner/model@abc", tmp_path) == Finding("owner/model@abc", "is in the hub's cache")


def test_circos_tokens_are_89_gb_and_as_much_for_dvcs_copy(custom_stage, monkeypatch):
    data = {"benchmark": "circo", "root": "nowhere"}
    stage = custom_stage("data_prep", data=data, models={"fusion": "Salesforce/blip2-itm-vit-g"})
    monkeypatch.setattr(doctor, "_measured", lambda probe, _device: Finding(probe.name, "not run"))
    monkeypatch.setattr(doctor, "_source", lambda name, _root: Finding(name, "not asked"))
    assert found(stage)["disk"].said.startswith("178.6 GB of features of 123,403 images")


OPENAI = open_clip.get_pretrained_cfg("ViT-L-14", "openai")["hf_hub"].strip("/")


@pytest.mark.parametrize(
    ("clip", "asked"),
    [("nonsense", []), ("hf-hub:a/b", ["hf-hub:a/b"]), ("ViT-L/14", [OPENAI])],
)
def test_of_a_clip_that_open_clip_refuses_no_hub_is_asked(custom_stage, clip, asked):
    stage = custom_stage("data_prep", models={"clip": clip, "clip_pretrained": "openai"})
    assert doctor._models(stage.study, stage.root) == asked
