"""What `benchmarks.allocate` is made of."""
