"""Purchase logs and peers of the benchmark of customers."""
