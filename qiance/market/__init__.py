"""The simulated market: real households, products and prices; known responses."""

from qiance.market.catalogue import select_catalogue
from qiance.market.market import ActionTable, Market, Responses, Truth
from qiance.market.population import Population
from qiance.market.responses import CONTACT_COST

__all__ = [
    "CONTACT_COST",
    "ActionTable",
    "Market",
    "Population",
    "Responses",
    "Truth",
    "select_catalogue",
]
