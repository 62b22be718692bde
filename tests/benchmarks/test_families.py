"""Image families: chains of shared images, and what is held out whole."""

import numpy as np

from cirlib.benchmarks.families import families
from cirlib.benchmarks.splits import hold_out


def test_a_chain_of_shared_images_is_a_family(make_benchmark):
    chains = [[f"{c}{n}" for n in range(3)] for c in range(12)]
    triplets = [(c[0], c[1], "red") for c in chains] + [(c[2], c[1], "blue") for c in chains]
    part = make_benchmark(triplets, [image for chain in chains for image in chain])
    assert families(part.triplets).tolist() == [*range(12), *range(12)]


def test_where_everything_hangs_together_queries_of_one_reference_are_a_family(make_benchmark):
    ids = [f"i{n}" for n in range(11)]
    part = make_benchmark([(ids[n // 2], ids[n // 2 + 1], "red") for n in range(20)], ids)
    assert families(part.triplets).tolist() == [n // 2 for n in range(20)]


def test_no_image_of_a_held_out_query_is_seen_in_training(make_benchmark):
    rng = np.random.default_rng(0)
    triplets = [(f"f{f} i{a}", f"f{f} i{b}", "red") for f in range(30) for a, b in [rng.permutation(6)[:2]] * 3]
    part = make_benchmark(triplets, [f"f{f} i{n}" for f in range(30) for n in range(6)])
    train, dev = hold_out(part, 0.2, seed=0)
    assert len(train.triplets) + len(dev.triplets) == 90
    assert len(dev.triplets) == 18
    assert not train.query_images & dev.query_images
