"""The gated sum: what it makes of images and words, its training on triplets and pairs, and what it keeps."""

import pytest
import torch

from cirlib.models.colours import BINS
from cirlib.training.joint_sum import MEMBERS, WIDTH, GatedSum, JointSum

TEXTS = ["is blue", "has stripes", "is 4 sizes bigger"]


@pytest.fixture
def photographs(two_tower_study, make_store):
    """The small study with image tokens that say the image's number."""

    def prepare(**qformer):
        prepared = two_tower_study(method_epochs=6, **qformer)
        if not (prepared.stage.data / "tokens").is_dir():
            ids, generator = list(prepared.images), torch.Generator().manual_seed(0)
            tokens = torch.randn(len(ids), 4, 1280, generator=generator)
            make_store(prepared.stage.data / "tokens", ids, tokens)
        return prepared

    return prepare


def test_the_query_keeps_of_the_reference_what_the_gate_lets_through():
    torch.manual_seed(0)
    model = GatedSum(6, 4).eval()
    x, t = torch.randn(2, 6), torch.randn(2, 4)
    image, text = model.embed_images(x), model.embed_texts(t)
    kept = model.gate(torch.cat([image, text], dim=1) * WIDTH**0.5).sigmoid()
    share = 1 / (1 + (-model.share).exp())
    mixed = (1 - share) * image * kept + share * text
    torch.testing.assert_close(model.compose(x, t), mixed / mixed.norm(dim=1, keepdim=True))


def test_it_learns_and_is_found_again_as_it_was_saved(photographs, tmp_path, capsys):
    prepared = photographs()
    method = JointSum()
    method.fit(prepared)
    losses = [float(line.split("loss ")[1].split()[0]) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == 6 and losses[-1] < losses[0]
    method.save(tmp_path / "method.safetensors")
    again = JointSum()
    again.load(prepared, tmp_path / "method.safetensors")
    images = prepared.read([f"hat-train-{n}" for n in range(3)])
    queries, targets = again.embed_queries(images, TEXTS), again.embed_targets(images)
    assert queries.shape == targets.shape == (3, MEMBERS * WIDTH)
    torch.testing.assert_close(queries, method.embed_queries(images, TEXTS))
    torch.testing.assert_close(targets, method.embed_targets(images))
    assert again.mean.shape == (1280 + BINS,) and again.mean.abs().sum() > 0
