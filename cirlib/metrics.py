"""Ranks, recall, precision, intervals and paired tests: what :mod:`cirlib.retrieval` offers for one's own code."""

from cirlib.retrieval.ranks import (
    PairedTest,
    Ranks,
    average_precision_at_k,
    average_precision_of_ranks,
    bootstrap_ci,
    chance_average_precision,
    chance_recall,
    holm,
    mean_reciprocal_rank,
    median_rank,
    paired_test,
    recall_at_k,
    reciprocal_rank,
    subset_ranks,
    target_ranks,
)

__all__ = [
    "PairedTest",
    "Ranks",
    "average_precision_at_k",
    "average_precision_of_ranks",
    "bootstrap_ci",
    "chance_average_precision",
    "chance_recall",
    "holm",
    "mean_reciprocal_rank",
    "median_rank",
    "paired_test",
    "recall_at_k",
    "reciprocal_rank",
    "subset_ranks",
    "target_ranks",
]
