"""Missing images: nothing is dropped silently. Count them, stop, or go on and say so."""

from collections.abc import Mapping
from dataclasses import replace

from .base import Benchmark, BenchmarkError, Triplet


def mark_unusable(benchmark: Benchmark, reasons: Mapping[str, str]) -> Benchmark:
    """The same benchmark with more images missing: image id → the reason. Ids of no gallery image are passed over.

    >>> mark_unusable(prepared.splits.reported["hat"], {"hat-val-0": "is grey", "other": "is grey"}).missing
    {'hat-val-0': 'is grey'}
    """
    return replace(benchmark, images=benchmark.images | {i: r for i, r in reasons.items() if i in benchmark.images})


def lost_queries(benchmark: Benchmark) -> list[Triplet]:
    """The queries that cannot be scored: the reference is missing, or every target is.

    >>> lost_queries(prepared.splits.reported["hat"])
    []
    """
    gone = benchmark.missing.keys()
    return [t for t in benchmark.triplets if t.reference in gone or (t.targets and gone >= set(t.targets))]


def require_complete(benchmark: Benchmark, allow_missing: bool = False) -> None:
    """Raises `BenchmarkError`, which counts what is missing, unless all images are there or `allow_missing` is set.

    >>> require_complete(prepared.splits.reported["hat"])
    """
    if not allow_missing and (benchmark.missing or not benchmark.complete):
        raise BenchmarkError(
            f"{benchmark.name} {benchmark.split}: {_account(benchmark)} Set data.allow_missing to true to go on "
            "without them; every number is then marked incomplete."
        )


def drop_missing(benchmark: Benchmark) -> Benchmark:
    """A benchmark of what is there: without missing gallery images and the queries that they cost.

    A query keeps the targets and subset members that are left. The result is not `complete` if anything was dropped.
    Raises `BenchmarkError` where no image or no query would be left.

    >>> len(drop_missing(mark_unusable(prepared.splits.reported["hat"], {"hat-val-0": "is grey"})).triplets)
    2
    """
    missing = benchmark.missing
    if not missing:
        return benchmark
    lost = {t.id for t in lost_queries(benchmark)}
    triplets = [_without(t, missing) for t in benchmark.triplets if t.id not in lost]
    gallery = [image for image in benchmark.gallery if image not in missing]
    if not gallery or not triplets:
        raise BenchmarkError(f"{benchmark.name} {benchmark.split}: {_account(benchmark)} Nothing is left to evaluate.")
    return replace(
        benchmark,
        triplets=triplets,
        gallery=gallery,
        images={image: benchmark.images[image] for image in gallery},
        complete=False,
    )


def _without(triplet: Triplet, missing: Mapping[str, str]) -> Triplet:
    targets, subset = (tuple(i for i in images if i not in missing) for images in (triplet.targets, triplet.subset))
    return replace(triplet, targets=targets, subset=subset)


def _account(benchmark: Benchmark) -> str:
    if not benchmark.missing:
        return f"the gallery of {len(benchmark.gallery)} images is known to be partial."
    image, reason = next(iter(benchmark.missing.items()))
    return (
        f"{len(benchmark.missing)} of {len(benchmark.gallery)} gallery images are missing, which costs "
        f"{len(lost_queries(benchmark))} of {len(benchmark.triplets)} queries (the first is {image!r}: {reason})."
    )
