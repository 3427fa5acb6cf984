"""Parts of `benchmarks.effect`."""
