"""Re-ranking: BLIP-2's own matching head, any first method, and no image beyond the first fifty moves."""

import json
import shutil

import pytest
import torch
from accelerate.utils import set_seed

from cirlib.models.blip2 import Blip2Vision, load_blip2
from cirlib.models.mini import mini_towers, save_heads
from cirlib.models.prepared import Prepared
from cirlib.models.qformer import save_weights
from cirlib.models.qformer_embedding import new_composer
from cirlib.models.weights import ModelError
from cirlib.retrieval import method_scoring
from cirlib.retrieval.method_scoring import score_methods
from cirlib.study.parameters import Evaluation
from cirlib.study.pictures import open_rgb
from cirlib.training.reranking import Reranked


@pytest.fixture
def with_weights(prepared) -> Prepared:
    """The prepared study, where zero-shot has chosen its weights and the Q-Former is pretrained."""
    file = prepared.stage.results("zero_shot") / "weights.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"sum": 0.5, "slerp": 0.5}))
    pretrained = prepared.stage.results("qformer") / "checkpoints" / "qformer_pretrained"
    set_seed(prepared.stage.study.seed)
    save_weights(new_composer(prepared), pretrained)
    yield prepared
    file.unlink()
    shutil.rmtree(pretrained)


class Shuffled:
    """Ranks by the image embeddings, then the first images by a table."""

    def __init__(self, table: dict[str, float]) -> None:
        self.table = table

    def embed_queries(self, images, texts):
        return images.embeddings

    def embed_targets(self, images):
        return images.embeddings

    def rerank(self, images, texts, candidates):
        return [[self.table.get(image, 0.0) for image in row] for row in candidates]


def test_only_the_first_images_change_their_order(prepared, monkeypatch):
    monkeypatch.setattr(method_scoring, "DEPTH", 3)
    parts = {"hat": prepared.splits.reported["hat"]}
    (before,) = score_methods({"plain": Shuffled({})}, prepared.read, parts, Evaluation())
    lifted = before.top[0][2]
    (after,) = score_methods({"lifted": Shuffled({lifted: 9.0})}, prepared.read, parts, Evaluation())
    for old, new in zip(before.top, after.top, strict=True):
        first = lifted in old[:3]  # then it comes first, and the others keep their order
        assert new == ([lifted, *[image for image in old if image != lifted]] if first else old)
    assert after.method == "lifted" and after.protocol == before.protocol


def test_the_head_learns_which_image_an_edit_belongs_to(with_weights, capsys):
    stage = with_weights.stage
    params = stage.study.qformer.model_copy(update={"method_epochs": 15, "lr": 4e-4, "single_captions": 0.0})
    study = stage.study.model_copy(update={"qformer": params})
    method = Reranked()
    method.fit(Prepared(type(stage)(stage.name, study, stage.root, stage.out, stage.figures, {})))
    losses = [float(line.split("loss ")[1].split()[0]) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == 15 and losses[0] < 1.2  # a guess is ln 2
    assert sum(losses[-4:]) / 4 < 0.98 * losses[0]
    scored = score_methods({"reranked": method}, with_weights.read, with_weights.splits.reported, Evaluation())
    assert [one.category for one in scored] == ["hat", "shoe"] and scored[0].protocol.startswith("original gallery")


def test_blip2s_own_head_says_what_transformers_says(custom_stage, tiny_blip2, cpu, write_image, tmp_path):
    models = {"fusion": str(tiny_blip2), "image_size": 64, "precision": "fp32"}
    prepared = Prepared(custom_stage("qformer", models=models, qformer={"rerank": "text_only"}))
    prepared.stage.data.mkdir(parents=True)
    save_heads(mini_towers(64, width=16, **cpu), prepared.stage.data / "two_towers.safetensors")
    method = Reranked()
    method.fit(prepared)
    model, processor = load_blip2(str(tiny_blip2))
    pictures, texts = (
        [open_rgb(write_image(tmp_path / f"{i}.png", i)) for i in range(2)],
        ["is blue", "has a wide neck"],
    )
    inputs = processor(images=pictures, text=texts, padding=True, return_tensors="pt")
    vision = Blip2Vision(str(tiny_blip2), **cpu)
    with torch.no_grad():
        expected = model(**inputs, use_image_text_matching_head=True).logits_per_image
        tokens = vision.encode_pixels(torch.stack([vision.transform(picture) for picture in pictures]))
        torch.testing.assert_close(method.match(tokens, texts), expected)
    model.itm_head.weight.data.zero_()
    model.save_pretrained(tmp_path / "headless")
    processor.save_pretrained(tmp_path / "headless")
    models |= {"fusion": str(tmp_path / "headless")}
    with pytest.raises(ModelError, match="headless has no matching head to rerank with"):
        Reranked().fit(Prepared(custom_stage("qformer", models=models, qformer={"rerank": "text_only"})))
