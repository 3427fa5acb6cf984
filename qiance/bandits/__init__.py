"""Contextual bandits with exact propensities and delayed rewards."""

from qiance.bandits.agent import Bandit, BanditSettings
from qiance.bandits.choice import Chosen, Rule, best_probabilities, choose, rule_probabilities
from qiance.bandits.network import Network
from qiance.bandits.pending import Learn, Pending, Settled
from qiance.bandits.posterior import LinearPosterior, Prior

__all__ = [
    "Bandit",
    "BanditSettings",
    "Chosen",
    "Learn",
    "LinearPosterior",
    "Network",
    "Pending",
    "Prior",
    "Rule",
    "Settled",
    "best_probabilities",
    "choose",
    "rule_probabilities",
]
