"""What evaluation costs next to the bare matrix product and next to the usual way, as ratios in one run.

Timings are reported and not asserted, for a busy machine makes them lie; memory and equal recalls are asserted.
"""

import statistics
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from evaluation_ways import SIZES, WAYS, WIDTH, Category, counted, load, sorted_names
from measuring import MEGABYTE, needs_linux, peak, taking_turns


@pytest.fixture(scope="module")
def categories() -> list[Category]:
    return [load(category) for category in SIZES]


def test_recalls_are_the_same_to_the_last_digit(categories, report) -> None:
    ours = [counted(category) for category in categories]
    usual = [sorted_names(category) for category in categories]
    report("FashionIQ val: R@10, R@50 equal to the usual way's", str(ours == usual), "True", ours == usual)
    assert all(0.1 < recall < 0.9 for pair in ours for recall in pair)
    assert ours == usual


def test_speed_on_the_whole_of_fashioniq_val(categories, report) -> None:
    def of_all(way: str) -> None:
        for category in categories:
            WAYS[way](category)

    ways = {way: partial(of_all, way) for way in WAYS}
    times = taking_turns({way: run for way, run in ways.items() if way != "sorted_names"}, rounds=24)
    times |= taking_turns({"sorted_names": ways["sorted_names"]}, rounds=3)
    for kind, pick in (("median", statistics.median), ("best", min)):
        spent = {way: pick(times[way]) for way in WAYS}
        for way in ("product", "product_in_place"):
            ratio = spent["counted"] / spent[way]
            report(f"FashionIQ val, {kind}: our time over {way}", f"{ratio:.2f}", "<= 2.5", ratio <= 2.5)
        for what, way in (("ours", "counted"), ("that and best five", "evaluated")):
            gain = spent["sorted_names"] / spent[way]
            report(f"FashionIQ val, {kind}: usual way's time over {what}", f"{gain:.1f}", ">= 5", gain >= 5)


@needs_linux
@pytest.mark.parametrize("category", SIZES)
def test_memory_on_fashioniq_val(category: str, report) -> None:
    ways = ("product", "counted", "evaluated", "sorted_names")
    extra = {way: peak("evaluation", way, category)["extra_bytes"] for way in ways}
    sizes = ", ".join(f"{extra[way] / MEGABYTE:.0f}" for way in ("counted", "sorted_names", "product"))
    share, whole = (extra[way] / extra["sorted_names"] for way in ("counted", "evaluated"))
    report(f"{category}: extra MB, ours, usual way, product: {sizes}", f"{share:.3f}", "<= 0.1", share <= 0.1)
    report(f"{category}: the same with the best images", f"{whole:.3f}", "<= 0.1", whole <= 0.1)
    assert max(share, whole) <= 0.1


@needs_linux
def test_a_million_images_on_disk(tmp_path: Path, report) -> None:
    path, rng = tmp_path / "features.npy", np.random.default_rng(0)
    stored = np.lib.format.open_memmap(path, "w+", np.float16, (1_000_000, WIDTH))
    for start in range(0, len(stored), 50_000):
        block = rng.standard_normal((50_000, WIDTH), dtype=np.float32)
        stored[start : start + 50_000] = block / np.linalg.norm(block, axis=1, keepdims=True)
    del stored
    found = peak("disk", str(path))
    path.unlink()
    extra, ratio = found["extra_bytes"] / MEGABYTE, found["counted_s"] / found["product_s"]
    report("1,000 queries, 1,000,000 x 256 float16 on disk: extra MB", f"{extra:.0f}", "<= 1024", extra <= 1024)
    report(f"the same: {found['counted_s']:.1f} s, over its bare product", f"{ratio:.2f}", "<= 2.5", ratio <= 2.5)
    whole = found["whole_extra_bytes"] / MEGABYTE
    report("the same with the best images: extra MB", f"{whole:.0f}", "<= 1024", whole <= 1024)
    assert 0.05 < found["recall@10"] < 0.95
    assert max(extra, whole) <= 1024
