"""Fixtures of several test files: the real annotations where there are any, and small made-up data."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub: no test asks a server

PROJECT_ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """Folder of a benchmark's real annotations ("fashioniq", "cirr", "circo"); skips where it is absent."""
    base = Path(os.environ.get("CIRLIB_SHARED", PROJECT_ROOT.parent / "shared"))

    def find(name: str) -> Path:
        if not (base / name).is_dir():
            pytest.skip(f"no {name} annotations in {base} (set CIRLIB_SHARED to the folder that has them)")
        return base / name

    return find


@pytest.fixture
def write_json() -> Callable[[Path, Any], Path]:
    """Writes JSON, making the folder."""

    def write(path: Path, content: Any) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")
        return path

    return write


@pytest.fixture
def write_image() -> Callable[..., Path]:
    """Saves a random picture; the same seed gives the same pixels."""

    def write(path: Path, seed: int = 0, size: tuple[int, int] = (48, 64)) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)
        return path

    return write


@pytest.fixture
def small_fashioniq(tmp_path: Path, write_json: Callable[[Path, Any], Path]) -> Path:
    """FashionIQ's files with three categories, no images: 2 train and 2 val queries a category.

    Galleries are `{category}-{split}-{0..4}`; image 4 is in no query; shirt and toptee share "both" in val,
    and shirt's train gallery has toptee's first val reference.
    """
    for category in ("dress", "shirt", "toptee"):
        for split in ("train", "val", "test"):
            ids = [f"{category}-{split}-{i}" for i in range(5)]
            queries: list[dict[str, Any]] = [
                {"target": ids[2], "candidate": ids[0], "captions": ["is blue.", "has long sleeves"]},
                {"target": ids[3], "candidate": ids[1], "captions": ["is red", "is red"]},
            ]
            if split == "test":
                queries = [{k: v for k, v in q.items() if k != "target"} for q in queries]
            if split == "val" and category != "dress":
                ids.append("both")
            if split == "train" and category == "shirt":
                ids.append("toptee-val-0")
            write_json(tmp_path / "captions" / f"cap.{category}.{split}.json", queries)
            write_json(tmp_path / "image_splits" / f"split.{category}.{split}.json", ids)
    return tmp_path


@pytest.fixture(scope="session")
def cpu() -> dict[str, Any]:
    """The `device` and `dtype` arguments of encoders in tests."""
    import torch

    return {"device": torch.device("cpu"), "dtype": torch.float32}


@pytest.fixture(scope="session")
def tiny_blip2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random `Blip2ForImageTextRetrieval` with its processor, saved as the real ones are: 28 px, 5 tokens of 24."""
    import torch
    from transformers import BertTokenizer, Blip2Config, Blip2ForImageTextRetrieval, Blip2Processor, BlipImageProcessor

    from cirlib.encoders.mini import minilm_folder

    tokenizer = BertTokenizer(vocab=str(minilm_folder() / "vocab.txt"))  # BERT's, as the real ones have
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2}
    config = Blip2Config(
        vision_config={"hidden_size": 24, "intermediate_size": 40, "image_size": 28, "patch_size": 14, **layers},
        qformer_config={
            "vocab_size": len(tokenizer) + 1,  # BLIP-2 has one token more than BERT
            "hidden_size": 32,
            "intermediate_size": 48,
            "encoder_hidden_size": 24,
            "max_position_embeddings": 64,
            "use_qformer_text_input": True,
            **layers,
        },
        num_query_tokens=4,
        image_text_hidden_size=16,
    )
    model = Blip2ForImageTextRetrieval(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    folder = tmp_path_factory.mktemp("blip2")
    model.save_pretrained(folder)
    Blip2Processor(BlipImageProcessor(size={"height": 28, "width": 28}), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Name of a small architecture registered with open_clip, and a file with random weights of it."""
    import open_clip
    import torch

    folder = tmp_path_factory.mktemp("clip")
    config = {
        "embed_dim": 12,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }
    (folder / "cirlib-tiny.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    model = open_clip.create_model("cirlib-tiny")
    torch.save(model.state_dict(), folder / "weights.pt")
    return "cirlib-tiny", folder / "weights.pt"
