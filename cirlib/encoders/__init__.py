"""Images and texts to features: two-tower models, frozen vision towers, and the on-disk feature store."""
