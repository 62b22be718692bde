"""InfoNCE against hand-written loops, against libraries, and its promises about shapes and gradients."""

import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.losses import NTXentLoss
from sentence_transformers.util import cos_sim
from torch import Tensor

from cirlib.losses import info_nce

B, K, T, D = 5, 3, 4, 8
TARGETS = {"pooled": (B, D), "tokens": (B, T, D)}
NEGATIVES = {"none": None, "pooled": (B, K, D), "tokens": (B, K, T + 1, D)}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def best_score(query: Tensor, image: Tensor) -> float:
    """Image (D,) or (T, D): its best token."""
    return max(cosine(query.tolist(), token.tolist()) for token in image.reshape(-1, image.shape[-1]))


def negative_log_share(scores: list[float], temperature: float) -> float:
    """Of the first score among all."""
    powers = [math.exp(score / temperature) for score in scores]
    return -math.log(powers[0] / sum(powers))


def loop_oracle(query: Tensor, target: Tensor, negatives: Tensor | None, temperature: float, symmetric: bool) -> float:
    size = len(query)
    forward, backward = [], []
    for i in range(size):
        others = [best_score(query[i], target[j]) for j in range(size) if j != i]
        if negatives is not None:
            others += [best_score(query[i], image) for image in negatives[i]]
        own = best_score(query[i], target[i])
        forward.append(negative_log_share([own, *others], temperature))
        rivals = [best_score(query[j], target[i]) for j in range(size) if j != i]
        backward.append(negative_log_share([own, *rivals], temperature))
    loss = sum(forward) / size
    return (loss + sum(backward) / size) / 2 if symmetric else loss


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("target", TARGETS)
def test_equals_the_loop(target: str, negatives: str, temperature: float, symmetric: bool) -> None:
    query, targets = draw(B, D), draw(*TARGETS[target])
    mined = draw(*NEGATIVES[negatives]) if NEGATIVES[negatives] else None
    loss = info_nce(query, targets, temperature=temperature, negatives=mined, symmetric=symmetric)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(loop_oracle(query, targets, mined, temperature, symmetric), rel=1e-9)


def test_equals_cross_entropy_over_cosine_similarities() -> None:
    query, target = draw(B, D), draw(B, D)
    expected = F.cross_entropy(cos_sim(query, target) / 0.07, torch.arange(B))
    torch.testing.assert_close(info_nce(query, target), expected)


def test_equals_ntxent_with_targets_as_reference_embeddings() -> None:
    query, target = draw(B, D), draw(B, D)
    labels = torch.arange(B)
    expected = NTXentLoss(temperature=0.1)(query, labels, ref_emb=target, ref_labels=labels.clone())
    torch.testing.assert_close(info_nce(query, target, temperature=0.1), expected)


def test_a_batch_of_one_has_nothing_to_lose() -> None:
    assert info_nce(draw(1, D), draw(1, D), symmetric=True) == 0


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("target", TARGETS)
def test_gradient_is_right(target: str, symmetric: bool) -> None:
    inputs = (draw(B, D), draw(*TARGETS[target]), draw(B, K, T, D), torch.tensor(0.5).double().requires_grad_())
    assert torch.autograd.gradcheck(
        lambda q, t, n, tau: info_nce(q, t, temperature=tau, negatives=n, symmetric=symmetric), inputs
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_are_scored_in_float32(dtype: torch.dtype) -> None:
    query, target, mined = draw(B, D).to(dtype), draw(B, T, D).to(dtype), draw(B, K, D).to(dtype)
    loss = info_nce(query, target, negatives=mined)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, info_nce(query.float(), target.float(), negatives=mined.float()))


def test_autocast_does_not_round_the_scores() -> None:
    query, target = draw(B, D, dtype=torch.float32), draw(B, T, D, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = info_nce(query, target)
    torch.testing.assert_close(rounded.double(), info_nce(query.double(), target.double()), rtol=1e-5, atol=0)


def test_a_tiny_temperature_stays_finite() -> None:
    query = draw(B, D, dtype=torch.float32)
    loss = info_nce(query, draw(B, D, dtype=torch.float32), temperature=1e-6)
    loss.backward()
    assert loss.isfinite()
    assert query.grad.isfinite().all()


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((D,), (B, D), None), r"query must be \(B, D\).*got \(8,\)"),
        (((0, D), (0, D), None), "B at least 1"),
        (((B, D), (B + 1, D), None), r"target must be \(B, D\) or \(B, T, D\) with B = 5.*got \(6, 8\)"),
        (((B, D), (B, D + 1), None), r"D = 8.*got \(5, 9\)"),
        (((B, D), (B, 0, D), None), r"T at least 1, got \(5, 0, 8\)"),
        (((B, D), (B, D), (B, D)), r"negatives must be \(B, K, D\) or \(B, K, T, D\).*got \(5, 8\)"),
        (((B, D), (B, D), (1, K, D)), r"negatives must be .*got \(1, 3, 8\)"),
    ],
)
def test_wrong_shapes_are_named(shapes: tuple, message: str) -> None:
    query, target, mined = (None if shape is None else draw(*shape) for shape in shapes)
    with pytest.raises(ValueError, match=message):
        info_nce(query, target, negatives=mined)


@pytest.mark.parametrize("temperature", [0, -0.07, float("nan"), torch.tensor(-0.07), torch.tensor(0.0), torch.ones(2)])
def test_wrong_temperatures_are_named(temperature: float | Tensor) -> None:
    with pytest.raises(ValueError, match="temperature must"):
        info_nce(torch.eye(3), torch.eye(3), temperature=temperature)


def test_query_and_target_may_be_of_different_floating_point_types():
    loss = info_nce(torch.eye(3, dtype=torch.float64), torch.eye(3))
    torch.testing.assert_close(loss, info_nce(torch.eye(3), torch.eye(3)).double())


def test_what_is_no_tensor_of_floats_is_named():
    with pytest.raises(ValueError, match="target must be a tensor of floating-point numbers, got ndarray"):
        info_nce(torch.eye(3), torch.eye(3).numpy())
    with pytest.raises(ValueError, match=r"query must be a tensor of floating-point numbers, got torch\.int64"):
        info_nce(torch.eye(3).long(), torch.eye(3))
