"""Missing images: nothing is dropped silently. Count them, stop, or go on and say so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from .base import Benchmark, BenchmarkError, Triplet


def mark_unusable(benchmark: Benchmark, reasons: Mapping[str, str]) -> Benchmark:
    """The same benchmark with more images missing: image id → the reason, e.g. that it cannot be decoded.

    Ids that are not in the gallery are passed over, so one check can serve several splits.
    """
    bad: dict[str, Path | str] = {i: reason for i, reason in reasons.items() if i in benchmark.images}
    return replace(benchmark, images={**benchmark.images, **bad})


def lost_queries(benchmark: Benchmark) -> list[Triplet]:
    """The queries that cannot be scored: the reference is missing, or every target is."""
    missing = benchmark.missing
    return [t for t in benchmark.triplets if _is_lost(t, missing)]


def require_complete(benchmark: Benchmark, allow_missing: bool = False) -> None:
    """Stops a study whose images are not all there, unless its parameters say that this is accepted.

    Raises:
        BenchmarkError: with the counts, an example and the parameter that allows it.
    """
    if allow_missing or (benchmark.complete and not benchmark.missing):
        return
    raise BenchmarkError(
        f"{benchmark.name} {benchmark.split}: {_account(benchmark)} Set data.allow_missing to true to go on "
        "without them; every number is then marked incomplete."
    )


def drop_missing(benchmark: Benchmark) -> Benchmark:
    """A benchmark of what is there: without missing gallery images and the queries that they cost.

    A query keeps the targets and subset members that are left. The result is not `complete` if anything
    was dropped, and counts what was.

    Raises:
        BenchmarkError: nothing would be left to search, or no query.
    """
    missing = benchmark.missing
    if not missing:
        return benchmark
    triplets = [_without(t, missing) for t in benchmark.triplets if not _is_lost(t, missing)]
    gallery = [image for image in benchmark.gallery if image not in missing]
    if not gallery or not triplets:
        raise BenchmarkError(f"{benchmark.name} {benchmark.split}: {_account(benchmark)} Nothing is left to evaluate.")
    return replace(
        benchmark,
        triplets=triplets,
        gallery=gallery,
        images={image: benchmark.images[image] for image in gallery},
        complete=False,
        dropped_queries=benchmark.dropped_queries + len(benchmark.triplets) - len(triplets),
        dropped_images=benchmark.dropped_images + len(missing),
    )


def _is_lost(triplet: Triplet, missing: Mapping[str, str]) -> bool:
    no_target_left = bool(triplet.targets) and all(target in missing for target in triplet.targets)
    return triplet.reference in missing or no_target_left


def _without(triplet: Triplet, missing: Mapping[str, str]) -> Triplet:
    return replace(
        triplet,
        targets=tuple(i for i in triplet.targets if i not in missing),
        subset=tuple(i for i in triplet.subset if i not in missing),
    )


def _account(benchmark: Benchmark) -> str:
    missing = benchmark.missing
    if not missing:
        return f"the gallery of {len(benchmark.gallery)} images is known to be partial."
    image, reason = next(iter(missing.items()))
    return (
        f"{len(missing)} of {len(benchmark.gallery)} gallery images are missing, which costs "
        f"{len(lost_queries(benchmark))} of {len(benchmark.triplets)} queries "
        f"(the first is {image!r}: {reason})."
    )
