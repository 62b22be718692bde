"""A small Q-Former with the tokens of random pictures, and triplets to train it on."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, Blip2QFormerConfig

from cirlib.models.devices import best_device
from cirlib.models.mini import mini_towers, save_heads
from cirlib.models.prepared import Prepared
from cirlib.models.qformer import QFormerComposer, QFormerSettings
from cirlib.models.weights import minilm_folder
from cirlib.study.parameters import Data, Models, QFormer, Study

QUERIES = {"hat": 7, "shoe": 5}
IMAGES = [f"{category}-{i}" for category in QUERIES for i in range(9)]
FEATURES = torch.randn(len(IMAGES), 4, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="package")
def start() -> QFormerComposer:
    """A Q-Former of two narrow layers; random weights large enough to tell pictures and words apart."""
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
    config = Blip2QFormerConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=48, encoder_hidden_size=6, cross_attention_frequency=1, use_qformer_text_input=True,
        attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0,
    )  # fmt: skip
    composer = QFormerComposer(config, 3, 8, tokenizer, QFormerSettings())
    generator = torch.Generator().manual_seed(1)
    for name, parameter in composer.named_parameters():
        if name != "raw_temperature" and not name.lower().endswith("layernorm.weight"):
            parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return composer.to(best_device()).eval()


@pytest.fixture
def composer(start) -> QFormerComposer:
    """A copy of ``start`` to train."""
    return deepcopy(start)


@pytest.fixture
def tokens(tmp_path, make_store):
    """Image tokens (4, 6) of ``hat-0`` … ``hat-8``, ``shoe-0`` … ``shoe-8``."""
    return make_store(tmp_path / "tokens", IMAGES, FEATURES)


@pytest.fixture
def parts(make_chains):
    """Seven queries on hats and five on shoes; the galleries have nine images each, not in the store's order."""
    return make_chains(QUERIES, (3, 8, 0, 7, 1, 5, 2, 6, 4), lambda name, i: (f"is {name} {i}", f"has {i} dots."))


@pytest.fixture(scope="session")
def make_study() -> Callable[..., Study]:
    """A study with some parameters of the Q-Former."""

    def make(seed: int = 0, **qformer) -> Study:
        block = {"batch_size": 4, "epochs": 3, "pretraining_epochs": 3, "lr": 3e-3, "pretraining_lr": 3e-3, **qformer}
        data = Data(root=Path("nowhere"))
        return Study(name="t", seed=seed, data=data, models=Models(precision="fp32"), qformer=QFormer(**block))

    return make


@pytest.fixture
def two_tower_study(custom_stage, cpu, make_store) -> Callable[..., Prepared]:
    """Makes the small study; the image of each query's target is embedded as the edit's words are, from other words on.

    Its arguments are parameters of `qformer`.
    """

    def prepare(**qformer) -> Prepared:
        block = {"prompt_epochs": 8, "prompt_lr": 0.02, "batch_size": 4, "hard_negatives": 1, **qformer}
        prepared = Prepared(custom_stage("qformer", models={"image_size": 64, "precision": "fp32"}, qformer=block))
        stage = prepared.stage
        if not (stage.data / "clip").is_dir():
            torch.manual_seed(0)
            stage.data.mkdir(parents=True)
            save_heads(mini_towers(64, width=16, **cpu), stage.data / "two_towers.safetensors")
            ids = list(prepared.images)
            words = [f"a photo of a thing that is {int(image.split('-')[-1]) - 1} sizes bigger" for image in ids]
            make_store(stage.data / "clip", ids, prepared.towers().encode_texts(words))
            (weights := stage.results("zero_shot") / "weights.json").parent.mkdir(parents=True)
            weights.write_text(json.dumps({"sum": 0.5, "slerp": 0.5}))
        return prepared

    return prepare
