"""Parts of `python -m benchmarks.ope`."""
