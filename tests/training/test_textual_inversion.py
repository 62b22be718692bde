"""Textual inversion: published φ give their papers' queries, and both trainings learn without a triplet."""

import pytest
import torch
from torch.nn import functional as F

from cirlib.models.clip import load_clip
from cirlib.models.prepared import Prepared
from cirlib.models.weights import ModelError
from cirlib.study.errors import ParameterError
from cirlib.training.textual_inversion import LinCIR, Pic2Word, PublishedInversion, load_phi, mask_keywords

WIDTH, WORDS = 12, 32  # of the tiny CLIP's embeddings and of its word embeddings
DOLLAR, STAR = 259, 265  # their tokens in CLIP's vocabulary


def linear(out: int, width: int) -> list[torch.Tensor]:
    return [0.5 * torch.randn(out, width), 0.5 * torch.randn(out)]


def published(kind: str) -> tuple[dict, list[list[torch.Tensor]]]:
    """A file as its authors write it, and the three linear layers in it."""
    hidden = 16 if kind == "Pic2Word" else 4 * WIDTH
    layers = [linear(hidden, WIDTH), linear(hidden, hidden), linear(WORDS, hidden)]
    names = ["layers.0.0", "layers.1.0", "fc_out"] if kind == "Pic2Word" else ["layers.0", "layers.3", "layers.6"]
    if kind == "Pic2Word":  # written by several GPUs, the output layer first, as its class has it
        order = [2, 0, 1]
        prefix, top, more = "module.", "state_dict_img2text", {"epoch": 3, "name": "run", "state_dict": {}}
    else:
        order, prefix, top, more = [0, 1, 2], "", "Phi", {"epoch": 9}
    parts = [
        (f"{prefix}{names[i]}.{kind}", t) for i in order for kind, t in zip(("weight", "bias"), layers[i], strict=True)
    ]
    return {top: dict(parts), **more}, layers


def clips_text(model, ids: torch.Tensor, words: torch.Tensor, place: int) -> torch.Tensor:
    """CLIP's text encoder written out, a word put in the place of a token (B, L), as the papers' code does."""
    x = model.token_embedding(ids)
    x = torch.where((ids == place)[..., None], words[:, None], x) + model.positional_embedding
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask))
    return x[torch.arange(len(ids)), ids.argmax(dim=-1)] @ model.text_projection


@pytest.fixture
def clip_study(custom_stage, tiny_clip) -> Prepared:
    name, file = tiny_clip
    models = {"clip": name, "clip_pretrained": str(file), "precision": "fp32"}
    return Prepared(custom_stage("qformer", models=models, qformer={"phi": "phi.pt"}))


@pytest.mark.parametrize("kind", ["Pic2Word", "SEARLE and LinCIR"])
def test_published_weights_give_their_papers_queries(clip_study, tiny_clip, cpu, kind):
    torch.manual_seed(0)
    content, layers = published(kind)
    torch.save(content, clip_study.stage.root / "phi.pt")
    method, images = PublishedInversion(), clip_study.read(["hat-val-0", "shoe-val-1"])
    method.fit(clip_study)
    edits = ["is blue and has dots", "has long sleeves"]
    towers = load_clip(tiny_clip[0], str(tiny_clip[1]), **cpu)
    with torch.no_grad():
        x = towers.model.encode_image(torch.stack([towers.transform(picture) for picture in images.pictures]))
        for number, (weight, bias) in enumerate(layers):
            x = x @ weight.T + bias
            if number < 2:
                x = x.clamp(min=0) if kind == "Pic2Word" else F.gelu(x)
        mark, place = ("* ,", STAR) if kind == "Pic2Word" else ("$ that", DOLLAR)
        ids = towers.tokenizer([f"a photo of {mark} {edit}" for edit in edits])
        expected = F.normalize(clips_text(towers.model, ids, x, place), dim=-1)
        found = method.embed_queries(images, edits)
    torch.testing.assert_close(found, expected)
    alone = method.embed_queries(images, ["a photo of something that is blue", "has long sleeves"])
    assert not torch.allclose(alone[0], found[0]) and torch.allclose(alone[1], found[1], atol=1e-6)


def test_a_file_without_a_network_and_one_for_another_clip_are_told_in_a_sentence(clip_study, tmp_path):
    method = PublishedInversion()
    with pytest.raises(ModelError, match=r"no φ of Pic2Word, SEARLE or LinCIR could be loaded from .*phi\.pt"):
        method.fit(clip_study)
    torch.save({"Phi": {"layers.0.weight": torch.ones(4, 7), "layers.0.bias": torch.ones(4)}}, tmp_path / "phi.pt")
    assert load_phi(tmp_path / "phi.pt")[0](torch.ones(1, 7)).shape == (1, 4)
    torch.save({"state_dict": {"weight": torch.ones(3)}}, tmp_path / "phi.pt")
    with pytest.raises(ModelError, match="could be loaded from"):
        load_phi(tmp_path / "phi.pt")
    content, _ = published("SEARLE")
    content["Phi"]["layers.6.weight"] = torch.ones(WORDS + 1, 4 * WIDTH)
    content["Phi"]["layers.6.bias"] = torch.ones(WORDS + 1)
    torch.save(content, clip_study.stage.root / "phi.pt")
    with pytest.raises(ModelError, match=r"phi.pt is a φ from 12 to 33 dimensions, the study's CLIP needs \(12, 32\)"):
        method.fit(clip_study)


def test_layers_stand_in_the_order_of_their_numbers(tmp_path):
    names = [*(f"layers.{n}.0" for n in range(11)), "fc_out"]
    state = {f"{name}.weight": float(n + 1) * torch.ones(1, 1) for n, name in enumerate(names)}
    biases = {f"{name}.bias": float(n) * torch.ones(1) for n, name in enumerate(names)}
    torch.save({"state_dict_img2text": state | biases}, tmp_path / "phi.pt")
    weights = [layer.weight.item() for layer in load_phi(tmp_path / "phi.pt")[0] if hasattr(layer, "weight")]
    assert weights == [float(n + 1) for n in range(12)]


def test_without_a_file_the_parameter_is_named(two_tower_study):
    with pytest.raises(ParameterError, match=r"name their file with qformer\.phi"):
        PublishedInversion().fit(two_tower_study())


@pytest.mark.parametrize("kind", [Pic2Word, LinCIR])
def test_a_network_is_trained_and_found_again_and_the_towers_stay(two_tower_study, kind, capsys, tmp_path):
    prepared = two_tower_study(method_epochs=4, phi_lr=4e-3)
    before = {name: tensor.clone() for name, tensor in prepared.towers().model.state_dict().items()}
    method, again, loaded = kind(), kind(), kind()
    method.fit(prepared)
    losses = [float(line.split("loss ")[1].split()[0]) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == 4 and losses[-1] < 0.9 * losses[0]
    again.fit(prepared)
    assert "trained before, loaded" in capsys.readouterr().out
    method.save(tmp_path / "phi.safetensors")
    loaded.load(prepared, tmp_path / "phi.safetensors")
    for name, tensor in method.towers.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    images = prepared.read(["hat-val-0"])
    for other in (again, loaded):
        assert torch.equal(other.embed_queries(images, ["is blue"]), method.embed_queries(images, ["is blue"]))


def test_without_anything_to_train_on_it_says_so(two_tower_study):
    prepared = two_tower_study()
    for file in [*(prepared.stage.images / "captions").glob("cap.*.train.json"), prepared.stage.images / "pairs.json"]:
        file.unlink()
    with pytest.raises(ParameterError, match="method 'pic2word' needs a train split or image-caption pairs"):
        Pic2Word().fit(Prepared(prepared.stage))


@pytest.mark.parametrize(
    ("text", "masked"),
    [("a red dress with long sleeves", "a $ with $"), ("The same in blue-green.", "The same in $"), ("is it", "is it")],
)
def test_runs_of_keywords_become_one_word(text, masked):
    assert mask_keywords(text) == masked
