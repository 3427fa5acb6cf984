"""A shop and an effect model of the sizes of a decision, for timing the scorer; the weights are random."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from qiance.artifacts import EffectModel, write_artifact
from qiance.artifacts.effect import KIND, TASKS, Calibration, PreparedActions
from qiance.decide.predictor import ActionGrid, EffectScorer
from qiance.domain import (
    Action,
    Catalogue,
    Channel,
    Creative,
    Item,
    Offer,
    OfferKind,
    StrategyKind,
)
from qiance.evaluate.calibration import Calibrator
from qiance.features.columns import EFFECT_SCHEMA, ITEM_COLUMNS, USER_COLUMNS
from qiance.features.encoder import Encoder, NumericCode
from qiance.features.grid import EncodedGrid, GridColumns
from qiance.features.transforms import USER_CATEGORY_FEATURES
from qiance.features.user_row import UserRows
from training.effect.export import effect_files
from training.effect.network import EffectNetwork, NetworkConfig

CATEGORIES = tuple(f"category {number}" for number in range(30))
CHANNELS = (Channel.EMAIL, Channel.PUSH, Channel.DISPLAY, Channel.MAILER)
DEPTHS = (0.0, 0.1, 0.2, 0.3)
CALIBRATION = Calibration(
    "channel", {task: Calibrator(0.9, 1.1, 0.1, {c.value: 0.1 for c in CHANNELS}) for task in TASKS[:2]}
)
BOUGHT = 0.3  # share of categories that a user has bought from


@dataclass(frozen=True)
class Case:
    """Items, and the actions that offer some of them."""

    catalogue: Catalogue
    actions: tuple[Action, ...]
    item_values: dict[str, np.ndarray]

    @classmethod
    def draw(cls, items: int, actions: int, random: np.random.Generator) -> Case:
        names = [CATEGORIES[number % len(CATEGORIES)] for number in range(items)]
        catalogue = Catalogue(
            tuple(Item(f"i{n}", f"item {n}", c, "all", "own", 900, 500) for n, c in enumerate(names))
        )
        offered = tuple(_action(n, int(random.integers(items)), random) for n in range(actions))
        return cls(catalogue, offered, {name: random.gamma(2.0, 10.0, items) for name in ITEM_COLUMNS})

    def grid(self, model: EffectScorer) -> ActionGrid:
        return ActionGrid(model, self.catalogue, self.actions, self.item_values, CATEGORIES)

    def prepared(self, model: EffectModel) -> tuple[PreparedActions, EncodedGrid]:
        """The actions as decisions keep them, and what encodes the users."""
        encoded, columns = self.grid(model).encoded, model.info.grid
        assert columns is not None, "the case is a model of decisions"
        prepared = model.prepare(encoded.num, encoded.cat, columns)
        assert prepared is not None, "it was exported for these columns"
        return prepared, encoded


def users(count: int, random: np.random.Generator) -> UserRows:
    """Users with gaps, as they are read for a decision."""
    columns = {name: random.gamma(2.0, 5.0, count) for name in USER_COLUMNS}
    columns["recency_days"][random.random(count) < 0.2] = np.nan
    known = random.random((count, len(CATEGORIES))) < BOUGHT
    pairs = {
        name: np.where(known, random.gamma(2.0, 3.0, known.shape), np.nan) for name in USER_CATEGORY_FEATURES
    }
    return UserRows(columns, pairs, random.integers(0, 5, count).astype(np.float64))


def write_model(
    root: Path,
    heads: int = 8,
    hidden: tuple[int, ...] = (64, 32),
    seed: int = 0,
    calibration: Calibration | None = CALIBRATION,
) -> Path:
    """The artifact of an effect model as it is trained by default."""
    torch.manual_seed(seed)
    flagged = {"recency_days", "tenure_days", *ITEM_COLUMNS}
    codes = tuple(NumericCode(10.0, 14.0, name in flagged) for name in EFFECT_SCHEMA.numeric)
    encoder = Encoder(EFFECT_SCHEMA, codes, (tuple(c.value for c in CHANNELS), CATEGORIES))
    rates = {"click": 0.1, "conversion": 0.02}
    config = NetworkConfig(
        encoder.num_width, encoder.cardinalities, TASKS, True, heads, hidden, rates, 900.0, 100.0, 50.0
    )
    num = np.zeros((8, encoder.num_width), dtype=np.float32)
    cat = np.zeros((8, len(encoder.vocabularies)), dtype=np.int64)
    files = effect_files(EffectNetwork(config).eval(), encoder, num, cat, 1.0, {}, calibration)
    about = {"feature_service": EFFECT_SCHEMA.service, "schema_hash": EFFECT_SCHEMA.hash}
    return write_artifact(root, KIND, files, metrics={}, data_fingerprint="random", **about).path


class WholeRows:
    """A model that is made to score every pair as a row of its own: what the parts are compared with."""

    def __init__(self, model: EffectModel) -> None:
        self.scales_of, self.encoder = model.scales_of, model.encoder
        self.predict_encoded = model.predict_encoded

    def prepare(self, num: np.ndarray, cat: np.ndarray, columns: GridColumns) -> None:
        """None: it takes rows."""


def _action(number: int, item: int, random: np.random.Generator) -> Action:
    depth, channel = float(random.choice(DEPTHS)), CHANNELS[number % len(CHANNELS)]
    words = Creative(channel, "en", "A good {product}" * (1 + number % 3), "Take it home", "Shop now")
    return Action(
        f"a{number}",
        f"s{number // len(CHANNELS)}",
        StrategyKind.PROMOTION if depth else StrategyKind.AD,
        f"i{item}",
        Offer(OfferKind.PERCENT, depth) if depth else Offer(),
        words,
        channel,
        int(random.integers(0, 60)),
    )
