"""What the study shows: zero-shot baselines, Retrieval-DPO taken apart, failures, and its tables."""
