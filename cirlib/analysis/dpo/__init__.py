"""Preference optimisation for composed retrieval, taken apart: Retrieval-DPO, its switches, its mistakes, what works.

Data flows ``edits`` → ``encoder`` → ``negatives`` → ``objectives`` → ``cells`` → ``grid`` → ``effects``; ``mistakes`` and
``recipe`` are grids of their own, ``experiment`` is what the notebook opens.
"""
