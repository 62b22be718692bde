"""Search with the study's models: a reference and an edit in, ranked images out, with what each of the two adds.

Every method can lean towards the picture or the words. ``balance`` 0 is the method as the study scored it, -1 its query
from the picture alone, 1 from the words alone, and in between the two nearest of these three are mixed.
"""

import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from cirlib.analysis import zero_shot
from cirlib.models.clip import TwoTowers
from cirlib.models.devices import autocast
from cirlib.models.fitted_methods import fitted_methods
from cirlib.models.image_encoding import ImageEncoder
from cirlib.models.prepared import Images, Prepared
from cirlib.models.qformer_embedding import embed_gallery, trained_composer
from cirlib.retrieval.method_scoring import DEPTH, embed
from cirlib.retrieval.similarity import similarity
from cirlib.study.errors import StudyError
from cirlib.study.method_registry import METHODS, QFORMER
from cirlib.study.pictures import FORMATS, MOST_SIDE, open_picture, open_rgb, to_rgb

MOST_BYTES = 8 * 2**20  # a notebook server takes 10 MB in one message
MOST_PIXELS = 50_000_000
MOST_CHARACTERS = 2000


class SearchError(StudyError, ValueError):
    """What was given cannot be searched with; the message says what is allowed, to who searches."""


@dataclass(frozen=True)
class Reference:
    """A picture to start from."""

    image: str | None  # its id in the gallery; None for an upload
    picture: Image.Image
    embedding: Tensor  # in the two-tower space, (D,)
    tokens: Tensor  # what the Q-Former reads, (T, C)


@dataclass(frozen=True)
class Hit:
    """One image found: its score, and what it would score by the picture and by the words alone."""

    image: str
    file: Path
    score: float
    picture_alone: float
    words_alone: float


class Search:
    """A study's gallery and models, opened once; every method answers from cached embeddings.

    Attributes:
        methods: the zero-shot baselines, what else the study was asked for, and the trained Q-Formers there are.
        trained: those Q-Formers. galleries: category → its image ids. files: every image id → its file.
    """

    def __init__(self, prepared: Prepared) -> None:
        self.prepared, self.study = prepared, prepared.stage.study
        parts = prepared.splits.reported
        whole = {"whole catalogue": prepared.catalogue} if prepared.catalogue else {}
        self.galleries: dict[str, list[str]] = whole | {name: list(part.gallery) for name, part in parts.items()}
        self.files = {image: part.path(image) for part in parts.values() for image in part.gallery}
        self.files |= {image: prepared.images[image] for image in prepared.catalogue}
        self.images = list(self.files)  # M
        self._row = {image: row for row, image in enumerate(self.images)}
        checkpoints = prepared.stage.results("qformer") / "checkpoints"
        trained = [name for name, method in METHODS.items() if method.family == QFORMER]
        self.trained = [name for name in trained if (checkpoints / name).is_dir()]
        self._more: dict[str, Callable[[], Any]] = {}  # name → what opens it
        for stage in ("zero_shot", "qformer"):
            names = getattr(self.study, stage).methods
            self._more |= fitted_methods(prepared, names, prepared.stage.results(stage))
        self.methods = [*zero_shot.BASELINES, *self._more, *self.trained]
        self._opened: dict[str, tuple[Any, Tensor]] = {}  # with the gallery as the method embeds it

    @property
    def best_trained(self) -> str:
        """The Q-Former that was best on dev (the last where there is no dev part); slerp where none was trained."""
        if not self.trained:
            return "slerp"
        has_dev = (self.prepared.stage.results("qformer") / "best_run.json").is_file()
        return self.prepared.stage.read_choice("qformer", "best_run.json")["run"] if has_dev else self.trained[-1]

    @cached_property
    def _towers(self) -> TwoTowers:
        return self.prepared.towers()

    @cached_property
    def _vision(self) -> ImageEncoder:
        return self.prepared.vision_tower()

    @cached_property
    def _embeddings(self) -> Tensor:
        """The gallery in the two-tower space, (M, D)."""
        return self.prepared.clip[self.images]

    @cached_property
    def _baselines(self) -> dict[str, zero_shot.Composer]:
        """The zero-shot methods; sum and slerp with the weights that their stage chose on dev."""
        return zero_shot.baselines(self.prepared.stage.read_choice("zero_shot", "weights.json"))

    @cached_property
    def _blank(self) -> Reference:
        """A white picture, in the reference's place where the words are to count alone."""
        content = io.BytesIO()
        Image.new("RGB", (64, 64), "white").save(content, "PNG")
        return self.upload(content.getvalue())

    def reference(self, image: str) -> Reference:
        """A gallery image to start from."""
        if image not in self._row:
            raise SearchError(f"There is no image {image!r} in the gallery.")
        embedding, tokens = self._embeddings[self._row[image]], self.prepared.tokens[[image]][0]
        return Reference(image, open_rgb(self.files[image]), embedding, tokens)

    def upload(self, content: bytes, name: str = "The file") -> Reference:
        """A picture of one's own to start from, encoded by the study's own towers."""
        picture = open_upload(content, name)
        with torch.no_grad():
            encoded = (
                tower.encode_pixels(tower.transform(picture)[None])[0].float().cpu()
                for tower in (self._towers, self._vision)
            )
            return Reference(None, picture, *encoded)

    def search(
        self, reference: Reference, text: str, method: str, *, category: str | None = None, balance: float = 0.0,
        count: int = 10,
    ) -> list[Hit]:  # fmt: skip
        """The ``count`` best images of a category's gallery (of all where None), never the reference itself."""
        text = " ".join(text.split())
        self._check(method, text, category, balance)
        picture, own, words, gallery = self._queries(method, reference, text)
        end = picture if balance < 0 else words
        mixed = normalize((1 - abs(balance)) * own + abs(balance) * end, dim=-1)  # (D,)
        pool = [image for image in self.galleries.get(category, self.images) if image != reference.image]
        candidates = gallery[[self._row[image] for image in pool]]  # (M, D) or (M, Q, D)
        scores = similarity(torch.stack([mixed, picture, words]), candidates)  # (3, M)
        best = scores[0].topk(min(max(count, DEPTH), len(pool))).indices
        best = self._second_stage(method, reference, text, best, scores[0], pool)[:count]
        return [
            Hit(pool[row], self.files[pool[row]], *three)
            for row, three in zip(best.tolist(), scores[:, best].T.tolist(), strict=True)
        ]

    def attention(self, reference: Reference, text: str, method: str, image: str) -> list[np.ndarray] | None:
        """Mean attention over the reference with the edit, and over ``image``, (S, S); None without query tokens."""
        if method not in self.trained:
            return None
        composer, _ = self._open(method)
        device, tokens = composer.device, self.prepared.tokens
        over = composer.attention_maps(reference.tokens[None].to(device), [text])
        found = composer.attention_maps(tokens.read(tokens.rows([image]), device))
        return [maps[0].mean(0).cpu().numpy() for maps in (over, found)]

    def _check(self, method: str, text: str, category: str | None, balance: float) -> None:
        if not text:
            raise SearchError("Type what should be different, for example: is blue with long sleeves.")
        if len(text) > MOST_CHARACTERS:
            raise SearchError(f"The edit has {len(text):,} characters, at most {MOST_CHARACTERS:,} are read.")
        if method not in self.methods:
            raise SearchError(f"There is no method {method!r}, there are: {', '.join(self.methods)}.")
        if category is not None and category not in self.galleries:
            raise SearchError(f"There is no category {category!r}, there are: {', '.join(self.galleries)}.")
        if not -1 <= balance <= 1:
            raise SearchError(f"The balance is {balance:g}, it must be between -1 (picture) and 1 (words).")

    @torch.inference_mode()
    def _queries(self, method: str, reference: Reference, text: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A method's query from the picture alone, as the study scores it, from the words alone, (D,); its gallery."""
        if method in self.trained:
            composer, gallery = self._open(method)
            with autocast(composer.device, composer.dtype):
                tokens = reference.tokens[None].to(composer.device)
                picture, own = composer.embed_queries(tokens.expand(2, -1, -1), ["", text]).float().cpu()
                words = composer.embed_texts([text])[0].float().cpu()
        elif method in self._more:
            made, gallery = self._open(method)
            asked = ((reference, ""), (reference, text), (self._blank, text))
            picture, own, words = (
                embed(made, lambda _, one=one: self._images(one), [""], [say])[0] for one, say in asked
            )
        else:
            picture, words, gallery = reference.embedding, self._towers.encode_texts([text])[0], self._embeddings
            own = self._baselines[method](picture[None], words[None])[0]
        # what comes out of bf16 or float16 has length 1 only nearly
        return *(normalize(query, dim=-1) for query in (picture, own, words)), gallery

    @torch.inference_mode()
    def _second_stage(
        self, method: str, reference: Reference, text: str, best: Tensor, scores: Tensor, pool: Sequence[str]
    ) -> Tensor:  # fmt: skip
        """The rows of ``best`` in the order of the method's second stage, where it has one."""
        if method not in self._more or not hasattr(made := self._open(method)[0], "rerank"):
            return best
        first = [pool[row] for row in best[:DEPTH].tolist()]
        scores = scores[best[:DEPTH]] + torch.as_tensor(made.rerank(self._images(reference), [text], [first]))[0].cpu()
        return torch.cat([best[scores.argsort(descending=True)], best[DEPTH:]])

    def _images(self, one: Reference) -> Images:
        """A reference as methods read it."""
        views = {"pictures": [one.picture], "embeddings": one.embedding[None], "tokens": one.tokens[None]}
        return Images(self.prepared, [one.image or ""], **views)

    def _open(self, method: str) -> tuple[Any, Tensor]:
        """A method and the gallery as it embeds it; made when first asked for."""
        if method not in self._opened:
            if method in self._more:
                made = self._more[method]()
                gallery = embed(made, self.prepared.read, self.images)
            else:
                made, tokens = trained_composer(self.prepared, method), self.prepared.tokens
                gallery = embed_gallery(made, tokens, tokens.rows(self.images))
            self._opened[method] = (made, gallery)
        return self._opened[method]


def open_upload(content: bytes, name: str = "The file") -> Image.Image:
    """The picture that was uploaded, upright and in RGB; only the first of an animation.

    >>> open_upload(write_image(folder / "cat.png", size=(48, 64)).read_bytes()).size
    (48, 64)
    """
    reason = f"has {len(content) / 2**20:.0f} MB"
    if len(content) <= MOST_BYTES:
        try:
            with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
                image = open_picture(io.BytesIO(content))
            if image.width * image.height <= MOST_PIXELS:
                return to_rgb(image)
            reason = "has too many pixels"
        except Image.DecompressionBombError:
            reason = "has too many pixels"
        except Exception:  # Pillow's decoders raise many types on damaged data
            reason = "is not a picture that can be read, or a damaged one"
    limits = f"{MOST_BYTES >> 20} MB, {MOST_SIDE:,} pixels a side and {MOST_PIXELS // 10**6} megapixels"
    raise SearchError(f"{name} {reason}. Pictures of type {', '.join(FORMATS)} up to {limits}.")
