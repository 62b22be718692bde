"""What 04_dpo shows, one method a section: each gives a tidy table, empty where the study has nothing to train on."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property, partial

import pandas as pd
import torch
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from cirlib import figures
from cirlib.analysis.dpo import grid
from cirlib.analysis.dpo.context import RunContext
from cirlib.analysis.dpo.dual_encoder import DualEncoder
from cirlib.analysis.dpo.effects import effects, recall_interval
from cirlib.analysis.dpo.embedded_splits import embed_splits, embedding_statistics
from cirlib.analysis.dpo.preferences import IN_BATCH, Preferences
from cirlib.analysis.dpo.runs import TrainedRun, measured_run, train_preferences
from cirlib.models.prepared import Prepared
from cirlib.retrieval.ranks import Ranks
from cirlib.retrieval.scoring import Scored, compare, mean_recall, protocol_name, summarise
from cirlib.study.files import write_table
from cirlib.training.loop import shuffled_batches

START = "InfoNCE (the fine-tuned Q-Former)"
TRACKED = 6  # times that the model in training is measured


class Experiment:
    """The study's own run and the grid around it; a StageError where it wants a Q-Former and none was trained."""

    def __init__(self, prepared: Prepared) -> None:
        stage = prepared.stage
        self.context = RunContext(prepared, stage.root / "runs" / stage.study.name / "dpo_runs")
        self.trains, asked = bool(prepared.splits.train), stage.study.dpo
        self.params = asked if self.trains else asked.model_copy(update={"grid": "none"})
        self.has_grid = self.params.grid != "none"
        if self.has_grid or (self.trains and self.params.fusion == "qformer"):
            stage.require(self.context.checkpoints, "qformer")
        beside = "grid" if stage.overrides else "dpo_grid"
        home = (stage.out, stage.figures) if stage.overrides else (stage.out.parent, stage.figures.parent)
        self.tables, self.pictures = (folder / beside / asked.grid for folder in home)
        self.tables.mkdir(parents=True, exist_ok=True)
        self.pictures.mkdir(parents=True, exist_ok=True)

    def show(self, name: str, table: pd.DataFrame, draw: Callable[..., Figure]) -> Figure:
        """Writes ``table`` as CSV and, as a picture, ``draw`` of it with its context, or why it is empty."""
        if len(table):
            write_table(table.round(6), self.tables / f"{name}.csv")
        figure = draw(table, context=self._measured_on(name)) if len(table) else figures.note(self.why_not)
        figures.save(figure, self.pictures / f"{name}.png")
        return figure

    def _measured_on(self, name: str) -> str:
        """Protocol, queries and gallery of the part that a table of ours is about."""
        if name == "negatives":
            return "of train edits"
        dev, splits = name in ("trajectory", "mistakes"), self.context.splits
        parts = (splits.dev if dev else splits.reported).values()
        counts = [len(part.triplets) for part in parts], [len(part.gallery) for part in parts]
        queries, gallery = ("–".join(f"{n:,}" for n in sorted({min(some), max(some)})) for some in counts)
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

    def first_batch(self) -> dict[str, torch.Tensor]:
        """Four edits on their way through the loss before anything is learnt: name → values, {} in-batch."""
        if not self.trains or self.params.objective == IN_BATCH:
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
        context, params, folder = self.context, self.params, self.context.stage.unfinished / "retrieval_dpo"
        batches = shuffled_batches(len(context.edits(params)), params.batch_size, 0, 1)
        every = max(1, -(-params.epochs * len(batches) // TRACKED))
        return train_preferences(context, params, folder=folder, measure=self._measure, every=every)

    def _measure(self, encoder: DualEncoder, readings: Mapping[str, str] | None = None) -> dict[str, float]:
        """Recall@10 and geometry on the dev part, and the recall that each mistake reads."""
        embedded = embed_splits(encoder, self.context.splits.dev, self.context.evaluation)
        read = {
            mistake: mean_recall([one.read(how) for one in embedded], 10) for mistake, how in (readings or {}).items()
        }
        return read | embedding_statistics(embedded)

    def steps(self) -> pd.DataFrame:
        """Loss, margin and rewards of every step of the study's own run."""
        columns = ["step", "loss", "margin", "chosen_reward", "rejected_reward", "accuracy"]
        steps = self.run.history.steps if self.run else []
        return pd.DataFrame([step for step in steps if "margin" in step], columns=columns)

    def trajectory(self) -> pd.DataFrame:
        """Recall and geometry on the dev part before, during and after it."""
        return pd.DataFrame(self.run.track if self.run else [])

    def scored(self) -> list[Scored]:
        """It on the reported split."""
        return self._score(self.run.encoder, self.context.splits.reported) if self.run else []

    def _score(self, encoder: DualEncoder, parts: Mapping, method: str = "retrieval_dpo") -> list[Scored]:
        return [one.scored for one in embed_splits(encoder, parts, self.context.evaluation, method)]

    def _records(self, runs: list[grid.GridRun], title: str, with_dev: bool = False) -> list[dict]:
        """Every run's labels and record, with the ranks; what was measured before is only read."""
        return [
            labels | measured_run(self.context, params, with_dev) | labels  # first, before parameters of the same name
            for labels, params in tqdm(runs, desc=title, unit="run")
        ]

    def sweep(self) -> pd.DataFrame:
        """β × index × sampling around the paper's setting, recall@10 with its interval."""
        records = self._records(grid.sweep_runs(self.params), "sweep")
        intervals = [recall_interval(record) for record in records]
        return _table(records).assign(ci_low=[low for low, _ in intervals], ci_high=[high for _, high in intervals])

    def mistakes(self) -> pd.DataFrame:
        """Recall@10 on the dev part step by step, for each mistake; what only reads wrongly shares one run."""
        if not self.has_grid:
            return pd.DataFrame()
        small, curves = grid.at_grid_size(self.params), {}
        for name, (corruption, factors) in tqdm(grid.MISTAKES.items(), desc="mistakes", unit="run"):
            readings = {name: ""} | ({} if curves else grid.READINGS)
            params = small.model_copy(update={one: getattr(small, one) * factor for one, factor in factors.items()})
            options = {"every": 4 if params.grid == "full" else 8, "corruption": corruption}
            measure = partial(self._measure, readings=readings)
            track = train_preferences(self.context, params, measure=measure, **options).track
            for mistake in readings:
                curves[mistake] = [one | {"mistake": mistake, "recall@10": one[mistake]} for one in track]
        rows = [row for mistake in (*grid.MISTAKES, *grid.READINGS) for row in curves[mistake]]
        return pd.DataFrame(rows, columns=["mistake", "step", "recall@10", "chance", "hubness", "alignment"])

    @cached_property
    def _factorial(self) -> list[dict]:
        return self._records(grid.factorial_runs(self.params), "switches")

    def factorial(self) -> pd.DataFrame:
        """A row for each setting of the four switches and each repetition."""
        return _table(self._factorial)

    def negatives(self) -> pd.DataFrame:
        """What share of the mined negatives is wrong and what share useful, by the model that mined and the rule."""
        table, columns = self.factorial(), ["satisfies_edit", "differs_in_one"]
        if "satisfies_edit" not in table:
            return pd.DataFrame()
        mined = table[table["objective"] != IN_BATCH]
        return mined.groupby(["fusion", "negatives"], sort=False)[columns].mean().reset_index()

    def effects(self) -> pd.DataFrame:
        """What each level of each switch adds to the paper's."""
        return effects(self._factorial) if self.has_grid else pd.DataFrame()

    @cached_property
    def recipe(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The fine-tuned Q-Former trained again, each objective at its best rate on dev; paired tests."""
        runs, splits, seed = grid.recipe_runs(self.params), self.context.splits, self.context.study.seed
        if not runs:
            return pd.DataFrame(), pd.DataFrame()
        start = self.context.encoder(runs[0][1], frozen=True).eval()
        dev, methods = (self._score(start, parts, START) for parts in (splits.dev, splits.reported))
        rows = [{"method": START, "dev/recall@10": mean_recall(dev, 10), "command": ""}]
        tried = self._records(runs, "recipe", with_dev=True)
        for method in grid.OBJECTIVES:
            best = max((one for one in tried if one["method"] == method), key=lambda one: one["dev/recall@10"])
            rows.append(best)
            for one in methods[: len(splits.reported)]:
                ranks = Ranks(*(torch.tensor(best[name][one.category]) for name in ("above", "tied")))
                methods.append(replace(one, method=method, ranks=ranks))
        means = summarise(methods, (10,)).query("category == 'mean'")
        table = pd.DataFrame(rows, columns=["method", "lr", "dev/recall@10", "seconds", "command"])
        table = table.merge(
            means[["method", "value", "ci_low", "ci_high", "queries", "gallery", "chance"]], on="method"
        )
        others = methods[len(splits.reported) :]
        tests = [compare(methods, START, seed=seed), compare(others, others[0].method, seed=seed)]
        return table, pd.concat(tests, ignore_index=True)


def _table(records: list[dict]) -> pd.DataFrame:
    return pd.DataFrame(records).drop(columns=["above", "tied"], errors="ignore")
