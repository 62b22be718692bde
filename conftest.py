"""What tests and the examples in docstrings share: real annotations where there are any, and small made-up data."""

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub: no test asks a server
# A background job ignores SIGINT, and so would the processes that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
if "PYTEST_XDIST_WORKER" in os.environ:  # side by side, more threads than cores mostly wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

PROJECT_ROOT = Path(__file__).resolve().parent
SMALL_MODELS = {"image_size": 64, "precision": "fp32"}


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """Folder of a benchmark's real annotations ("fashioniq", "cirr", "circo"); skips where it is absent."""
    base = Path(os.environ.get("CIRLIB_SHARED", PROJECT_ROOT.parent / "shared"))

    def find(name: str) -> Path:
        if not (base / name).is_dir():
            pytest.skip(f"no {name} annotations in {base} (set CIRLIB_SHARED to the folder that has them)")
        return base / name

    return find


def _write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def write_json() -> Callable[[Path, Any], Path]:
    """Writes JSON, making the folder."""
    return _write_json


def _write_image(path: Path, seed: int = 0, size: tuple[int, int] = (48, 64)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture(scope="session")
def write_image() -> Callable[..., Path]:
    """Saves a random picture; the same seed gives the same pixels."""
    return _write_image


@pytest.fixture
def small_fashioniq(tmp_path: Path) -> Path:
    """FashionIQ's files with three categories, no images: 2 train and 2 val queries a category.

    Galleries are `{category}-{split}-{0..4}`; image 4 is in no query; shirt and toptee share "both" in val,
    and shirt's train gallery has toptee's first val reference.
    """
    for category in ("dress", "shirt", "toptee"):
        for split in ("train", "val", "test"):
            ids = [f"{category}-{split}-{i}" for i in range(5)]
            targets = [{}, {}] if split == "test" else [{"target": ids[2]}, {"target": ids[3]}]
            queries: list[dict[str, Any]] = [
                {"candidate": ids[0], "captions": ["is blue.", "has long sleeves"]} | targets[0],
                {"candidate": ids[1], "captions": ["is red", "is red"]} | targets[1],
            ]
            if split == "val" and category != "dress":
                ids.append("both")
            if split == "train" and category == "shirt":
                ids.append("toptee-val-0")
            _write_json(tmp_path / "captions" / f"cap.{category}.{split}.json", queries)
            _write_json(tmp_path / "image_splits" / f"split.{category}.{split}.json", ids)
    return tmp_path


@pytest.fixture(scope="session")
def cpu() -> dict[str, Any]:
    """The `device` and `dtype` arguments of encoders in tests."""
    import torch

    return {"device": torch.device("cpu"), "dtype": torch.float32}


@pytest.fixture(scope="session")
def tiny_blip2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random `Blip2ForImageTextRetrieval` with its processor, saved as the real ones are: 28 px, 5 tokens of 24."""
    from cirlib.app.rehearsal import save_tiny_blip2

    return save_tiny_blip2(tmp_path_factory.mktemp("blip2"))


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Name of a small architecture registered with open_clip, and a file with random weights of it."""
    import open_clip
    import torch

    folder = tmp_path_factory.mktemp("clip")
    config = {
        "embed_dim": 12,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }
    (folder / "cirlib-tiny.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    model = open_clip.create_model("cirlib-tiny")
    torch.save(model.state_dict(), folder / "weights.pt")
    return "cirlib-tiny", folder / "weights.pt"


@pytest.fixture
def httpserver() -> Iterator[Any]:
    """pytest-httpserver's, answering several requests at a time."""
    from pytest_httpserver import HTTPServer

    with HTTPServer(threaded=True) as server:
        yield server


@pytest.fixture(scope="session")
def make_benchmark() -> Callable[..., Any]:
    """Makes a benchmark in memory: a query is (reference, target, caption, …); its files are only named."""
    from cirlib.benchmarks import Benchmark, Triplet

    def make(queries: list[tuple[str, ...]], gallery: list[str], name: str = "hat", complete: bool = True) -> Benchmark:
        triplets = [
            Triplet(f"{name}-query-{i}", reference, tuple(captions), (target,), name)
            for i, (reference, target, *captions) in enumerate(queries)
        ]
        images = {image: Path("images") / f"{image}.jpg" for image in gallery}
        return Benchmark("custom", "val", triplets, list(gallery), images, complete=complete)

    return make


@pytest.fixture(scope="session")
def make_chains(make_benchmark: Callable[..., Any]) -> Callable[..., Any]:
    """Makes parts in which query i goes from image i to image i + 1 of its category.

    `queries`: category → how many; `order`: the images of each gallery, not the store's order; `captions`: of query
    i of a category.
    """

    def make(
        queries: dict[str, int], order: tuple[int, ...], captions: Callable[[str, int], tuple[str, str]]
    ) -> dict[str, Any]:
        return {
            name: make_benchmark(
                [(f"{name}-{i}", f"{name}-{i + 1}", *captions(name, i)) for i in range(count)],
                [f"{name}-{i}" for i in order],
                name,
            )
            for name, count in queries.items()
        }

    return make


@pytest.fixture(scope="session")
def make_scored(make_benchmark: Callable[..., Any]) -> Callable[..., Any]:
    """Makes the ranks of one method on one category, by default without ties.

    Query i goes from image i to image i + 1 of `{category}-{0 … size - 1}`; the reference is removed.
    """
    import torch

    from cirlib.retrieval.ranks import Ranks
    from cirlib.retrieval.scoring import Scored

    def make(
        method: str,
        category: str,
        above: list[int],
        tied: list[int] | None = None,
        captions: list[tuple[str, ...]] | None = None,
        size: int = 101,
        complete: bool = True,
    ) -> Scored:
        ids = [f"{category}-{i}" for i in range(size)]
        captions = captions or [("is blue",)] * len(above)
        queries = [(ids[i], ids[i + 1], *texts) for i, texts in enumerate(captions)]
        benchmark = make_benchmark(queries, ids, category, complete)
        ranks = Ranks(torch.tensor(above), torch.tensor(tied or [0] * len(above)))
        top = [[ids[i + 2], ids[i + 1]] for i in range(len(above))]
        protocol = "original gallery, reference removed, captions joined: and"
        return Scored(method, category, benchmark, ranks, protocol, True, top)

    return make


@pytest.fixture(scope="session")
def make_store() -> Callable[..., Any]:
    """Makes a feature store of given features (image, …) in the order of the ids."""
    from cirlib.models.feature_store import build_store

    def make(folder: Path, ids: list[str], features: Any, key: str = "key") -> Any:
        return build_store(folder, key, ids, tuple(features.shape[1:]), lambda rows: [features[rows]])

    return make


def write_custom_data(raw: Path) -> None:
    """Two categories in FashionIQ's files, pictures and caption pairs.

    A category has 7 train queries over 9 images and 3 val queries over 6, each from image i to image i + 1;
    ids are `{category}-{split}-{i}`. Pictures of pairs are `pair-{i}`, 4 to align and 6 to pretrain.
    """
    number = 0
    for category in ("hat", "shoe"):
        for split, queries, size in (("train", 7, 9), ("val", 3, 6)):
            ids = [f"{category}-{split}-{i}" for i in range(size)]
            records = [
                {"candidate": ids[i], "target": ids[i + 1], "captions": [f"is {i} sizes bigger.", "has stripes"]}
                for i in range(queries)
            ]
            _write_json(raw / "captions" / f"cap.{category}.{split}.json", records)
            _write_json(raw / "image_splits" / f"split.{category}.{split}.json", ids)
            for image in ids:
                _write_image(raw / "images" / f"{image}.jpg", seed=(number := number + 1))
    pairs = [{"image": f"pair-{i}", "caption": f"a thing with {i} dots"} for i in range(6)]
    for i in range(6):
        _write_image(raw / "images" / f"pair-{i}.jpg", seed=100 + i)
    _write_json(raw / "pairs.json", pairs)


def stage_of(root: Path, name: str, **blocks: Any) -> Any:
    """The stage `name` of a study named "small" whose project is `root`, with the data of `write_custom_data`."""
    from cirlib.study.parameters import Study
    from cirlib.study.stage import Stage

    data = {"benchmark": "custom", "root": "raw", **blocks.pop("data", {})}
    study = Study.model_validate({"name": "small", "data": data, **blocks})
    out = root / "results" / "small" / name
    out.mkdir(parents=True, exist_ok=True)
    return Stage(name, study, root, out, root / "figures", {})


@pytest.fixture
def custom_stage(tmp_path: Path) -> Callable[..., Any]:
    """Makes a stage of a study named "small", see `write_custom_data`."""
    write_custom_data(tmp_path / "raw")
    return lambda name="qformer", **blocks: stage_of(tmp_path, name, **blocks)


@pytest.fixture
def unprepared(custom_stage: Callable[..., Any]) -> Any:
    """The small study of `write_custom_data` at 64 pixels, nothing of it encoded yet."""
    from cirlib.models.prepared import Prepared

    return Prepared(custom_stage("data_prep", models=SMALL_MODELS, data_prep={"num_workers": 0}))


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The small study of `write_custom_data`, every image encoded, as a later stage opens it. Do not write there."""
    from cirlib.models.preparation import align_towers, encode_tokens, encode_two_towers
    from cirlib.models.prepared import Prepared
    from cirlib.study.provenance import write_provenance

    root = tmp_path_factory.mktemp("prepared")
    write_custom_data(root / "raw")
    begun = Prepared(stage_of(root, "data_prep", models=SMALL_MODELS))
    encode_tokens(begun)
    align_towers(begun)
    encode_two_towers(begun)
    write_provenance(begun.stage, {})
    return Prepared(stage_of(root, "qformer", models=SMALL_MODELS, qformer={"num_query_tokens": 2, "width": 16}))


@pytest.fixture
def run_context(prepared: Any, tmp_path: Path) -> Any:
    """What preference trainings of the `prepared` study share."""
    from cirlib.analysis.dpo.context import RunContext

    return RunContext(prepared, tmp_path)


@pytest.fixture(scope="session")
def small_project(tmp_path_factory) -> Path:
    """A fresh clone with a small garments study, reproduced by DVC and committed; 06 executed too."""
    from small_studies import SMALL, execute, reproduce

    root = reproduce(tmp_path_factory.mktemp("clone") / "study", "study=garments", *SMALL)
    execute(root, "06_search.ipynb")
    return root


@pytest.fixture(scope="session")
def small_rehearsal(tmp_path_factory) -> Path:
    """The fashioniq_rehearsal study on a few made-up annotations, the tiny BLIP-2 and CLIP through the real loaders."""
    from small_studies import REHEARSED, compose, run_all

    from cirlib.app.rehearsal import prepare

    root = tmp_path_factory.mktemp("rehearsal")
    for category in ("dress", "shirt", "toptee"):
        for split, queries in (("train", 30), ("val", 12)):
            ids = [f"{category}-{split}-{i}" for i in range(queries + 1)]
            records = [
                {"candidate": ids[i], "target": ids[i + 1], "captions": ["is blue.", f"has {i} dots"]}
                for i in range(queries)
            ]
            for kind, content in (("captions/cap", records), ("image_splits/split", ids)):
                _write_json(root / "annotations" / f"{kind}.{category}.{split}.json", content)
    prepare(root / "data" / "fashioniq_rehearsal", root / "annotations")
    compose(root / "params.yaml", *REHEARSED)
    return run_all(root)


SHARING = ("tests/test_pipeline.py", "tests/notebooks/", "tests/app/test_search", "tests/app/test_report_in_browser.py")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Side by side, the tests of a project that takes minutes to run share the worker that ran it.

    Not by ``--dist loadgroup``: xdist 3.8 marks its groups in a name that pytest 9.2 does not read any more.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Sharing(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "small studies" if nodeid.startswith(SHARING) else nodeid

    return Sharing(config, log)


@pytest.fixture(autouse=True)
def _names_in_examples(request: pytest.FixtureRequest, doctest_namespace: dict[str, Any]) -> None:
    """What the examples in docstrings may use without importing it."""
    if not isinstance(request.node, pytest.DoctestItem):
        return
    import pandas as pd
    import torch

    from cirlib.benchmarks.garments.attributes import random_garment
    from cirlib.models.qformer_embedding import new_composer

    used = " ".join(example.source for example in request.node.dtest.examples)
    names = {"np": lambda: np, "pd": lambda: pd, "torch": lambda: torch, "Path": lambda: Path}
    names |= {
        "folder": lambda: request.getfixturevalue("tmp_path"),  # an empty one
        "stage": lambda: request.getfixturevalue("prepared").stage,
        "context": lambda: request.getfixturevalue("run_context"),
        "composer": lambda: new_composer(request.getfixturevalue("prepared")),
        "images": lambda: request.getfixturevalue("prepared").read(["hat-val-0", "hat-val-1"]),
        "garment": lambda: random_garment(np.random.default_rng(0), "dress"),
        "results": lambda: PROJECT_ROOT / "docs" / "studies" / "garments" / "results",  # the committed tables
    }
    for name in ("prepared", "make_scored", "write_image", "tiny_blip2", "unprepared"):
        names[name] = partial(request.getfixturevalue, name)
    doctest_namespace.update({name: make() for name, make in names.items() if re.search(rf"\b{name}\b", used)})
