"""A trained Q-Former as a folder: with a model card, and the same embeddings when it is loaded."""

import pytest
import torch

from cirlib.models.pretrained import PretrainedQFormer
from cirlib.models.qformer_embedding import embed_gallery, embed_queries, new_composer
from cirlib.models.weights import ModelError


def test_it_comes_back_from_its_folder_and_embeds_pictures_as_the_study_does(prepared, tmp_path):
    torch.manual_seed(1)
    composer = new_composer(prepared)
    PretrainedQFormer(prepared, composer).save_pretrained(tmp_path / "mine")
    assert {file.name for file in (tmp_path / "mine").iterdir()} == {"README.md", "config.json", "model.safetensors"}
    assert "composed-image-retrieval" in (tmp_path / "mine" / "README.md").read_text()
    torch.manual_seed(2)  # other random weights to start from
    loaded = PretrainedQFormer.from_pretrained(str(tmp_path / "mine"))
    images, texts = prepared.read(["hat-val-0", "shoe-val-1"]), ["is blue", "has stripes"]
    rows = prepared.tokens.rows(images.ids)
    expected = embed_queries(composer, prepared.tokens, rows, texts), embed_gallery(composer, prepared.tokens, rows)
    found = loaded.embed_queries(images.pictures, texts), loaded.embed_targets(images.pictures)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-3, rtol=0)  # stored tokens are float16


@pytest.mark.parametrize("config", [None, '{"hidden_size": 3}'])
def test_a_folder_of_something_else_is_told_in_a_sentence(tmp_path, config):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(ModelError, match=f"^{tmp_path} is no Q-Former that cirlib saved: "):
        PretrainedQFormer.from_pretrained(str(tmp_path))
