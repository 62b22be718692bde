"""A trained Q-Former as one folder, which a Hugging Face repository can hold; its vision tower is named in there."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from PIL import Image
from torch import Tensor

from cirlib.models.devices import autocast
from cirlib.models.prepared import Prepared
from cirlib.models.qformer import QFormerComposer, load_weights, save_weights
from cirlib.models.qformer_embedding import new_composer
from cirlib.models.weights import ModelError
from cirlib.study.files import write_json
from cirlib.study.parameters import Study
from cirlib.study.stage import Stage

CARD = """---
{{ card_data }}
---
A Q-Former for composed image retrieval, trained with `cirlib` (after arXiv 2506.06602) as `config.json` says; opened by
`cirlib.models.pretrained.PretrainedQFormer.from_pretrained`. Its vision tower is the one of `models.fusion`.
"""


class PretrainedQFormer(
    ModelHubMixin, library_name="cirlib", tags=["composed-image-retrieval"], model_card_template=CARD
):
    """Pictures (PIL, RGB) and edits in, embeddings out; ``save_pretrained``, ``push_to_hub``, ``from_pretrained``."""

    def __init__(self, prepared: Prepared, composer: QFormerComposer) -> None:
        self.composer, self.vision, study = composer.eval(), prepared.vision_tower(), prepared.stage.study
        self.settings = study.model_dump(mode="json", include={"models", "qformer"})
        self.settings["models"]["fusion_checkpoint"] = None

    @torch.inference_mode()
    def embed_queries(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> Tensor:
        """Normalised queries (B, D) of references and edits."""
        with autocast(self.composer.device, self.composer.dtype):
            return self.composer.embed_queries(self._tokens(pictures), texts).float()

    @torch.inference_mode()
    def embed_targets(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Normalised targets (B, D) or (B, Q, D)."""
        with autocast(self.composer.device, self.composer.dtype):
            return self.composer.embed_targets(self._tokens(pictures)).float()

    def _tokens(self, pictures: Sequence[Image.Image]) -> Tensor:
        return self.vision.encode_pixels(torch.stack([self.vision.transform(picture) for picture in pictures]))

    def _save_pretrained(self, save_directory: Path) -> None:
        save_weights(self.composer, save_directory)
        write_json(self.settings, save_directory / "config.json")

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> Self:
        wanted = ("revision", "cache_dir", "force_download", "local_files_only", "token")
        download = {name: options[name] for name in wanted}
        folder = Path(model_id) if Path(model_id).is_dir() else Path(snapshot_download(model_id, **download))
        try:
            blocks = json.loads((folder / "config.json").read_text())
            study = Study.model_validate({"name": "pretrained", "data": {"root": "."}, **blocks})
        except (OSError, ValueError) as error:
            raise ModelError.because(f"{folder} is no Q-Former that cirlib saved", error) from error
        prepared = Prepared(Stage("qformer", study, folder, folder, folder, {}))
        load_weights(composer := new_composer(prepared), folder)
        return cls(prepared, composer)
