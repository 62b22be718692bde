"""Train edits drawn, and which images become their negatives, against brute force."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cirlib.analysis.dpo.negatives import Edits
from cirlib.benchmarks import Triplet
from cirlib.retrieval.hard_negatives import MARGIN
from cirlib.study.errors import ParameterError
from cirlib.study.parameters import DPO

QUERIES = {"hat": 8, "shoe": 7}
SIZE = 20


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.fixture
def parts(make_chains):
    order = tuple(np.random.default_rng(0).permutation(SIZE).tolist())
    return make_chains(QUERIES, order, lambda name, i: (f"is {name} {i}", "has dots."))


@pytest.fixture
def edits(parts):
    return Edits.draw(parts, None, 0)


@pytest.fixture(params=[(), (4,)], ids=["vectors", "tokens"])
def pools(edits, request):
    """Of images that are a vector each, or tokens of which the best counts, as in the score."""
    return {category: unit(len(pool), *request.param, 6, seed=1) for category, pool in edits.pools.items()}


QUERY = unit(sum(QUERIES.values()), 6, seed=2)


def scores(edits, pools, row: int) -> dict[str, float]:
    """Of the pool of an edit, its own two images included."""
    category = edits.categories[row]
    values = (pools[category] @ QUERY[row]).reshape(SIZE, -1).amax(1)
    return dict(zip(edits.pools[category], values.tolist(), strict=True))


def ranking(edits, pools, row: int) -> list[str]:
    """The pool of an edit without its own two images, best first."""
    score = scores(edits, pools, row)
    return sorted(score.keys() - {edits.references[row], edits.targets[row]}, key=lambda image: -score[image])


def mine(edits, pools, seed: int = 0, **params) -> np.ndarray:
    return edits.mine(QUERY, pools, DPO(**{"num_negatives": 3, **params}), seed)


@pytest.mark.parametrize(("count", "shares"), [(None, (8, 7)), (6, (3, 3)), (7, (4, 3)), (100, (8, 7)), (1, (1, 1))])
def test_edits_are_an_even_share_of_each_category_with_both_captions(parts, count, shares):
    drawn = Edits.draw(parts, count, 3)
    assert drawn.categories == ["hat"] * shares[0] + ["shoe"] * shares[1]
    chains = [reference.split("-") for reference in drawn.references]
    assert drawn.targets == [f"{name}-{int(number) + 1}" for name, number in chains]
    assert drawn.texts == [f"Is {name} {number} and has dots" for name, number in chains]
    assert len({*drawn.references}) == len(drawn)
    assert drawn.references == Edits.draw(parts, count, 3).references
    assert len({tuple(Edits.draw(parts, 6, seed).references) for seed in range(5)}) > 1


@pytest.mark.parametrize("skipped", [0, 2])
@pytest.mark.parametrize("index", ["flat", "hnsw"])
def test_top_takes_the_hardest_of_the_category_but_never_its_own_two(edits, pools, skipped, index):
    mined = mine(edits, pools, range_min=skipped, index=index)
    for row in range(len(edits)):
        assert mined[row].tolist() == ranking(edits, pools, row)[skipped : skipped + 3]


def test_band_draws_between_two_ranks(edits, pools):
    drawn = [mine(edits, pools, seed, sampling="band", range_min=2, range_max=9) for seed in range(2)]
    for mined in drawn:
        for row in range(len(edits)):
            assert set(mined[row]) <= set(ranking(edits, pools, row)[2:9])
            assert len(set(mined[row])) == 3
    assert (drawn[0] != drawn[1]).any()


def test_random_draws_from_the_whole_category(edits, pools):
    mined = np.stack([mine(edits, pools, seed, sampling="random", num_negatives=5) for seed in range(30)])
    for row in range(len(edits)):
        assert set(mined[:, row].ravel()) == set(ranking(edits, pools, row))


def test_margin_takes_the_hardest_that_the_target_leads_by_the_margin(edits, pools):
    mined = mine(edits, pools, sampling="margin")
    short = 0
    for row in range(len(edits)):
        score, target = scores(edits, pools, row), edits.targets[row]
        behind = [image for image in ranking(edits, pools, row) if score[image] <= score[target] - MARGIN]
        assert mined[row, : len(behind)].tolist() == behind[:3]
        assert set(mined[row]) <= set(ranking(edits, pools, row))
        assert len(set(mined[row])) == 3
        short += len(behind) < 3
    assert 0 < short < len(edits)  # the data has both kinds


def test_a_poor_index_is_filled_up_with_other_images(edits, pools):
    mined = mine(edits, pools, index="ivf", nlist=SIZE, nprobe=1, num_negatives=4)
    for row in range(len(edits)):
        assert len(set(mined[row])) == 4
        assert set(mined[row]) <= set(ranking(edits, pools, row))


def test_more_negatives_than_images_are_refused(edits, pools):
    with pytest.raises(ParameterError, match=r"dpo.range_min \+ dpo.num_negatives is 4 \+ 15, at most 18 is allowed"):
        mine(edits, pools, range_min=4, num_negatives=15)


def test_quality_is_counted_by_the_true_attributes():
    """An edit from red q to blue t: w is as wanted, two others that are blue differ in one or two, r is red still."""
    looks = {"q": "red long loose", "t": "blue long loose", "w": "blue long loose"}
    looks |= {"one": "blue cap loose", "two": "blue cap tight", "r": "red cap loose"}
    attributes = {image: dict(enumerate(words.split())) for image, words in looks.items()}
    edits = Edits([Triplet("1", "q", ("is blue",), ("t",), "hat")], ["hat"], {})
    quality = edits.quality(np.array([["w", "one", "two", "r"]]), attributes)
    assert quality == {"satisfies_edit": 0.75, "differs_in_one": 0.25}


@pytest.mark.parametrize("sampling", ["top", "band", "random", "margin"])
def test_a_copy_of_the_target_under_another_id_is_no_negative_of_it(edits, pools, sampling):
    """As shops have them: the same photograph, or nearly the same numbers of it, twice."""
    copy, target = (edits.pools["hat"].index(image) for image in ("hat-15", edits.targets[0]))
    pools["hat"][copy] = pools["hat"][target] + 1e-5
    mined = [mine(edits, pools, seed, sampling=sampling, num_negatives=17, range_max=50)[0] for seed in range(2)]
    assert all(set(row) == set(edits.pools["hat"]) - {"hat-15", edits.references[0], edits.targets[0]} for row in mined)
