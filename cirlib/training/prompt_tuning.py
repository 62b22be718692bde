"""Prompt tuning (CoOp: Zhou et al., 2022) on triplets: of two frozen towers only vectors before the edit learn."""

from accelerate.utils import set_seed
from torch import Tensor

from cirlib.models.prepared import Prepared
from cirlib.models.prompts import PromptTunedTowers
from cirlib.training.two_tower_methods import TwoTowerMethod, train_on_triplets


class PromptTuned(TwoTowerMethod):
    """Learned vectors before the edit, and its weight in the sum, which starts as zero-shot chose it.

    >>> method = PromptTuned()
    >>> method.build(prepared)
    >>> method.embed_queries(images, ["is blue", "is red"]).shape
    torch.Size([2, 256])
    """

    def build(self, prepared: Prepared, weight: float = 0.5) -> None:
        self.prompts = PromptTunedTowers(prepared.towers(), prepared.stage.study.qformer.prompt_vectors, weight)
        self.towers = self.prompts.towers

    def fit(self, prepared: Prepared) -> None:
        study, params = prepared.stage.study, prepared.stage.study.qformer
        set_seed(study.seed)
        self.build(prepared, prepared.stage.read_choice("zero_shot", "weights.json")["sum"])
        options = {"epochs": params.prompt_epochs, "lr": params.prompt_lr, "edits": params.prompt_edits}
        train_on_triplets(self, prepared, "prompt_tuned", **options)

    def compose(self, references: Tensor, texts: list[str]) -> Tensor:
        return self.prompts.compose(references, self.read_texts(texts))
