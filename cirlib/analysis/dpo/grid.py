"""Which runs there are beside the study's own: its sweep, the four reasons as switches, a second training, mistakes."""

from itertools import product

from cirlib.study.parameters import DPO

IN_BATCH = ("info_nce_in_batch", "recall_in_batch")  # objectives whose negatives are the batch's other targets
SWITCHES = {  # switch → level → what it changes; the paper's level first
    "fusion": {name: {"fusion": name} for name in ("text_only", "sum", "qformer")},
    "objective": {
        **{f"dpo {kind}": {"objective": "dpo", "loss_type": kind} for kind in ("sigmoid", "hinge", "ipo")},
        **{name: {"objective": name} for name in ("info_nce_mined", *IN_BATCH)},
    },
    "negatives": {
        **{name: {"sampling": name} for name in ("top", "random", "margin")},
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
SAMPLING = {name: {"sampling": name} for name in ("top", "band", "random", "margin")}
SAMPLING["band"] |= {"range_min": 10, "range_max": 60}
BETAS = (0.01, 0.1, 1.0)
REPETITIONS = {"full": 3, "small": 2}
RECIPES = {
    "DPO on mined pairs": "dpo",
    "InfoNCE on the same negatives": "info_nce_mined",
    "InfoNCE in-batch": "info_nce_in_batch",
    "recall@k surrogate in-batch": "recall_in_batch",
}
RECIPE_LR = 5e-5
MISTAKES = {  # name → what goes wrong in training: the corruption, and factors of parameters
    "no mistake: our reading of the recipe": (None, {}),
    "training: chosen and rejected swapped, the negative is preferred": ("swapped", {}),
    "training: queries not normalised, β 100 times too large": ("raw", {"beta": 100}),
    "training: lr 30 times, β 100 times too large": (None, {"lr": 30, "beta": 100}),
    "training: the same, and chosen and rejected swapped": ("swapped", {"lr": 30, "beta": 100}),
}
READINGS = {  # of the first of them
    "reading: similarity sorted as a distance": "distance",
    "reading: gallery ids in another order than the features": "order",
    "reading: saturated scores, ties count as misses": "misses",
    "reading: saturated scores, ties by expectation": "ties",
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
    size = {"edits": params.grid_edits, "epochs": 2, "batch_size": max(8, min(32, params.grid_edits // 8))}
    return with_changes(params, {**size, "num_negatives": min(params.num_negatives, 3), "start": "pretrained"})


def sweep_runs(params: DPO) -> list[GridRun]:
    """Scale β × index × sampling, all else the study's; ``full`` only. Where the draw is random no index is asked.

    >>> len(sweep_runs(DPO(grid="full")))
    48
    """
    runs, betas = [], BETAS if params.grid == "full" else ()
    for (index, at), (sampling, how), beta in product(INDEX.items(), SAMPLING.items(), betas):
        changes = {**({} if sampling == "random" else at), **how, "beta": beta}
        labels = {"part": "sweep", "index_label": index, "sampling_label": sampling}
        runs.append((labels, with_changes(at_grid_size(params), changes)))
    return runs


def factorial_runs(params: DPO) -> list[GridRun]:
    """The switches' settings. In-batch objectives read no negatives, so that switch does not multiply them.

    ``full``: all of them; projections three times, towers once and a spread of them twice. ``small``, all twice: DPO on
    top-k and on random negatives, for one projection, both, and the query tower (without the sum, whose tower is the
    text's again); the other kinds of objective for the text tower.

    >>> len(factorial_runs(DPO(grid="full"))), len(factorial_runs(DPO(grid="small")))
    (468, 38)
    """
    runs, fusions, objectives, negatives, trains = [], *SWITCHES.values()
    for fusion, objective, trained in product(fusions, objectives, trains):
        for mined in ("in-batch",) if objective in IN_BATCH else negatives:
            labels = dict(zip(SWITCHES, (fusion, objective, mined, trained), strict=True))
            changes = {k: v for name, level in labels.items() for k, v in SWITCHES[name].get(level, {}).items()}
            runs += [
                ({"part": "factorial", **labels}, with_changes(at_grid_size(params), {**changes, "repetition": number}))
                for number in range(_repetitions(params.grid, labels))
            ]
    return runs


def _repetitions(grid: str, labels: dict[str, str]) -> int:
    """How often a grid runs a setting of the switches, 0 for not at all."""
    objective, negatives, trains = labels["objective"], labels["negatives"], labels["trains"]
    if grid == "full":
        spread = negatives in ("top", "random", "in-batch") and objective in (
            "dpo sigmoid",
            "info_nce_mined",
            *IN_BATCH,
        )
        return REPETITIONS[grid] if "projection" in trains else 1 + spread
    tower, fusion = trains == "query_tower", labels["fusion"]
    ours = objective == "dpo sigmoid" and negatives in ("top", "random") and not (tower and fusion == "sum")
    losses = objective in ("info_nce_mined", *IN_BATCH) and negatives in ("top", "in-batch") and fusion == "text_only"
    return REPETITIONS.get(grid, 0) * ((ours and trains != "both_towers") or (losses and tower))


def mistake_runs(params: DPO) -> list[tuple[str, str | None, DPO]]:
    """Each mistake's name, its corruption and its parameters, repetition after repetition; in ``small`` the first two.

    >>> len(mistake_runs(DPO(grid="full"))), len(mistake_runs(DPO(grid="small")))
    (15, 4)
    """
    small, made = at_grid_size(params), list(MISTAKES.items())[: 2 if params.grid == "small" else None]
    return [
        (name, corruption, small.model_copy(update={"repetition": number} | _scaled(small, factors)))
        for name, (corruption, factors) in made
        for number in range(REPETITIONS.get(params.grid, 0))
    ]


def _scaled(params: DPO, factors: dict[str, float]) -> dict[str, float]:
    return {name: getattr(params, name) * factor for name, factor in factors.items()}


def recipe_runs(params: DPO) -> list[GridRun]:
    """Second trainings of the fine-tuned Q-Former; their negatives are drawn from the fifty hardest, as in 03.

    >>> len(recipe_runs(DPO(grid="full")))
    8
    """
    changes = {
        "fusion": "qformer", "start": "finetuned", "trains": "query_tower", "sampling": "band", "range_min": 0,
        "range_max": 50, "epochs": 1, "edits": None, "batch_size": 64, "lr": RECIPE_LR,
        "num_negatives": min(params.num_negatives, 50),
    }  # fmt: skip
    runs = product(RECIPES.items(), range(2 if params.grid == "full" else 0))
    return [
        ({"method": method}, with_changes(params, {**changes, "objective": objective, "repetition": number}))
        for (method, objective), number in runs
    ]
