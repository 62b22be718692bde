"""How published code of composed image retrieval brings a picture to a square of pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as V

from cirlib.study.pictures import to_rgb

Fit = Literal["targetpad", "squarepad", "squash"]
RATIOS = {"targetpad": 1.25, "squarepad": 1.0}  # of the longer side to the shorter, at most, once padded
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class ImageTransform:
    """A PIL image to normalised pixels (3, size, size); its ``repr`` says all that decides them."""

    fit: Fit
    size: int
    mean: Sequence[float]  # (3,), of red, green and blue in [0, 1]
    std: Sequence[float]  # (3,)

    def __call__(self, image: Image.Image) -> Tensor:
        image, bicubic = to_rgb(image), InterpolationMode.BICUBIC
        if self.fit == "squash":
            image = V.resize(image, [self.size, self.size], bicubic)
        else:
            shortest = max(image.size) / RATIOS[self.fit]
            across, down = (max(int((shortest - side) / 2), 0) for side in image.size)
            image = V.center_crop(V.resize(V.pad(image, [across, down]), [self.size], bicubic), [self.size])
        return V.normalize(V.to_tensor(image), self.mean, self.std)


def image_transform(
    fit: Fit, size: int, mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD
) -> ImageTransform:
    """The transform that fits a picture into ``size`` × ``size`` pixels, bicubic; a ValueError for an unknown ``fit``.

    ``targetpad``: black bars until the longer side is at most 1.25 times the shorter, then the shorter side becomes
    ``size`` and the middle is cut out (CLIP4Cir, SEARLE, LinCIR, SPRC). ``squarepad``: the same with a ratio of 1, so
    that nothing is cut off. ``squash``: both sides become ``size`` (LAVIS's evaluation, CoVR).

    A picture is first made upright and transparency white (``to_rgb``), which published code does not do.

    >>> image_transform("targetpad", 224)(Image.new("RGB", (400, 533))).shape
    torch.Size([3, 224, 224])
    """
    if fit not in get_args(Fit):
        raise ValueError(f"fit must be one of {', '.join(get_args(Fit))}, given {fit!r}")
    return ImageTransform(fit, size, tuple(mean), tuple(std))
