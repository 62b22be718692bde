"""The Combiner: its formula, its training on triplets, with and without a tuned text tower."""

import pytest
import torch
from torch.nn import functional as F

from cirlib.models.prepared import Images
from cirlib.training.combiner import Combiner, TunedCombiner, TunedSum


def images_of(prepared, count: int = 3) -> Images:
    return prepared.read([f"hat-train-{i}" for i in range(count)])


TEXTS = ["is blue", "has stripes", "is 4 sizes bigger"]


def test_the_query_is_the_papers_formula(two_tower_study):
    prepared = two_tower_study()
    method = Combiner()
    method.build(prepared)
    method.eval()
    images = images_of(prepared)
    edits, state = prepared.towers().encode_texts(TEXTS), method.state_dict()

    def layer(name: str, values: torch.Tensor) -> torch.Tensor:
        return values @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    parts = [layer("text_projection", edits), layer("image_projection", images.embeddings)]
    hidden = torch.cat([part.clamp(min=0) for part in parts], dim=1)
    output, share = (layer(f"{of}.3", layer(f"{of}.0", hidden).clamp(min=0)) for of in ("output", "mix"))
    share = 1 / (1 + (-share).exp())
    expected = F.normalize(output + share * edits + (1 - share) * images.embeddings, dim=1)
    torch.testing.assert_close(method.embed_queries(images, TEXTS), expected)


def test_it_learns_what_the_words_ask_for_and_is_found_trained_again(two_tower_study, capsys):
    prepared = two_tower_study(method_epochs=12)
    method, again = Combiner(), Combiner()
    method.fit(prepared)
    found = [float(line.split("loss ")[1].split()[0]) for line in capsys.readouterr().out.splitlines()]
    assert len(found) == 12 and sum(found[-4:]) / 4 < 0.8 * found[0]
    again.fit(prepared)
    assert "trained before, loaded" in capsys.readouterr().out
    for name, tensor in method.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


@pytest.mark.slow
def test_the_second_stage_starts_from_the_tuned_text_tower_and_leaves_it(two_tower_study, tmp_path, capsys):
    prepared = two_tower_study(method_epochs=2, text_lr=1e-3)
    first, both = TunedSum(), TunedCombiner()
    first.fit(prepared)
    both.fit(prepared)
    assert "sum_tuned: trained before, loaded" in capsys.readouterr().out
    frozen = prepared.towers().model.state_dict()
    for name, tensor in first.texts.state_dict().items():
        assert torch.equal(both.texts.state_dict()[name], tensor), name
    assert any(not torch.equal(both.texts.state_dict()[name], frozen[name]) for name in both.texts.state_dict())
    both.save(tmp_path / "both.safetensors")
    loaded = TunedCombiner()
    loaded.load(prepared, tmp_path / "both.safetensors")
    images = images_of(prepared)
    torch.testing.assert_close(loaded.embed_queries(images, TEXTS), both.embed_queries(images, TEXTS))
