"""The decision rule: one function for simulation, batch and serving, with exact propensities."""

from qiance.decide.floors import discounted_price, margin_floor_mask
from qiance.decide.holdout import hash_uniforms, holdout
from qiance.decide.rule import Decided, decide, policy_probabilities, replay, scores

__all__ = [
    "Decided",
    "decide",
    "discounted_price",
    "hash_uniforms",
    "holdout",
    "margin_floor_mask",
    "policy_probabilities",
    "replay",
    "scores",
]
