"""What 04_dpo shows, one method a section: each gives a tidy table, empty where the study has nothing to train on."""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from IPython.display import DisplayObject
from matplotlib.figure import Figure

from cirlib import figures
from cirlib.analysis.dpo import grid
from cirlib.analysis.dpo.context import RunContext
from cirlib.analysis.dpo.dual_encoder import DualEncoder
from cirlib.analysis.dpo.effects import effects, recall_interval, second_trainings
from cirlib.analysis.dpo.embedded_splits import embed_splits, embedding_statistics
from cirlib.analysis.dpo.grid import IN_BATCH
from cirlib.analysis.dpo.preferences import Preferences
from cirlib.analysis.dpo.runs import TrainedRun, measured_run, measured_start, train_preferences
from cirlib.benchmarks import Benchmark
from cirlib.models.prepared import Prepared
from cirlib.retrieval.scoring import Scored, protocol_name
from cirlib.retrieval.statistics import against_chance, clopper_pearson
from cirlib.study.files import write_table
from cirlib.study.method_registry import method_label
from cirlib.study.parameters import DPO, Evaluation
from cirlib.study.progress import progress
from cirlib.training.loop import shuffled_batches
from cirlib.training.qformer_training import DEV_RULES

TRACKED = 4  # times that the model in training is measured


class Experiment:
    """The study's own run and the grid around it; a StageError where it wants a Q-Former and none was trained."""

    def __init__(self, prepared: Prepared) -> None:
        stage = prepared.stage
        self.context = RunContext(prepared, stage.root / "runs" / stage.study.name / "dpo_runs")
        self.trains, asked = bool(prepared.splits.train), stage.study.dpo
        self.params = asked if self.trains else asked.model_copy(update={"grid": "none"})
        self.has_grid = self.params.grid != "none"
        if self.has_grid or (self.trains and self.params.fusion == "qformer"):
            stage.require(stage.results("qformer") / "checkpoints", "qformer")
        beside = "grid" if stage.overrides else "dpo_grid"
        home = (stage.out, stage.figures) if stage.overrides else (stage.out.parent, stage.figures.parent)
        self.tables, self.pictures = (folder / beside / asked.grid for folder in home)
        self.tables.mkdir(parents=True, exist_ok=True)
        self.pictures.mkdir(parents=True, exist_ok=True)

    def show(self, name: str, table: pd.DataFrame, draw: Callable[..., Figure]) -> DisplayObject:
        """Writes ``table`` as CSV and, as a picture, ``draw`` of it with its context; shown, or why it is empty."""
        self.write(name, table)
        figure = draw(table, context=self._measured_on(name)) if len(table) else self.why_not(name)
        return figures.save(figure, self.pictures / f"{name}.png")

    def write(self, name: str, table: pd.DataFrame) -> None:
        """Writes ``table`` as CSV, unless it is empty."""
        if len(table):
            write_table(table.round(6), self.tables / f"{name}.csv")

    def _measured_on(self, name: str) -> str:
        """Protocol, queries and gallery of the part that a table of ours is about, and the size of the runs in it."""
        if name == "trajectory":
            held_out = "on dev (held out of train by image family, not the reported split)"
            return f"{held_out}  ·  {_sample(self.context.splits.dev, DEV_RULES)}"
        said, size = _sample(self.context.splits.reported, self.context.evaluation), grid.at_grid_size(self.params)
        if name == "recipe":
            return said
        return f"{said}  ·  grid “{self.params.grid}”: each run reads {size.edits:,} train edits {size.epochs} times"

    def about_run(self) -> str:
        """What the study's own run trains and on what, in words for a figure of its steps."""
        asked = self.params
        edits = f"{asked.edits:,}" if asked.edits else "all"
        said = f"{method_label(asked.fusion)}, {asked.trains.replace('_', ' ')} trains"
        return f"{said}: {edits} train edits, {asked.num_negatives} negatives each, batches of {asked.batch_size}"

    def why_not(self, name: str) -> str:
        """Why the section with the table ``name`` is empty."""
        if not self.trains:
            return "Nothing was trained: the data has no train part."
        if not self.has_grid:
            return "Not run: dpo.grid is none."
        if name in ("recipe", "sweep"):
            return "Not run: dpo.grid=small leaves it out, dpo.grid=full has it."
        return "Not measured: this data does not say which attributes its pictures have."

    def first_batch(self) -> dict[str, torch.Tensor]:
        """Four edits on their way through the loss before anything is learnt: name → values, {} in-batch."""
        if not self.trains or self.params.objective in IN_BATCH:
            return {}
        preferences = Preferences(self.context, self.params)
        rows = torch.arange(len(preferences.edits))[:4]
        with torch.no_grad():
            cosines = preferences.cosines(self.context.encoder(self.params).eval(), rows)
        return {**cosines._asdict(), "loss": cosines.loss(self.params)}

    @cached_property
    def run(self) -> TrainedRun | None:
        """The study's own run, measured from time to time on the dev part."""
        if not self.trains:
            return None
        batches = shuffled_batches(len(self.context.edits(self.params)), self.params.batch_size, 0, 1)
        every = max(1, -(-self.params.epochs * len(batches) // TRACKED))
        return self._train("retrieval_dpo", self.params, measure=self._measure, every=every)

    def _train(self, name: str, params: DPO, **options: Any) -> TrainedRun:
        return train_preferences(self.context, params, kept_as=name, **options)

    def _measure(self, encoder: DualEncoder) -> dict[str, float]:
        """Recall@10, its exact interval and the geometry on the dev part."""
        embedded = embed_splits(encoder, self.context.splits.dev, DEV_RULES)
        hits = np.concatenate([one.scored.recall(10) for one in embedded])
        low, high = clopper_pearson(hits.sum(), len(hits))
        return embedding_statistics(embedded) | {"ci_low": low, "ci_high": high}

    def steps(self) -> pd.DataFrame:
        """Loss, margin and rewards of every step of the study's own run."""
        columns = ["step", "loss", "margin", "chosen_reward", "rejected_reward", "accuracy"]
        steps = self.run.history.steps if self.run else []
        return pd.DataFrame([step for step in steps if "margin" in step], columns=columns)

    def trajectory(self) -> pd.DataFrame:
        """Recall and geometry on the dev part before, during and after it."""
        return pd.DataFrame(self.run.track if self.run else [])

    def scored(self) -> list[Scored]:
        """Both readings of "frozen layers" on the reported split: the study's own run, and a projection alone."""
        if not self.run:
            return []
        encoders = {"retrieval_dpo": self.run.encoder}
        if "projection" not in self.params.trains:
            name, params = "retrieval_dpo_projection", self.params.model_copy(update={"trains": "query_projection"})
            encoders[name] = self._train(name, params).encoder
        return [one for name, encoder in encoders.items() for one in self._score(encoder, name)]

    def _score(self, encoder: DualEncoder, method: str) -> list[Scored]:
        parts = self.context.splits.reported
        return [one.scored for one in embed_splits(encoder, parts, self.context.evaluation, method)]

    def _records(self, runs: list[grid.GridRun], title: str, with_dev: bool = False) -> list[dict]:
        """Every run's labels and record, with the ranks; what was measured before is only read."""
        return [
            labels
            | measured_run(self.context, params, with_dev=with_dev)
            | labels  # first, before parameters of the same name
            for labels, params in progress(runs, desc=title, unit="run")
        ]

    def sweep(self) -> pd.DataFrame:
        """β × index × sampling around the paper's setting, recall@10 with its interval."""
        records = self._records(grid.sweep_runs(self.params), "sweep")
        if not records:
            return pd.DataFrame()
        families = measured_start(self.context, grid.at_grid_size(self.params))["families"]
        intervals = [recall_interval(record, families) for record in records]
        return _table(records).assign(ci_low=[low for low, _ in intervals], ci_high=[high for _, high in intervals])

    def mistakes(self) -> pd.DataFrame:
        """Where each mistake ends, of the reported queries: hits among the first ten, exact interval, verdict.

        What only reads wrongly is read from the runs without a mistake.
        """
        hits, runs = [], grid.mistake_runs(self.params) if self.has_grid else []
        for name, corruption, params in progress(runs, desc="mistakes", unit="run"):
            record = measured_run(self.context, params, corruption=corruption)
            own = {name: record["hits"]}
            if name == next(iter(grid.MISTAKES)):
                own |= {mistake: record["read"][how] for mistake, how in grid.READINGS.items()}
            hits += [(mistake, params.repetition, found, record) for mistake, found in own.items()]
        order = [*grid.MISTAKES, *grid.READINGS]
        rows = []
        for mistake, repetition, found, record in sorted(hits, key=lambda one: (order.index(one[0]), one[1])):
            test = against_chance(found, min(record["chance"], 1 - 1e-9), record["queries"])
            row = {"mistake": mistake, "repetition": repetition, "hits": found, "queries": record["queries"]}
            row |= {"recall@10": found / record["queries"], "ci_low": test.ci_low, "ci_high": test.ci_high}
            rows.append(row | {"chance": record["chance"], "verdict": test.verdict, "hubness": record["hubness"]})
        return pd.DataFrame(rows)

    @cached_property
    def _factorial(self) -> list[dict]:
        return self._records(grid.factorial_runs(self.params), "switches")

    def factorial(self) -> pd.DataFrame:
        """A row for each setting of the four switches and each repetition."""
        return _table(self._factorial)

    def negatives(self) -> pd.DataFrame:
        """What share of DPO's negatives is wrong and what share useful, by the model that mined and the rule.

        ``mined``: how many different ones were looked at, those of the repetitions together.
        """
        table, columns = self.factorial(), ["satisfies_edit", "differs_in_one"]
        if "satisfies_edit" not in table:
            return pd.DataFrame()
        once = table[table["objective"] == "dpo sigmoid"].drop_duplicates(["fusion", "negatives", "repetition"])
        once = once.assign(mined=once["edits"] * once["num_negatives"])
        rows = once.groupby(["fusion", "negatives"], sort=False).agg({"mined": "sum"} | dict.fromkeys(columns, "mean"))
        for name in columns:
            ends = [clopper_pearson(share * n, n) for share, n in zip(rows[name], rows["mined"], strict=True)]
            rows[[f"{name}/ci_low", f"{name}/ci_high"]] = ends
        return rows.reset_index().replace({"fusion": {"qformer": "qformer_pretrained"}})  # the grid starts from it

    def effects(self) -> pd.DataFrame:
        """What each level of each switch changes, for each fusion by itself."""
        if not self.has_grid:
            return pd.DataFrame()
        starts = {
            fusion: measured_start(self.context, grid.with_changes(grid.at_grid_size(self.params), {"fusion": fusion}))
            for fusion in grid.SWITCHES["fusion"]
        }
        return effects(self._factorial, starts)

    def recipe(self) -> pd.DataFrame:
        """What a second training of the fine-tuned Q-Former adds, with each objective."""
        runs = grid.recipe_runs(self.params)
        if not runs:
            return pd.DataFrame()
        return second_trainings(self._records(runs, "recipe", with_dev=True), measured_start(self.context, runs[0][1]))


def _sample(parts: Mapping[str, Benchmark], rules: Evaluation) -> str:
    sizes = [len(part.gallery) - (rules.reference == "removed") for part in parts.values()]
    return figures.sample_note(protocol_name(rules), [len(part.triplets) for part in parts.values()], sizes)


def _table(records: list[dict]) -> pd.DataFrame:
    return pd.DataFrame(records).drop(columns=["above", "tied", "read"], errors="ignore")
