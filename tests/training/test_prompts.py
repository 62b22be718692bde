"""Learned context vectors in the text towers: read as words are, in every kind of tower, within its length."""

import open_clip
import pytest
import torch
from torch.nn import functional as F

from cirlib.models.clip import TwoTowers, load_clip
from cirlib.models.mini import mini_towers
from cirlib.training.prompt_tuning import PromptTuned

TEXTS = ["is blue", "has long sleeves and a wide neck", "is red"]
WORDS = "red short lace loose"  # a token each, in both vocabularies


def custom_text_tower(towers: TwoTowers, cpu: dict) -> TwoTowers:
    """The same weights as a CustomTextCLIP, whose text tower is a TextTransformer."""
    model = open_clip.create_model("cirlib-tiny", force_custom_text=True)
    model.load_state_dict(open_clip.model.convert_to_custom_text_state_dict(towers.model.state_dict()))
    return TwoTowers(model, towers.tokenizer, towers.transform, "custom", **cpu)


@pytest.fixture(params=["clip", "custom_text", "mini"])
def towers(request, tiny_clip, cpu) -> TwoTowers:
    if request.param == "mini":
        return mini_towers(64, width=16, **cpu)
    name, file = tiny_clip
    loaded = load_clip(name, str(file), **cpu)
    return custom_text_tower(loaded, cpu) if request.param == "custom_text" else loaded


@pytest.fixture
def composer(towers) -> PromptTuned:
    torch.manual_seed(0)
    made = PromptTuned()
    made.put_on(towers, num_vectors=4, weight=0.3)
    return made.eval()


def test_the_vectors_of_words_are_read_as_these_words_before_the_edit(towers, composer):
    ids = towers.tokenize([WORDS])[0, 1:5]
    with torch.no_grad():
        composer.context.copy_(towers.word_embeddings(ids))
    expected = towers.encode_texts([f"{WORDS} {text}" for text in TEXTS])
    torch.testing.assert_close(composer.towers.encode_texts(TEXTS), expected)
    assert not torch.allclose(towers.encode_texts(TEXTS), expected, atol=0.01)  # without them the texts are the edits


def test_too_long_an_edit_ends_in_its_end_token_within_the_towers_length(towers, composer):
    whole, cut = towers.tokenize(["blue " * 90]), composer.towers.tokenize(["blue " * 90])
    assert cut.shape == whole.shape and cut.shape[1] == towers.tokenizer.context_length
    assert cut[0, -1] == whole[0, -1]  # the end token
    assert composer.towers.encode_texts(["blue " * 90]).isfinite().all()


def test_only_the_vectors_and_the_weight_learn(composer):
    assert [name for name, _ in composer.named_parameters()] == ["context", "weight_logit"]
    references = F.normalize(torch.randn(3, *composer.towers.shape), dim=-1)
    composer.compose(references, TEXTS)[:, 0].sum().backward()
    assert composer.context.grad.abs().sum(1).gt(0).all() and composer.weight_logit.grad != 0
    assert all(parameter.grad is None for parameter in composer.towers.model.parameters())


def test_the_query_is_the_weighted_sum(composer):
    references = F.normalize(torch.randn(3, *composer.towers.shape), dim=-1)
    texts = composer.towers.encode_texts(TEXTS)
    expected = F.normalize(0.7 * references + 0.3 * texts, dim=-1)
    torch.testing.assert_close(composer.compose(references, TEXTS), expected)
