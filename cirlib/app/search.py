"""Search with the study's models: a reference and an edit in, ranked images out, with what each of the two adds.

Every method can lean towards the picture or the words. ``balance`` 0 is the method as the study scored it, -1 its query
from the picture alone, 1 from the words alone, and in between the two nearest of these three are mixed.
"""

from __future__ import annotations

import io
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import normalize

from cirlib.analysis.zero_shot.baseline_scores import MIXES, best_weights, embed, sweep
from cirlib.benchmarks import Triplet
from cirlib.models.attention import attention_maps
from cirlib.models.clip import TwoTowers
from cirlib.models.devices import autocast
from cirlib.models.image_encoding import ImageEncoder
from cirlib.models.preparation import Prepared, vision_tower
from cirlib.models.qformer import QFormerComposer
from cirlib.models.qformer_embedding import embed_gallery, trained_composer
from cirlib.study.errors import StudyError
from cirlib.study.pictures import open_rgb, to_rgb

ZERO_SHOT = ("image_only", "text_only", *MIXES)
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MOST_BYTES = 8 * 2**20  # a notebook server takes 10 MB in one message
MOST_PIXELS = 50_000_000
MOST_WORDS = 200
MOST_CHARACTERS = 2000

Queries = tuple[Tensor, Tensor, Tensor]  # picture alone, as the study scores it, words alone: (D,) each


class SearchError(StudyError, ValueError):
    """What was given cannot be searched with; the message is for who searches."""


@dataclass(frozen=True)
class Reference:
    """A picture to start from.

    Attributes:
        image: its id in the gallery; None for an upload.
        picture: as a person would see it.
        embedding: in the two-tower space, (D,).
        tokens: what the Q-Former reads, (T, C).
    """

    image: str | None
    picture: Image.Image
    embedding: Tensor
    tokens: Tensor


@dataclass(frozen=True)
class Hit:
    """One image found: its score, and what it would score by the picture and by the words alone."""

    image: str
    file: Path
    score: float
    picture_alone: float
    words_alone: float


@dataclass(frozen=True)
class Found:
    """The answer of one method, best first."""

    method: str
    hits: list[Hit]
    milliseconds: float


class Search:
    """A study's gallery and models, opened once; every method answers from cached embeddings.

    Attributes:
        methods: what can be searched with: the zero-shot baselines, and the trained Q-Formers there are.

    Raises:
        StageError: data preparation has not run; the message names the command.
    """

    def __init__(self, prepared: Prepared) -> None:
        self.prepared, self.study = prepared, prepared.stage.study
        parts = prepared.splits.reported
        self.galleries: dict[str, list[str]] = {category: list(part.gallery) for category, part in parts.items()}
        self.files = {image: part.path(image) for part in parts.values() for image in part.gallery}
        self.images = list(self.files)  # M
        self._row = {image: row for row, image in enumerate(self.images)}
        checkpoints = prepared.stage.results("qformer") / "checkpoints"
        trained = ("qformer", "qformer_hard_negatives")
        self.methods = [*ZERO_SHOT, *(name for name in trained if (checkpoints / name).is_dir())]
        self._composers: dict[str, tuple[QFormerComposer, Tensor]] = {}

    @property
    def best_trained(self) -> str:
        """The Q-Former with the best dev recall@10; slerp, to stand beside the sum, where none was trained."""
        trained = [name for name in self.methods if name not in ZERO_SHOT]
        file = self.prepared.stage.results("qformer") / "history.csv"
        history = pd.read_csv(file) if trained and file.is_file() else pd.DataFrame(columns=["run", "dev/recall@10"])
        history = history[history["run"].isin(trained)].dropna(subset="dev/recall@10")
        if history.empty:
            return trained[-1] if trained else "slerp"
        return str(history.loc[history["dev/recall@10"].idxmax(), "run"])

    @cached_property
    def towers(self) -> TwoTowers:
        return self.prepared.towers()

    @cached_property
    def vision(self) -> ImageEncoder:
        return vision_tower(self.prepared.stage)

    @cached_property
    def weights(self) -> Mapping[str, float]:
        """The text's weight in sum and slerp, the best on dev."""
        evaluation = self.study.evaluation
        dev = embed(self.towers, self.prepared.clip, self.prepared.splits.dev, evaluation.captions)
        return best_weights(sweep(self.study.zero_shot.weights, dev, evaluation))

    @cached_property
    def embeddings(self) -> Tensor:
        """The gallery in the two-tower space, (M, D)."""
        return self.prepared.clip[self.images]

    def reference(self, image: str) -> Reference:
        """A gallery image to start from.

        Raises:
            SearchError: there is none of this id.
        """
        if image not in self._row:
            raise SearchError(f"There is no image {image!r} in the gallery.")
        picture = open_rgb(self.files[image])
        return Reference(image, picture, self.embeddings[self._row[image]], self.prepared.tokens[[image]][0])

    def upload(self, content: bytes, name: str = "The file") -> Reference:
        """A picture of one's own to start from, encoded by the study's own towers.

        Raises:
            SearchError: it is no picture, or too large; the sentence says what is allowed.
        """
        picture = open_upload(content, name)
        with torch.inference_mode():
            embedding = self.towers.encode_pixels(self.towers.transform(picture)[None])[0].float().cpu()
            tokens = self.vision.encode_pixels(self.vision.transform(picture)[None])[0].float().cpu()
        return Reference(None, picture, embedding.clone(), tokens.clone())

    def search(
        self, reference: Reference, text: str, method: str, *, category: str | None = None, balance: float = 0.0,
        count: int = 10,
    ) -> Found:  # fmt: skip
        """The ``count`` best images of a category's gallery (of all where None), never the reference itself.

        Raises:
            SearchError: an edit without words or with too many, an unknown method or category, a balance outside
                [-1, 1].
        """
        self._check(method, category, balance)
        text = checked_text(text)
        start = time.perf_counter()
        queries, gallery = self._queries(method, reference, text)
        pool = [image for image in self._pool(category) if image != reference.image]
        rows = torch.tensor([self._row[image] for image in pool])
        candidates = gallery[rows]  # (M, D) or (M, Q, D)
        scores = _scores(mixed(queries, balance), candidates)
        best = scores.topk(min(count, len(pool))).indices
        alone = [_scores(query, candidates[best]) for query in (queries[0], queries[2])]
        hits = [
            Hit(pool[row], self.files[pool[row]], *map(float, (scores[row], picture, words)))
            for row, picture, words in zip(best.tolist(), *alone, strict=True)
        ]
        return Found(method, hits, 1000 * (time.perf_counter() - start))

    def look(self, reference: Reference, text: str, method: str, image: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Where the query tokens look, mean of all: over the reference with the edit, over ``image``: (S, S) each.

        None where the method has no query tokens.
        """
        if method in ZERO_SHOT:
            return None
        composer, _ = self._composer(method)
        device, tokens = composer.device, self.prepared.tokens
        over = attention_maps(composer, reference.tokens[None].to(device), [text])
        found = attention_maps(composer, tokens.read(tokens.rows([image]), device))
        return over[0].mean(0).cpu().numpy(), found[0].mean(0).cpu().numpy()

    def example(self) -> Triplet:
        """The first reported query."""
        return next(iter(self.prepared.splits.reported.values())).triplets[0]

    def warm(self, method: str) -> None:
        """Loads what the first answer of ``method`` would wait for."""
        self._queries(method, self.reference(self.images[0]), "warm")

    def _pool(self, category: str | None) -> list[str]:
        return self.images if category is None else self.galleries[category]

    def _check(self, method: str, category: str | None, balance: float) -> None:
        if method not in self.methods:
            raise SearchError(f"There is no method {method!r}, there are: {', '.join(self.methods)}.")
        if category is not None and category not in self.galleries:
            raise SearchError(f"There is no category {category!r}, there are: {', '.join(self.galleries)}.")
        if not -1 <= balance <= 1:
            raise SearchError(f"The balance is {balance:g}, it must be between -1 (picture) and 1 (words).")

    def _queries(self, method: str, reference: Reference, text: str) -> tuple[Queries, Tensor]:
        """The three queries of a method, and the gallery in its space."""
        if method in ZERO_SHOT:
            picture, words = reference.embedding, self.towers.encode_texts([text])[0]
            return unit(picture, self._composed(method)(picture, words), words), self.embeddings
        composer, gallery = self._composer(method)
        with torch.inference_mode(), autocast(composer.device, composer.dtype):
            tokens = reference.tokens[None].to(composer.device)
            both = composer.embed_queries(tokens.expand(2, -1, -1), ["", text]).float().cpu()
            words = composer.embed_texts([text])[0].float().cpu()
        return unit(both[0], both[1], words), gallery

    def _composed(self, method: str) -> Callable[[Tensor, Tensor], Tensor]:
        if method in MIXES:
            return lambda picture, words: MIXES[method](picture, words, self.weights[method])
        return (lambda picture, words: picture) if method == "image_only" else (lambda picture, words: words)

    def _composer(self, method: str) -> tuple[QFormerComposer, Tensor]:
        """A trained Q-Former and the gallery as it embeds it; made when first asked for."""
        if method not in self._composers:
            composer, tokens = trained_composer(self.prepared, method), self.prepared.tokens
            self._composers[method] = (composer, embed_gallery(composer, tokens, tokens.rows(self.images)))
        return self._composers[method]


def unit(*queries: Tensor) -> Queries:
    """Queries (D,) at length 1: what comes out of bf16 or float16 has it only nearly."""
    return tuple(normalize(query, dim=-1) for query in queries)


def checked_text(text: str) -> str:
    """The edit without superfluous blanks.

    Raises:
        SearchError: it has no words, or too many.
    """
    words = text.split()
    if not words:
        raise SearchError("Type what should be different, for example: is blue with long sleeves.")
    if len(words) > MOST_WORDS:
        raise SearchError(f"The edit has {len(words)} words, at most {MOST_WORDS} are read.")
    if len(text) > MOST_CHARACTERS:
        raise SearchError(f"The edit has {len(text):,} characters, at most {MOST_CHARACTERS:,} are read.")
    return " ".join(words)


def mixed(queries: Queries, balance: float) -> Tensor:
    """The query (D,) at ``balance`` in [-1, 1]: between the picture's, the study's own (0) and the words'."""
    picture, own, words = queries
    end = picture if balance < 0 else words
    return normalize((1 - abs(balance)) * own + abs(balance) * end, dim=-1)


def open_upload(content: bytes, name: str = "The file") -> Image.Image:
    """The picture that was uploaded, upright and in RGB; only the first of an animation.

    Raises:
        SearchError: it is too large, no picture of the allowed types, or cut off.
    """
    allowed = (
        f"Pictures of type {', '.join(FORMATS)} up to {MOST_BYTES // 2**20} MB and {MOST_PIXELS // 10**6} megapixels."
    )
    if len(content) > MOST_BYTES:
        raise SearchError(f"{name} has {len(content) / 2**20:.0f} MB. {allowed}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content), formats=FORMATS)
        if image.width * image.height > MOST_PIXELS:
            raise SearchError(f"{name} is {image.width:,} × {image.height:,} pixels. {allowed}")
        return to_rgb(image)
    except Image.DecompressionBombError:
        raise SearchError(f"{name} has far too many pixels. {allowed}") from None
    except UnidentifiedImageError:
        raise SearchError(f"{name} is not a picture that can be read. {allowed}") from None
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, SearchError):
            raise
        raise SearchError(f"{name} is damaged: {error}. {allowed}") from None


def _scores(query: Tensor, gallery: Tensor) -> Tensor:
    """Cosines (M,) of a query (D,) with gallery vectors (M, D), or the best of token sets (M, Q, D)."""
    scores = gallery @ query
    return scores if scores.ndim == 1 else scores.amax(1)
