"""Query and image encoder: where they start, and that only what is asked for learns."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from cirlib.analysis.dpo.dual_encoder import (
    Memo,
    QFormerDualEncoder,
    TwoTowerDualEncoder,
    all_similarities,
    similarities,
)
from cirlib.analysis.dpo.image_tower import LastStage, WholeTower, encode_early
from cirlib.models.clip import load_clip, wrap_mini_towers
from cirlib.models.mini import build_two_towers
from cirlib.models.qformer import QFormerSettings, mini_qformer
from cirlib.study.pictures import open_rgb

IDS = [f"image-{i}" for i in range(6)]
TEXTS = ["is blue", "has long sleeves and a very wide collar", "is red", "is red"]
LEVELS = ["query_projection", "query_tower", "both_projections", "both_towers"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    from PIL import Image

    folder, generator = tmp_path_factory.mktemp("images"), torch.Generator().manual_seed(0)
    for image in IDS:
        pixels = torch.randint(0, 256, (6, 5, 3), generator=generator, dtype=torch.uint8).numpy()
        Image.fromarray(pixels).resize((40, 48)).save(folder / f"{image}.png")
    return {image: folder / f"{image}.png" for image in IDS}


@pytest.fixture(scope="module")
def towers(tiny_clip, cpu):
    return load_clip(tiny_clip[0], str(tiny_clip[1]), **cpu)


@pytest.fixture(scope="module")
def two(towers, images, make_store, tmp_path_factory):
    """Makes two-tower encoder; ``make(trains, weight)``."""
    with torch.no_grad():
        features = WholeTower(towers, images)(IDS)
    store = make_store(tmp_path_factory.mktemp("store") / "clip", IDS, features)
    memo = Memo(lambda texts: towers.encode_texts(texts, normalize=False))

    def make(trains: str | None, weight: float | None = None) -> TwoTowerDualEncoder:
        return TwoTowerDualEncoder(towers, store, memo, lambda: WholeTower(towers, images), weight, trains).eval()

    return make


@pytest.fixture(scope="module")
def fused(make_store, tmp_path_factory):
    """Makes Q-Former encoder; ``make(trains)``."""
    torch.manual_seed(0)
    composer = mini_qformer(2, 8, QFormerSettings()).eval()
    features = torch.randn(len(IDS), 4, 1280, generator=torch.Generator().manual_seed(0))
    store = make_store(tmp_path_factory.mktemp("tokens") / "tokens", IDS, features)

    @torch.no_grad()
    def queries(keys: list) -> torch.Tensor:
        return composer.embed_queries(store[[image for image, _ in keys]], [text for _, text in keys])

    @torch.no_grad()
    def targets(ids: list) -> torch.Tensor:
        return composer.embed_targets(store[ids])

    return lambda trains: QFormerDualEncoder(composer, store, Memo(queries), Memo(targets), trains).eval()


def test_a_memo_computes_each_feature_once():
    asked = []
    memo = Memo(lambda keys: asked.append(list(keys)) or torch.tensor([[float(key)] for key in keys]))
    assert memo([3, 1, 3]).ravel().tolist() == [3, 1, 3]
    assert memo([1, 2]).ravel().tolist() == [1, 2]
    assert asked == [[3, 1], [2]]


@pytest.mark.parametrize("trains", LEVELS)
@pytest.mark.parametrize("weight", [None, 0.3])
def test_two_towers_start_where_the_frozen_ones_are(two, trains, weight):
    encoder, frozen = two(trains, weight), two(None, weight)
    assert not list(frozen.parameters())
    with torch.no_grad():
        for one, other in ((encoder, frozen), (frozen, encoder)):
            torch.testing.assert_close(
                one.query_vectors(IDS[:4], TEXTS), other.query_vectors(IDS[:4], TEXTS), atol=2e-3, rtol=0
            )
            torch.testing.assert_close(one.image_vectors(IDS), other.image_vectors(IDS), atol=2e-3, rtol=0)


@pytest.mark.parametrize("trains", LEVELS)
def test_the_q_former_starts_where_the_frozen_one_is(fused, trains):
    encoder, frozen = fused(trains), fused(None)
    with torch.no_grad():
        torch.testing.assert_close(
            encoder.query_vectors(IDS[:4], TEXTS), frozen.query_vectors(IDS[:4], TEXTS), atol=1e-4, rtol=0
        )
        torch.testing.assert_close(encoder.image_vectors(IDS), frozen.image_vectors(IDS), atol=1e-4, rtol=0)


def test_text_only_and_sum_are_what_they_say(two, towers):
    text = towers.encode_texts(TEXTS)
    only = two(None).query_vectors(IDS[:4], TEXTS)
    torch.testing.assert_close(F.normalize(only, dim=-1), text)
    assert (only.norm(dim=-1) - 1).abs().max() > 0.01  # norms are kept for those who ask
    mixed = two(None, 0.3).query_vectors(IDS[:4], TEXTS)
    torch.testing.assert_close(mixed, 0.7 * two(None).image_vectors(IDS[:4]) + 0.3 * text)


def learnt(encoder, images: bool) -> set[str]:
    """The parameters that a loss on queries, and on ``images``, reaches."""
    encoder.zero_grad()
    loss = F.normalize(encoder.query_vectors(IDS[:4], TEXTS), dim=-1)[:, 0].sum()
    if images:
        loss = loss + encoder.image_vectors(IDS)[..., 0].sum()
    loss.backward()
    return {name for name, p in encoder.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


def test_only_what_is_asked_for_learns_in_two_towers(two):
    assert learnt(two("query_projection"), True) == {"query_map.weight"}
    assert learnt(two("both_projections"), True) == {"query_map.weight", "image_map.weight"}
    text = learnt(two("query_tower"), True)
    assert text and all(name.startswith("text_tower.") for name in text)
    assert not any("visual" in name or "logit_scale" in name for name in text)
    both = learnt(two("both_towers"), True)
    assert {name.split(".")[0] for name in both} == {"text_tower", "image_tower"}


def test_only_what_is_asked_for_learns_in_the_q_former(fused):
    assert learnt(fused("query_projection"), True) == {"query_map.weight"}
    assert learnt(fused("both_projections"), True) == {"query_map.weight", "image_map.weight"}
    tower = fused("query_tower")
    assert not tower.image_vectors(IDS).requires_grad
    assert all(name.startswith("composer.") for name in learnt(tower, False))
    assert fused("both_towers").image_vectors(IDS).requires_grad


def test_what_learns_is_a_copy(two, towers):
    before = {name: tensor.clone() for name, tensor in towers.model.state_dict().items()}
    encoder = two("both_towers")
    optimizer = torch.optim.SGD(encoder.parameters(), 1.0)
    learnt(encoder, True)
    optimizer.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in towers.model.state_dict().items())
    assert (encoder.image_vectors(IDS) - two(None).image_vectors(IDS)).abs().max() > 1e-3


def test_the_last_stage_is_the_end_of_the_mini_image_tower(images, tmp_path, cpu):
    torch.manual_seed(0)
    towers = wrap_mini_towers(build_two_towers(16), 64, **cpu)
    store = encode_early(towers, images, tmp_path / "early", 64, batch_size=4, num_workers=0)
    assert store.shape == (6, 320, 2, 2)
    stage = LastStage(towers, store).train()  # batch norm stays as it is, asked to train or not
    pixels = torch.stack([towers.transform(open_rgb(file)) for file in images.values()])
    with torch.no_grad():
        torch.testing.assert_close(stage(IDS), towers.encode_pixels(pixels), atol=3e-3, rtol=0)
    stage(IDS)[:, 0].sum().backward()
    assert all(p.grad is not None for p in stage.parameters())


def test_the_best_of_several_tokens_counts():
    queries = torch.eye(3)[:2]
    tokens = torch.eye(3)[torch.tensor([[0, 1], [1, 2], [2, 2]])]  # (3, 2, 3): three images of two tokens
    assert all_similarities(queries, tokens).tolist() == [[1, 0, 0], [1, 1, 0]]
    assert similarities(queries, tokens[torch.tensor([[0, 1], [2, 1]])]).tolist() == [[1, 0], [0, 1]]
    assert all_similarities(queries, torch.eye(3)).tolist() == [[1, 0, 0], [0, 1, 0]]
    assert similarities(queries, torch.eye(3)[torch.tensor([[0, 1], [1, 0]])]).tolist() == [[1, 0], [1, 0]]
