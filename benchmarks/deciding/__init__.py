"""Parts of the benchmark of the decision path: shop, load, search for the largest rate, servers and peers."""
