"""Every figure of the study: `from cirlib import figures`, then `figures.recall_bars(summary)`.

A function takes plain tables or image paths and returns a matplotlib Figure; `save` writes it as a PNG.
"""

from cirlib.figures.dpo_plots import (
    effects,
    factorial_map,
    mistakes,
    negative_quality,
    recipe_dots,
    sweep_grid,
    trajectory,
)
from cirlib.figures.failure_plots import confusion_maps, exchange_bars, kind_bars, reason_bars, recall_by
from cirlib.figures.image_grids import (
    AttentionRow,
    RetrievalRow,
    attention_grid,
    heated,
    retrieval_grid,
    triplet_grid,
)
from cirlib.figures.plots import (
    alt_text,
    context,
    dpo_curves,
    learning_curves,
    note,
    paper_vs_ours,
    percent,
    protocol_bars,
    rank_histogram,
    recall_bars,
    recall_before_after,
    save,
)

__all__ = [
    "AttentionRow",
    "RetrievalRow",
    "alt_text",
    "attention_grid",
    "confusion_maps",
    "context",
    "dpo_curves",
    "effects",
    "exchange_bars",
    "factorial_map",
    "heated",
    "kind_bars",
    "learning_curves",
    "mistakes",
    "negative_quality",
    "note",
    "paper_vs_ours",
    "percent",
    "protocol_bars",
    "rank_histogram",
    "reason_bars",
    "recall_bars",
    "recall_before_after",
    "recall_by",
    "recipe_dots",
    "retrieval_grid",
    "save",
    "sweep_grid",
    "trajectory",
    "triplet_grid",
]
