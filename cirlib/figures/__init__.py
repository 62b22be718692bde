"""Every figure of the study: `from cirlib import figures`, then `figures.recall_bars(summary)`.

A function takes plain tables or image paths and returns a matplotlib Figure, or a sentence where there is nothing to
draw; `save` writes it as a PNG.
"""

# ruff: noqa: F401
from cirlib.figures.curve_plots import dpo_curves, learning_curves, rank_histogram
from cirlib.figures.dpo_plots import effects, factorial_map, recipe_gains, sweep_grid
from cirlib.figures.failure_plots import confusion_maps, exchange_bars, kind_bars, reason_bars, recall_by
from cirlib.figures.image_grids import Picture, heated, picture_grid, triplet_grid
from cirlib.figures.outcome_plots import mistakes, trajectory
from cirlib.figures.recall_plots import (
    measured_on,
    paper_vs_ours,
    protocol_bars,
    recall_bars,
    recall_before_after,
    sample_note,
)
from cirlib.figures.style import percent, save
