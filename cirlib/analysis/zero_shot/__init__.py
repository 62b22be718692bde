"""The zero-shot baselines on a two-tower model: image only, text only, weighted sum, spherical interpolation."""

from cirlib.analysis.zero_shot.baseline_scores import (  # noqa: F401
    Composer,
    EmbeddedQueries,
    baselines,
    best_weights,
    embed,
    protocol_table,
    score_baselines,
    sweep,
)
