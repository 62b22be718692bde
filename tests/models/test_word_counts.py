"""The vocabulary: which words are known, what a text's vector is, and that it is the same when built again."""

import torch

from cirlib.models.word_counts import LEAST, WordCounts

TEXTS = ["A red coat", "red hat", "red V-neck dress", "coat with a v neck", "coat", "neck"]


def test_words_of_enough_texts_are_known_however_they_are_written():
    words = WordCounts(TEXTS)
    assert list(words.rows) == ["coat", "neck", "red"] and LEAST == 3
    torch.testing.assert_close(words(["RED coat, not a hat!"]), words(["coat red red"]))


def test_vectors_have_length_one_and_rare_words_count_more():
    words = WordCounts([*TEXTS, "red"])
    red, coat = words(["red coat"])[0, [words.rows["red"], words.rows["coat"]]]
    assert 0 < red < coat
    torch.testing.assert_close(words(["red coat", "coat", "green"]).norm(dim=1), torch.tensor([1.0, 1.0, 0.0]))
