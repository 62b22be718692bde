"""BLIP-2 through transformers, on a tiny checkpoint saved in the real form: every number is the model's own."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import AutoProcessor, Blip2ForImageTextRetrieval

from cirlib.models.blip2 import Blip2Vision, load_blip2
from cirlib.models.qformer import QFormerComposer, QFormerSettings, blip2_qformer
from cirlib.models.weights import ModelError
from cirlib.study.pictures import open_rgb

TEXTS = ["is blue", "has long sleeves and a much wider neck", "is red and longer"]


@pytest.fixture(scope="module")
def model(tiny_blip2) -> Blip2ForImageTextRetrieval:
    """Transformers' own model."""
    return Blip2ForImageTextRetrieval.from_pretrained(tiny_blip2).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, write_image) -> list:
    folder = tmp_path_factory.mktemp("pictures")
    return [open_rgb(write_image(folder / f"p{i}.png", i, (40, 30 + i))) for i in range(3)]


@pytest.fixture(scope="module")
def inputs(tiny_blip2, pictures) -> dict[str, torch.Tensor]:
    """Pictures and texts as the model's own processor prepares them."""
    processor = AutoProcessor.from_pretrained(tiny_blip2)
    return dict(processor(images=pictures, text=TEXTS, padding=True, return_tensors="pt"))


@pytest.fixture(scope="module")
def tokens(model, inputs) -> torch.Tensor:
    """What the frozen tower hands to the Q-Former, (3, 5, 24)."""
    return model.vision_model(pixel_values=inputs["pixel_values"]).last_hidden_state


@pytest.fixture(scope="module")
def fused(model, inputs, tokens) -> torch.Tensor:
    """The query states after the pass with text and image, (3, 4, 32), of which the matching head makes its logits."""
    queries = model.query_tokens.expand(3, -1, -1)
    states = model.qformer(
        query_embeds=model.embeddings(input_ids=inputs["input_ids"], query_embeds=queries),
        query_length=4,
        attention_mask=torch.cat([torch.ones(3, 4, dtype=torch.long), inputs["attention_mask"]], 1),
        encoder_hidden_states=tokens,
    ).last_hidden_state[:, :4]
    close(model.itm_head(states).mean(1), model(**inputs, use_image_text_matching_head=True).logits_per_image)
    return states


def composer(folder: Path, settings: QFormerSettings) -> QFormerComposer:
    return blip2_qformer(str(folder), settings).eval()


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got.detach(), expected, atol=2e-5, rtol=1e-4)


def test_pixels_are_the_processors_own_and_tokens_the_vision_towers_last_states(
    tiny_blip2, cpu, inputs, tokens, pictures
):
    vision = Blip2Vision(str(tiny_blip2), **cpu)
    assert vision.shape == (5, 24)
    assert torch.equal(torch.stack([vision.transform(picture) for picture in pictures]), inputs["pixel_values"])
    close(vision.encode_pixels(inputs["pixel_values"]), tokens)


def test_targets_and_texts_are_the_contrastive_embeddings_of_the_models_forward(tiny_blip2, model, inputs, tokens):
    ours = composer(tiny_blip2, QFormerSettings(target="max"))
    theirs = model(**inputs, use_image_text_matching_head=False)
    assert theirs.image_embeds.shape == (3, 4, 16)
    close(ours.embed_targets(tokens), theirs.image_embeds)
    close(ours.embed_texts(TEXTS), theirs.text_embeds)
    one = {name: tensor[:1] for name, tensor in inputs.items()}  # forward scores batches only for one text
    score = model(**one, use_image_text_matching_head=False).logits_per_image  # that of the best token
    close((theirs.image_embeds[0] @ theirs.text_embeds[0]).max()[None, None], score)
    states = model.qformer(query_embeds=model.query_tokens.expand(3, -1, -1), encoder_hidden_states=tokens)
    mean = F.normalize(model.vision_projection(states.last_hidden_state).mean(1), dim=-1)
    close(composer(tiny_blip2, QFormerSettings(target="mean")).embed_targets(tokens), mean)


def test_one_pass_queries_are_the_mean_of_the_projected_fused_states(tiny_blip2, model, tokens, fused):
    got = composer(tiny_blip2, QFormerSettings("one_pass")).embed_queries(tokens, TEXTS)
    close(got, F.normalize(model.vision_projection(fused).mean(1), dim=-1))


def test_covr_queries_are_the_mean_of_normalised_text_projections_and_its_targets_do_not_learn(
    tiny_blip2, model, tokens, fused
):
    ours = composer(tiny_blip2, QFormerSettings("covr", "mean"))
    theirs = F.normalize(model.text_projection(fused), dim=-1).mean(1)
    close(ours.embed_queries(tokens, TEXTS), F.normalize(theirs, dim=-1))
    states = model.qformer(query_embeds=model.query_tokens.expand(3, -1, -1), encoder_hidden_states=tokens)
    targets = F.normalize(model.vision_projection(states.last_hidden_state), dim=-1).mean(1)
    close(ours.embed_targets(tokens), F.normalize(targets, dim=-1))
    for parameter in ours.parameters():
        parameter.data.add_(parameter.requires_grad)
    close(ours.train().embed_targets(tokens), F.normalize(targets, dim=-1))
    assert not ours.embed_targets(tokens).requires_grad
    for texts in (None, TEXTS):  # targets are looked at through what stays
        assert ours.attention_maps(tokens, texts).shape == (3, 4, 2, 2)


def test_two_pass_queries_are_the_text_state_after_fused_states_replaced_the_queries(
    tiny_blip2, model, inputs, tokens, fused
):
    words = model.embeddings.word_embeddings(inputs["input_ids"])
    words = words + model.embeddings.position_embeddings.weight[: words.shape[1]]
    states = model.qformer(
        query_embeds=torch.cat([fused, words], 1),
        query_length=0,  # no image: every token goes through the text feed-forward
        attention_mask=torch.cat([torch.ones(3, 4, dtype=torch.long), inputs["attention_mask"]], 1),
    ).last_hidden_state
    got = composer(tiny_blip2, QFormerSettings("two_pass")).embed_queries(tokens, TEXTS)
    close(got, F.normalize(model.text_projection(states[:, 4]), dim=-1))


# ------------------------------------------------------------------ what is refused


def refusal(name: str) -> str:
    with pytest.raises(ModelError) as caught:
        load_blip2(name)
    text = str(caught.value)
    assert "\n" not in text and repr(name) in text
    return text


@pytest.mark.parametrize("name", ["Salesforce/blip2-itm-vit-g", "/nowhere/blip2"])
def test_a_missing_model_gives_one_sentence_offline(name):
    assert "could not be loaded (a hub id or a local folder)" in refusal(name)


def test_a_folder_that_has_only_torchs_own_file_loads_the_same(tiny_blip2, tmp_path, model):
    copy = shutil.copytree(tiny_blip2, tmp_path / "copy")
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    loaded = load_blip2(str(copy))[0].state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("damage", ["cut off", "pickled", "lacks a part"])
def test_weights_that_are_damaged_run_code_or_are_another_models_are_refused(tiny_blip2, tmp_path, damage):
    copy = shutil.copytree(tiny_blip2, tmp_path / "copy")
    file, state = copy / "model.safetensors", load_file(copy / "model.safetensors")
    said = "could not be loaded"
    if damage == "cut off":
        file.write_bytes(file.read_bytes()[:5000])
    elif damage == "pickled":
        file.unlink()
        torch.save(state | {"code": print}, copy / "pytorch_model.bin")
    else:
        kept = {name: tensor for name, tensor in state.items() if not name.startswith("text_projection")}
        save_file(kept, file, {"format": "pt"})
        said = "it lacks 'text_projection.bias'"
    assert said in refusal(str(copy))


def test_remote_code_is_not_run(tiny_blip2, tmp_path):
    copy = shutil.copytree(tiny_blip2, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "evil.Model", "AutoProcessor": "evil.Processor"}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "evil.py").write_text("raise SystemExit('remote code was run')\n")
    load_blip2(str(copy))
