"""Losses: pure functions of tensors that know nothing of models."""

from cirlib.losses.dpo import dpo_loss
from cirlib.losses.info_nce import info_nce
from cirlib.losses.recall_at_k import recall_at_k_loss

__all__ = ["dpo_loss", "info_nce", "recall_at_k_loss"]
