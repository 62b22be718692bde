"""The long stages of a study as single steps on random weights of the true size, for their time and memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import open_clip
import torch
import transformers
from torch import Tensor, nn

from cirlib.analysis.dpo.dual_encoder import IMAGES_AT_ONCE
from cirlib.analysis.dpo.grid import factorial_runs
from cirlib.losses.gradient_cache import in_chunks
from cirlib.models.devices import DTYPES, autocast, precision_here
from cirlib.models.qformer import FrozenTargets, QFormerComposer, QFormerSettings
from cirlib.models.weights import local_name, minilm_folder, quiet_transformers
from cirlib.study.parameters import Study
from cirlib.training.batches import Batch, batch_loss
from cirlib.training.recipe import TrainingConfig, optimisation

Step = Callable[[], object]
TEXT = "is a much longer dress and has a red and white floral pattern"  # as long as the mean of FashionIQ's
ON_CPU = 2  # images or triplets of a step where there is no GPU


@dataclass(frozen=True)
class StageProbe:
    """A stage that takes long. ``step`` builds its model and gives what runs one step."""

    name: str
    step: Callable[[], Step]
    batch: int  # of one step
    unit: str
    count: int  # that the whole stage reads; 0: not known
    values: int = 0  # numbers that it keeps of an image
    advice: str = ""  # where it does not fit


class RandomTokens:
    """A feature store of image tokens (T, C), as far as a training reads it."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape = shape

    def read(self, rows: np.ndarray, device: torch.device) -> Tensor:
        return torch.randn(len(rows), *self.shape, device=device)


def probes(study: Study, root: Path, device: torch.device, images: int, queries: int) -> Iterator[StageProbe]:
    """The stages of ``study`` that are long with real models; none of the small pair's.

    >>> list(probes(stage.study, folder, torch.device("cpu"), images=34, queries=12))
    []
    """
    models, params = study.models, study.qformer
    here = partial(min, ON_CPU) if device.type == "cpu" else int
    if models.fusion != "mini":
        config = _blip2_config(models.fusion, root)
        vision = config.vision_config
        tokens = (vision.image_size // vision.patch_size) ** 2 + 1, vision.hidden_size
        size = here(study.data_prep.batch_size)
        encode = partial(_encoding, config, study, device, size)
        less = "lower data_prep.batch_size"
        yield StageProbe("image tokens", encode, size, "images", images, tokens[0] * tokens[1], less)
        if study.data.train:
            size, runs = here(params.batch_size), 2 if params.hard_negatives else 1
            step = partial(_training, config, tokens, study, device, size)
            less = "set qformer.gradient_checkpointing, or lower qformer.batch_size and raise qformer.accumulation"
            yield StageProbe("Q-Former", step, size, "triplets", runs * params.epochs * queries, 0, less)
    runs = [run for _, run in factorial_runs(study.dpo) if run.trains == "both_towers"]
    if models.clip != "mini" and runs and study.data.train:
        size = here(runs[0].batch_size)
        towers = partial(_both_towers, local_name(models.clip, root), runs[0].num_negatives, study, device, size)
        less = "lower dpo.batch_size, or set dpo.grid=small"
        count = sum(run.epochs * run.edits for run in runs)
        yield StageProbe("both_towers of the grid", towers, size, "edits", count, 0, less)


def _blip2_config(name: str, root: Path) -> transformers.Blip2Config:
    """That of the model where it is on the disk, else of BLIP-2 with its ViT-g."""
    if (root / name / "config.json").is_file():
        return transformers.Blip2Config.from_pretrained(root / name)
    text = {"vocab_size": 30_523, "use_qformer_text_input": True}
    return transformers.Blip2Config(qformer_config=text, num_query_tokens=32, image_text_hidden_size=256)


def _encoding(config: transformers.Blip2Config, study: Study, device: torch.device, size: int) -> Step:
    with device:
        tower = transformers.Blip2VisionModel(config.vision_config).eval()
        pixels = torch.randn(size, 3, config.vision_config.image_size, config.vision_config.image_size)

    @torch.inference_mode()
    def step() -> object:
        with autocast(device, DTYPES[precision_here(study.models.precision)]):
            return tower(pixel_values=pixels)

    return step


def _training(
    config: transformers.Blip2Config, tokens: tuple[int, int], study: Study, device: torch.device, size: int
) -> Step:
    params = study.qformer
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm_folder())
    settings = QFormerSettings(params.fusion, params.target)
    sizes = config.num_query_tokens, config.image_text_hidden_size
    composer = QFormerComposer(config.qformer_config, *sizes, tokenizer, settings)
    composer.prompt_tokens = nn.Parameter(composer.query_tokens.detach().clone()) if params.sprc_terms else None
    composer.frozen = FrozenTargets(composer) if params.fusion == "covr" else None
    if params.gradient_checkpointing:
        with quiet_transformers():
            composer.qformer.activation_checkpointing_enable()
    rows, texts = np.arange(size), [TEXT] * size
    negatives = np.zeros((size, params.hard_negatives), int) if params.hard_negatives else None
    batch, store = Batch(rows, rows, texts, negatives), RandomTokens(tokens)
    loss = partial(batch_loss, composer.to(device).train(), store, batch, params.chunk_size, params.sprc_terms)
    return _optimised(composer, loss, study, device)


def _both_towers(name: str, negatives: int, study: Study, device: torch.device, size: int) -> Step:
    model = open_clip.create_model(name, device=device, pretrained_hf=False)
    side = np.max(model.visual.preprocess_cfg["size"])
    pixels = torch.randn(size * (1 + negatives), 3, side, side, device=device)
    texts = open_clip.get_tokenizer(name)([TEXT] * size).to(device)

    def loss() -> Tensor:
        images = in_chunks(model.visual, pixels, IMAGES_AT_ONCE).float()
        return images.square().mean() + model.encode_text(texts).float().square().mean()

    return _optimised(model, loss, study, device)


def _optimised(model: nn.Module, loss: Callable[[], Tensor], study: Study, device: torch.device) -> Step:
    config = TrainingConfig("probe", epochs=1, steps_per_epoch=9, lr=1e-9)
    optimizer = optimisation(model, config)[0]

    def step() -> None:
        with autocast(device, DTYPES[precision_here(study.models.precision)]):
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
