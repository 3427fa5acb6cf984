"""A forecast as a CSV file: a row per customer, amounts in major units."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qiance.customers.forecast import Forecast
from qiance.domain.money import minor_exponent

_MONEY = ("expected_value", "value_median", "value_low", "value_high", "actual_value")


def columns_of(forecast: Forecast) -> dict[str, Any]:
    """Column → `[U]`; see `Forecast`. Days beyond the horizon are empty in the file."""
    return {
        "user_id": forecast.user_ids,
        "buys": 1 - forecast.churn,
        "churn": forecast.churn,
        "alive": forecast.alive,
        "next_days": forecast.next_median,
        "next_days_low": forecast.next_low,
        "next_days_high": forecast.next_high,
        "expected_purchases": forecast.purchases,
        "expected_value": forecast.value,
        "value_median": forecast.value_median,
        "value_low": forecast.value_low,
        "value_high": forecast.value_high,
    }


def write_forecast(
    path: Path, forecast: Forecast, currency: str, outcome: Mapping[str, Any] | None = None
) -> None:
    """A row per customer; outcome: count, value, next_day `[U]` of a period that is over."""
    columns = columns_of(forecast)
    if outcome is not None:
        names = {"count": "actual_purchases", "value": "actual_value", "next_day": "actual_next_days"}
        columns |= {names[name]: values for name, values in outcome.items()}
    scale = 10 ** minor_exponent(currency)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows(zip(*(_texts(name, values, scale) for name, values in columns.items()), strict=True))


def _texts(name: str, values: Any, scale: int) -> Iterator[str]:
    if name == "user_id":
        return (str(value) for value in values)
    if name in _MONEY:
        return (f"{value / scale:.2f}" for value in values)
    digits = 0 if "next_days" in name or name == "actual_purchases" else 6
    return (f"{value:.{digits}f}" if np.isfinite(value) else "" for value in values)
