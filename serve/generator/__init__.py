"""The language model that writes creatives: weights, and the constrained engine over them."""
