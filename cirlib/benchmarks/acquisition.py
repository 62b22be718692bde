"""The study's files: drawn, made from a catalogue, taken from what there is, or fetched; then looked at, gap by gap."""

import random
from collections import Counter
from pathlib import Path

from cirlib.study.files import write_json, write_table
from cirlib.study.stage import Stage

from .audit import Audit, audit
from .base import Benchmark
from .catalogues import Look, read_catalogue, write_catalogue
from .downloads import DownloadOutcome, fetch_images, save_picture
from .fashioniq_files import REPLACEMENTS, fetch_annotations, read_links
from .garments import draw_garments
from .image_sources import take_images
from .splits import UNUSABLE, load_parts

SAMPLE = 100  # links that are tried before the rest


def acquire(stage: Stage, look: Look) -> None:
    """Brings the study's annotations and images into its folder, as far as they are not there.

    Drawn where the study draws, made where it has a catalogue; else images are taken from ``data.images`` where that
    is named, else fetched from the benchmark's links where ``data.fetch`` says so. An interrupted call goes on where it
    was. ``look``: of a picture a vector, by which a catalogue's edits are made between things that look alike.

    Raises `BenchmarkError` where annotations cannot be had, or what the user named has no such images.

    >>> acquire(stage, np.ravel)  # nothing is missing
    """
    data, root = stage.study.data, stage.images
    if data.catalogue:
        _make_catalogue(stage, look)
    if drawing := stage.study.data_prep.drawing:
        draw_garments(root, drawing, image_size=stage.study.models.image_size, seed=data.seed)
    if data.fetch:
        fetch_annotations(root)
    wanted = missing_images(stage)
    if not wanted or not (data.images or data.fetch):
        return
    if data.images:
        source = data.images if "://" in data.images else stage.root / Path(data.images).expanduser()
        outcomes = take_images(source, wanted, root / "images")
    else:
        outcomes = _fetch_linked(root, wanted)
    how = f"taken from {data.images}" if data.images else "fetched"
    kinds = Counter(outcome.kind for outcome in outcomes.values())
    kinds["not in it"] = len(wanted) - len(outcomes)
    rest = "".join(f", {number:,} {kind}" for kind, number in kinds.items() if number and kind != "there")
    print(f"{kinds['there']:,} of {len(wanted):,} images {how}{rest}")
    for image, outcome in [(i, o) for i, o in outcomes.items() if o.kind != "there"][:1]:
        print(f"The first of them, {image!r}: {outcome.reason}.")


def _make_catalogue(stage: Stage, look: Look) -> None:
    """The user's folder and table as a study's files; how they are read is shown before anything is made of them."""
    data, folder = stage.study.data, stage.root / stage.study.data.root.expanduser()
    catalogue = read_catalogue(data, folder, look)
    print(catalogue.overview.to_string(index=False, max_colwidth=60))
    write_catalogue(catalogue, data, folder, stage.images)
    write_table(catalogue.overview, stage.out / "catalogue.csv")


def missing_images(stage: Stage) -> list[str]:
    """The images that the study needs and has no file of: of train only those that queries use.

    >>> missing_images(stage)
    []
    """
    return list(dict.fromkeys(image for part in _parts(stage, "val_split") for image in part.missing))


def audit_study(stage: Stage) -> Audit:
    """Opens every image of the study and counts everything there is to count; keeps what cannot be used.

    Later stages read ``unusable.json`` and take those images for missing.

    >>> audit_study(stage).complete
    True
    """
    report = audit(_parts(stage, "original"), stage.study.data.categories)
    stage.data.mkdir(parents=True, exist_ok=True)
    write_json(report.undecodable, stage.data / UNUSABLE, indent=1)
    return report


def _parts(stage: Stage, train_gallery: str) -> list[Benchmark]:
    """Train, where the data has it, and the reported split with its whole gallery."""
    splits = {"train": train_gallery, stage.study.data.split: "original"}
    return [p for s, gallery in splits.items() for p in load_parts(stage.study, stage.images, s, gallery).values()]


def _fetch_linked(root: Path, wanted: list[str]) -> dict[str, DownloadOutcome]:
    """The wanted images from the benchmark's links; where a link is dead, the picture that the data set ships."""
    links, folder, dead = read_links(root), root / "images", root / "dead_links.csv"
    asked = {image: links.get(image, []) for image in wanted}
    outcomes = {}
    if len(wanted) > 20 * SAMPLE:  # hours: what they will bring is told first
        drawn = random.Random(0).sample(wanted, SAMPLE)
        outcomes = fetch_images({image: asked.pop(image) for image in drawn}, folder, dead)
        found = sum(outcome.kind == "there" for outcome in outcomes.values())
        print(f"of {SAMPLE} images drawn at random {found} come by their link; docs/fashioniq.md lists other sources")
    outcomes |= fetch_images(asked, folder, dead)
    for image, outcome in outcomes.items():
        shipped = root / REPLACEMENTS / f"{image}.jpg"
        if outcome.kind != "there" and shipped.is_file():
            outcomes[image] = save_picture(shipped.read_bytes(), root / "images" / image)
    return outcomes
