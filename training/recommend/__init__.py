"""Sequential recommendation: what a customer buys next, from the order of what was bought before."""
