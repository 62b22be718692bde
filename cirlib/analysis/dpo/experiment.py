"""What 04_dpo shows, one method a section: each gives a tidy table, empty where the study has nothing to train on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property

import pandas as pd
import torch
from matplotlib.figure import Figure

from cirlib import figures
from cirlib.analysis.dpo import grid, recipe
from cirlib.analysis.dpo.context import RunContext
from cirlib.analysis.dpo.dual_encoder import DualEncoder
from cirlib.analysis.dpo.effects import effects, recall_interval
from cirlib.analysis.dpo.embedded_splits import EmbeddedSplit, embed_splits, embedding_statistics, score_splits
from cirlib.analysis.dpo.mistakes import run_mistakes
from cirlib.analysis.dpo.preferences import Preferences
from cirlib.analysis.dpo.runs import TrainedRun, train_preferences
from cirlib.models.prepared import Prepared
from cirlib.retrieval.scoring import Scored, protocol_name
from cirlib.study.files import write_table
from cirlib.study.parameters import DPO
from cirlib.training.loop import shuffled_batches

STEP_COLUMNS = ["step", "loss", "margin", "chosen_reward", "rejected_reward", "accuracy"]
TRACKED = 6  # times that the model in training is measured


class Experiment:
    """The study's own run and the grid around it.

    Raises:
        StageError: the grid wants a Q-Former and none was trained; the message names the command.
    """

    def __init__(self, prepared: Prepared) -> None:
        stage = prepared.stage
        self.params: DPO = stage.study.dpo
        folder = stage.root / "runs" / stage.study.name / "dpo_runs"
        self.context = RunContext(prepared, stage.study.evaluation, prepared.splits, folder)
        self.trains = bool(prepared.splits.train)
        self.has_grid = self.trains and self.params.grid != "none"
        if self.has_grid or (self.trains and self.params.fusion == "qformer"):
            stage.require(self.context.checkpoints, "qformer")
        beside = "grid" if stage.overrides else "dpo_grid"
        home = (stage.out, stage.figures) if stage.overrides else (stage.out.parent, stage.figures.parent)
        self.tables, self.pictures = (folder / beside / self.params.grid for folder in home)
        for folder in (self.tables, self.pictures):
            folder.mkdir(parents=True, exist_ok=True)

    def show(self, name: str, table: pd.DataFrame, draw: Callable[..., Figure]) -> Figure:
        """Writes ``table`` as CSV and ``draw`` of it as a picture, which is a sentence where the table is empty.

        ``draw`` is given the table and ``context``, what its numbers were measured on.
        """
        if len(table):
            write_table(table.round(6), self.tables / f"{name}.csv")
            figure = draw(table, context=self.measured_on(name))
        else:
            figure = figures.note(self.why_not)
        figures.save(figure, self.pictures / f"{name}.png")
        return figure

    def measured_on(self, name: str) -> str:
        """Protocol, queries and gallery of the part that a table of ours is about."""
        if name == "negatives":
            return "of train edits"
        dev, splits = name in ("trajectory", "mistakes"), self.context.splits
        parts = (splits.dev if dev else splits.reported).values()
        queries, gallery = (
            f"{min(counts):,}–{max(counts):,}" if len(set(counts)) > 1 else f"{counts[0]:,}"
            for counts in ([len(p.triplets) for p in parts], [len(p.gallery) for p in parts])
        )
        each = " a category" if len(parts) > 1 else ""
        where = "held-out part of train" if dev else f"protocol: {protocol_name(self.context.evaluation)}"
        return f"{where}  ·  {queries} queries and {gallery} images{each}"

    @property
    def why_not(self) -> str:
        """Why a section is empty."""
        if not self.trains:
            return "Nothing was trained: the data has no train part."
        if not self.has_grid:
            return "Not run: dpo.grid is none."
        return "Not measured: this data does not say which attributes its pictures have."

    def first_batch(self, size: int = 4) -> dict[str, torch.Tensor]:
        """``size`` edits on their way through the loss before anything is learnt: name → values, {} in-batch."""
        if not self.trains or self.params.objective == grid.IN_BATCH:
            return {}
        preferences = Preferences(self.context, self.params)
        rows = torch.arange(min(size, len(preferences.edits)))
        with torch.no_grad():
            cosines = preferences.cosines(self.context.encoder(self.params).eval(), rows)
        return {**cosines._asdict(), "loss": cosines.loss(self.params)}

    @cached_property
    def run(self) -> TrainedRun | None:
        """The study's own run, measured from time to time on the dev part."""
        if not self.trains:
            return None
        params, folder = self.params, self.context.prepared.stage.unfinished / "retrieval_dpo"
        batches = shuffled_batches(len(self.context.edits(params)), params.batch_size, 0, 1)
        every = max(1, -(-params.epochs * len(batches) // TRACKED))

        def measure(encoder: DualEncoder) -> dict[str, float]:
            return embedding_statistics(*self._on(self.context.splits.dev, encoder))

        return train_preferences(self.context, params, folder=folder, measure=measure, every=every)

    def _on(self, parts: Mapping, encoder: DualEncoder) -> tuple[dict[str, EmbeddedSplit], list[Scored]]:
        embedded = embed_splits(encoder, parts, self.context.evaluation)
        return embedded, score_splits(embedded, self.context.evaluation, "retrieval_dpo")

    def steps(self) -> pd.DataFrame:
        """Loss, margin and rewards of every step of the study's own run."""
        steps = self.run.history.steps if self.run else []
        return pd.DataFrame([step for step in steps if "margin" in step], columns=STEP_COLUMNS)

    def trajectory(self) -> pd.DataFrame:
        """Recall and geometry on the dev part before, during and after it."""
        return pd.DataFrame(self.run.track if self.run else [])

    def scored(self) -> list[Scored]:
        """It on the reported split."""
        return self._on(self.context.splits.reported, self.run.encoder)[1] if self.run else []

    def sweep(self) -> pd.DataFrame:
        """β × index × sampling around the paper's setting, recall@10 with its interval."""
        if not self.has_grid:
            return pd.DataFrame()
        table, records = grid.run_grid(self.context, grid.sweep_runs(self.params), "sweep")
        lows, highs = zip(*map(recall_interval, records), strict=True)
        return table.assign(ci_low=lows, ci_high=highs)

    def mistakes(self) -> pd.DataFrame:
        """Recall@10 on the dev part step by step, for each mistake."""
        if not self.has_grid:
            return pd.DataFrame()
        return run_mistakes(self.context, self.params, every=4 if self.params.grid == "full" else 8)

    @cached_property
    def _factorial(self) -> tuple[pd.DataFrame, list[dict]]:
        if not self.has_grid:
            return pd.DataFrame(), []
        return grid.run_grid(self.context, grid.factorial_runs(self.params), "switches")

    def factorial(self) -> pd.DataFrame:
        """A row for each setting of the four switches and each repetition."""
        return self._factorial[0]

    def negatives(self) -> pd.DataFrame:
        """What share of the mined negatives is wrong and what share useful, by the model that mined and the rule."""
        table, columns = self.factorial(), ["satisfies_edit", "differs_in_one"]
        if "satisfies_edit" not in table:
            return pd.DataFrame()
        mined = table[table["objective"] != grid.IN_BATCH]
        return mined.groupby(["fusion", "negatives"], sort=False)[columns].mean().reset_index()

    def effects(self) -> pd.DataFrame:
        """What each level of each switch adds to the paper's."""
        return effects(self._factorial[1]) if self.has_grid else pd.DataFrame()

    @cached_property
    def recipe(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """A second training of the fine-tuned Q-Former: a row an objective, and the paired tests."""
        if not self.has_grid:
            return pd.DataFrame(), pd.DataFrame()
        return recipe.run_recipe(self.context, self.params)
