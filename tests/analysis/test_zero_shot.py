"""The zero-shot methods: weights chosen on dev, embeddings in a two-tower space, and the table of protocols."""

import pytest
import torch
from torch import Tensor

from cirlib.analysis import zero_shot
from cirlib.benchmarks import PROTOCOLS
from cirlib.models.clip import load_clip, weighted_sum
from cirlib.models.prepared import Prepared
from cirlib.retrieval.scoring import score, summarise
from cirlib.study.parameters import Evaluation
from cirlib.study.pictures import open_rgb

KEPT = Evaluation(reference="kept")


def unit(*angles: float) -> Tensor:
    """Vectors in the plane at these angles (degrees)."""
    radians = torch.deg2rad(torch.tensor(angles))
    return torch.stack([radians.cos(), radians.sin()], 1)


@pytest.fixture
def fan(make_benchmark):
    """A query from an image at 0° with a text at 90°; its target stands between ten images before, ten after."""

    def make(name: str, target: float, before: float, after: float) -> zero_shot.EmbeddedQueries:
        angles = [0, target, *(before + 0.1 * i for i in range(10)), *(after + 0.1 * i for i in range(10))]
        ids = [f"{name}-{i}" for i in range(len(angles))]
        benchmark = make_benchmark([(ids[0], ids[1], "is turned")], ids, name)
        return zero_shot.EmbeddedQueries(benchmark, unit(0), unit(90), unit(*map(float, angles)))

    return make


def test_a_weight_is_the_mean_dev_recall_of_the_categories(fan):
    dev = {"hat": fan("hat", 58, 25, 85), "shoe": fan("shoe", 70, 40, 89)}
    table = zero_shot.sweep([0.0, 0.5, 0.7, 1.0], dev, KEPT)
    # slerp asks at 0, 45, 63 and 90 degrees; 45 is nearer to the ten images at 40 than to the target at 70
    found = table.set_index(["method", "weight"])["dev/recall@10"]
    assert found["slerp"].to_dict() == {0.0: 0.0, 0.5: 0.5, 0.7: 1.0, 1.0: 0.0}
    assert found["sum"].to_dict() == {0.0: 0.0, 0.5: 0.5, 0.7: 1.0, 1.0: 0.0}  # at 0, 45, 67 and 90 degrees
    assert zero_shot.best_weights(table) == {"sum": 0.7, "slerp": 0.7}


def test_each_mix_has_a_weight_of_its_own_and_of_equal_ones_the_smaller_is_taken(fan):
    """At weight 0.8 slerp asks at 72°, the sum at 76°: between the target at 65° and ten images at 82° lies 73.5°."""
    table = zero_shot.sweep([0.8, 0.6], {"hat": fan("hat", 65, 20, 82)}, KEPT)
    found = table.set_index(["method", "weight"])["dev/recall@10"]
    assert found["slerp"].to_dict() == {0.8: 1.0, 0.6: 1.0}
    assert found["sum"].to_dict() == {0.8: 0.0, 0.6: 1.0}
    assert zero_shot.best_weights(table) == {"sum": 0.6, "slerp": 0.6}


def test_without_a_dev_part_the_weight_is_one_half():
    assert zero_shot.best_weights(zero_shot.sweep([0.1, 0.9], {}, KEPT)) == {"sum": 0.5, "slerp": 0.5}


def test_every_method_is_scored_on_every_category(fan):
    embedded = {"hat": fan("hat", 58, 25, 85), "shoe": fan("shoe", 70, 40, 89)}
    scored = zero_shot.score_baselines(zero_shot.baselines({"sum": 0.7, "slerp": 0.5}), embedded, KEPT)
    methods = ("image_only", "text_only", "sum", "slerp")
    assert [(one.method, one.category) for one in scored] == [(m, c) for m in methods for c in embedded]
    # from 0° the reference and ten images are nearer, from 90° ten are; slerp at 45° meets shoe's ten at 40° first
    assert [one.ranks.above.tolist() for one in scored] == [[11], [11], [10], [10], [0], [0], [0], [10]]


@pytest.fixture(scope="module")
def towers(tiny_clip, cpu):
    name, file = tiny_clip
    return load_clip(name, str(file), **cpu)


@pytest.fixture
def encoded(custom_stage, make_store) -> Prepared:
    """The small study with random embeddings of its images, as a two-tower model of 12 dimensions makes them."""
    stage = custom_stage("zero_shot")
    ids = [f"{c}-{s}-{i}" for c in ("hat", "shoe") for s, size in (("train", 9), ("val", 6)) for i in range(size)]
    features = torch.nn.functional.normalize(torch.randn(30, 12, generator=torch.Generator().manual_seed(0)), dim=-1)
    make_store(stage.data / "clip", ids[::-1], features)
    return Prepared(stage)


def test_queries_and_gallery_are_embedded_row_for_row_and_several_texts_averaged(towers, encoded):
    parts, store = encoded.splits.reported, encoded.clip
    one, two = (
        towers.encode_texts([form.format(i) for i in range(3)])
        for form in ("is {} sizes bigger and has stripes", "has stripes and is {} sizes bigger")
    )
    both = zero_shot.embed(encoded, towers.encode_texts, parts, "both_orders")
    torch.testing.assert_close(both["hat"].texts, torch.nn.functional.normalize(one + two, dim=-1))
    for category, queries in zero_shot.embed(encoded, towers.encode_texts, parts, "and").items():
        ids = [f"{category}-val-{i}" for i in range(6)]
        assert torch.equal(queries.references, store[ids[:3]]) and torch.equal(queries.gallery, store[ids])
        expected = towers.encode_texts([f"Is {i} sizes bigger and has stripes" for i in range(3)])
        torch.testing.assert_close(queries.texts, expected)
        assert queries.benchmark is parts[category]


def test_one_model_is_scored_under_every_protocol_of_public_code(towers, encoded):
    table = zero_shot.protocol_table(encoded, towers.encode_texts, 0.4).set_index("protocol")
    assert set(table.index) == set(PROTOCOLS) - {"cirr", "circo"}
    assert table["queries"].tolist() == [6] * len(table)
    # a val gallery has 6 images, 4 of them in a query; covr alone removes the reference
    assert table["gallery"].to_dict() == {name: 6 for name in table.index} | {"val_split": 4, "covr": 5}
    assert table.loc[["covr", "val_split"], "galleries"].tolist() == ["5 / 5", "4 / 4"]
    assert table.loc["covr", "rule"] == "original gallery, reference removed, captions joined: and"
    assert table.loc["searle", "used_by"] == "SEARLE, LinCIR"
    for name, rules in (("magiclens", KEPT), ("first_caption", Evaluation(reference="kept", captions="first"))):
        scored = [
            score("sum", category, weighted_sum(e.references, e.texts, 0.4), e.gallery, e.benchmark, rules)
            for category, e in zero_shot.embed(
                encoded, towers.encode_texts, encoded.splits.reported, rules.captions
            ).items()
        ]
        summary = summarise(scored, (10,)).set_index("category")
        assert table.loc[name, ["value", "ci_low"]].tolist() == summary.loc["mean", ["value", "ci_low"]].tolist()


def test_the_raw_sum_adds_features_before_they_are_normalised(towers, encoded):
    parts = encoded.splits.reported
    scored = zero_shot.score_raw_sum(encoded, towers, parts, KEPT)
    assert [(one.method, one.category) for one in scored] == [("sum_raw", "hat"), ("sum_raw", "shoe")]
    for one, (category, part) in zip(scored, parts.items(), strict=True):
        pixels = torch.stack([towers.transform(open_rgb(part.path(triplet.reference))) for triplet in part.triplets])
        edits = [f"Is {i} sizes bigger and has stripes" for i in range(3)]
        with torch.no_grad():
            total = towers.model.encode_image(pixels) + towers.encode_texts(edits, normalize=False)
        queries = torch.nn.functional.normalize(total, dim=-1)
        expected = score("mine", category, queries, encoded.clip[part.gallery], part, KEPT)
        assert torch.equal(one.ranks.above, expected.ranks.above) and one.top == expected.top
