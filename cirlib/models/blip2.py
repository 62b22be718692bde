"""BLIP-2's frozen vision tower through transformers' ``Blip2ForImageTextRetrieval``."""

from functools import partial
from typing import Any

import torch
import transformers  # what it is asked for it imports then: seconds, which a study without a BLIP-2 saves
from PIL import Image
from torch import Tensor

from cirlib.models.devices import autocast
from cirlib.models.weights import ModelError, fingerprint


class Blip2Vision:
    """An image becomes the tokens of BLIP-2's ViT: 257 × 1408 for the ViT-g at 224 px."""

    def __init__(self, name: str, *, device: torch.device, dtype: torch.dtype) -> None:
        model, processor = load_blip2(name)
        self.device, self.dtype = device, dtype
        self.vision = model.vision_model.requires_grad_(False).to(device)
        config, images = model.config.vision_config, processor.image_processor
        self.transform = partial(_pixels, images)
        self.shape = ((config.image_size // config.patch_size) ** 2 + 1, config.hidden_size)
        self.key = f"blip2 {name} {fingerprint(self.vision)} {dtype} {images.to_json_string()}"

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) to tokens (B, T, C)."""
        with autocast(self.device, self.dtype):
            return self.vision(pixel_values=pixels.to(self.device)).last_hidden_state.float()


def _pixels(processor: Any, image: Image.Image) -> Tensor:
    return processor(image, return_tensors="pt")["pixel_values"][0]


def load_blip2(name: str) -> "tuple[transformers.Blip2ForImageTextRetrieval, Any]":
    """The model and its processor, from the hub, its cache or a local folder; no remote code is run.

    A ModelError where it is in none of these, or another kind of model, whose missing parts would be random.

    >>> load_blip2(str(tiny_blip2))[0].config.image_text_hidden_size
    16
    """
    try:
        model, loading = transformers.Blip2ForImageTextRetrieval.from_pretrained(
            name, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
        processor = transformers.AutoProcessor.from_pretrained(name)
    except Exception as error:  # a broken weights file gives nearly any
        raise ModelError.because(f"BLIP-2 {name!r} could not be loaded (a hub id or a local folder)", error) from error
    if loading["missing_keys"]:
        raise ModelError(f"{name!r} is no Blip2ForImageTextRetrieval: it lacks {min(loading['missing_keys'])!r}")
    return model.eval(), processor
