"""Image files to features: decoding, batches, when they are encoded again, and the same without a store."""

import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as V

from cirlib.models.feature_store import StoreError
from cirlib.models.image_encoding import LiveFeatures, encode_images
from cirlib.study.pictures import open_rgb


class MeanColour:
    """The mean of each channel, and a count of the images that went through."""

    def __init__(self, key: str = "mean colour", factor: float = 1.0) -> None:
        self.key, self.shape, self.factor = key, (3,), factor
        self.seen = 0

    def transform(self, image: Image.Image) -> Tensor:
        return V.to_dtype(V.to_image(image.resize((8, 8))), torch.float32, scale=True)

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        self.seen += len(pixels)
        return self.factor * pixels.mean((2, 3))


@pytest.fixture
def pictures(tmp_path: Path, write_image) -> dict[str, Path]:
    return {f"p{i}": write_image(tmp_path / "images" / f"p{i}.png", seed=i) for i in range(7)}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_features_stand_in_the_order_of_the_mapping(tmp_path, pictures, num_workers):
    backwards, encoder = dict(reversed(pictures.items())), MeanColour()
    store = encode_images(encoder, backwards, tmp_path / "store", batch_size=3, num_workers=num_workers)
    assert store.ids == list(backwards)
    expected = [encoder.transform(open_rgb(path)).mean((1, 2)) for path in pictures.values()]
    torch.testing.assert_close(store[list(pictures)], torch.stack(expected), atol=1e-3, rtol=0)


def test_images_are_encoded_again_for_other_weights_or_other_bytes_only(tmp_path, pictures, write_image):
    def encode(key: str) -> int:
        encoder = MeanColour(key)
        encode_images(encoder, pictures, tmp_path / "store", num_workers=0)
        return encoder.seen

    assert [encode("one"), encode("one"), encode("other"), encode("other")] == [7, 0, 7, 0]
    write_image(pictures["p3"], seed=99)
    assert encode("other") == 7


def test_encoding_leaves_the_common_generator_and_the_inference_mode_alone(tmp_path, pictures):
    """Else what is drawn afterwards would depend on how much was encoded before a kill."""
    before = torch.get_rng_state()
    encode_images(MeanColour(), pictures, tmp_path / "store", num_workers=0)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(StoreError, match="not finite") as _caught:  # keeps the encoder's frame, as IPython does
        encode_images(MeanColour("other", float("inf")), pictures, tmp_path / "store", num_workers=0)
    assert not torch.is_inference_mode_enabled()


# ------------------------------------------------------------------ without a store


def test_live_features_are_the_stored_ones_and_can_be_learned_from(tmp_path, pictures):
    live = LiveFeatures(MeanColour(), pictures, 3)
    store = encode_images(MeanColour(), pictures, tmp_path / "store", num_workers=0)
    ids = ["p5", "p0", "p5", "p6"]
    assert (len(live), live.shape, live.ids) == (len(store), store.shape, store.ids)
    torch.testing.assert_close(live[ids], store[ids], atol=1e-3, rtol=0)
    weight = torch.ones(3, requires_grad=True)
    (live[ids] * weight).sum().backward()
    assert weight.grad.abs().sum() > 0


def test_pictures_are_decoded_a_few_batches_ahead_and_without_shared_memory(tmp_path, pictures, monkeypatch):
    """A container has 64 MB of it unless told otherwise, too little for what worker processes would send."""
    monkeypatch.setattr(os, "fork", None)
    ahead, most = 0, 0

    class Counted(MeanColour):
        def transform(self, image: Image.Image) -> Tensor:
            nonlocal ahead, most
            ahead += 1
            most = max(most, ahead)
            return super().transform(image)

        def encode_pixels(self, pixels: Tensor) -> Tensor:
            nonlocal ahead
            ahead -= len(pixels)
            return super().encode_pixels(pixels)

    many = {f"{name}-{number}": file for number in range(20) for name, file in pictures.items()}
    assert len(encode_images(Counted(), many, tmp_path / "store", batch_size=2, num_workers=2)) == 140
    assert most <= 2 * 6
