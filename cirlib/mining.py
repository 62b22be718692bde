"""Hard negatives: what :mod:`cirlib.retrieval` offers for one's own code."""

from cirlib.retrieval.hard_negatives import MinedNegatives, mine_hard_negatives

__all__ = ["MinedNegatives", "mine_hard_negatives"]
