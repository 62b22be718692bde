"""The result table of a study, and published numbers beside it."""
