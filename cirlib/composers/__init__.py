"""A reference and a typed edit to one query embedding: zero-shot baselines and the Q-Former."""
