"""Benchmarks: one module each, run by `python -m benchmarks.NAME`; see `benchmarks.__main__`."""
