"""Strategies from a generative model of what was tried and what came of it."""
