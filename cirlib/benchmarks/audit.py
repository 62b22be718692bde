"""What a study's data are like: counts, gaps, odd captions, leaks between splits, repeated pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import categories as list_categories
from . import load_benchmark
from .base import Benchmark, Triplet
from .completeness import lost_queries, mark_unusable
from .expected import EXPECTED, Expected
from .image_checks import Duplicates, ImageCheck, check_images, find_duplicates
from .protocols import join_captions

if TYPE_CHECKING:
    import pandas as pd

ALL = "all"


@dataclass(frozen=True, slots=True)
class SplitAudit:
    """One category of one split (`category` None where the benchmark has none).

    `val_split_gallery`: images that are a reference or a target; None without public targets.
    `empty_captions`, `identical_captions`: queries with such captions. `repeated_queries`: those that another has
    the reference, captions and targets of. Words: of the joined captions.
    `missing`, `undecodable`: gallery images; in train, which nobody searches, images that queries use.
    `lost_queries`: queries whose reference, or all of whose targets, are missing or undecodable.
    `duplicates`, `duplicated_targets`: None where images were not checked, or in train; the latter are
    queries with a target that has an exact copy elsewhere in the gallery.
    """

    split: str
    category: str | None
    queries: int
    gallery: int
    val_split_gallery: int | None
    empty_captions: int
    identical_captions: int
    repeated_queries: int
    mean_words: float
    max_words: int
    missing: int
    undecodable: int
    lost_queries: int
    duplicates: Duplicates | None = None
    duplicated_targets: int | None = None


@dataclass(frozen=True, slots=True)
class Overlap:
    """Images that two parts of the data share; category "all" is all categories of the split.

    `galleries`: in both galleries. `triplets_in_gallery`: in a query of the first and in the gallery of
    the second. `triplets`: in queries of both.
    """

    first_split: str
    first_category: str | None
    second_split: str
    second_category: str | None
    galleries: int
    triplets_in_gallery: int
    triplets: int


@dataclass(frozen=True, slots=True)
class UniqueImages:
    """Different images of a split over its categories, or of all splits ("all")."""

    split: str
    gallery: int
    triplets: int


@dataclass(frozen=True)
class Audit:
    """The report of `audit`.

    `mismatches`: a sentence for each count that is not the published one. `missing` and `undecodable`:
    image id → reason. `checked`: the image files that were opened.
    """

    name: str
    splits: list[SplitAudit]
    unique: list[UniqueImages]
    overlaps: list[Overlap]
    mismatches: list[str]
    missing: dict[str, str]
    undecodable: dict[str, str]
    checked: int

    @property
    def complete(self) -> bool:
        """Whether every image is there and, as far as checked, can be decoded."""
        return not self.missing and not self.undecodable

    def to_dict(self) -> dict[str, Any]:
        """The whole report as JSON types."""
        return {**asdict(self), "complete": self.complete}

    def to_frame(self) -> pd.DataFrame:
        """One row a split and category; the duplicates' counts are columns of their own."""
        import pandas as pd

        rows = [asdict(replace(s, duplicates=None)) | _duplicate_counts(s) for s in self.splits]
        return pd.DataFrame(rows).drop(columns="duplicates")

    def overlap_frame(self) -> pd.DataFrame:
        """One row a pair of split and category."""
        import pandas as pd

        return pd.DataFrame([asdict(overlap) for overlap in self.overlaps], columns=[f.name for f in fields(Overlap)])


def audit(
    benchmark_name: str,
    root: str | Path,
    *,
    splits: Sequence[str] = ("train", "val"),
    categories: Sequence[str] | None = None,
    expected: Expected | None = None,
    check_decode: bool = True,
    workers: int | None = None,
) -> Audit:
    """Reads all annotations and, with `check_decode`, every image file that the study needs.

    Args:
        benchmark_name: as for `load_benchmark`.
        root: as for `load_benchmark`.
        splits: which splits to read.
        categories: which categories; None is all that have files, and all that are expected to.
        expected: (split, category) → counts to compare with; None is the published ones, `{}` nothing.
        check_decode: opens the images; without it there are no undecodable ones and no duplicates.
        workers: decoding threads, by default one a core.

    Raises:
        BenchmarkError: the annotations cannot be loaded, see `load_benchmark`.
    """
    parts = _load(benchmark_name, root, splits, categories)
    expected = EXPECTED.get(benchmark_name, {}) if expected is None else expected
    files = _needed_files(parts)
    checks = check_images(files, workers=workers) if check_decode else {}
    undecodable = {image: c.problem for image, c in checks.items() if c.problem is not None}
    rows = [_split_audit(part, category, undecodable, checks) for category, part in parts]
    return Audit(
        name=benchmark_name,
        splits=rows,
        unique=_unique(parts),
        overlaps=_overlaps(parts),
        mismatches=_mismatches(rows, expected, splits, categories),
        missing=_missing(parts),
        undecodable=undecodable,
        checked=len(checks),
    )


Part = tuple[str | None, Benchmark]  # a category and its queries and gallery


def _load(name: str, root: str | Path, splits: Sequence[str], wanted: Sequence[str] | None) -> list[Part]:
    parts: list[Part] = []
    for split in splits:
        found: Sequence[str | None] = wanted or list_categories(name, root, split) or [None]
        parts += [(c, load_benchmark(name, root, split=split, category=c)) for c in found]
    return parts


def _needed(part: Benchmark) -> set[str]:
    """The images a study opens: the gallery, but of train only what its queries use."""
    return _used(part) if part.split == "train" else set(part.gallery)


def _used(part: Benchmark) -> set[str]:
    return {image for t in part.triplets for image in (t.reference, *t.targets)}


def _needed_files(parts: Sequence[Part]) -> dict[str, Path]:
    return {
        image: path
        for _, part in parts
        for image in sorted(_needed(part))
        if isinstance(path := part.images[image], Path)
    }


def _missing(parts: Sequence[Part]) -> dict[str, str]:
    gaps: dict[str, str] = {}
    for _, part in parts:
        needed = _needed(part)
        gaps.update({image: reason for image, reason in part.missing.items() if image in needed})
    return gaps


# ------------------------------------------------------------------ one split and category
def _split_audit(
    part: Benchmark, category: str | None, undecodable: Mapping[str, str], checks: Mapping[str, ImageCheck]
) -> SplitAudit:
    needed = _needed(part)
    words = [len(join_captions(t.captions, "and")[0].split()) for t in part.triplets]
    searched = bool(checks) and part.split != "train"
    return SplitAudit(
        split=part.split,
        category=category,
        queries=len(part.triplets),
        gallery=len(part.gallery),
        val_split_gallery=len(_used(part)) if all(t.targets for t in part.triplets) else None,
        empty_captions=sum(_has_empty(t) for t in part.triplets),
        identical_captions=sum(_has_identical(t) for t in part.triplets),
        repeated_queries=len(part.triplets) - len({(t.reference, t.captions, t.targets) for t in part.triplets}),
        mean_words=sum(words) / max(1, len(words)),
        max_words=max(words, default=0),
        missing=len(needed & part.missing.keys()),
        undecodable=len(needed & undecodable.keys()),
        lost_queries=len(lost_queries(mark_unusable(part, undecodable))),
        duplicates=find_duplicates(part.gallery, checks) if searched else None,
        duplicated_targets=_duplicated_targets(part, checks) if searched else None,
    )


def _has_empty(triplet: Triplet) -> bool:
    return any(not caption.strip() for caption in triplet.captions)


def _has_identical(triplet: Triplet) -> bool:
    stripped = [caption.strip() for caption in triplet.captions]
    return len(set(stripped)) < len(stripped)


def _duplicated_targets(part: Benchmark, checks: Mapping[str, ImageCheck]) -> int:
    seen: dict[bytes, int] = {}
    digests = {i: checks[i].digest for i in part.gallery if i in checks and checks[i].problem is None}
    for digest in digests.values():
        seen[digest] = seen.get(digest, 0) + 1
    return sum(any(seen.get(digests.get(i, b""), 0) > 1 for i in t.targets) for t in part.triplets)


def _duplicate_counts(row: SplitAudit) -> dict[str, int | None]:
    names = ("exact_groups", "exact_images", "near_pairs", "near_images")
    return {name: getattr(row.duplicates, name, None) for name in names}


# ------------------------------------------------------------------ between splits and categories
def _unique(parts: Sequence[Part]) -> list[UniqueImages]:
    splits = list(dict.fromkeys(part.split for _, part in parts))
    return [
        UniqueImages(split, len(_galleries(parts, split)), len(_triplet_images(parts, split)))
        for split in (*splits, ALL)
    ]


def _galleries(parts: Sequence[Part], split: str) -> set[str]:
    return {image for _, part in parts if split in (part.split, ALL) for image in part.gallery}


def _triplet_images(parts: Sequence[Part], split: str) -> set[str]:
    return {image for _, part in parts if split in (part.split, ALL) for image in _used(part)}


def _overlaps(parts: Sequence[Part]) -> list[Overlap]:
    """Every pair of parts, then every pair of splits with their categories together."""
    single = [(p.split, category, set(p.gallery), _used(p)) for category, p in parts]
    splits = list(dict.fromkeys(part.split for _, part in parts))
    joined = [(s, ALL, _galleries(parts, s), _triplet_images(parts, s)) for s in splits]
    return [
        Overlap(a, a_category, b, b_category, len(a_all & b_all), len(a_used & b_all), len(a_used & b_used))
        for group in (single, joined)
        for (a, a_category, a_all, a_used), (b, b_category, b_all, b_used) in combinations(group, 2)
    ]


# ------------------------------------------------------------------ against the published counts
def _mismatches(
    rows: Sequence[SplitAudit], expected: Expected, splits: Sequence[str], categories: Sequence[str] | None
) -> list[str]:
    found = {(row.split, row.category): row for row in rows}
    sentences: list[str] = []
    for (split, category), counts in expected.items():
        if split not in splits or (categories is not None and category not in categories):
            continue
        where = f"{split} {category}" if category else split
        row = found.get((split, category))
        if row is None:
            sentences.append(f"{where}: no annotations, expected {counts.queries} queries.")
            continue
        sentences += [
            f"{where}: {key.replace('_', ' ')} {getattr(row, key)}, expected {value}."
            for key, value in asdict(counts).items()
            if value is not None and getattr(row, key) != value
        ]
    return sentences
