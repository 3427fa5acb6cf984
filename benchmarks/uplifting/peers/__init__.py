"""Peers of the uplift benchmark, each run in an environment of its own, without the product."""
