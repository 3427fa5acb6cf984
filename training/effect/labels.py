"""What happened, as arrays that the network learns from, checked before an hour is spent on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qiance.features.encoder import Encoder
from training.effect.network import TASKS, NetworkConfig
from training.effect.split import Mask

Labels = Mapping[str, NDArray[np.float64]]


def read_labels(table: pa.Table, names: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Label columns by task, in the order of the tasks, each `[n]`.

    click and conversion are 0 or 1 (or boolean); sales and margin are minor units and 0 without a
    conversion. Raises ValueError naming label, row, value and remedy.
    """
    unknown = sorted(set(names) - set(TASKS))
    if unknown or not names:
        raise ValueError(f"labels: {unknown or 'none given'}; choose from {', '.join(TASKS)}")
    labels = {task: _column(table, task) for task in TASKS if task in names}
    for task in ("click", "conversion"):
        if task in labels:
            _require(task, labels[task], np.isin(labels[task], (0.0, 1.0)), "is neither 0 nor 1")
    for task in ("sales", "margin"):
        if task in labels:
            _check_money(task, labels)
    return labels


def is_entire_space(labels: Labels) -> bool:
    """Whether conversion can be learned as P(click) · P(conversion | click).

    True when both are labelled and nobody converts without a click. Where control users convert
    unseen, the product would be wrong, and conversion gets a head of its own.
    """
    if not {"click", "conversion"} <= set(labels):
        return False
    return bool(np.all(labels["conversion"] <= labels["click"]))


def network_config(
    encoder: Encoder,
    labels: Labels,
    train: Mask,
    *,
    heads: int,
    hidden: tuple[int, ...],
    dropout: float = 0.1,
    embedding: int = 16,
) -> NetworkConfig:
    """Sizes from the encoder, scales from the training rows.

    Raises ValueError for a label that never, or always, happens there.
    """
    rates = {}
    for task in ("click", "conversion"):
        if task in labels:
            rates[task] = _rate(task, labels[task][train])
    paid = train & (labels["conversion"] > 0) if "conversion" in labels else train
    money = {task: labels[task][paid] for task in ("sales", "margin") if task in labels}
    scales: dict[str, float] = {}
    if "sales" in money:
        scales["sales_scale"] = _positive_mean(money["sales"])
    if "margin" in money:
        scales["margin_centre"] = float(money["margin"].mean())
        scales["margin_scale"] = float(money["margin"].std()) or 1.0
    return NetworkConfig(
        num_width=encoder.num_width,
        cardinalities=encoder.cardinalities,
        tasks=tuple(labels),
        entire_space=is_entire_space(labels),
        heads=heads,
        hidden=hidden,
        rates=rates,
        dropout=dropout,
        embedding=embedding,
        **scales,
    )


def _column(table: pa.Table, name: str) -> NDArray[np.float64]:
    if name not in table.column_names:
        raise ValueError(f"label {name!r}: the table has no such column; leave it out of labels")
    values = table.column(name).combine_chunks().cast(pa.float64()).to_numpy(zero_copy_only=False)
    _require(name, values, np.isfinite(values), "is not a finite number")
    return np.asarray(values, dtype=np.float64)


def _check_money(task: str, labels: Labels) -> None:
    if "conversion" not in labels:
        raise ValueError(f"label {task!r} needs label 'conversion': money is predicted per conversion")
    paid = (labels["conversion"] > 0) | (labels[task] == 0)
    _require(task, labels[task], paid, "comes without a conversion")
    if task == "sales":
        _require(task, labels[task], labels[task] >= 0, "is negative; book refunds in margin")


def _require(name: str, values: NDArray[np.float64], good: NDArray[np.bool_], fault: str) -> None:
    bad = np.flatnonzero(~good)
    if bad.size:
        raise ValueError(f"label {name!r}: value {values[bad[0]]:g} at row {bad[0]} {fault}")


def _rate(task: str, values: NDArray[np.float64]) -> float:
    rate = float(values.mean())
    if rate in (0.0, 1.0):
        raise ValueError(
            f"label {task!r}: is {rate:g} in all {values.size} training rows; leave it out of labels"
        )
    return rate


def _positive_mean(values: NDArray[np.float64]) -> float:
    mean = float(values.mean())
    if mean <= 0:
        raise ValueError("label 'sales': is 0 in every conversion; leave it out of labels")
    return mean
