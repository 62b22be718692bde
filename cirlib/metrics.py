"""Ranks, recall, precision, intervals and paired tests: what :mod:`cirlib.retrieval` offers for one's own code."""

from cirlib.retrieval.ranks import Ranks, subset_ranks, target_ranks
from cirlib.retrieval.recall_and_precision import (
    average_precision_at_k,
    average_precision_of_ranks,
    chance_average_precision,
    chance_recall,
    median_rank,
    recall_at_k,
)
from cirlib.retrieval.statistics import PairedTest, against_chance, bootstrap_ci, holm, paired_test

__all__ = [
    "PairedTest",
    "Ranks",
    "against_chance",
    "average_precision_at_k",
    "average_precision_of_ranks",
    "bootstrap_ci",
    "chance_average_precision",
    "chance_recall",
    "holm",
    "median_rank",
    "paired_test",
    "recall_at_k",
    "subset_ranks",
    "target_ranks",
]
