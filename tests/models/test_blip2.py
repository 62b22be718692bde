"""BLIP-2 through transformers, on a tiny checkpoint saved in the real form."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, Blip2ForImageTextRetrieval

from cirlib.models.blip2 import Blip2Vision, load_blip2
from cirlib.models.image_encoding import encode_images
from cirlib.models.qformer import QFormerSettings, blip2_qformer
from cirlib.models.weights import ModelError
from cirlib.study.pictures import open_rgb

TEXTS = ["is blue", "has long sleeves and a much wider neck", "is red and longer"]
SETTINGS = [QFormerSettings(fusion, target) for fusion in ("one_pass", "two_pass") for target in ("max", "mean")]


@pytest.fixture(scope="module")
def model(tiny_blip2) -> Blip2ForImageTextRetrieval:
    """Transformers' own model."""
    return Blip2ForImageTextRetrieval.from_pretrained(tiny_blip2).eval()


@pytest.fixture(scope="module")
def processor(tiny_blip2):
    return AutoProcessor.from_pretrained(tiny_blip2)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, write_image) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pictures")
    return {f"p{i}": write_image(folder / f"p{i}.png", i, (40, 30 + i)) for i in range(3)}


@pytest.fixture(scope="module")
def inputs(processor, pictures) -> dict[str, torch.Tensor]:
    """Pictures and texts as the model's own processor prepares them."""
    images = [open_rgb(path) for path in pictures.values()]
    return dict(processor(images=images, text=TEXTS, padding=True, return_tensors="pt"))


@pytest.fixture(scope="module")
def tokens(tiny_blip2, cpu, inputs) -> torch.Tensor:
    """What the frozen tower hands to the Q-Former, (3, 5, 24)."""
    with torch.no_grad():
        return Blip2Vision(str(tiny_blip2), **cpu).encode_pixels(inputs["pixel_values"])


def composer(folder: Path, settings: QFormerSettings):
    return blip2_qformer(str(folder), settings).eval()


@pytest.fixture(scope="module")
def fused(model, inputs, tokens) -> torch.Tensor:
    """The query states after the pass with text and image, straight from the model's modules, (3, 4, 32)."""
    with torch.no_grad():
        queries = model.query_tokens.expand(3, -1, -1)
        states = model.qformer(
            query_embeds=model.embeddings(input_ids=inputs["input_ids"], query_embeds=queries),
            query_length=4,
            attention_mask=torch.cat([torch.ones(3, 4, dtype=torch.long), inputs["attention_mask"]], 1),
            encoder_hidden_states=tokens,
            encoder_attention_mask=torch.ones(3, 5, dtype=torch.long),
        ).last_hidden_state
    return states[:, :4]


def normalized(x: torch.Tensor) -> torch.Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got.detach(), expected.detach(), atol=2e-5, rtol=1e-4)


def test_vision_tokens_are_the_vision_towers_last_states(tiny_blip2, cpu, model, inputs, pictures, tmp_path):
    vision = Blip2Vision(str(tiny_blip2), **cpu)
    assert vision.shape == (5, 24)
    store = encode_images(vision, pictures, tmp_path / "store", batch_size=2, num_workers=0)
    with torch.no_grad():
        expected = model.vision_model(pixel_values=inputs["pixel_values"]).last_hidden_state
        close(vision.encode_pixels(inputs["pixel_values"]), expected)
    torch.testing.assert_close(store[list(pictures)], expected, atol=5e-3, rtol=1e-3)  # float16 on disk


def test_the_transform_is_the_processors_own(tiny_blip2, cpu, pictures, inputs):
    transform = Blip2Vision(str(tiny_blip2), **cpu).transform
    got = torch.stack([transform(open_rgb(path)) for path in pictures.values()])
    assert torch.equal(got, inputs["pixel_values"])


def test_targets_and_texts_are_the_contrastive_embeddings_of_the_models_forward(tiny_blip2, model, inputs, tokens):
    ours = composer(tiny_blip2, QFormerSettings(target="max"))
    with torch.no_grad():
        theirs = model(**inputs, use_image_text_matching_head=False)
    assert theirs.image_embeds.shape == (3, 4, 16)
    close(ours.embed_targets(tokens), theirs.image_embeds)
    close(ours.embed_texts(TEXTS), theirs.text_embeds)
    for row in range(3):  # the model's own score is that of the best token; forward scores batches only for one text
        one = {name: tensor[row : row + 1] for name, tensor in inputs.items()}
        with torch.no_grad():
            score = model(**one, use_image_text_matching_head=False).logits_per_image
        close((theirs.image_embeds[row] @ ours.embed_texts(TEXTS[row : row + 1]).T).max()[None, None], score)


def test_mean_targets_are_the_mean_of_the_projected_states(tiny_blip2, model, tokens):
    with torch.no_grad():
        states = model.qformer(
            query_embeds=model.query_tokens.expand(3, -1, -1), encoder_hidden_states=tokens
        ).last_hidden_state
        close(
            composer(tiny_blip2, QFormerSettings(target="mean")).embed_targets(tokens),
            normalized(model.vision_projection(states).mean(1)),
        )


def test_fused_states_are_those_of_the_models_matching_head(tiny_blip2, model, inputs, fused):
    with torch.no_grad():
        logits = model(**inputs, use_image_text_matching_head=True).logits_per_image
        close(model.itm_head(fused).mean(1), logits)


def test_one_pass_queries_are_the_mean_of_the_projected_fused_states(tiny_blip2, model, tokens, fused):
    with torch.no_grad():
        got = composer(tiny_blip2, QFormerSettings("one_pass")).embed_queries(tokens, TEXTS)
        close(got, normalized(model.vision_projection(fused).mean(1)))


def test_two_pass_queries_are_the_text_state_after_fused_states_replaced_the_queries(
    tiny_blip2, model, inputs, tokens, fused
):
    with torch.no_grad():
        words = model.embeddings.word_embeddings(inputs["input_ids"])
        words = words + model.embeddings.position_embeddings.weight[: words.shape[1]]
        states = model.qformer(
            query_embeds=torch.cat([fused, words], 1),
            query_length=0,  # no image: every token goes through the text feed-forward
            attention_mask=torch.cat([torch.ones(3, 4, dtype=torch.long), inputs["attention_mask"]], 1),
        ).last_hidden_state
        got = composer(tiny_blip2, QFormerSettings("two_pass")).embed_queries(tokens, TEXTS)
        close(got, normalized(model.text_projection(states[:, 4])))


@pytest.mark.parametrize("settings", SETTINGS)
def test_every_part_that_is_used_gets_a_gradient(tiny_blip2, tokens, settings):
    ours = composer(tiny_blip2, settings)
    queries, targets = ours.embed_queries(tokens, TEXTS), ours.embed_targets(tokens)
    (queries.sum() * targets.sum() / ours.temperature).backward()
    without = {name.split(".")[0] for name, p in ours.named_parameters() if p.grad is None}
    assert without <= ({"qformer"} | ({"text_projection"} if settings.fusion == "one_pass" else set()))
    assert all(p.grad is not None for name, p in ours.qformer.named_parameters() if "crossattention" in name)


@pytest.fixture
def copy(tiny_blip2, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_blip2, tmp_path / "copy"))


def refusal(name: str) -> str:
    with pytest.raises(ModelError) as caught:
        load_blip2(name)
    text = str(caught.value)
    assert "\n" not in text
    assert repr(name) in text
    return text


@pytest.mark.parametrize("name", ["Salesforce/blip2-itm-vit-g", "/nowhere/blip2"])
def test_a_missing_model_gives_one_sentence_offline(name):
    assert "could not be loaded (a hub id or a local folder)" in refusal(name)


@pytest.mark.parametrize("damage", ["removed", "cut off", "pickled"])
def test_weights_that_are_damaged_or_a_pickle_are_refused(copy, damage):
    file = copy / "model.safetensors"
    whole = file.read_bytes()
    if damage == "cut off":
        file.write_bytes(whole[: len(whole) // 2])
    else:
        file.unlink()
    if damage == "pickled":
        torch.save({"query_tokens": torch.zeros(1)}, copy / "pytorch_model.bin")
    assert "could not be loaded" in refusal(str(copy))


def test_a_checkpoint_that_lacks_a_part_is_refused_not_left_random(copy):
    state = load_file(copy / "model.safetensors")
    kept = {name: tensor for name, tensor in state.items() if not name.startswith("text_projection")}
    save_file(kept, copy / "model.safetensors", {"format": "pt"})
    assert "it lacks 'text_projection.bias'" in refusal(str(copy))


def test_remote_code_is_not_run(copy):
    config = json.loads((copy / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "evil.Model", "AutoProcessor": "evil.Processor"}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "evil.py").write_text("raise SystemExit('remote code was run')\n")
    load_blip2(str(copy))
