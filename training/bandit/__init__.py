"""Networks that the neural-linear bandit sees users through."""
