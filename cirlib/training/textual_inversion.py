"""Textual inversion: a network φ turns an image embedding into a word that the frozen text tower reads within the edit.

Pic2Word (Saito et al., 2023) trains φ on images alone, LinCIR (Gu et al., 2024) on texts alone; published weights of
both and of SEARLE (Baldrati et al., 2023) load by file.
"""

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from safetensors.torch import load_file
from torch import Tensor, nn

from cirlib.losses.info_nce import info_nce
from cirlib.models.clip import TwoTowers
from cirlib.models.devices import autocast
from cirlib.models.length_groups import by_length
from cirlib.models.prepared import Prepared
from cirlib.models.weights import ModelError
from cirlib.study.errors import ParameterError
from cirlib.training.loop import TrainingConfig, shuffled_batches
from cirlib.training.two_tower_methods import TwoTowerMethod, train_method

WORD = "$"  # whose place the pseudo-word takes
FUNCTION_WORDS = re.compile(
    "(a|an|the|and|or|of|in|on|at|to|for|from|with|without|by|as|is|are|was|be|has|have|it|its|this|that|these|those|not|"
    "no|but|than|more|less|very|same|other|one)",
    re.IGNORECASE,
)


def _network(*widths: int, activation: type[nn.Module] = nn.GELU, dropout: float = 0.5) -> nn.Sequential:
    """Linear layers between ``widths``, the activation and dropout after all but the last."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), activation(), nn.Dropout(dropout)]
    return nn.Sequential(*layers[:-2])


def load_phi(path: Path) -> tuple[nn.Sequential, str]:
    """A published φ and the sentence that it is used with, from ``.pt`` (weights only) or ``.safetensors``.

    Pic2Word's checkpoint has φ under ``state_dict_img2text`` (ReLU, last layer ``fc_out``), SEARLE's and LinCIR's under
    ``Phi`` (GELU). A ModelError where the file holds none.

    >>> state = _network(8, 32, 32, 16).state_dict()
    >>> torch.save({"Phi": {f"layers.{name}": value for name, value in state.items()}}, folder / "phi.pt")
    >>> load_phi(folder / "phi.pt")[1]
    'a photo of $ that {}'
    """
    try:
        saved = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        saved = saved.get("Phi", saved.get("state_dict_img2text", saved))
        state = {name.removeprefix("module."): tensor.float() for name, tensor in saved.items()}
        places = {name: list(map(int, re.findall(r"\d+", name))) for name in state if name.endswith("weight")}
        names = sorted(places, key=lambda name: (name[:2] == "fc", places[name]))
        weights = [state[name] for name in names]
        pic2word = names[-1] == "fc_out.weight"
        widths = [weights[0].shape[1], *(len(weight) for weight in weights)]
        network = _network(*widths, activation=nn.ReLU if pic2word else nn.GELU)
        biases = [state[name.replace("weight", "bias")] for name in names]
        ordered = [tensor for pair in zip(weights, biases, strict=True) for tensor in pair]
        network.load_state_dict(dict(zip(network.state_dict(), ordered, strict=True)))
    except Exception as error:  # a damaged file gives nearly any
        raise ModelError.because(f"no φ of Pic2Word, SEARLE or LinCIR could be loaded from {path}", error) from error
    return network.eval(), f"a photo of {WORD} , {{}}" if pic2word else f"a photo of {WORD} that {{}}"


def _read(towers: TwoTowers, texts: list[str], words: Tensor) -> Tensor:
    """Text embeddings (B, D) with gradients, where row i of ``words`` (B, H) is read in place of each "$" of text i."""
    place = towers.tokenize([WORD])[0, 1].item()

    def embed(rows: list[int]) -> Tensor:
        def put_in(_module: nn.Module, ids: tuple[Tensor, ...], read: Tensor) -> Tensor:  # (b, L, H)
            return torch.where((ids[0] == place)[..., None], words[rows][:, None].to(read.dtype), read)

        hook = towers.word_embeddings.register_forward_hook(put_in)
        try:
            return towers.text_features([texts[i] for i in rows])
        finally:
            hook.remove()

    return by_length(embed, texts, 256)


def mask_keywords(text: str) -> str:
    """A text with "$" for every run of words that carry meaning, as LinCIR masks its keywords (there: by a tagger).

    >>> mask_keywords("a red dress with long sleeves")
    'a $ with $'
    """
    words = [word if FUNCTION_WORDS.fullmatch(word) else WORD for word in re.findall(r"[\w'-]+", text)]
    return " ".join(word for word, before in zip(words, ["", *words], strict=False) if word != before or word != WORD)


class Inversion(TwoTowerMethod):
    """A query is the edit in a sentence with the reference's pseudo-word, which φ makes of a normalised embedding.

    Its own are ``network``, an untrained φ, the ``items`` that it is trained on, and the ``loss`` of some of them.
    """

    run, sentence = "", f"a photo of {WORD} that {{}}"

    def build(self, prepared: Prepared) -> None:
        self.towers = prepared.towers()
        self.towers.model.requires_grad_(False)
        self.phi = self.network(self.towers.shape[0], self.towers.word_embeddings.embedding_dim).to(self.towers.device)

    def fit(self, prepared: Prepared) -> None:
        study, params, items = prepared.stage.study, prepared.stage.study.qformer, list(self.items(prepared))
        if not items:
            raise ParameterError(
                f"method {self.run!r} needs a train split or image-caption pairs, which the study lacks"
            )
        set_seed(study.seed)
        self.build(prepared)

        def batches(epoch: int) -> list[list[str]]:
            parts = shuffled_batches(len(items), params.batch_size, study.seed, epoch)
            return [[items[row] for row in part.tolist()] for part in parts]

        options = {"precision": study.models.precision, "unit": "items"}
        config = TrainingConfig(self.run, params.method_epochs, len(batches(1)), params.phi_lr, **options)
        train_method(self, prepared, batches, lambda batch: (self.loss(prepared, batch), {}), config, items)

    def compose(self, references: Tensor, texts: list[str]) -> Tensor:
        return self.read_queries(self.phi(references), texts)

    def read_queries(self, words: Tensor, texts: list[str]) -> Tensor:
        """Queries (B, D) from pseudo-words (B, H) and edits; the caption style "template" has a place for them."""
        opening, plain = "a photo of something", [text.replace(WORD, " ") for text in texts]
        whole = [text.replace(opening, f"a photo of {WORD}", 1) for text in plain]
        sentences = [text if WORD in text else self.sentence.format(text) for text in whole]
        return _read(self.towers, sentences, words)


class Pic2Word(Inversion):
    """φ trained on images alone: "a photo of $" must find its image in the batch (Saito et al., 2023, eq. 1 to 3)."""

    run, sentence = "pic2word", f"a photo of {WORD} , {{}}"

    def network(self, width: int, words: int) -> nn.Sequential:
        return _network(width, 512, 512, words, activation=nn.ReLU, dropout=0.1)

    def items(self, prepared: Prepared) -> Sequence[str]:
        seen = [image for part in prepared.splits.train.values() for image in part.gallery]
        return dict.fromkeys([*seen, *(pair["image"] for pair in prepared.pairs)])

    def loss(self, prepared: Prepared, batch: list[str]) -> Tensor:
        images = prepared.clip[batch].to(self.towers.device)
        texts = _read(self.towers, [f"a photo of {WORD}"] * len(batch), self.phi(images))
        return info_nce(texts, images, temperature=self.temperature, symmetric=True)


class LinCIR(Inversion):
    """φ trained on texts alone: with its keywords replaced by its own pseudo-word a text must keep its embedding.

    ``‖ E(masked text, φ(E(text) + u n)) - E(text) ‖²`` (Gu et al., 2024, sec. 3), ``u`` uniform in [0, 1], ``n``
    normal and of length one on average, as embeddings are here. The noise bridges the gap from texts to images.
    """

    run = "lincir"

    def network(self, width: int, words: int) -> nn.Sequential:
        return _network(width, 4 * width, 4 * width, words)

    def items(self, prepared: Prepared) -> Sequence[str]:
        edits = [caption for part in prepared.splits.train.values() for t in part.triplets for caption in t.captions]
        texts = [pair["caption"] for pair in prepared.pairs] or edits
        return sorted({text for text in texts if WORD in mask_keywords(text)})

    def loss(self, prepared: Prepared, batch: list[str]) -> Tensor:
        whole = self.towers.encode_texts(batch).to(self.towers.device)  # (B, D)
        noise = torch.rand(len(batch), 1, device=whole.device) * torch.randn_like(whole) / whole.shape[1] ** 0.5
        found = _read(self.towers, [mask_keywords(text) for text in batch], self.phi(whole + noise))
        return (found - whole).square().sum(-1).mean()


class PublishedInversion(Inversion):
    """A published φ (``qformer.phi``), as its authors use it: on image features that are not normalised."""

    def fit(self, prepared: Prepared) -> None:
        file = prepared.stage.study.qformer.phi
        if file is None:
            raise ParameterError("method 'phi' reads published weights: name their file with qformer.phi")
        self.towers = prepared.towers()
        self.phi, self.sentence = load_phi(prepared.stage.root / file)
        fits = self.phi[0].in_features, self.phi[-1].out_features
        if fits != (width := (self.towers.shape[0], self.towers.word_embeddings.embedding_dim)):
            raise ModelError(f"{file} is a φ from {fits[0]} to {fits[1]} dimensions, the study's CLIP needs {width}")
        self.phi.to(self.towers.device)

    def load(self, prepared: Prepared, file: Path) -> None:
        self.fit(prepared)

    def embed_queries(self, images: Any, texts: list[str]) -> Tensor:
        pixels = torch.stack([self.towers.transform(picture) for picture in images.pictures]).to(self.towers.device)
        with autocast(self.towers.device, self.towers.dtype):
            features = self.towers.model.encode_image(pixels, normalize=False).float()
        return self.read_queries(self.phi(features), texts)
