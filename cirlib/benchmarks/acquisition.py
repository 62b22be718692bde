"""The study's files: drawn, taken from what the user has, or fetched; then looked at, gap by gap."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from cirlib.benchmarks import categories, load_benchmark
from cirlib.benchmarks.audit import Audit, audit
from cirlib.benchmarks.downloads import DeadLinks, Outcome, fetch_images, save_picture
from cirlib.benchmarks.expected import EXPECTED
from cirlib.benchmarks.fashioniq_files import REPLACEMENTS, fetch_annotations, read_links
from cirlib.benchmarks.garments import draw_garments
from cirlib.benchmarks.image_sources import take_images
from cirlib.benchmarks.splits import unusable_file
from cirlib.study.files import write_json, write_table
from cirlib.study.stage import Stage


def obtain(stage: Stage) -> None:
    """Brings the study's annotations and images into its folder, as far as they are not there.

    Drawn where the study draws; else images are taken from ``data.images`` where that is named, else fetched from the
    benchmark's links where ``data.fetch`` says so. An interrupted call goes on where it was.

    Raises:
        BenchmarkError: annotations cannot be had, or what the user named has no such images.
    """
    data, root = stage.study.data, stage.images
    if stage.params.drawing is not None:
        options = {"image_size": stage.study.models.image_size, "seed": stage.study.seed}
        draw_garments(root, **stage.params.drawing.model_dump(), **options)
    if data.fetch:
        fetch_annotations(root)
    wanted = missing_images(stage)
    if not wanted:
        return
    if data.images is not None:
        _tell("taken from " + data.images, take_images(_source(stage), wanted, root / "images"), len(wanted))
    elif data.fetch:
        _tell("fetched", fetch_linked(root, wanted), len(wanted))


def _source(stage: Stage) -> str:
    """``data.images``, a path in it being the project's."""
    named = stage.study.data.images
    return named if "://" in named else str(stage.root / Path(named).expanduser())


def missing_images(stage: Stage) -> list[str]:
    """The images that the study needs and has no file of: of train only those that queries use."""
    data, root = stage.study.data, stage.images
    missing: dict[str, None] = {}
    for split in _splits(stage):
        found = categories(data.benchmark, root, split)
        for category in [c for c in found if not data.categories or c in data.categories] or [None]:
            protocol = "val_split" if split == "train" and found else "original"
            part = load_benchmark(data.benchmark, root, split=split, category=category, protocol=protocol)
            missing |= dict.fromkeys(part.missing)
    return list(missing)


def _splits(stage: Stage) -> list[str]:
    """Train, where the data has it, and the reported split."""
    data = stage.study.data
    has_train = data.benchmark == "cirr" or (
        data.benchmark != "circo" and bool(categories(data.benchmark, stage.images, "train"))
    )
    return ["train", data.split] if has_train else [data.split]


def fetch_linked(root: Path, wanted: list[str]) -> dict[str, Outcome]:
    """The wanted images from the benchmark's links; where a link is dead, the picture that the data set ships."""
    links, dead = read_links(root), DeadLinks(root / "dead_links.csv")
    outcomes = fetch_images({image: links.get(image, []) for image in wanted}, root / "images", dead)
    for image, outcome in outcomes.items():
        shipped = root / REPLACEMENTS / f"{image}.jpg"
        if outcome.kind != "there" and shipped.is_file():
            outcomes[image] = save_picture(shipped.read_bytes(), root / "images" / image)
    return outcomes


def _tell(how: str, outcomes: Mapping[str, Outcome], wanted: int) -> None:
    kinds = Counter(outcome.kind for outcome in outcomes.values())
    rest = "".join(f", {number:,} {kind}" for kind, number in kinds.items() if kind != "there")
    absent = wanted - sum(kinds.values())
    print(f"{kinds['there']:,} of {wanted:,} images {how}{rest}" + (f", {absent:,} not in it" if absent else ""))


def inspect(stage: Stage) -> Audit:
    """Opens every image of the study and counts everything there is to count; keeps what cannot be used.

    Later stages read ``unusable.json`` and take those images for missing.
    """
    data = stage.study.data
    report = audit(data.benchmark, stage.images, splits=_splits(stage), categories=data.categories)
    stage.data.mkdir(parents=True, exist_ok=True)
    write_json(report.undecodable, unusable_file(stage), indent=1)
    return report


def write_audit(report: Audit, folder: Path) -> None:
    """The report as ``audit.csv`` (a row a split and category), ``overlaps.csv`` and ``missing_images.csv``."""
    write_table(report.to_frame(), folder / "audit.csv")
    write_table(report.overlap_frame(), folder / "overlaps.csv")
    write_table(missing_table(report), folder / "missing_images.csv")


def overview(report: Audit) -> pd.DataFrame:
    """The report for reading: a column a split and category, whole numbers with thousands marked."""
    rows = {
        f"{row['split']} {row['category'] or ''}".strip(): {
            name.replace("_", " "): _number(value) for name, value in row.items() if name not in ("split", "category")
        }
        for row in report.to_frame().astype(object).to_dict("records")
    }
    return pd.DataFrame(rows)


def _number(value: float | None) -> str:
    if value is None or pd.isna(value):
        return ""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.1f}"


def missing_table(report: Audit) -> pd.DataFrame:
    """Every image that is not there or cannot be decoded, and why: ``image``, ``kind``, ``reason``."""
    rows = [(image, "missing", reason) for image, reason in report.missing.items()]
    rows += [(image, "undecodable", reason) for image, reason in report.undecodable.items()]
    return pd.DataFrame(rows, columns=["image", "kind", "reason"])


def expectation(report: Audit) -> str:
    """Whether the counts are the published ones, in a sentence."""
    if report.mismatches:
        return "Not as published: " + " ".join(report.mismatches)
    return "Every count is as published." if report.name in EXPECTED else "No counts are published for these data."


def leaks(report: Audit) -> pd.DataFrame:
    """The pairs of split and category that share images, those that share most first."""
    table = report.overlap_frame()
    counts = ["galleries", "triplets_in_gallery", "triplets"]
    shared = table[(table[counts] > 0).any(axis=1)]
    return shared.sort_values(counts, ascending=False, kind="stable", ignore_index=True)
