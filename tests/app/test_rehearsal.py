"""The rehearsal's stand-ins: every image id has its picture, and the models open as the real ones do."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from cirlib.app.rehearsal import image_ids, prepare, stand_in
from cirlib.benchmarks import BenchmarkError, load_benchmark
from cirlib.models.blip2 import Blip2Vision
from cirlib.models.clip import load_clip
from cirlib.models.qformer import QFormerSettings, blip2_qformer


@pytest.fixture
def prepared(small_fashioniq, tmp_path):
    prepare(tmp_path / "rehearsal", small_fashioniq)
    return tmp_path / "rehearsal"


@pytest.mark.slow
def test_annotations_are_copied_and_every_id_has_its_own_picture(prepared):
    raw = prepared / "raw"
    assert not load_benchmark("fashioniq", raw).missing
    pictures = {path.stem: path.read_bytes() for path in (raw / "images").iterdir()}
    assert sorted(pictures) == sorted(image_ids(raw))
    assert len(set(pictures.values())) == len(pictures)


@pytest.mark.slow
def test_a_second_call_draws_only_what_is_gone(prepared, small_fashioniq):
    images = prepared / "raw" / "images"
    (images / "both.jpg").unlink()
    kept = {path.name: path.stat().st_mtime_ns for path in images.iterdir()}
    prepare(prepared, small_fashioniq)
    assert (images / "both.jpg").is_file()
    assert {path.name: path.stat().st_mtime_ns for path in images.iterdir() if path.name != "both.jpg"} == kept


@pytest.mark.slow
def test_the_tiny_models_go_through_the_real_loaders(prepared, cpu):
    vision = Blip2Vision(str(prepared / "models" / "blip2"), **cpu)
    composer = blip2_qformer(str(prepared / "models" / "blip2"), QFormerSettings("two_pass", "max")).eval()
    tokens = vision.encode_pixels(torch.stack([vision.transform(stand_in("a").convert("RGB"))]))
    assert composer.embed_queries(tokens, ["is blue"]).shape == (1, 16)
    towers = load_clip(f"local-dir:{prepared / 'models' / 'clip'}", None, **cpu)
    assert towers.encode_texts(["is blue"]).shape == (1, 16)


def test_a_picture_is_decided_by_its_id():
    assert stand_in("a").tobytes() == stand_in("a").tobytes() != stand_in("b").tobytes()
    assert isinstance(stand_in("a"), Image.Image)


def test_a_folder_without_annotations_is_refused(tmp_path):
    with pytest.raises(BenchmarkError, match=r"captions/\*\.json"):
        prepare(tmp_path / "rehearsal", tmp_path)
