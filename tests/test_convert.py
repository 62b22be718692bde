"""Published weights become a folder; what comes out of it is what the published models compute."""

import json
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import Blip2ForImageTextRetrieval

from cirlib.benchmarks import join_captions
from cirlib.benchmarks.caption_joining import clean_caption
from cirlib.convert import convert
from cirlib.losses import info_nce
from cirlib.models.blip2 import Blip2Vision
from cirlib.models.qformer import QFormerSettings, blip2_qformer
from cirlib.models.weights import ModelError
from cirlib.retrieval.similarity import similarity
from cirlib.study.errors import WriteError

FILES = ["lavis_blip2.pth", "sprc.pt"]


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got.detach(), expected, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def golden(real_data):
    return real_data("golden")


@pytest.fixture(scope="module")
def expected(golden) -> dict[str, Tensor]:
    return load_file(golden / "expected.safetensors")


@pytest.fixture(scope="module")
def texts(golden) -> list[str]:
    pairs = json.loads((golden / "texts.json").read_text())["captions"]
    return [join_captions(pair, "and")[0] for pair in pairs]


@pytest.fixture(scope="module", params=FILES)
def folder(request, golden, tmp_path_factory):
    out = tmp_path_factory.mktemp("converted") / "model"
    convert(golden / request.param, out)
    return out


@pytest.fixture(scope="module")
def state(golden) -> dict[str, Tensor]:
    return torch.load(golden / "lavis_blip2.pth", weights_only=True)["model"]


def test_image_tokens_are_the_published_towers(folder, expected, cpu):
    vision = Blip2Vision(str(folder), **cpu)
    with torch.no_grad():
        for side in ("reference", "target"):
            close(vision.encode_pixels(expected[f"{side}_pixels"]), expected[f"{side}_tokens"])


def test_transformers_opens_the_folder_whole(folder, expected):
    model, loading = Blip2ForImageTextRetrieval.from_pretrained(folder, output_loading_info=True)
    assert not (loading["missing_keys"] or loading["unexpected_keys"] or loading["mismatched_keys"])
    with torch.no_grad():
        one = torch.tensor([[101, 102]])
        outputs = model.eval()(
            pixel_values=expected["target_pixels"], input_ids=one, attention_mask=one > 0,
            use_image_text_matching_head=False,
        )  # fmt: skip
    close(outputs.image_embeds, expected["sprc_targets"])


def test_the_example_of_the_docs_scores_pictures_of_ones_own(folder):
    page = Path(__file__).parents[1] / "docs" / "fashioniq.md"
    (example,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    names = {"pictures": [Image.new("RGB", (30, 50), colour) for colour in ("red", "blue")]}
    exec(example.replace("data/models/sprc", str(folder)), names)
    assert names["scores"].shape == (1, 2) and names["scores"].abs().max() <= 1


def test_texts_are_cleaned_as_published(golden, texts):
    published = json.loads((golden / "texts.json").read_text())
    assert [clean_caption(text) for text in texts] == published["sprc_texts"] == published["covr_texts"]


def test_sprcs_query_targets_and_similarities(folder, expected, texts):
    composer = blip2_qformer(str(folder), QFormerSettings("two_pass", "max")).eval()
    queries = composer.embed_queries(expected["reference_tokens"], texts)
    targets = composer.embed_targets(expected["target_tokens"])
    close(queries, expected["sprc_query"])
    close(targets, expected["sprc_targets"])
    close(similarity(queries, targets), expected["sprc_similarities"])


def test_sprcs_three_terms(folder, expected, texts, golden):
    composer = blip2_qformer(str(folder), QFormerSettings("two_pass", "max"), prompts=True).eval()
    (state,) = (part for part in torch.load(golden / "sprc.pt", weights_only=True).values() if isinstance(part, dict))
    close(composer.temperature, state["temp"])
    out = composer.embed_queries(expected["reference_tokens"], texts, terms=True)
    targets, width = composer.embed_targets(expected["target_tokens"]), 16
    for name, vectors in (("itc", out[:, :width]), ("rtc", out[:, width : 2 * width])):
        loss = info_nce(vectors, targets, temperature=composer.temperature)
        close(loss[None], expected[f"sprc_loss_{name}"])
    close(out[:, -1].mean()[None], expected["sprc_loss_align"])


def test_covrs_query_and_target(folder, expected, texts):
    composer = blip2_qformer(str(folder), QFormerSettings("covr", "mean")).eval()
    close(composer.embed_queries(expected["reference_tokens"], texts), expected["covr_query"])
    close(composer.embed_targets(expected["target_tokens"]), expected["covr_target"])


def test_a_norm_that_learns_starts_as_the_towers_own(folder, expected, texts, cpu):
    tower = Blip2Vision(str(folder), **cpu, normed=False)
    composer = blip2_qformer(str(folder), QFormerSettings("two_pass", "max"), ln_vision=True).eval()
    with torch.no_grad():
        tokens = tower.encode_pixels(expected["reference_pixels"])
        close(composer.image_norm(tokens), expected["reference_tokens"])
    close(composer.embed_queries(tokens, texts), expected["sprc_query"])
    composer.embed_queries(tokens, texts).sum().backward()
    assert composer.image_norm.weight.grad.abs().max() > 0
    assert tower.key != Blip2Vision(str(folder), **cpu).key


class Schedule:
    """A class that only a training's own code has, as CoVR's."""

    def __init__(self) -> None:
        self.step = 3


FORMS = ["lightning .ckpt", "CoVR's .ckpt", "bare", "half precision", "compiled", "momentum"]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_file_gives_the_same_model(state, tmp_path, expected, texts, form):
    file = tmp_path / ("model.ckpt" if "ckpt" in form else "model.pt")
    forms = {
        "lightning .ckpt": {"epoch": 3, "state_dict": {f"model.{name}": tensor for name, tensor in state.items()}},
        "CoVR's .ckpt": {
            "epoch": 4,
            "model": {n: tensor for n, tensor in state.items() if not n.startswith(("itm_head", "temp"))},
            "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-5}]},
            "scheduler": Schedule(),
        },
        "bare": state,
        "momentum": {"model": {f"model_m.{n}": torch.zeros_like(t) for n, t in state.items()} | state},
        "half precision": {"model": {n: t.half() if "visual_encoder" in n else t for n, t in state.items()}},
        "compiled": {"model": {f"module._orig_mod.{name}": tensor for name, tensor in state.items()}},
    }
    torch.save(forms[form], file)
    convert(file, tmp_path / "out")
    composer = blip2_qformer(str(tmp_path / "out"), QFormerSettings("two_pass", "max")).eval()
    close(composer.embed_queries(expected["reference_tokens"], texts), expected["sprc_query"])


def test_a_base_gives_what_a_training_left_out(state, folder, tmp_path, expected, cpu):
    kept = {name: tensor for name, tensor in state.items() if not name.startswith(("visual_encoder", "ln_vision"))}
    torch.save({"model": kept}, tmp_path / "trained.pth")
    with pytest.raises(ModelError, match=r"trained\.pth lacks vision_model\..+: --base"):
        convert(tmp_path / "trained.pth", tmp_path / "out")
    convert(tmp_path / "trained.pth", tmp_path / "out", base=str(folder))
    with torch.no_grad():
        tokens = Blip2Vision(str(tmp_path / "out"), **cpu).encode_pixels(expected["target_pixels"])
    close(tokens, expected["target_tokens"])


def test_what_a_base_gives_is_told(state, folder, tmp_path):
    """A file of another training may lack more than the frozen tower."""
    kept = {name: tensor for name, tensor in state.items() if not name.startswith(("ln_vision", "text_proj"))}
    torch.save({"model": kept}, tmp_path / "trained.pth")
    told = convert(tmp_path / "trained.pth", tmp_path / "out", base=str(folder))
    assert told.endswith(f"; from {folder}: 2 tensors of vision_model, 2 tensors of text_projection")


def test_others_may_read_what_is_written_as_the_umask_has_it(folder, tmp_path):
    (tmp_path / "file").touch()
    modes = {file.name: stat.filemode(file.stat().st_mode) for file in (tmp_path / "file", *folder.iterdir())}
    assert len({*modes.values()}) == 1, modes


def test_heads_are_as_wide_as_published_else_as_many_as_layers_or_as_asked(state, golden, tmp_path):
    convert(golden / "sprc.pt", tmp_path / "own", heads={"qformer": 2})
    config = json.loads((tmp_path / "own" / "config.json").read_text())
    assert config["qformer_config"]["num_attention_heads"] == 2
    assert config["vision_config"]["num_attention_heads"] == 2
    assert (
        config["qformer_config"]["vocab_size"] == 30_523 and config["qformer_config"]["cross_attention_frequency"] == 2
    )


@pytest.mark.parametrize(
    "damage", ["cut off", "cut short", "text", "no model", "another size", "no layers", "NaN", "a folder"]
)
def test_what_is_no_model_is_refused_in_one_sentence(state, tmp_path, damage):
    file = tmp_path / "file.pt"
    if damage == "a folder":
        file.mkdir()
    elif damage == "text":
        file.write_text("<html>404</html>")
    else:
        wrong = {
            "no model": {"a": 1},
            "another size": state | {"ln_vision.weight": torch.ones(7)},
            "no layers": {name: tensor for name, tensor in state.items() if "encoder.layer" not in name},
            "NaN": state | {"temp": torch.tensor(float("nan"))},
        }
        torch.save({"model": wrong.get(damage, state)}, file)
    if damage.startswith("cut"):
        file.write_bytes(file.read_bytes()[: 5000 if damage == "cut short" else 500_000])
    with pytest.raises(ModelError) as caught:
        convert(file, tmp_path / "out")
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)
    assert ("damaged" in str(caught.value)) == (damage.startswith("cut") or damage == "text")
    assert list(tmp_path.iterdir()) == [file]


def test_no_code_of_a_file_is_run_nor_advised_to_be_run(state, tmp_path):
    class Harm:
        def __reduce__(self) -> tuple:
            return open, (str(tmp_path / "harm"), "w")

    torch.save({"model": state, "args": Harm()}, tmp_path / "file.pt")
    with pytest.raises(ModelError, match=r"file\.pt could not .*: it holds io\.open, and no code of a file is run$"):
        convert(tmp_path / "file.pt", tmp_path / "out")
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("heads", [0, -4, 5])
def test_heads_that_do_not_divide_the_width_are_refused(golden, tmp_path, heads):
    with pytest.raises(ModelError, match=rf"--vision-heads must divide .* 24, given {heads}"):
        convert(golden / "sprc.pt", tmp_path / "out", heads={"vision": heads})
    assert not list(tmp_path.iterdir())


def test_no_folder_that_holds_something_is_written_into(golden, tmp_path):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    for out in (tmp_path, tmp_path / "file", tmp_path / "file" / "out", tmp_path / ("n" * 300)):
        with pytest.raises(WriteError, match=r"is not empty|cannot be a folder"):
            convert(golden / "sprc.pt", out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
    convert(golden / "sprc.pt", tmp_path / "folder")
    assert (tmp_path / "folder" / "config.json").is_file()


def test_the_command_says_where_the_model_is_or_why_it_is_not(golden, tmp_path):
    def run(*words: object) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "cirlib.convert", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True)

    done = run(golden / "sprc.pt", "--out", tmp_path / "sprc")
    heads = "vision tower with 2 heads, Q-Former with 4 heads"
    assert done.stdout == f"{tmp_path / 'sprc'} holds the model ({heads}): models.fusion={tmp_path / 'sprc'}\n"
    refused = run(tmp_path / "nothing.pt", "--out", tmp_path / "out")
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1
