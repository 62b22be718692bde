"""The zero-shot baselines: image only, text only, weighted sum, spherical interpolation."""
