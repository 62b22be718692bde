"""What a study asks of this machine, told before it is started.

``python -m cirlib.app.doctor`` (``make doctor``) looks at the GPU and its driver, the disk, the memory and where models
come from, and runs a few steps of every long stage with random weights of the true size on this device: what they take
is measured, and hours are those steps times their number.
"""

import argparse
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import shorten

import httpx
import open_clip
import psutil
import torch

from cirlib.app.full_size import StageProbe, probes
from cirlib.benchmarks import BenchmarkError
from cirlib.benchmarks.catalogues.columns import find_table
from cirlib.benchmarks.splits import load_parts
from cirlib.models.devices import best_device, listed_gpus, precision_here
from cirlib.models.prepared import Prepared
from cirlib.study.errors import ParameterError, ResourceError, StudyError
from cirlib.study.parameters import Study, load_study
from cirlib.study.resources import SPARE_DISK, within_memory
from cirlib.study.stage import Stage, check_names, project_root

HUB = "https://huggingface.co"
PUBLISHED = {  # images, and queries to train on, of a study without and with training
    "fashioniq": ((15_415, 0), (40_151, 18_000)),
    "cirr": ((2_297, 0), (19_236, 28_225)),
    "circo": ((123_403, 0), (123_403, 0)),
}
TRAINING_STATE = 12_000_000_000  # bytes of kept trainings
GB = 1e9


@dataclass(frozen=True)
class Finding:
    """One thing looked at; ``stops``: the study would not run to its end."""

    what: str
    said: str
    stops: bool = False

    def __str__(self) -> str:
        return f"{'STOP' if self.stops else 'ok':<5}{self.what:<26} {self.said}"


def examine(study: Study, root: Path) -> Iterator[Finding]:
    """Every finding, one by one as it is made.

    >>> [finding.what for finding in examine(stage.study, folder)][:3]
    ['GPU', 'data', 'memory of the machine']
    """
    try:
        device = best_device()
    except ResourceError as error:
        yield Finding("GPU", str(error), stops=True)
        return
    small = study.models.fusion == "mini"
    without = "none, and this study needs none" if small else "none: every number below is of the CPU"
    yield Finding("GPU", " | ".join(listed_gpus()) if device.type == "cuda" else without)
    data, images, queries = _data(study, root)
    yield data
    stages = list(probes(study, root, device, images, queries))
    total, wanted = psutil.virtual_memory().total / GB, 4 if small else 16
    yield Finding("memory of the machine", f"{total:.0f} GB, {wanted} GB wanted", stops=total < 0.875 * wanted)
    yield _disk(study, root, images, stages)
    yield _choices(study, root)
    yield from (_source(name, root) for name in _models(study, root))
    yield from (_measured(probe, device) for probe in stages)
    if small:
        yield Finding("hours", "not measured for the small models: README.md has the minutes of make study")


def _data(study: Study, root: Path) -> tuple[Finding, int, int]:
    """Whether the data is there, images to encode and queries to train on; 0 where nothing says it."""
    data, folder = study.data, Stage("data_prep", study, root, root, root, {}).images
    how = "fetches" if data.fetch else "makes" if study.data_prep.drawing else ""
    try:
        if data.catalogue:
            find_table(root / data.root.expanduser(), data.catalogue.table)
            how = "makes"
        train = list(load_parts(study, folder, "train", "val_split").values())
        parts = [*train, *load_parts(study, folder, data.split, "original").values()]
    except BenchmarkError as error:
        images, queries = PUBLISHED.get(data.benchmark, ((0, 0), (0, 0)))[data.train]
        said = f"is not there yet: data preparation {how} it" if how else f"{error} data/README.md has what goes where"
        return Finding("data", said, stops=not how), images, queries
    images, queries = {image for part in parts for image in part.gallery}, sum(len(part.triplets) for part in train)
    missing = set().union(*(part.missing for part in parts))
    said = f"{len(images):,} images, {len(missing):,} of them missing, {queries:,} queries to train on"
    stops = bool(missing) and not (data.fetch or data.images or data.allow_missing)
    advice = ": name data.images, or set data.allow_missing=true" if stops else ""
    return Finding("data", said + advice, stops), len(images), queries


def _disk(study: Study, root: Path, images: int, stages: list[StageProbe]) -> Finding:
    """Features, with the copy that DVC keeps, and trainings, against what is free on the disk or there already."""
    features = sum(4 * images * probe.values for probe in stages) if study.models.cache_tokens else 0
    kept = TRAINING_STATE if study.models.fusion != "mini" and study.data.train else 0
    there = sum(file.stat().st_size for file in (root / "data" / study.name).rglob("features.npy"))
    statistics = os.statvfs(root)
    needed, free = features + kept + SPARE_DISK - 2 * there, statistics.f_bavail * statistics.f_frsize
    advice = ": make room, or set models.cache_tokens=false" if needed > free else ""
    large = f"{features / GB:.1f} GB of features of {images:,} images with DVC's copy, {kept / GB:.0f} GB of trainings"
    said = f"{large}, and pictures and models; " if kept or (images and stages) else ""
    return Finding("disk", f"{said}{free / GB:.0f} GB free{advice}", stops=needed > free)


def _choices(study: Study, root: Path) -> Finding:
    """The precision that this device computes in, and whether the methods asked for are there."""
    try:
        Prepared(Stage("data_prep", study, root, root, root, {})).check_models()
        methods = check_names(study, root)
    except StudyError as error:
        return Finding("precision, methods", str(error), stops=True)
    return Finding("precision, methods", ", ".join([precision_here(study.models.precision), *methods]))


def _models(study: Study, root: Path) -> list[str]:
    """Where the models of a study come from that are not the small ones: folders, files, ids of the hub."""
    fusion, clip, weights = study.models.fusion, study.models.clip, study.models.clip_pretrained or ""
    named = [] if fusion == "mini" else [fusion]
    if clip == "mini":  # its heads are looked for with the parameters
        return named
    if (root / weights).is_file():
        return [*named, weights]
    published = open_clip.get_pretrained_cfg(clip, weights)
    place = ":" in clip or published  # of another name it is said already that open_clip has none
    return [*named, published.get("hf_hub", clip).strip("/")] if place else named


def _source(name: str, root: Path) -> Finding:
    """Whether a model is there or its hub can be asked."""
    path = root / name.removeprefix("local-dir:")
    if path.exists():
        return Finding(name, "is there")
    if name.startswith(("/", ".", "local-dir:", "data/")):
        return Finding(name, f"there is no {path}: the study's file in conf/study says what makes it", stops=True)
    cached = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface")) / "hub"
    snapshots = cached / f"models--{name.partition('@')[0].replace('/', '--')}" / "snapshots"
    if any(file.suffix in (".safetensors", ".bin") for file in snapshots.glob("*/*")):
        return Finding(name, "is in the hub's cache")
    hub = os.environ.get("HF_ENDPOINT", HUB)
    try:
        httpx.head(hub, timeout=10, follow_redirects=True).raise_for_status()
    except httpx.HTTPError as error:
        said = f"is not here, and {hub} does not answer ({type(error).__name__}): go online, or name a local folder"
        return Finding(name, said, stops=True)
    return Finding(name, f"{hub} answers")


def _measured(probe: StageProbe, device: torch.device) -> Finding:
    """Some steps of a stage: its peak of GPU memory and the hours of all its steps."""
    try:
        with within_memory("a step", probe.advice):
            seconds, peak = _time(probe.step, device)
    except Exception as error:  # of libraries, for a model that cannot be built
        return Finding(probe.name, shorten(f"cannot be run: {error}", 300, placeholder=" …"), stops=True)
    hours = seconds * probe.count / probe.batch / 3600
    memory = f", {peak / GB:.1f} GB of GPU memory" if device.type == "cuda" else ""
    all_of_it = f": {probe.count:,} take {hours:.1f} h" if probe.count else ""
    speed = f"{probe.batch / seconds:.3g} {probe.unit} a second in batches of {probe.batch}"
    return Finding(probe.name, f"{speed}{all_of_it}{memory}")


def _time(prepare: Callable[[], Callable[[], object]], device: torch.device) -> tuple[float, int]:
    """Seconds of a step, after one to warm up where there is a GPU, and the peak of its memory."""
    if device.type != "cuda":
        step, start = prepare(), time.perf_counter()
        step()
        return time.perf_counter() - start, 0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    step = prepare()
    step()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / 3, torch.cuda.max_memory_allocated()


def main() -> None:
    """Tells what a study asks of this machine, and ends with 1 where it could not run to its end."""
    parser = argparse.ArgumentParser(prog="python -m cirlib.app.doctor", description=main.__doc__)
    try:
        root = project_root()
    except StudyError as error:
        parser.exit(1, f"{error}\n")
    studies = sorted(file.stem for file in (root / "conf" / "study").glob("*.yaml"))
    said = f"one of {', '.join(studies)} (default: what params.yaml says)"
    parser.add_argument("--study", choices=studies, metavar="NAME", help=said)
    asked = parser.parse_args()
    logging.disable(logging.WARNING)  # open_clip's, that weights are random
    try:
        findings = []
        for finding in examine(_study(asked.study, root), root):
            print(finding, flush=True)
            findings.append(finding)
    except StudyError as error:
        parser.exit(1, f"{error}\n")
    parser.exit(int(any(finding.stops for finding in findings)))


def _study(name: str | None, root: Path) -> Study:
    if name is None:
        return load_study(root / "params.yaml")
    from dvc.utils.hydra import compose_and_dump

    with TemporaryDirectory() as folder:
        file = Path(folder) / "params.yaml"
        compose_and_dump(file, str(root / "conf"), None, "config", "", [f"study={name}"])
        try:
            return load_study(file)
        except ParameterError as error:
            raise ParameterError(str(error).replace(str(file), f"conf/study/{name}.yaml")) from None


if __name__ == "__main__":
    main()
