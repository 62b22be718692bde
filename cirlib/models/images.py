"""Images as a method reads them, and the methods of a study, opened."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from PIL import Image
from torch import Tensor

from cirlib.models.prepared import Prepared
from cirlib.study.pictures import open_rgb


class Images:
    """B images of a study, by their ids; each view of them is made when first asked for.

    ``known`` gives views of images that are not stored, such as an upload.

    >>> images = Images(prepared, ["hat-val-0", "hat-val-1"])
    >>> len(images), images.embeddings.shape, images.tokens.shape, images.pictures[0].size
    (2, torch.Size([2, 256]), torch.Size([2, 4, 1280]), (48, 64))
    """

    def __init__(self, prepared: Prepared, ids: Sequence[str], **known: Any) -> None:
        self.prepared, self.ids = prepared, list(ids)
        vars(self).update(known)

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def pictures(self) -> list[Image.Image]:
        """In RGB, as they are on the disk."""
        return [open_rgb(self.prepared.images[image]) for image in self.ids]

    @cached_property
    def embeddings(self) -> Tensor:
        """Of the two-tower model, normalised, (B, D)."""
        return self.prepared.clip[self.ids]

    @cached_property
    def tokens(self) -> Tensor:
        """What the Q-Former reads, (B, T, C)."""
        return self.prepared.tokens[self.ids]
