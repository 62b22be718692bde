"""The two sides of a model: where they start, and that only what is asked for learns."""

import pytest
import torch
from torch.nn import functional as F

from cirlib.analysis.dpo.dual_encoder import IMAGES_AT_ONCE, LastStage, WholeTower
from cirlib.benchmarks import query_texts
from cirlib.models.clip import load_clip
from cirlib.models.memo import Memo
from cirlib.study.parameters import DPO
from cirlib.study.pictures import open_rgb

IDS = [f"hat-train-{i}" for i in range(6)]
TEXTS = ["is blue", "has long sleeves and a very wide collar", "is red", "is red"]


@pytest.fixture
def encoder(context):
    """Makes the encoder of a fusion and what trains; None: the frozen one."""
    return lambda fusion, trains: context.encoder(
        DPO(fusion=fusion, trains=trains or "query_tower"), frozen=trains is None
    ).eval()


def learnt(encoder, images: bool = True) -> set[str]:
    """The parameters that a loss on queries, and on ``images``, reaches."""
    encoder.zero_grad()
    loss = F.normalize(encoder.query_vectors(IDS[:4], TEXTS), dim=-1)[:, 0].sum()
    if images:
        loss = loss + encoder.image_vectors(IDS)[..., 0].sum()
    loss.backward()
    return {name for name, p in encoder.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


@pytest.mark.parametrize("fusion", ["text_only", "sum", "qformer"])
def test_every_encoder_starts_where_the_frozen_one_is(encoder, fusion):
    frozen = encoder(fusion, None)
    assert not list(frozen.parameters())
    for trains in ("query_projection", "query_tower", "both_projections", "both_towers"):
        sides = [
            (one.query_vectors(IDS[:4], TEXTS), one.image_vectors(IDS)) for one in (encoder(fusion, trains), frozen)
        ]
        torch.testing.assert_close(*sides, atol=2e-3, rtol=0)


@pytest.mark.parametrize("layers", [1, 4])
def test_of_a_mini_text_tower_only_the_last_layers_learn(run_context, layers):
    """It starts where the whole tower is; texts read ahead give what texts read at once give."""
    whole, part = (run_context.encoder(DPO(layers=number)).eval() for number in (6, layers))
    known = [text for one in run_context.splits.reported.values() for text in query_texts(one, "and")[0]]
    for texts in (TEXTS, known[:4]):
        vectors = (encoder.query_vectors(IDS[:4], texts) for encoder in (part, whole))
        torch.testing.assert_close(*vectors, atol=2e-3, rtol=0)
    names = learnt(part, images=False)
    assert {name.split("layer.")[1][0] for name in names if "layer." in name} == {str(n) for n in range(layers)}
    assert not any("embeddings" in name for name in names) and any("embeddings" in name for name in learnt(whole))


def test_text_only_and_sum_are_what_they_say(encoder, context):
    text = context.towers.encode_texts(TEXTS)
    only = encoder("text_only", None).query_vectors(IDS[:4], TEXTS)
    torch.testing.assert_close(F.normalize(only, dim=-1), text)
    assert (only.norm(dim=-1) - 1).abs().max() > 0.01  # norms are kept for those who ask
    mixed = encoder("sum", None).query_vectors(IDS[:4], TEXTS)
    torch.testing.assert_close(mixed, 0.7 * context.prepared.clip[IDS[:4]] + 0.3 * text)


@pytest.mark.parametrize(
    ("fusion", "query", "image"), [("text_only", "queries.model", "images.visual"), ("qformer", "queries.composer", "")]
)
def test_only_what_is_asked_for_learns(encoder, fusion, query, image):
    assert learnt(encoder(fusion, "query_projection")) == {"query_map.weight"}
    assert learnt(encoder(fusion, "both_projections")) == {"query_map.weight", "image_map.weight"}
    tower = encoder(fusion, "query_tower")
    assert not tower.image_vectors(IDS).requires_grad
    assert {".".join(name.split(".")[:2]) for name in learnt(tower, False)} == {query}
    assert not any(name.endswith(("logit_scale", "raw_temperature")) for name in learnt(tower, False))
    both = encoder(fusion, "both_towers")
    assert both.image_vectors(IDS).requires_grad
    assert {".".join(name.split(".")[:2]) for name in learnt(both)} == {query, image or query}


def test_what_learns_is_a_copy(encoder, context):
    before = {name: tensor.clone() for name, tensor in context.towers.model.state_dict().items()}
    one = encoder("text_only", "both_towers")
    optimizer = torch.optim.SGD(one.parameters(), 1.0)
    learnt(one)
    optimizer.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in context.towers.model.state_dict().items())
    assert (one.image_vectors(IDS) - encoder("text_only", None).image_vectors(IDS)).abs().max() > 1e-3


def test_many_are_embedded_in_their_order_whatever_their_length(encoder, monkeypatch):
    one = encoder("sum", None)
    monkeypatch.setattr("cirlib.analysis.dpo.dual_encoder.CHUNK", 3)
    expected = F.normalize(one.query_vectors(IDS[:4], TEXTS), dim=-1)
    torch.testing.assert_close(one.embed_queries(IDS[:4], TEXTS), expected)
    torch.testing.assert_close(one.embed_images(IDS), one.image_vectors(IDS))


def test_the_last_stage_is_the_end_of_the_mini_image_tower(prepared):
    towers, files = prepared.towers(), prepared.images
    pixels = torch.stack([towers.transform(open_rgb(files[image])) for image in IDS])
    for precision, tolerance in ((torch.bfloat16, 5e-2), (torch.float32, 3e-3)):
        stage = LastStage(towers, Memo(lambda ids: LastStage.read(towers, [files[i] for i in ids])))
        stage.train()  # batch norm stays as it is, asked to train or not
        with torch.no_grad(), torch.autocast("cpu", precision, enabled=precision != torch.float32):
            torch.testing.assert_close(stage(IDS).float(), towers.encode_pixels(pixels), atol=tolerance, rtol=0)
    stage(IDS)[:, 0].sum().backward()
    assert all(p.grad is not None for p in stage.parameters())


def test_a_whole_image_tower_keeps_the_activations_of_a_few_images(tiny_clip, tmp_path, write_image, cpu):
    towers = load_clip(tiny_clip[0], str(tiny_clip[1]), **cpu)
    files = {f"p{i}": write_image(tmp_path / f"p{i}.png", i) for i in range(2 * IMAGES_AT_ONCE + 1)}
    tower, seen = WholeTower(towers, files), []
    tower.visual.register_forward_hook(lambda _module, args, _out: seen.append(len(args[0])))
    vectors = tower(list(files))
    with torch.no_grad():
        pixels = torch.stack([towers.transform(open_rgb(file)) for file in files.values()])
        expected = towers.model.encode_image(pixels, normalize=True)
    torch.testing.assert_close(vectors.detach(), expected)
    assert max(seen) == IMAGES_AT_ONCE
    vectors.sum().backward()
    assert tower.visual.proj.grad is not None
