"""What 05_failure_cases shows: one method's misses, and the best methods of the study beside it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from cirlib import figures
from cirlib.analysis.failures import groups, reasons
from cirlib.analysis.failures.attention_grids import attention_rows
from cirlib.analysis.failures.examples import fixed_queries, fixed_rows, select_method
from cirlib.analysis.failures.exchanges import best_of_families
from cirlib.models.preparation import Prepared
from cirlib.models.qformer_embedding import trained_composer
from cirlib.retrieval.scoring import Scored
from cirlib.study.files import write_json
from cirlib.study.methods import method_label


class Analysis:
    """One method of the study (its best, unless the parameter ``method`` names another), and what it is compared with.

    Attributes:
        method: the method whose misses are taken apart.
        scored: it on the reported queries, a category each.
        best: family of methods → its best one.
        context: protocol, queries and gallery, for figures with intervals; ``sample`` for others.

    Raises:
        ParameterError: the study has no such method.
    """

    def __init__(self, prepared: Prepared, summary: pd.DataFrame, scored: list[Scored]) -> None:
        self.prepared, self.all = prepared, scored
        self.method = prepared.stage.params.method or groups.best_method(summary)
        self.scored = select_method(scored, self.method)
        self.best = best_of_families(summary)
        own = summary[summary["method"] == self.method]
        self.context, self.sample = figures.context(own), figures.context(own, intervals=False)

    @cached_property
    def judge(self) -> reasons.Judge:
        """By the true attributes of the pictures where the data has them, else by likeness."""
        attributes = self.prepared.attributes
        return self.by_likeness if attributes is None else reasons.by_attributes(attributes)

    @cached_property
    def by_likeness(self) -> reasons.Judge:
        """An estimate for data without attributes."""
        return reasons.by_likeness(self.prepared.clip)

    def reasons_of(self, method: str) -> list[list[str]]:
        """The reason of each query, a list a category, as if it were missed."""
        return [self.judge(one) for one in select_method(self.all, method)]

    @property
    def estimated(self) -> str:
        """For the figures: where reasons are an estimate."""
        return "" if self.prepared.attributes else "  ·  reasons estimated by likeness, not known"

    def reasons(self) -> pd.DataFrame:
        """The reasons of the misses of each family's best method, the column ``method`` first."""
        tables = {m: reasons.reason_table(select_method(self.all, m), self.reasons_of(m)) for m in self.best.values()}
        return _stacked(tables, "method")

    def asked(self) -> pd.DataFrame:
        """Recall by words, number of things changed and likeness, one below the other, the column ``by`` first."""
        tables = {
            "words in the captions": groups.by_words(self.scored),
            "things the edit changes": groups.by_number(self.scored),
            "likeness of reference and target": groups.by_likeness(self.scored, self.prepared.clip),
        }
        return _stacked(tables, "by")

    def confusions(self) -> dict[str, pd.DataFrame]:
        """Wanted against retrieved values of each attribute; empty where the data does not know any."""
        attributes = self.prepared.attributes
        return {} if attributes is None else reasons.confusions(self.scored, attributes)

    def checked(self) -> pd.DataFrame:
        """Reasons by true attributes against reasons by likeness; empty where there are no attributes.

        Prints how often the two agree.
        """
        if self.prepared.attributes is None:
            return pd.DataFrame()
        true, estimated = ([judge(one) for one in self.scored] for judge in (self.judge, self.by_likeness))
        share, kappa = reasons.agreeing(true, estimated)
        print(f"The two agree on {100 * share:.1f} % of the queries; Cohen's kappa {kappa:.2f} (0: as by chance).")
        return reasons.agreement(true, estimated)

    def fixed(self, count: int) -> Figure:
        """What the best Q-Former finds and the best zero-shot method does not, as pictures."""
        if not {"zero-shot", "Q-Former"} <= set(self.best):
            return figures.note("The study has no Q-Former beside a zero-shot method.")
        before, after = (select_method(self.all, self.best[family]) for family in ("zero-shot", "Q-Former"))
        rows = fixed_rows(after, before, count)
        names = [method_label(self.best[family]) for family in ("Q-Former", "zero-shot")]
        if not rows:
            return figures.note(f"{names[0]} brought no target into its top ten that {names[1]} left out.")
        return figures.retrieval_grid(rows, title=f"Fixed by the {names[0]}")

    def looks(self, count: int) -> Figure:
        """Where the best Q-Former's tokens look: in queries it fixed, and in its worst misses."""
        name = self.best.get("Q-Former")
        if name is None:
            return figures.note("The study has no Q-Former.")
        own = select_method(self.all, name)
        missed = sorted(
            ((one, row) for one in own for row in range(len(one.target_ranks))),
            key=lambda query: -query[0].target_ranks[query[1]],
        )
        fixed = fixed_queries(own, select_method(self.all, self.best["zero-shot"])) if "zero-shot" in self.best else []
        chosen = [*fixed[: -(-count // 2)], *missed[: count // 2]]
        composer, study = trained_composer(self.prepared, name), self.prepared.stage.study
        return figures.attention_grid(attention_rows(composer, self.prepared.tokens, chosen, study.evaluation.captions))

    def write_metrics(self, kinds: pd.DataFrame, folder: Path) -> None:
        """Recall by kind of edit, reasons of the misses, share of edits not understood: to ``metrics.json``."""
        table = reasons.reason_table(self.scored, self.reasons_of(self.method))
        content = {
            "method": self.method,
            "misses": int(table["misses"].sum()),
            "recall@10": {row.group: round(row.value, 6) for row in kinds.itertuples()},
            "reasons": {row.reason: round(row.value, 6) for row in table.itertuples()},
            "unclassified": round(groups.unclassified(self.scored), 6),
        }
        write_json(content, folder / "metrics.json")


def _stacked(tables: Mapping[str, pd.DataFrame], column: str) -> pd.DataFrame:
    """Tables one below the other, the name of each in ``column``, which comes first."""
    return pd.concat(tables, names=[column]).reset_index(column).reset_index(drop=True)
