"""Data in, artifacts out: features, the effect model, its baselines and the registry."""
