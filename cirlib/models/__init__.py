"""Encoders, composers and the features they make: what turns pictures and edits into embeddings."""
