"""The FashionIQ study rehearsed at its full size, without its photos and weights.

``python -m cirlib.app.rehearsal`` prepares ``data/fashioniq_rehearsal``: the real annotations, a small stand-in picture for
every image id, and tiny random models saved in the formats of the real ones. ``make rehearsal`` then runs the study.
What it measures says nothing about retrieval; that it runs, with every count right, says the study will.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from cirlib.benchmarks import BenchmarkError
from cirlib.benchmarks.base import read_ids, scan_images
from cirlib.benchmarks.fashioniq_files import fetch_annotations
from cirlib.study.errors import ParameterError
from cirlib.study.files import replace_file
from cirlib.study.processes import process_pool
from cirlib.study.stage import project_root

STUDY = "fashioniq_rehearsal"
STAND_IN_SIZE = (30, 40)


def prepare(folder: Path, annotations: Path | None) -> None:
    """Fills ``folder`` with ``raw/`` and ``models/``; what is there from an earlier call stays.

    Args:
        annotations: a folder with FashionIQ's ``captions/`` and ``image_splits/``; None fetches the published ones.

    Raises:
        BenchmarkError: ``annotations`` has none, or they cannot be fetched.
    """
    raw = folder / "raw"
    if annotations is None:
        fetch_annotations(raw)
    else:
        copy_annotations(annotations, raw)
    draw_stand_ins(image_ids(raw), raw / "images")
    save_tiny_blip2(folder / "models" / "blip2")
    save_tiny_clip(folder / "models" / "clip")


def copy_annotations(source: Path, raw: Path) -> None:
    """Copies the captions and splits of ``source``."""
    for name in ("captions", "image_splits"):
        files = sorted((source / name).glob("*.json"))
        if not files:
            raise BenchmarkError(f"No file {source / name}/*.json: expected a folder with FashionIQ's annotations.")
        (raw / name).mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.copyfile(file, raw / name / file.name)


def image_ids(raw: Path) -> list[str]:
    """Every image id of every split, each once."""
    files = sorted((raw / "image_splits").glob("split.*.json"))
    return list(dict.fromkeys(image for file in files for image in read_ids(file, "image ids")))


def draw_stand_ins(ids: Iterable[str], folder: Path) -> None:
    """A small JPEG for every id that has none, its pixels decided by the id."""
    folder.mkdir(parents=True, exist_ok=True)
    there = scan_images(folder)
    missing = [image for image in ids if image not in there]
    with process_pool() as pool:
        done = pool.map(partial(_save_stand_in, folder), missing, chunksize=500)
        for _ in tqdm(done, total=len(missing), desc="stand-in pictures", unit="image", disable=not missing):
            pass


def _save_stand_in(folder: Path, image: str) -> None:
    picture = stand_in(image)
    replace_file(folder / f"{image}.jpg", lambda path: picture.save(path, "JPEG", quality=85))


def stand_in(image: str) -> Image.Image:
    """A picture of coloured patches that no other id has."""
    digest = hashlib.sha256(image.encode()).digest()  # 32 bytes
    patches = np.frombuffer(digest[:30], np.uint8).reshape(2, 5, 3)
    return Image.fromarray(patches).resize(STAND_IN_SIZE, Image.Resampling.BICUBIC)


def save_tiny_blip2(folder: Path) -> Path:
    """A random ``Blip2ForImageTextRetrieval`` with its processor, saved as the real ones: 28 px, 5 tokens of 24."""
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {"hidden_size": 24, "intermediate_size": 40, "image_size": 28, "patch_size": 14, **layers}
    qformer = {"hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 64, **layers}
    return save_random_blip2(folder, vision, qformer, num_query_tokens=4, image_text_hidden_size=16)


def save_random_blip2(
    folder: Path, vision: dict[str, Any], qformer: dict[str, Any], *, noise: float = 0.2, **sizes: int
) -> Path:
    """A random ``Blip2ForImageTextRetrieval`` of any size; what is not given is as in BLIP-2 with its ViT-g."""
    import torch
    from transformers import (
        BertTokenizer,
        Blip2Config,
        Blip2ForImageTextRetrieval,
        Blip2Processor,
        Blip2VisionConfig,
        BlipImageProcessor,
    )

    from cirlib.models.mini import minilm_folder

    tokenizer = BertTokenizer(vocab=str(minilm_folder() / "vocab.txt"))  # BERT's, as the real ones have
    tower = Blip2VisionConfig(**vision)
    text = {"vocab_size": len(tokenizer) + 1, "use_qformer_text_input": True}  # one token more than BERT's
    config = Blip2Config(
        vision_config=tower.to_dict(),
        qformer_config=text | {"encoder_hidden_size": tower.hidden_size} | qformer,
        **sizes,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Blip2ForImageTextRetrieval(config)
        for parameter in model.parameters():
            parameter.data.add_(noise * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    pixels = BlipImageProcessor(size={"height": tower.image_size, "width": tower.image_size})
    Blip2Processor(pixels, tokenizer).save_pretrained(folder)
    return folder


def save_tiny_clip(folder: Path) -> Path:
    """A random small CLIP in the folder form that open_clip opens as ``local-dir:<folder>``."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    model = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }
    pixels = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = open_clip.CLIP(**model).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": pixels}, indent=1))
    return folder


def main() -> None:
    """Prepares the rehearsal's data and models."""
    parser = argparse.ArgumentParser(prog="python -m cirlib.app.rehearsal", description=main.__doc__)
    parser.add_argument(
        "--annotations", type=Path, metavar="DIR", help="FashionIQ's captions/ and image_splits/ (default: fetch them)"
    )
    arguments = parser.parse_args()
    try:
        prepare(project_root() / "data" / STUDY, arguments.annotations)
    except (BenchmarkError, ParameterError) as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
