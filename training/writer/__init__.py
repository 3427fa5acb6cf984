"""Tuning of the language model that writes: it imitates its own best words, then prefers what is clicked."""
