"""Typed parameters of a study: one pydantic model for each block of ``params.yaml``."""

import difflib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, Field, ValidationError, model_validator

from cirlib.study.errors import ParameterError
from cirlib.study.parameter_types import Block, Count, NonNegativeCount, Seed, Whole, refuse
from cirlib.study.training_parameters import DPO, QFormer


class CatalogueTable(Block):
    """Which columns of a catalogue's table are what; None: guessed from names and contents."""

    table: str | None = None  # the file in ``data.root``; None: the only one there, or the one called catalogue
    sheet: str | None = None  # of a workbook; None: the only one that is not empty
    image: str | None = None
    title: str | None = None
    attributes: list[str] | None = None
    edits: Count = 12  # made for each item
    captions: Count = 3  # made for each item


class Data(Block):
    """Where triplets, galleries and images come from."""

    benchmark: Literal["fashioniq", "cirr", "circo", "custom"] = "fashioniq"
    root: Path | None = None  # None: ``data_prep.drawing`` draws what is there
    catalogue: CatalogueTable | None = None  # of photographs and a table: what is trained on is made from it
    categories: list[str] | None = None  # None: every category that has a captions file
    split: str = "val"  # the split that is reported
    images: str | None = None  # where to take missing images from: folder, archive, hf://datasets/<owner>/<name>
    fetch: bool = False  # FashionIQ only: get the published annotations, and from their links what `images` leaves
    train: bool = True  # False: the train split stays aside, nothing is trained and its images are not wanted
    allow_missing: bool = False
    dev_fraction: Annotated[float, Field(gt=0, lt=0.5)] = 0.1  # of train, held out for every choice
    seed: Seed = 0  # of what is drawn and of what is held out

    @model_validator(mode="after")
    def _is_sound(self) -> Self:
        foreign = self.fetch and self.benchmark != "fashioniq"
        refuse(foreign, f"fetch must be false for {self.benchmark}: only FashionIQ's files can be fetched")
        apart = self.catalogue is not None and (self.benchmark != "custom" or self.categories is not None)
        refuse(apart, "catalogue goes with benchmark custom and categories null only")
        refuse(self.split in ("train", "dev"), "split must not be train or dev: what is learned from is not reported")
        return self


def _dashed(name: str) -> str:
    """OpenAI's ViT-L/14 as open_clip names it; with a colon it is a place."""
    return name if ":" in name else name.replace("/", "-")


class Models(Block):
    """The pretrained towers. ``mini`` is the pair that installs as packages."""

    clip: Annotated[str, AfterValidator(_dashed)] = "mini"  # mini, or an open_clip architecture
    clip_pretrained: str | None = None  # open_clip tag or file; for mini: a saved alignment, None aligns one
    fusion: str = "mini"  # mini, or a Blip2ForImageTextRetrieval: a folder, or an id of the hub with or without @commit
    fusion_checkpoint: Path | None = None  # a Q-Former trained by this study to start from
    transform: Literal["model", "targetpad", "squarepad", "squash"] = "model"  # how both towers see a picture
    image_size: Annotated[Whole, Field(ge=32, multiple_of=32)] = 160  # pixels a side, for mini
    trains_ln_vision: bool = False  # the norm behind BLIP-2's tower learns: image tokens are kept from before it
    alignment_epochs: Count = 20  # of the mini pair's heads, on image-caption pairs
    cache_tokens: bool = True  # False: no image tokens on disk, the vision tower runs in every training step
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: bf16 where it is much faster, else fp32


class Evaluation(Block):
    """The protocol of every reported number."""

    gallery: Literal["original", "val_split"] = "original"
    reference: Literal["kept", "removed"] = "removed"
    captions: Literal["and", "both_orders", "first", "template", "raw"] = "and"


class Drawing(Block):
    """How much of the garments data is drawn; triplets, queries and galleries are per category."""

    train_images: Count = 1_500
    train_triplets: Count = 1_500
    val_queries: Count = 400
    gallery_size: Annotated[Whole, Field(ge=2)] = 1_000  # a query needs a reference and a target
    pairs: Count = 6_000  # images with a description
    family_size: Annotated[Whole, Field(ge=8, le=50)] = 25  # larger ones could run out of different garments

    @model_validator(mode="after")
    def _is_sound(self) -> Self:
        for queries, images in (("train_triplets", "train_images"), ("val_queries", "gallery_size")):
            asked, size = getattr(self, queries), getattr(self, images)
            most = size * min(self.family_size, size) // 5  # pairs of a family that differ enough
            refuse(asked > most, f"{queries} ({asked}) must be at most {most}, a fifth of {images} × family_size")
        return self


class DataPrep(Block):
    drawing: Drawing | None = None
    batch_size: Count = 64
    num_workers: NonNegativeCount = 2  # threads that decode, for each process
    processes: Count | None = None  # that encode together; None: one a GPU, without GPUs one


class ZeroShot(Block):
    weights: list[Annotated[float, Field(ge=0, le=1)]] = Field([n / 10 for n in range(11)], min_length=1)  # of the text
    methods: list[str] = Field([])  # more of them: Python files that register some
    raw_sum: bool = False  # also the plain sum of both towers' features before they are normalised, CLIP4Cir's


class FailureCases(Block):
    method: str | None = None  # None: the best method of the study


class Search(Block):
    """The search page; it is no stage of the pipeline, and writes nothing."""

    left: str = "sum"  # the method of the left column
    right: str | None = None  # None: the best trained method


class YourMethod(Block):
    """A notebook to copy for a method of one's own; it is no stage of the pipeline."""

    against: str = "sum"  # the method beside it on the search page


class Study(Block):
    """All parameters of one study."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_\-]+$")]
    seed: Seed = 0  # of every training
    data: Data
    models: Models = Models()
    evaluation: Evaluation = Evaluation()
    data_prep: DataPrep = DataPrep()
    zero_shot: ZeroShot = ZeroShot()
    qformer: QFormer = QFormer()
    dpo: DPO = DPO()
    failure_cases: FailureCases = FailureCases()
    search: Search = Search()
    your_method: YourMethod = YourMethod()

    @model_validator(mode="after")
    def _is_sound(self) -> Self:
        drawn, given = self.data_prep.drawing is not None, self.data.root is not None
        refuse(drawn == given, "one of data.root and data_prep.drawing must be given, and the other null")
        asked = {
            "models.trains_ln_vision": self.models.trains_ln_vision,
            "qformer.sprc_terms above 0": self.qformer.sprc_terms > 0,
            "qformer.fusion covr": self.qformer.fusion == "covr",
        }
        for what in (name for name, wanted in asked.items() if wanted and self.models.fusion == "mini"):
            refuse(True, f"{what} goes with a BLIP-2 as models.fusion only, given mini")
        best_token = self.qformer.fusion == "covr" and self.qformer.target == "max"
        refuse(best_token, "qformer.fusion covr goes with qformer.target mean only, given max")
        return self


PIPELINE = ("data_prep", "zero_shot", "qformer", "dpo", "failure_cases")
STAGES = (*PIPELINE, "search", "your_method")  # blocks that are a notebook's own


def load_study(path: Path) -> Study:
    """The study that ``path`` (a ``params.yaml``) describes; ParameterError: it cannot be read or used as it is.

    >>> _ = (folder / "params.yaml").write_text("{name: my_study, data: {root: my_data}}")
    >>> load_study(folder / "params.yaml").qformer.lr
    0.0002
    """
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ParameterError(f"{path} is no file of YAML: {error}") from None
    if not isinstance(values, dict):
        raise ParameterError(f"{path} names no parameters: `git checkout {path.name}` brings it back")
    return _validated(values, str(path))


def overridable(stage: str) -> dict[str, str]:
    """The parameters that the notebook of ``stage`` takes: name → its block of ``params.yaml``, "" for the seed.

    >>> overridable("zero_shot")["weights"], overridable("zero_shot")["gallery"]
    ('zero_shot', 'evaluation')
    """
    fields = Study.model_fields
    return {"seed": ""} | {n: block for block in ("evaluation", stage) for n in fields[block].annotation.model_fields}


def override(study: Study, stage: str, values: dict[str, Any]) -> Study:
    """``study`` with ``values`` (names as in the stage's notebook; None keeps) put in.

    Raises:
        ParameterError: a name the stage does not take, or a value that is not allowed.

    >>> override(stage.study, "qformer", {"lr": 1e-5, "epochs": None}).qformer.lr
    1e-05
    """
    blocks, tree = overridable(stage), study.model_dump()
    for name, value in values.items():
        if name not in blocks:
            if name in Study.model_fields:
                told = "params.yaml is read anyway: a notebook takes single parameters of its stage"
                raise ParameterError(f"{name!r} is no parameter of {stage} but of the whole study. {told}")
            own = [whole for whole in _names(tree) if whole == name or whole.endswith(f".{name}")]
            if own and not own[0].startswith(f"{stage}."):
                told = f"{own[0]} of params.yaml, which `dvc exp run -S {own[0]}=…` changes"
                raise ParameterError(f"{name!r} is no parameter of {stage} but {told}")
            raise ParameterError(f"unknown parameter {name!r} for {stage}.{_hint(name, blocks)}")
        if value is not None:
            (tree[blocks[name]] if blocks[name] else tree)[name] = value
    return _validated(tree, f"the parameters of {stage}")


def _hint(name: str, allowed: Iterable[str]) -> str:
    words = re.split("[_.]", name)
    close = difflib.get_close_matches(name.lower(), allowed, n=1)
    close += [n for n in allowed if n in words or n == "".join(word[:1] for word in words)]  # lr of learning_rate
    return (f" Did you mean {close[0]!r}?" if close else "") + f" Allowed: {', '.join(sorted(allowed))}."


def _validated(values: Any, where: str) -> Study:
    try:
        return Study.model_validate(values)
    except ValidationError as error:
        raise ParameterError("; ".join(_sentence(e, where) for e in error.errors())) from None


def _sentence(error: Any, where: str) -> str:
    name = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        close = difflib.get_close_matches(name, _names(Study(name="any", data={"root": "."}).model_dump()), n=1)
        return f"unknown parameter {name!r} in {where}." + (f" Did you mean {close[0]!r}?" if close else "")
    place = f"parameter {name!r} in {where}" if name else where
    given = "" if isinstance(error["input"], dict) else f", given {error['input']!r}"
    return f"{place}: {error['msg'].removeprefix('Value error, ')}{given}"


def _names(tree: dict[str, Any], above: str = "") -> Iterator[str]:
    for name, value in tree.items():
        yield above + name
        if isinstance(value, dict):
            yield from _names(value, f"{above}{name}.")
