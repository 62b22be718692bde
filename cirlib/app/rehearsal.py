"""The FashionIQ study rehearsed at its full size, without its photos and weights.

``python -m cirlib.app.rehearsal`` prepares ``data/fashioniq_rehearsal``: the real annotations, a small stand-in picture
for every image id, and tiny random models saved in the formats of the real ones. ``make rehearsal`` then runs the
study. What it measures says nothing about retrieval; that it runs, with every count right, says the study will.
"""

import argparse
import hashlib
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cirlib.benchmarks import BenchmarkError
from cirlib.benchmarks.annotations import IMAGE_IDS, read_annotations
from cirlib.benchmarks.fashioniq_files import fetch_annotations
from cirlib.benchmarks.image_files import find_images
from cirlib.study.errors import StudyError
from cirlib.study.files import replace_file
from cirlib.study.progress import progress
from cirlib.study.stage import project_root


def prepare(folder: Path, annotations: Path | None) -> None:
    """Fills ``folder`` with ``raw/`` and ``models/``; what is there from an earlier call stays.

    Args:
        annotations: a folder with FashionIQ's ``captions/`` and ``image_splits/``; None fetches the published ones.

    >>> prepare(folder / "rehearsal", Path("nowhere"))
    Traceback (most recent call last):
    cirlib.benchmarks.base.BenchmarkError: No file nowhere/captions/*.json: expected ...
    """
    raw, images = folder / "raw", folder / "raw" / "images"
    if annotations is None:
        fetch_annotations(raw)
    for name in ("captions", "image_splits") if annotations else ():
        if not any((annotations / name).glob("*.json")):
            raise BenchmarkError(f"No file {annotations / name}/*.json: expected FashionIQ's annotations.")
        shutil.copytree(annotations / name, raw / name, dirs_exist_ok=True)
    images.mkdir(parents=True, exist_ok=True)
    splits = (raw / "image_splits").glob("split.*.json")
    ids = {image for file in splits for image in read_annotations(file, IMAGE_IDS, "image ids")}
    made, _ = find_images({image: image for image in ids}, images)
    for image in progress(sorted(ids - made.keys()), "stand-in pictures", unit="image"):
        digest = hashlib.sha256(image.encode()).digest()  # 32 bytes: no two pictures are alike, the id decides
        patches = Image.fromarray(np.frombuffer(digest[:30], np.uint8).reshape(2, 5, 3))
        picture = patches.resize((30, 40), Image.Resampling.BICUBIC)
        replace_file(images / f"{image}.jpg", lambda path, picture=picture: picture.save(path, "JPEG", quality=85))
    save_tiny_blip2(folder / "models" / "blip2")
    _save_tiny_clip(folder / "models" / "clip")
    for weights in (folder / "models").rglob("*.safetensors"):  # made for their owner alone
        replace_file(weights, partial(shutil.copyfile, weights))


def save_tiny_blip2(folder: Path) -> Path:
    """A random ``Blip2ForImageTextRetrieval`` with its processor, saved as the real ones: 28 px, 5 tokens of 24.

    >>> (save_tiny_blip2(folder) / "model.safetensors").is_file()
    True
    """
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {"hidden_size": 24, "intermediate_size": 40, "image_size": 28, "patch_size": 14, **layers}
    qformer = {"hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 64, **layers}
    return save_random_blip2(folder, vision, qformer, num_query_tokens=4, image_text_hidden_size=16)


def save_random_blip2(
    folder: Path, vision: dict[str, Any], qformer: dict[str, Any], *, noise: float = 0.2, **sizes: int
) -> Path:
    """A random ``Blip2ForImageTextRetrieval``; what is not given is as in BLIP-2 with its ViT-g.

    ``noise``: added to every parameter, normal with this deviation.

    >>> small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> (save_random_blip2(folder, small, small, num_query_tokens=2) / "config.json").is_file()
    True
    """
    import torch
    import transformers

    from cirlib.models.weights import minilm_folder

    tokenizer = transformers.BertTokenizer(vocab=str(minilm_folder() / "vocab.txt"))  # BERT's, as the real ones have
    tower = transformers.Blip2VisionConfig(**vision)
    text = {"vocab_size": len(tokenizer) + 1, "use_qformer_text_input": True, "encoder_hidden_size": tower.hidden_size}
    config = transformers.Blip2Config(vision_config=tower.to_dict(), qformer_config=text | qformer, **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.Blip2ForImageTextRetrieval(config)
        for parameter in model.parameters():
            parameter.data.add_(noise * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    pixels = transformers.BlipImageProcessor(size={"height": tower.image_size, "width": tower.image_size})
    transformers.Blip2Processor(pixels, tokenizer).save_pretrained(folder)
    return folder


def _save_tiny_clip(folder: Path) -> None:
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


def main() -> None:
    """Prepares the rehearsal's data and models."""
    parser = argparse.ArgumentParser(prog="python -m cirlib.app.rehearsal", description=main.__doc__)
    said = "FashionIQ's captions/ and image_splits/ (default: fetch them)"
    parser.add_argument("--annotations", type=Path, metavar="DIR", help=said)
    arguments = parser.parse_args()
    try:
        prepare(project_root() / "data" / "fashioniq_rehearsal", arguments.annotations)
    except StudyError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
