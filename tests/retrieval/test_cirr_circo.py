"""CIRR's subset recall and CIRCO's precision: by hand, against full sorts of the real annotations, from ranked ids."""

import json

import numpy as np
import pytest
import torch

from cirlib.benchmarks import Benchmark, Triplet, load_benchmark
from cirlib.retrieval.cirr_circo import CIRR_MEAN, chance, field_size
from cirlib.retrieval.recall_and_precision import chance_average_precision
from cirlib.retrieval.scoring import score, score_run, summarise
from cirlib.study.parameters import Evaluation

REMOVED, KEPT = Evaluation(), Evaluation(reference="kept")
IDS = [f"image-{i}" for i in range(70)]


def unit(*angles: float) -> torch.Tensor:
    """Vectors in the plane at these angles (degrees)."""
    radians = torch.deg2rad(torch.tensor(angles))
    return torch.stack([radians.cos(), radians.sin()], 1)


@pytest.fixture
def cirr():
    """Seven images at 0°, 10°, … 60°: query 0 from a to c among b … f, query 1 from g to b among the same."""
    triplets = [
        Triplet(*t, tuple("bcdef")) for t in (("12", "a", ("x",), ("c",), None), ("10", "g", ("y",), ("b",), None))
    ]
    return Benchmark("cirr", "val", triplets, list("abcdefg"), dict.fromkeys("abcdefg", "no file"))


@pytest.fixture
def large_cirr():
    """Three queries over 70 images, each with a subset of five."""
    targets, triplets = (3, 20, 43), []
    for i, target in enumerate(targets):
        subset = tuple(IDS[row] for row in range(target - 2, target + 3))
        triplets.append(Triplet(str(100 + i), IDS[60 + i], ("is x",), (IDS[target],), None, subset))
    return Benchmark("cirr", "val", triplets, IDS, dict.fromkeys(IDS, "no file"))


@pytest.fixture
def circo():
    """Seventy images; query 0 wants three of them, query 1 one."""
    ids = [str(i) for i in range(70)]
    triplets = [Triplet("0", "69", ("x",), ("0", "2", "60"), None), Triplet("1", "0", ("y",), ("30",), None)]
    return Benchmark("circo", "val", triplets, ids, dict.fromkeys(ids, "no file"))


def test_cirr_has_subset_recall_and_the_mean_that_methods_are_ordered_by(cirr):
    one = score("m", "cirr", unit(12, 33), unit(*range(0, 70, 10)), cirr, REMOVED)
    # query 0 at 12°: b, (a out), c; query 1 at 33°: d, e, c, f, b: its subset has the same order
    assert one.ranks.above.tolist() == [1, 4]
    values = {m: one.values(m).tolist() for m in one.metrics}
    assert values == {
        "recall@1": [0, 0],
        "recall@5": [1, 1],
        "recall@10": [1, 1],
        "recall@50": [1, 1],
        "recall_subset@1": [0, 0],
        "recall_subset@2": [1, 0],
        "recall_subset@3": [1, 0],
        CIRR_MEAN: [0.5, 0.5],
    }
    table = summarise([one]).set_index(["category", "metric"])
    assert table.loc[("cirr", "recall_subset@2"), ["value", "chance", "gallery"]].tolist() == [0.5, 2 / 5, 5]
    assert table.loc[("mean", CIRR_MEAN), "value"] == 0.5
    assert chance(CIRR_MEAN, cirr, 6) == pytest.approx((5 / 6 + 1 / 5) / 2)
    assert field_size(CIRR_MEAN, cirr, 6) == 6


def test_circo_has_average_precision_over_all_targets(circo):
    scores = torch.arange(70, 0, -1.0)  # image 0 is best
    gallery = torch.stack([scores, scores], 1)
    one = score("m", "circo", torch.eye(2), gallery, circo, KEPT)
    first = [(1 + 2 / 3) / 3] * 4  # hits at 1 and 3; the third comes after 50
    np.testing.assert_allclose([one.values(f"map@{k}")[0] for k in (5, 10, 25, 50)], first)
    np.testing.assert_allclose([one.values(f"map@{k}")[1] for k in (5, 10, 25, 50)], [0, 0, 0, 1 / 31])
    assert one.recall(1).tolist() == [1, 0]
    assert [len(images) for images in one.top] == [5, 5]
    chances = [chance_average_precision(10, wanted, 70) for wanted in (3, 1)]
    assert chance("map@10", circo, 70) == pytest.approx(np.mean(chances))
    removed = score("m", "circo", torch.eye(2), gallery, circo, REMOVED)
    np.testing.assert_allclose(removed.values("map@50")[1], 1 / 30)


@pytest.mark.parametrize("reference", ["kept", "removed"])
def test_cirr_on_the_real_annotations_equals_a_full_sort(real_data, reference):
    benchmark = load_benchmark("cirr", real_data("cirr"))
    rng = np.random.default_rng(0)
    queries, gallery = rng.standard_normal((4181, 12)), rng.standard_normal((2297, 12))
    rules = Evaluation(reference=reference)
    one = score("m", "cirr", torch.from_numpy(queries), torch.from_numpy(gallery), benchmark, rules)
    order, row = np.argsort(-(queries @ gallery.T)), benchmark.gallery_index
    hits = {f"{name}@{k}": [] for name, ks in (("recall", (1, 5, 10, 50)), ("recall_subset", (1, 2, 3))) for k in ks}
    for triplet, images in zip(benchmark.triplets, order, strict=True):
        images = images if reference == "kept" else images[images != row[triplet.reference]]
        members = images[np.isin(images, [row[image] for image in triplet.subset])]
        for metric, found in hits.items():
            k = int(metric.split("@")[1])
            found.append(row[triplet.targets[0]] in (members if "subset" in metric else images)[:k])
    for metric, found in hits.items():
        assert one.values(metric).tolist() == found
    wanted = np.mean([hits["recall@5"], hits["recall_subset@1"]], 0)
    np.testing.assert_array_equal(one.values(CIRR_MEAN), wanted)
    lists = {t.id: [benchmark.gallery[i] for i in images] for t, images in zip(benchmark.triplets, order, strict=True)}
    again = score_run(lists, benchmark, reference=reference)
    assert all((again.values(metric) == one.values(metric)).all() for metric in one.metrics)


def test_circo_on_the_real_annotations_equals_a_full_sort(real_data, write_json, tmp_path):
    records = json.loads((real_data("circo") / "annotations" / "val.json").read_text())
    images = {i for r in records for i in (r["reference_img_id"], *r["gt_img_ids"])} | set(range(300))
    write_json(tmp_path / "annotations" / "val.json", records)
    info = {"images": [{"id": i} for i in sorted(images)]}
    write_json(tmp_path / "annotations" / "image_info_unlabeled2017.json", info)
    benchmark = load_benchmark("circo", tmp_path)
    rng = np.random.default_rng(0)
    queries, gallery = rng.standard_normal((220, 12)), rng.standard_normal((len(images), 12))
    one = score("m", "circo", torch.from_numpy(queries), torch.from_numpy(gallery), benchmark, KEPT)
    order = np.argsort(-(queries @ gallery.T))
    for row, triplet in enumerate(benchmark.triplets):
        relevant = np.isin(np.array(benchmark.gallery)[order[row]], triplet.targets)
        for k in (5, 10, 25, 50):  # as CIRCO's own evaluation has it
            precision = np.cumsum(relevant[:k]) / np.arange(1, k + 1) * relevant[:k]
            assert one.values(f"map@{k}")[row] == pytest.approx(precision.sum() / min(k, len(triplet.targets)))
    lists = {t.id: [benchmark.gallery[i] for i in rows[:60]] for t, rows in zip(benchmark.triplets, order, strict=True)}
    again = score_run(lists, benchmark)
    assert all((again.values(metric) == one.values(metric)).all() for metric in one.metrics)


def test_cirr_subset_recall_of_lists_by_hand(large_cirr):
    known = {image for t in large_cirr.triplets for image in (*t.subset, t.reference)}
    fifty = [image for image in IDS if image not in known][:50]
    first = [*fifty[:9], IDS[3], *fifty[9:49]]  # the target tenth, no other of its subset: first among those
    second = [IDS[22], IDS[18], *fifty[:48], IDS[20]]  # the target behind the fifty, third of its subset
    third = [IDS[41], IDS[42], *fifty[:48], IDS[44]]  # three others of the subset: the target is fourth or fifth
    got = score_run({"100": first, "101": second, "102": third}, large_cirr)
    assert [got.values(f"recall_subset@{k}").tolist() for k in (1, 2, 3)] == [[1, 0, 0], [1, 0, 0], [1, 1, 0]]
    assert [got.recall(k).tolist() for k in (5, 10, 50)] == [[0, 0, 0], [1, 0, 0], [1, 0, 0]]
    assert got.values(CIRR_MEAN).tolist() == [0.5, 0, 0]
    unsaid = score_run({"100": first, "101": second, "102": third[:-1] + fifty[48:49]}, large_cirr)
    assert unsaid.metrics == ["recall@1", "recall@5", "recall@10", "recall@50"]
    assert unsaid.note.startswith("No recall_subset for run: query '102' has neither its target nor three others")
