"""What the pacing environment needs of a market, as one `.npz` file that every worker loads itself."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qiance.domain import Catalogue, Channel
from qiance.market import ActionTable, Market, Population
from qiance.market.calibrate import Intercepts
from qiance.market.responses import Coefficients

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
_POPULATION = ("affinity", "sensitivity", "organic", "basket", "taste")
_TABLE = ("channel", "category", "depth", "price", "paid", "unit_cost", "contact_cost", "words")
_GRIDS = ("value", "cost", "admissible")
_STATE = ("fatigue", "stock")
_INTERCEPTS = ("channel", "purchase")


@dataclass(frozen=True, slots=True)
class Campaign:
    """The budget that is paced, and who comes by.

    budget: cap over the horizon, minor units. shadow_price: λ₀ ≥ 0 of the allocation.
    arrivals_per_day: expected number of users a day. horizon_days: length of an episode.
    epsilon: share of exploration in every decision.
    traffic_spread: standard deviation of the logarithm of an episode's traffic over what was expected.
    """

    budget: int
    shadow_price: float
    arrivals_per_day: float
    horizon_days: int = 10
    epsilon: float = 0.05
    traffic_spread: float = 0.25

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise ValueError(f"budget: {self.budget} is less than 1 minor unit")
        if not 0 < self.shadow_price < np.inf:
            raise ValueError(
                f"shadow_price: {self.shadow_price} is not a positive number; a price of 0 means that the "
                "budget does not bind, and there is nothing to pace"
            )
        if not 0 < self.arrivals_per_day < np.inf:
            raise ValueError(f"arrivals_per_day: {self.arrivals_per_day} is not a positive number of users")
        if self.horizon_days < 1:
            raise ValueError(f"horizon_days: {self.horizon_days} is less than 1 day")
        if not 0 <= self.epsilon <= 1:
            raise ValueError(f"epsilon: {self.epsilon} is outside [0, 1]")
        if not 0 <= self.traffic_spread <= 2:
            raise ValueError(f"traffic_spread: {self.traffic_spread} is outside [0, 2]")


@dataclass(frozen=True)
class World:
    """A market of U users and A actions (column 0 is control), with predictions of what they will do.

    value, cost: `[U, A]` predicted incremental margin and budget use, minor units; admissible: `[U, A]`.
    fatigue `[U]` and stock `[U, C]`: the state that every episode starts from.
    """

    population: Population
    intercepts: Intercepts
    coefficients: Coefficients
    table: ActionTable
    value: Floats
    cost: Floats
    admissible: Bools
    fatigue: Floats
    stock: Floats
    campaign: Campaign

    def market(self) -> Market:
        """A fresh market in the state of the start; it shares no state with another."""
        market = Market(self.population, Catalogue(()), self.intercepts, 0, self.coefficients)
        market.fatigue, market.stock = self.fatigue.copy(), self.stock.copy()
        return market


def save_world(
    path: Path,
    market: Market,
    table: ActionTable,
    value: NDArray[np.floating],
    cost: NDArray[np.floating],
    campaign: Campaign,
    *,
    users: NDArray[np.int64] | None = None,
    admissible: Bools | None = None,
) -> Path:
    """Write what `PacingEnv` needs to `path` (`.npz`), and return it.

    table: actions, of which the first must be control. value, cost: `[U, A]` predictions, minor units, rows
    in the order of `users` (rows of the market; all if None). admissible: `[U, A]`, everything if None.
    ValueError names the array whose shape or value is wrong. No user id is written.
    """
    rows = np.arange(len(market.population)) if users is None else np.asarray(users, dtype=np.int64)
    shape = (rows.size, len(table))
    allowed = np.ones(shape, dtype=np.bool_) if admissible is None else np.asarray(admissible)
    grids = {
        "value": np.asarray(value, np.float64),
        "cost": np.asarray(cost, np.float64),
        "admissible": allowed,
    }
    _check_grids(grids, shape)
    if len(table) == 0 or table.channel[0] != 0:
        raise ValueError(
            "table: the first action must be control (channel 'none'), so that nothing can be done"
        )
    arrays: dict[str, Any] = grids | _population_arrays(market, rows)
    arrays |= {f"table.{name}": getattr(table, name) for name in _TABLE}
    arrays |= {f"intercepts.{name}": getattr(market.intercepts, name) for name in _INTERCEPTS}
    arrays["fatigue"], arrays["stock"] = market.fatigue[rows], market.stock[rows]
    arrays["settings"] = np.array(_settings(market, campaign))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        np.savez(stream, **arrays)
    return path


def load_world(path: Path) -> World:
    """Read a world that `save_world` wrote; ValueError says what is wrong with the file."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        settings = json.loads(str(arrays["settings"]))
        return _world(arrays, settings)
    except FileNotFoundError:
        raise ValueError(f"world: {path} does not exist; write it with rllib.world.save_world") from None
    except (KeyError, TypeError, ValueError, AttributeError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"world: {path} is not a world ({error}); write it with save_world") from None


def fingerprint(path: Path) -> str:
    """SHA-256 (hex) of the file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check_grids(grids: dict[str, NDArray[Any]], shape: tuple[int, int]) -> None:
    if shape[0] == 0:
        raise ValueError("users: is empty; the environment needs somebody who arrives")
    for name, grid in grids.items():
        if grid.shape != shape:
            raise ValueError(f"{name}: shape is {list(grid.shape)}; must be users × actions, {list(shape)}")
    for name in ("value", "cost"):
        if not np.isfinite(grids[name]).all():
            raise ValueError(f"{name}: holds NaN or infinity; predict again without them")
    if (grids["cost"] < 0).any():
        raise ValueError(f"cost: {grids['cost'].min()} is negative; must be ≥ 0 minor units")
    if grids["admissible"].dtype != np.bool_ or not grids["admissible"][:, 0].all():
        raise ValueError("admissible: must be bool, and True for control (column 0)")


def _population_arrays(market: Market, rows: NDArray[np.int64]) -> dict[str, Floats]:
    return {f"population.{name}": getattr(market.population, name)[rows] for name in _POPULATION}


def _settings(market: Market, campaign: Campaign) -> str:
    coefficients = {
        field.name: _plain(getattr(market.coefficients, field.name))
        for field in dataclasses.fields(market.coefficients)
    }
    return json.dumps(
        {
            "campaign": dataclasses.asdict(campaign),
            "coefficients": coefficients,
            "categories": list(market.population.categories),
            "margin_rate": market.population.margin_rate,
            "basket_sigma": market.population.basket_sigma,
        }
    )


def _plain(value: Any) -> Any:
    return {str(k): float(v) for k, v in value.items()} if hasattr(value, "items") else float(value)


def _world(arrays: dict[str, NDArray[Any]], settings: dict[str, Any]) -> World:
    coefficients = dict(settings["coefficients"])
    coefficients["purchase"] = {Channel(name): x for name, x in coefficients["purchase"].items()}
    columns = {name: arrays[f"population.{name}"] for name in _POPULATION}
    population = Population(
        user_ids=tuple(str(row) for row in range(len(columns["organic"]))),
        categories=tuple(settings["categories"]),
        margin_rate=settings["margin_rate"],
        basket_sigma=settings["basket_sigma"],
        **columns,
    )
    return World(
        population=population,
        intercepts=Intercepts(**{name: arrays[f"intercepts.{name}"] for name in _INTERCEPTS}),
        coefficients=Coefficients(**coefficients),
        # Effects follow from the arrays alone; the actions' words and ids stay at home.
        table=ActionTable(actions=(), **{name: arrays[f"table.{name}"] for name in _TABLE}),
        campaign=Campaign(**settings["campaign"]),
        **{name: arrays[name] for name in (*_GRIDS, *_STATE)},
    )
