"""BLIP-2's frozen vision tower through transformers' ``Blip2ForImageTextRetrieval``."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers  # what it is asked for it imports then: seconds, which a study without a BLIP-2 saves
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from cirlib.models.devices import autocast
from cirlib.models.transforms import image_transform
from cirlib.models.weights import ModelError, fingerprint, minilm_folder

OWN_FILE = "composition.safetensors"  # of a converted model: temperature and prompt tokens


class Blip2Vision:
    """An image becomes the tokens of BLIP-2's ViT: 257 × 1408 for the ViT-g at 224 px.

    ``normed``: after the tower's last norm, which LAVIS calls ln_vision; else before it.
    """

    def __init__(
        self, name: str, *, device: torch.device, dtype: torch.dtype, fit: str = "model", normed: bool = True
    ) -> None:
        model, processor = load_blip2(name)
        self.device, self.dtype = device, dtype
        self.vision = model.vision_model.requires_grad_(False).to(device)
        config, images = model.config.vision_config, processor.image_processor
        own = {"size": config.image_size, "mean": images.image_mean, "std": images.image_std}
        self.transform = partial(_pixels, images) if fit == "model" else image_transform(fit, **own)
        self.shape = ((config.image_size // config.patch_size) ** 2 + 1, config.hidden_size)
        way = images.to_json_string() if fit == "model" else self.transform
        self.key = f"blip2 {name} {fingerprint(self.vision)} {dtype} {way}" + " before ln_vision" * (not normed)
        if not normed:
            self.vision.post_layernorm = torch.nn.Identity()

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) to tokens (B, T, C)."""
        with autocast(self.device, self.dtype):
            return self.vision(pixel_values=pixels.to(self.device)).last_hidden_state.float()


def _pixels(processor: Any, image: Image.Image) -> Tensor:
    return processor(image, return_tensors="pt")["pixel_values"][0]


def load_blip2(name: str) -> "tuple[transformers.Blip2ForImageTextRetrieval, Any]":
    """The model and its processor, from the hub, its cache or a local folder; no code in any of its files is run.

    ``name``: a folder, or an id of the hub, which a commit may follow: ``Salesforce/blip2-itm-vit-g@520bf73``.

    A ModelError where it is in none of these, or another kind of model, whose missing parts would be random.

    >>> load_blip2(str(tiny_blip2))[0].config.image_text_hidden_size
    16
    """
    place, _, revision = (name, "", "") if Path(name).exists() else name.partition("@")
    where = {"pretrained_model_name_or_path": place, "revision": revision or "main"}
    try:
        model, loading = transformers.Blip2ForImageTextRetrieval.from_pretrained(
            **where, dtype=torch.float32, weights_only=True, output_loading_info=True
        )
        processor = transformers.AutoProcessor.from_pretrained(**where)
    except Exception as error:  # a broken weights file gives nearly any
        raise ModelError.because(f"BLIP-2 {name!r} could not be loaded (a hub id or a local folder)", error) from error
    if loading["missing_keys"]:
        raise ModelError(f"{name!r} is no Blip2ForImageTextRetrieval: it lacks {min(loading['missing_keys'])!r}")
    model.vision_model.post_layernorm.eps = 1e-5  # of LAVIS's ln_vision; the tower's other norms have 1e-6
    return model.eval(), processor


def own_state(name: str) -> dict[str, Tensor]:
    """What a converted model in the folder ``name`` has beside transformers' own: empty of any other.

    >>> own_state(str(tiny_blip2))
    {}
    """
    file = Path(name) / OWN_FILE
    return load_file(file) if file.is_file() else {}


def save_processor(folder: Path, image_size: int) -> None:
    """BLIP-2's processor: BERT's tokenizer, and pictures squashed to ``image_size`` pixels a side.

    >>> save_processor(folder, 28)
    """
    tokenizer = transformers.BertTokenizer(vocab=str(minilm_folder() / "vocab.txt"))
    pixels = transformers.BlipImageProcessor(size={"height": image_size, "width": image_size})
    transformers.Blip2Processor(pixels, tokenizer).save_pretrained(folder)
