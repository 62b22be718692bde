"""A method that gives what cannot be scored is told so, whichever of its functions gave it."""

import numpy as np
import pytest

from cirlib.retrieval.method_scoring import score_methods
from cirlib.study.errors import MethodError
from cirlib.study.parameters import Evaluation


class Sound:
    """Any method that can be scored, with a second stage."""

    def embed_queries(self, images, texts):
        return np.ones((len(texts), 3))

    def embed_targets(self, images):
        return np.ones((len(images), 3))

    def rerank(self, images, texts, candidates):
        return np.zeros((len(texts), len(candidates[0])))


WRONG = {
    "embed_queries": [np.full((5, 3), np.nan), np.ones(5), np.ones((4, 3)), None],
    "embed_targets": [np.ones((10, 3)), np.full((60, 3), np.inf), "text"],
    "rerank": [np.ones((5, 3)), np.full((5, 50), np.nan)],
}


@pytest.mark.parametrize(
    ("function", "number"), [(name, n) for name, given in WRONG.items() for n in range(len(given))]
)
def test_what_cannot_be_scored_is_one_sentence(make_benchmark, function, number):
    ids = [f"hat-{n}" for n in range(60)]
    part = make_benchmark([(ids[n], ids[n + 1], "is x") for n in range(5)], ids)
    method = type("Mine", (Sound,), {function: lambda *_: WRONG[function][number]})()
    with pytest.raises(MethodError, match=f"Mine.{function} gave"):
        score_methods({"mine": method}, list, {"hat": part}, Evaluation())


@pytest.mark.parametrize(
    ("function", "gives", "told"),
    [
        (
            "embed_targets",
            lambda images: np.ones((len(images), 2)),
            "'mine': embed_queries gave D = 3, embed_targets 2",
        ),
        ("embed_targets", lambda images: np.ones((len(images), len(images))), r"shapes \(256, 256\) and \(44, 44\)"),
        ("embed_queries", lambda images, texts: images.lost, r"raised AttributeError: .*test_method_scoring.py, line"),
    ],
)
def test_widths_that_differ_and_code_that_fails_are_one_sentence(make_benchmark, function, gives, told):
    ids = [f"hat-{n}" for n in range(300)]
    part = make_benchmark([(ids[n], ids[n + 1], "is x") for n in range(5)], ids)
    method = type("Mine", (Sound,), {function: lambda _self, *given: gives(*given)})()
    with pytest.raises(MethodError, match=told):
        score_methods({"mine": method}, list, {"hat": part}, Evaluation())


def test_a_sound_method_with_a_second_stage_is_scored(make_benchmark):
    ids = [f"hat-{n}" for n in range(60)]
    part = make_benchmark([(ids[n], ids[n + 1], "is x") for n in range(5)], ids)
    (scored,) = score_methods({"sound": Sound()}, list, {"hat": part}, Evaluation())
    assert len(scored.recall(10)) == 5
