"""How pictures become pixels: as published code does it, and told apart by every feature key."""

import pickle

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from cirlib.models import image_transform
from cirlib.models.blip2 import Blip2Vision
from cirlib.models.clip import load_clip
from cirlib.models.mini import MiniVision, mini_towers
from cirlib.study.pictures import open_rgb

FITS = ["model", "targetpad", "squarepad", "squash"]


@pytest.mark.parametrize("fit", ["targetpad", "squarepad"])
def test_padded_pixels_are_those_of_published_code(real_data, fit):
    published = load_file(real_data("golden") / "transforms.safetensors")
    names = [name for name in published if name.startswith(fit)]
    assert len(names) == 4
    for name in names:
        photo = open_rgb(real_data("photos") / "images" / f"{name.split('/')[1]}.jpg")
        assert torch.equal(image_transform(fit, 224)(photo).half(), published[name]), name


@pytest.mark.parametrize(
    ("size", "bars"), [((100, 200), (15, 15)), ((200, 100), (0, 0)), ((100, 124), (0, 0)), ((124, 100), (0, 0))]
)
def test_the_target_padding_adds_bars_only_above_its_ratio(size, bars):
    """A white picture: black bars left and right of a tall one, of which the cut leaves what is inside the middle."""
    pixels = image_transform("targetpad", 80, [0.0] * 3, [1.0] * 3)(Image.new("RGB", size, "white"))[0]
    dark = (pixels[40] < 0.5).nonzero().flatten().tolist()
    assert (sum(x < 40 for x in dark), sum(x >= 40 for x in dark)) == bars
    assert (pixels[:, 40] < 0.5).sum() == (30 if size == (200, 100) else 0)


def test_squashed_pixels_keep_every_edge_and_pictures_may_have_any_mode():
    image = Image.new("L", (100, 300))
    image.paste(255, (0, 0, 100, 150))
    pixels = image_transform("squash", 30, [0.0] * 3, [1.0] * 3)(image)
    assert pixels.shape == (3, 30, 30)
    assert pixels[:, 0].eq(1).all() and pixels[:, -1].eq(0).all()


def test_an_unknown_fit_is_refused_with_those_allowed():
    with pytest.raises(ValueError, match="must be one of targetpad, squarepad, squash, given 'crop'"):
        image_transform("crop", 224)


def test_every_tower_takes_every_fit_and_its_key_says_which(tiny_blip2, tiny_clip, cpu):
    name, file = tiny_clip
    makers = {
        "blip2": lambda fit: Blip2Vision(str(tiny_blip2), **cpu, fit=fit),
        "clip": lambda fit: load_clip(name, str(file), **cpu, fit=fit),
        "mini vision": lambda fit: MiniVision(64, **cpu, fit=fit),
        "mini towers": lambda fit: mini_towers(64, width=16, **cpu, fit=fit),
    }
    tall = Image.linear_gradient("L").resize((40, 80)).rotate(90).resize((40, 80)).convert("RGB")
    for make in makers.values():
        torch.manual_seed(0)
        encoders = {fit: make(fit) for fit in FITS}
        assert len({encoder.key for encoder in encoders.values()}) == 4
        pixels = {fit: pickle.loads(pickle.dumps(encoder.transform))(tall) for fit, encoder in encoders.items()}
        assert len({tuple(one.shape) for one in pixels.values()}) == 1
        assert not torch.allclose(pixels["targetpad"], pixels["squash"], atol=0.1)
        assert not torch.allclose(pixels["targetpad"], pixels["squarepad"], atol=0.1)
