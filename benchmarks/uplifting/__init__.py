"""Parts of `python -m benchmarks.uplift`."""
