"""Peers of the uplift benchmark, each run in an environment of its own; nothing of the product is imported."""
