"""What a study's data are like: counts, gaps, odd captions, leaks between splits, repeated pictures."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import pandas as pd

from cirlib.study.files import write_table

from .base import Benchmark
from .caption_joining import join_captions
from .image_checks import ImageCheck, check_images, count_duplicates

PUBLISHED = Path(__file__).with_name("published_counts.csv")  # counted from the annotation files
COUNTS = ["queries", "gallery", "val_split_gallery"]
DUPLICATES = ("duplicated_targets", "exact_groups", "exact_images", "near_pairs", "near_images")
SHARED = ["galleries", "triplets_in_gallery", "triplets"]


@dataclass(frozen=True)
class Audit:
    """The report of `audit`.

    `table`: a row a split and category. val_split_gallery: images that are a reference or a target, where targets are
    public. missing, undecodable: gallery images, in train (which nobody searches) those that queries use.
    lost_queries: those that these cost. duplicated_targets: queries with a target that has an exact copy elsewhere in
    the gallery; these and the counts of `count_duplicates` are empty where no image was opened, and in train.
    `overlaps`: a row a pair of split and category ("all": together). galleries: images in both galleries;
    triplets_in_gallery: in a query of the first and the gallery of the second; triplets: in queries of both.
    `missing`, `undecodable`: image id → reason. `mismatches`: a sentence for each count that is not the published one;
    None where none are published.
    """

    table: pd.DataFrame
    overlaps: pd.DataFrame
    missing: dict[str, str]
    undecodable: dict[str, str]
    mismatches: list[str] | None

    @property
    def complete(self) -> bool:
        """Whether every image is there and can be decoded."""
        return not self.missing and not self.undecodable

    def verdict(self) -> str:
        """Whether the counts are the published ones, in a sentence."""
        if self.mismatches is None:
            return "No counts are published for these data."
        return "Not as published: " + " ".join(self.mismatches) if self.mismatches else "Every count is as published."

    def overview(self) -> pd.DataFrame:
        """The table for reading: a column a split and category, whole numbers with thousands marked."""
        names = self.table["split"] + (" " + self.table["category"]).fillna("")
        text = self.table.drop(columns=["split", "category"]).astype(float).map(_number)
        return text.rename(columns=lambda name: name.replace("_", " ")).set_axis(names).rename_axis(None).T

    def gaps(self) -> pd.DataFrame:
        """Every image that is not there or cannot be decoded, and why: ``image``, ``kind``, ``reason``."""
        kinds = {"missing": self.missing, "undecodable": self.undecodable}
        rows = [(image, kind, reason) for kind, images in kinds.items() for image, reason in images.items()]
        return pd.DataFrame(rows, columns=["image", "kind", "reason"])

    def leaks(self) -> pd.DataFrame:
        """The pairs of split and category that share images, those that share most first."""
        shared = self.overlaps[(self.overlaps[SHARED] > 0).any(axis=1)]
        return shared.sort_values(SHARED, ascending=False, kind="stable", ignore_index=True)

    def write(self, folder: Path) -> None:
        """``audit.csv``, ``overlaps.csv`` and ``missing_images.csv``."""
        for name, table in {"audit": self.table, "overlaps": self.overlaps, "missing_images": self.gaps()}.items():
            write_table(table, folder / f"{name}.csv")


def audit(parts: Sequence[Benchmark], categories: Sequence[str] | None = None) -> Audit:
    """Counts everything there is to count and opens every image file that a study needs.

    Args:
        parts: one a split and category, each with its original gallery.
        categories: those that are compared with the published counts; None is all that are published.

    >>> audit(list(prepared.splits.reported.values())).table["queries"].tolist()
    [3, 3]
    """
    needed = [(part, _needed(part)) for part in parts]
    images = {image: part.images[image] for part, used in needed for image in part.gallery if image in used}
    checks = check_images({image: file for image, file in images.items() if isinstance(file, Path)})
    missing = {image: reason for image, reason in images.items() if isinstance(reason, str)}
    undecodable = {image: check.problem for image, check in checks.items() if check.problem is not None}
    table = pd.DataFrame([_row(part, undecodable, checks) for part in parts])
    return Audit(table, _overlaps(parts), missing, undecodable, _mismatches(table, parts[0].name, categories))


def _needed(part: Benchmark) -> set[str]:
    """The images a study opens: the gallery, but of train only what its queries use."""
    return part.query_images if part.split == "train" else set(part.gallery)


def _category(part: Benchmark) -> str | None:
    return part.categories[0] if len(part.categories) == 1 else None


def _row(part: Benchmark, undecodable: Mapping[str, str], checks: Mapping[str, ImageCheck]) -> dict[str, object]:
    needed, queries = _needed(part), part.triplets
    stripped = [[caption.strip() for caption in t.captions] for t in queries]
    words = pd.Series([len(join_captions(t.captions, "both_orders")[0].split()) for t in queries])
    row = {
        "split": part.split,
        "category": _category(part),
        "queries": len(queries),
        "gallery": len(part.gallery),
        "val_split_gallery": len(part.query_images) if all(t.targets for t in queries) else None,
        "empty_captions": sum("" in captions for captions in stripped),
        "identical_captions": sum(len(set(captions)) < len(captions) for captions in stripped),
        "repeated_queries": len(queries) - len({(t.reference, t.captions, t.targets) for t in queries}),
        "mean_words": words.mean(),
        "max_words": words.max(),
        "missing": len(needed & part.missing.keys()),
        "undecodable": len(needed & undecodable.keys()),
        "lost_queries": len(part.mark_unusable(undecodable).lost_queries),
        **dict.fromkeys(DUPLICATES),
    }
    if not checks or part.split == "train":
        return row
    digests = {i: checks[i].digest for i in part.gallery if i in checks and checks[i].problem is None}
    copies = Counter(digests.values())
    twins = sum(any(copies[digests.get(i)] > 1 for i in t.targets) for t in queries)
    return row | {"duplicated_targets": twins} | count_duplicates(part.gallery, checks)


def _overlaps(parts: Sequence[Benchmark]) -> pd.DataFrame:
    """Every pair of parts, then every pair of splits with their categories together."""
    single = [((p.split, _category(p)), set(p.gallery), p.query_images) for p in parts]
    joined = []
    for split in dict.fromkeys(p.split for p in parts):
        of_split = [(gallery, used) for (name, _), gallery, used in single if name == split]
        joined.append(((split, "all"), *(set().union(*sets) for sets in zip(*of_split, strict=True))))
    rows = [
        (*first, *second, len(a & b), len(a_used & b), len(a_used & b_used))
        for group in (single, joined)
        for (first, a, a_used), (second, b, b_used) in combinations(group, 2)
    ]
    return pd.DataFrame(rows, columns=["first_split", "first_category", "second_split", "second_category", *SHARED])


def _mismatches(table: pd.DataFrame, name: str, categories: Sequence[str] | None) -> list[str] | None:
    published = pd.read_csv(PUBLISHED, keep_default_na=False, na_values={key: [""] for key in COUNTS})
    published = published.query("benchmark == @name")
    if published.empty:
        return None
    wanted = published["split"].isin(table["split"]) & (published["category"].isin(categories) if categories else True)
    keys = ["split", "category"]
    expected, found = (t.fillna({"category": ""}).melt(keys, COUNTS, "count") for t in (published[wanted], table))
    both = expected.dropna().merge(found, how="left", on=[*keys, "count"]).fillna(0)
    return [
        f"{split} {category} {count.replace('_', ' ')}: {is_now:.0f}, expected {should:.0f}."
        for split, category, count, should, is_now in both.itertuples(index=False)
        if is_now != should
    ]


def _number(value: float) -> str:
    if pd.isna(value):
        return ""
    return f"{value:,.0f}" if value.is_integer() else f"{value:.1f}"
