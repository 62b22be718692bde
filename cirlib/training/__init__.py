"""The training loop, the Q-Former's two trainings, and the negatives they mine."""
