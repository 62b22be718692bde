"""Preference optimisation for composed retrieval, taken apart: Retrieval-DPO, its switches, its mistakes, what works.

A run goes one way: ``context`` (models and data) → ``dual_encoder`` → ``negatives`` → ``preferences`` (the losses) →
``embedded_splits`` (the scores) → ``runs``. ``grid`` says which runs there are, ``effects`` what they add up to,
``experiment`` is what the notebook opens.
"""
