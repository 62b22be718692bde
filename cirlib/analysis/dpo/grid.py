"""Which runs there are beside the paper's own: its sweep, and the four reasons as four switches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product

import pandas as pd
from tqdm.auto import tqdm

from cirlib.analysis.dpo.context import RunContext
from cirlib.analysis.dpo.runs import measure
from cirlib.study.parameters import DPO

FUSION = {name: {"fusion": name} for name in ("text_only", "sum", "qformer")}
OBJECTIVE = {f"dpo {kind}": {"objective": "dpo", "loss_type": kind} for kind in ("sigmoid", "hinge", "ipo")}
OBJECTIVE |= {name: {"objective": name} for name in ("info_nce_mined", "info_nce_in_batch")}
NEGATIVES = {name: {"sampling": name} for name in ("top", "random", "semi_hard")}
NEGATIVES |= {"remined": {"sampling": "top", "mine_every": 1}}
TRAINS = {name: {"trains": name} for name in ("query_tower", "query_projection", "both_projections", "both_towers")}
SWITCHES = {
    "fusion": FUSION,
    "objective": OBJECTIVE,
    "negatives": NEGATIVES,
    "trains": TRAINS,
}  # the paper's level first
PROJECTIONS = ("query_projection", "both_projections")
IN_BATCH = "info_nce_in_batch"

INDEX = {
    "flat": {"index": "flat"},
    "ivf, 1 of 16 lists": {"index": "ivf", "nlist": 16, "nprobe": 1},
    "ivf, 4 of 16 lists": {"index": "ivf", "nlist": 16, "nprobe": 4},
    "hnsw": {"index": "hnsw"},
}
SAMPLING = {"top": {"sampling": "top"}, "band": {"sampling": "band", "range_min": 10, "range_max": 60}}
SAMPLING |= {name: {"sampling": name} for name in ("random", "semi_hard")}
BETAS = (0.01, 0.1, 1.0)
GRID_EPOCHS, GRID_BATCH_SIZE = 2, 32
REPETITIONS = 3  # of the full grid's runs that train projections only

Cell = tuple[dict, DPO]  # labels of its row, and its parameters


def base(params: DPO) -> DPO:
    """The study's setting, not fine-tuned, at the size of the grid's runs."""
    size = {"edits": params.grid_edits, "epochs": GRID_EPOCHS, "batch_size": GRID_BATCH_SIZE}
    return with_changes(params, {**size, "num_negatives": min(params.num_negatives, 3), "start": "pretrained"})


def sweep_runs(params: DPO) -> list[Cell]:
    """Scale β × index × sampling, all else the paper's. Where the draw is random no index is asked."""
    betas, indexes = BETAS, INDEX
    if params.grid != "full":
        betas, indexes = BETAS[1:], {"flat": INDEX["flat"]}
    if params.grid == "small":
        betas = BETAS[1:2]
    cells = []
    for (index, at), (sampling, how), beta in product(indexes.items(), SAMPLING.items(), betas):
        at = {} if sampling == "random" else at
        labels = {"part": "sweep", "index_label": index, "sampling_label": sampling}
        cells.append((labels, with_changes(base(params), {**at, **how, "beta": beta})))
    return cells


def factorial_runs(params: DPO) -> list[Cell]:
    """The switches' settings. In-batch InfoNCE reads no negatives, so that switch does not multiply it.

    ``full``: all of them; projections ``REPETITIONS`` times, towers once and a spread of them twice. ``default``:
    all that train projections, once, and a few towers. ``small``: each level once around the paper's.
    """
    chosen = {"full": _full, "default": _default, "small": _small}[params.grid]
    return [
        ({"part": "factorial", **dict(zip(SWITCHES, levels, strict=True))}, _switched(params, levels, repetition))
        for levels, repetition in chosen(params)
    ]


Levels = tuple[str, str, str, str]


def _settings() -> Iterator[Levels]:
    for fusion, objective, trains in product(FUSION, OBJECTIVE, TRAINS):
        for negatives in ("in-batch",) if objective == IN_BATCH else NEGATIVES:
            yield fusion, objective, negatives, trains


def _full(params: DPO) -> Iterator[tuple[Levels, int]]:
    for levels in _settings():
        _, objective, negatives, trains = levels
        spread = objective in ("dpo sigmoid", "info_nce_mined", IN_BATCH) and negatives in ("top", "in-batch")
        for repetition in range(REPETITIONS if trains in PROJECTIONS else 1 + spread):
            yield levels, repetition


def _default(params: DPO) -> Iterator[tuple[Levels, int]]:
    for levels in _settings():
        _, objective, negatives, trains = levels
        tower = trains == "query_tower" and objective in ("dpo sigmoid", IN_BATCH) and negatives in ("top", "in-batch")
        if trains in PROJECTIONS or tower:
            yield levels, 0


def _small(params: DPO) -> Iterator[tuple[Levels, int]]:
    paper = tuple(next(iter(levels)) for levels in SWITCHES.values())
    for levels in _settings():
        off = sum(level != usual for level, usual in zip(levels, paper, strict=True) if level != "in-batch")
        if off <= 1:
            yield levels, 0


def _switched(params: DPO, levels: Levels, repetition: int) -> DPO:
    changes = {"repetition": repetition}
    for table, level in zip(SWITCHES.values(), levels, strict=True):
        changes |= table.get(level, {})
    return with_changes(base(params), changes)


def with_changes(params: DPO, changes: dict) -> DPO:
    """``params`` with ``changes``, without what went with a setting that is changed."""
    values = {**params.model_dump(), **changes}
    if values["index"] != "ivf":
        values |= {"nlist": None, "nprobe": None}
    if values["fusion"] != "qformer":
        values["start"] = "pretrained"
    return DPO.model_validate(values)


def run_grid(context: RunContext, cells: Iterable[Cell], description: str) -> tuple[pd.DataFrame, list[dict]]:
    """Every cell's row for the tidy table, and its record with the ranks. What was measured before is only read."""
    records = [
        labels | measure(context, params) | labels  # first among the columns, and before parameters of the same name
        for labels, params in tqdm(list(cells), desc=description, unit="run")
    ]
    return pd.DataFrame(records).drop(columns=["above", "tied"]), records
