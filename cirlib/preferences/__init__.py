"""Preference optimisation for composed retrieval, taken apart: Retrieval-DPO, its switches, its mistakes, what works.

``edits`` → ``sides`` → ``negatives`` → ``objectives`` → ``cells`` → ``grid`` → ``effects``, ``mistakes``, ``recipe``, ``figures``.
"""
