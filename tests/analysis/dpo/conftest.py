"""A small study whose runs take a second: a tiny CLIP, a small Q-Former, two categories of drawn pictures."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from cirlib.analysis.dpo.context import RunContext
from cirlib.analysis.dpo.dual_encoder import WholeTower
from cirlib.models.prepared import Prepared
from cirlib.models.qformer import save_weights
from cirlib.models.qformer_embedding import new_composer

SMALL = {"num_negatives": 2, "epochs": 2, "batch_size": 6, "lr": 3e-3, "range_max": 6}


@pytest.fixture
def make_context(custom_stage, make_store, tiny_clip, write_json) -> Callable[..., RunContext]:
    """Makes the context of the study with `dpo` settings; its data, models and choices are prepared once."""

    def make(**dpo: Any) -> RunContext:
        models = {"precision": "fp32", "clip": tiny_clip[0], "clip_pretrained": str(tiny_clip[1])}
        stage = custom_stage("dpo", dpo={**SMALL, **dpo}, models=models, qformer={"num_query_tokens": 2, "width": 8})
        prepared = Prepared(stage)
        context = RunContext(prepared, stage.root / "runs")
        if not (stage.data / "clip").is_dir():
            images = prepared.images
            tokens = torch.randn(len(images), 4, 1280, generator=torch.Generator().manual_seed(0))
            with torch.no_grad():
                make_store(stage.data / "clip", list(images), WholeTower(context.towers, images)(list(images)))
            make_store(stage.data / "tokens", list(images), tokens)
            for seed, name in enumerate(("qformer_pretrained", "qformer")):
                torch.manual_seed(seed)
                save_weights(new_composer(prepared), stage.results("qformer") / "checkpoints" / name)
            write_json(stage.results("qformer") / "best_run.json", {"run": "qformer", "dev/recall@10": 0.5})
            write_json(stage.results("zero_shot") / "weights.json", {"sum": 0.3, "slerp": 0.5})
        return context

    return make


@pytest.fixture
def context(make_context) -> RunContext:
    return make_context()
