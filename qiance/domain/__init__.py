"""The vocabulary of the decision loop as small frozen dataclasses."""

from qiance.domain.action import (
    CONTROL,
    CONTROL_ACTION,
    Action,
    Audience,
    Channel,
    Creative,
    CreativeState,
    Effect,
    Interval,
    Offer,
    OfferKind,
    Strategy,
    StrategyKind,
    StrategyState,
)
from qiance.domain.brief import Brief, BriefState, Objective
from qiance.domain.catalogue import Catalogue, Item, UserTable
from qiance.domain.decision import Cap, Decision, Outcome, OutcomeType
from qiance.domain.events import EventType, Purpose, ShopEvent
from qiance.domain.money import Money
from qiance.domain.prediction import EffectPredictor, GridPrediction

__all__ = [
    "CONTROL",
    "CONTROL_ACTION",
    "Action",
    "Audience",
    "Brief",
    "BriefState",
    "Cap",
    "Catalogue",
    "Channel",
    "Creative",
    "CreativeState",
    "Decision",
    "Effect",
    "EffectPredictor",
    "EventType",
    "GridPrediction",
    "Interval",
    "Item",
    "Money",
    "Objective",
    "Offer",
    "OfferKind",
    "Outcome",
    "OutcomeType",
    "Purpose",
    "ShopEvent",
    "Strategy",
    "StrategyKind",
    "StrategyState",
    "UserTable",
]
