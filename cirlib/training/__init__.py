"""The training loop, the Q-Former's two trainings with the negatives they mine, and methods that are asked for."""
