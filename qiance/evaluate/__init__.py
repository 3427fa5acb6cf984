"""How good was it: off-policy evaluation, A/B comparison, prediction quality (import the submodules)."""
