"""What 04_dpo shows, one method a section: each gives a tidy table, empty where the study has nothing to train on."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import pandas as pd
from matplotlib.figure import Figure

from cirlib import figures
from cirlib.analysis.dpo import grid, mistakes, recipe
from cirlib.analysis.dpo.context import RunContext
from cirlib.analysis.dpo.dual_encoder import DualEncoder
from cirlib.analysis.dpo.effects import effects, recall_interval
from cirlib.analysis.dpo.runs import Outcome, describe, embed_parts, score_embedded, train_preferences
from cirlib.models.preparation import Prepared
from cirlib.retrieval.scoring import Scored, protocol_name
from cirlib.study.files import write_table
from cirlib.study.parameters import DPO
from cirlib.training.loop import shuffled_batches

STEP_COLUMNS = ["step", "loss", "margin", "chosen_reward", "rejected_reward", "accuracy"]
LOOKS = 6  # at the model in training


class Experiment:
    """The study's own run and the grid around it.

    Raises:
        StageError: the grid wants a Q-Former and none was trained; the message names the command.
    """

    def __init__(self, prepared: Prepared) -> None:
        self.prepared, stage = prepared, prepared.stage
        self.params: DPO = stage.study.dpo
        self.trains = bool(prepared.splits.train)
        self.has_grid = self.trains and self.params.grid != "none"
        self.context = RunContext(prepared, stage.root / "runs" / stage.study.name / "dpo_runs")
        if self.trains and (self.has_grid or self.params.fusion == "qformer"):
            stage.require(self.context.checkpoints, "qformer")
        beside = "dpo_grid" if not stage.overrides else "grid"
        home = (stage.out.parent, stage.figures.parent) if not stage.overrides else (stage.out, stage.figures)
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
        splits, evaluation = self.prepared.splits, self.prepared.stage.study.evaluation
        if name == "negatives":
            return "of train edits"
        dev = name in ("trajectory", "mistakes")
        parts = (splits.dev if dev else splits.reported).values()
        queries, gallery = (
            f"{min(counts):,}–{max(counts):,}" if len(set(counts)) > 1 else f"{counts[0]:,}"
            for counts in ([len(p.triplets) for p in parts], [len(p.gallery) for p in parts])
        )
        each = " a category" if len(parts) > 1 else ""
        where = "held-out part of train" if dev else f"protocol: {protocol_name(evaluation)}"
        return f"{where}  ·  {queries} queries and {gallery} images{each}"

    @property
    def why_not(self) -> str:
        """Why a section is empty."""
        if not self.trains:
            return "Nothing was trained: the data has no train part."
        if not self.has_grid:
            return "Not run: dpo.grid is none."
        return "Not measured: this data does not say which attributes its pictures have."

    @cached_property
    def outcome(self) -> Outcome | None:
        """The study's own run, looked at from time to time on the dev part."""
        if not self.trains:
            return None
        dev, evaluation = self.prepared.splits.dev, self.prepared.stage.study.evaluation

        def look(encoder: DualEncoder) -> dict[str, float]:
            embedded = embed_parts(encoder, dev, evaluation)
            return describe(embedded, score_embedded(embedded, evaluation, "dev"))

        edits, seed = self.context.edits(self.params), self.context.seed(self.params)
        steps = self.params.epochs * len(shuffled_batches(len(edits), self.params.batch_size, seed, 1))
        folder = self.prepared.stage.unfinished / "retrieval_dpo"
        return train_preferences(self.context, self.params, folder=folder, every=max(1, -(-steps // LOOKS)), look=look)

    def steps(self) -> pd.DataFrame:
        """Loss, margin and rewards of every step of the study's own run."""
        return pd.DataFrame(self.outcome.history.steps if self.outcome else [], columns=STEP_COLUMNS)

    def trajectory(self) -> pd.DataFrame:
        """Recall and geometry on the dev part before, during and after it."""
        return pd.DataFrame(self.outcome.track if self.outcome else [])

    def scored(self) -> list[Scored]:
        """It on the reported split."""
        if self.outcome is None:
            return []
        evaluation, parts = self.prepared.stage.study.evaluation, self.prepared.splits.reported
        return score_embedded(embed_parts(self.outcome.encoder, parts, evaluation), evaluation, "retrieval_dpo")

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
        return mistakes.run_mistakes(self.context, self.params, every=4 if self.params.grid == "full" else 8)

    @cached_property
    def _factorial(self) -> tuple[pd.DataFrame, list[dict]]:
        return grid.run_grid(self.context, grid.factorial_runs(self.params), "switches")

    def factorial(self) -> pd.DataFrame:
        """A row for each setting of the four switches and each repetition."""
        return self._factorial[0] if self.has_grid else pd.DataFrame()

    def negatives(self) -> pd.DataFrame:
        """What share of the mined negatives is wrong and what share useful, by the model that mined and the rule."""
        table = self.factorial()
        if "satisfies_edit" not in table:
            return pd.DataFrame()
        mined = table[table["objective"] != grid.IN_BATCH]
        columns = ["satisfies_edit", "differs_in_one"]
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
