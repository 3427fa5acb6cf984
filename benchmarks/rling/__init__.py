"""What `benchmarks.rl` is made of."""
