"""Which runs there are beside the paper's own: its sweep, the four reasons as switches, a second training, mistakes."""

from itertools import product

from cirlib.analysis.dpo.preferences import IN_BATCH
from cirlib.study.parameters import DPO

SWITCHES = {  # switch → level → what it changes; the paper's level first
    "fusion": {name: {"fusion": name} for name in ("text_only", "sum", "qformer")},
    "objective": {
        **{f"dpo {kind}": {"objective": "dpo", "loss_type": kind} for kind in ("sigmoid", "hinge", "ipo")},
        **{name: {"objective": name} for name in ("info_nce_mined", IN_BATCH)},
    },
    "negatives": {
        **{name: {"sampling": name} for name in ("top", "random", "semi_hard")},
        "remined": {"sampling": "top", "mine_every": 1},
    },
    "trains": {
        name: {"trains": name} for name in ("query_tower", "query_projection", "both_projections", "both_towers")
    },
}
INDEX = {
    "flat": {"index": "flat"},
    "ivf, 1 of 16 lists": {"index": "ivf", "nlist": 16, "nprobe": 1},
    "ivf, 4 of 16 lists": {"index": "ivf", "nlist": 16, "nprobe": 4},
    "hnsw": {"index": "hnsw"},
}
SAMPLING = {name: {"sampling": name} for name in ("top", "band", "random", "semi_hard")}
SAMPLING["band"] |= {"range_min": 10, "range_max": 60}
BETAS = {"full": (0.01, 0.1, 1.0), "default": (0.1, 1.0), "small": (0.1,)}
OBJECTIVES = {
    "then DPO on mined pairs": "dpo",
    "then InfoNCE on the same negatives": "info_nce_mined",
    "then InfoNCE in-batch": IN_BATCH,
}
RATES = {"full": (1e-5, 5e-5), "default": (1e-5,), "small": (1e-5,)}
MISTAKES = {  # name → what goes wrong in training: the corruption, and factors of parameters
    "none: as the paper describes it": (None, {}),
    "chosen and rejected swapped": ("swapped", {}),
    "unnormalised queries, β 100 times too large": ("raw", {"beta": 100}),
    "collapsed: lr 30 times, β 100 times too large": (None, {"lr": 30, "beta": 100}),
    "the same collapse, on the negatives (swapped)": ("swapped", {"lr": 30, "beta": 100}),
}
READINGS = {  # of the first of them
    "similarity sorted as a distance": "distance",
    "gallery ids in another order than the features": "order",
    "saturated scores, ties count as misses": "misses",
    "saturated scores, ties by expectation": "ties",
}

GridRun = tuple[dict, DPO]  # labels of its row, and its parameters


def with_changes(params: DPO, changes: dict) -> DPO:
    """``params`` with ``changes``, without what went with a setting that is changed.

    >>> with_changes(DPO(index="ivf", nlist=8), {"index": "hnsw"}).nlist is None
    True
    """
    values = {**params.model_dump(), **changes}
    if values["index"] != "ivf":
        values |= {"nlist": None, "nprobe": None}
    if values["fusion"] != "qformer":
        values["start"] = "pretrained"
    return DPO.model_validate(values)


def at_grid_size(params: DPO) -> DPO:
    """The study's setting, not fine-tuned, at the size of the grid's runs.

    >>> at_grid_size(DPO(epochs=9)).epochs
    2
    """
    size = {"edits": params.grid_edits, "epochs": 2, "batch_size": 32}
    return with_changes(params, {**size, "num_negatives": min(params.num_negatives, 3), "start": "pretrained"})


def sweep_runs(params: DPO) -> list[GridRun]:
    """Scale β × index × sampling, all else the paper's. Where the draw is random no index is asked.

    >>> len(sweep_runs(DPO(grid="full")))
    48
    """
    indexes = INDEX if params.grid == "full" else {"flat": INDEX["flat"]}
    runs = []
    for (index, at), (sampling, how), beta in product(indexes.items(), SAMPLING.items(), BETAS.get(params.grid, ())):
        changes = {**({} if sampling == "random" else at), **how, "beta": beta}
        labels = {"part": "sweep", "index_label": index, "sampling_label": sampling}
        runs.append((labels, with_changes(at_grid_size(params), changes)))
    return runs


def factorial_runs(params: DPO) -> list[GridRun]:
    """The switches' settings. In-batch InfoNCE reads no negatives, so that switch does not multiply it.

    ``full``: all of them; projections three times, towers once and a spread of them twice. ``default``:
    all that train projections, once, and a few towers. ``small``: each level once around the paper's.

    >>> len(factorial_runs(DPO(grid="full"))), len(factorial_runs(DPO(grid="small")))
    (426, 13)
    """
    runs, fusions, objectives, negatives, trains = [], *SWITCHES.values()
    for fusion, objective, trained in product(fusions, objectives, trains):
        for mined in ("in-batch",) if objective == IN_BATCH else negatives:
            labels = dict(zip(SWITCHES, (fusion, objective, mined, trained), strict=True))
            changes = {k: v for name, level in labels.items() for k, v in SWITCHES[name].get(level, {}).items()}
            runs += [
                ({"part": "factorial", **labels}, with_changes(at_grid_size(params), {**changes, "repetition": number}))
                for number in range(_repetitions(params.grid, labels))
            ]
    return runs


def _repetitions(grid: str, labels: dict[str, str]) -> int:
    """How often a grid runs a setting of the switches, 0 for not at all."""
    projection, hardest = "projection" in labels["trains"], labels["negatives"] in ("top", "in-batch")
    if grid == "full":
        spread = hardest and labels["objective"] in ("dpo sigmoid", "info_nce_mined", IN_BATCH)
        return 3 if projection else 1 + spread
    if grid == "default":
        tower = hardest and labels["trains"] == "query_tower" and labels["objective"] in ("dpo sigmoid", IN_BATCH)
        return int(projection or tower)
    moved = sum(level not in (next(iter(SWITCHES[name])), "in-batch") for name, level in labels.items())
    return int(grid == "small" and moved <= 1)


def recipe_runs(params: DPO) -> list[GridRun]:
    """Second trainings of the fine-tuned Q-Former; their negatives are drawn from the fifty hardest, as in 03.

    >>> len(recipe_runs(DPO(grid="full")))
    6
    """
    changes = {
        "fusion": "qformer", "start": "finetuned", "trains": "query_tower", "sampling": "band", "range_min": 0,
        "range_max": 50, "epochs": 1, "edits": None if params.grid == "full" else 4 * params.grid_edits,
        "batch_size": 64, "repetition": 0, "num_negatives": min(params.num_negatives, 50),
    }  # fmt: skip
    return [
        ({"method": method}, with_changes(params, {**changes, "objective": objective, "lr": lr}))
        for (method, objective), lr in product(OBJECTIVES.items(), RATES.get(params.grid, ()))
    ]
