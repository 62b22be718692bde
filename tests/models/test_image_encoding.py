"""Image files to features: decoding, batches, and when they are encoded again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import functional as V

from cirlib.models.feature_store import StoreError
from cirlib.models.image_encoding import encode_images
from cirlib.study.pictures import open_rgb


class MeanColour:
    """The mean of each channel, and a count of the images that went through."""

    def __init__(self, key: str = "mean colour", factor: float = 1.0) -> None:
        self.key, self.shape, self.factor = key, (3,), factor
        self.seen = 0

    def transform(self, image: Image.Image) -> Tensor:
        return V.to_dtype(V.to_image(image.resize((8, 8))), torch.float32, scale=True)

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        assert torch.is_inference_mode_enabled()
        self.seen += len(pixels)
        return self.factor * pixels.mean((2, 3))


@pytest.fixture
def pictures(tmp_path: Path, write_image) -> dict[str, Path]:
    return {f"p{i}": write_image(tmp_path / "images" / f"p{i}.png", seed=i) for i in range(7)}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_features_stand_in_the_order_of_the_mapping(tmp_path, pictures, num_workers):
    backwards = dict(reversed(pictures.items()))
    encoder = MeanColour()
    store = encode_images(encoder, backwards, tmp_path / "store", batch_size=3, num_workers=num_workers)
    assert store.ids == list(backwards)
    assert encoder.seen == 7
    for name, path in pictures.items():
        pixels = encoder.transform(open_rgb(path))
        expected = pixels.mean((1, 2)).half().float()
        assert torch.allclose(store[[name]][0], expected, atol=1e-3)


def test_images_are_encoded_once_for_a_model_and_its_files(tmp_path, pictures):
    encode_images(MeanColour(), pictures, tmp_path / "store", num_workers=0)
    same = MeanColour()
    encode_images(same, pictures, tmp_path / "store", num_workers=0)
    assert same.seen == 0


def test_a_picture_with_other_bytes_is_encoded_again(tmp_path, pictures, write_image):
    before = encode_images(MeanColour(), pictures, tmp_path / "store", num_workers=0)[["p3"]]
    write_image(pictures["p3"], seed=99)
    after = encode_images(MeanColour(), pictures, tmp_path / "store", num_workers=0)[["p3"]]
    assert not torch.equal(before, after)


def test_other_weights_are_encoded_again(tmp_path, pictures):
    encode_images(MeanColour(), pictures, tmp_path / "store", num_workers=0)
    other = MeanColour(key="other weights")
    encode_images(other, pictures, tmp_path / "store", num_workers=0)
    assert other.seen == 7


def test_a_failed_encoding_leaves_inference_mode(tmp_path, pictures):
    with pytest.raises(StoreError) as caught:  # keeps the traceback and so the encoder's frame, as IPython does
        encode_images(MeanColour(factor=float("inf")), pictures, tmp_path / "store", num_workers=0)
    assert "not finite" in str(caught.value)
    assert not torch.is_inference_mode_enabled()


def test_an_undecodable_file_is_named(tmp_path, pictures):
    pictures["p2"].write_text("<html>not found</html>")
    with pytest.raises(UnidentifiedImageError, match=r"p2\.png"):
        encode_images(MeanColour(), pictures, tmp_path / "store", num_workers=0)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_becomes_white(tmp_path, mode):
    image = Image.new("RGBA", (4, 2), (200, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 2, 2))
    image.convert(mode).save(tmp_path / "a.png")
    pixels = np.asarray(open_rgb(tmp_path / "a.png"))
    assert pixels.shape == (2, 4, 3)
    if mode != "P":  # a palette made by convert keeps no transparency
        assert (pixels[:, :2] == 255).all()
    assert (pixels[:, 2:] != 255).any()


def test_a_transparent_palette_entry_becomes_white(tmp_path):
    image = Image.new("P", (4, 2), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.paste(0, (0, 0, 2, 2))
    image.save(tmp_path / "a.png", transparency=0)
    pixels = np.asarray(open_rgb(tmp_path / "a.png"))
    assert (pixels[:, :2] == 255).all()
    assert (pixels[:, 2:] == (10, 20, 30)).all()


@pytest.mark.parametrize("mode", ["L", "CMYK", "1"])
def test_other_modes_become_rgb(tmp_path, mode):
    Image.new("RGB", (4, 2), "white").convert(mode).save(tmp_path / "a.tif")
    image = open_rgb(tmp_path / "a.tif")
    assert image.mode == "RGB"
    assert (np.asarray(image) == 255).all()


def test_encoding_leaves_the_common_generator_alone(tmp_path, pictures):
    """Else what is drawn afterwards would depend on how much was encoded before a kill."""
    torch.manual_seed(0)
    before = torch.get_rng_state()
    encode_images(MeanColour(), pictures, tmp_path / "store", num_workers=0)
    assert torch.equal(torch.get_rng_state(), before)
