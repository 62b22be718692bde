"""From embeddings to numbers: rankings, metrics, statistics, hard negatives, and files of runs and results."""
