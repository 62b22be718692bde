"""The rehearsal's stand-ins: every image id has its picture, and the models open as the real ones do."""

import pytest
import torch

from cirlib.app.rehearsal import prepare
from cirlib.benchmarks import load_benchmark
from cirlib.models.blip2 import Blip2Vision
from cirlib.models.clip import load_clip
from cirlib.models.qformer import QFormerSettings, blip2_qformer
from cirlib.study.pictures import open_rgb


@pytest.fixture
def rehearsal(small_fashioniq, tmp_path):
    prepare(tmp_path / "rehearsal", small_fashioniq)
    return tmp_path / "rehearsal"


@pytest.mark.slow
def test_every_id_has_its_own_picture_and_a_second_call_draws_only_what_is_gone(rehearsal, small_fashioniq):
    benchmark, images = load_benchmark("fashioniq", rehearsal / "raw"), rehearsal / "raw" / "images"
    pictures = {path.name: path.read_bytes() for path in images.iterdir()}
    assert not benchmark.missing and len(set(pictures.values())) == len(pictures)
    (images / "both.jpg").unlink()
    kept = {path.name: path.stat().st_mtime_ns for path in images.iterdir()}
    prepare(rehearsal, small_fashioniq)
    assert (images / "both.jpg").read_bytes() == pictures["both.jpg"]  # decided by its id
    assert {path.name: path.stat().st_mtime_ns for path in images.iterdir() if path.name != "both.jpg"} == kept


@pytest.mark.slow
def test_the_tiny_models_go_through_the_real_loaders(rehearsal, cpu):
    vision = Blip2Vision(str(rehearsal / "models" / "blip2"), **cpu)
    composer = blip2_qformer(str(rehearsal / "models" / "blip2"), QFormerSettings("two_pass", "max")).eval()
    picture = open_rgb(rehearsal / "raw" / "images" / "both.jpg")
    tokens = vision.encode_pixels(torch.stack([vision.transform(picture)]))
    assert composer.embed_queries(tokens, ["is blue"]).shape == (1, 16)
    towers = load_clip(f"local-dir:{rehearsal / 'models' / 'clip'}", None, **cpu)
    assert towers.encode_texts(["is blue"]).shape == (1, 16)
