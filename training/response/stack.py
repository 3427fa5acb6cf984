"""Members fitted fold by fold; how they are blended and calibrated is learned from rows none of them saw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from qiance.artifacts.explain import BACKGROUND
from qiance.artifacts.response import ResponseScorer, blend, run_trees
from qiance.artifacts.value import ValueModel
from qiance.evaluate.calibration import cross_calibrate, fit_calibrator
from qiance.evaluate.prediction import log_loss
from qiance.features.encoder import Encoder
from training.effect.network import EffectNetwork
from training.effect.width import Width, design_effect, fit_widths, make_groups
from training.response.members import (
    Inputs,
    Networks,
    ResponseSettings,
    fit_network,
    fit_tree_heads,
    fit_trees,
    run_networks,
)
from training.response.rows import ResponseRows, folds_of, held_out
from training.response.value import fit_value, why_no_value

Floats = NDArray[np.float64]
Tell = Callable[[float, str], None]


@dataclass(frozen=True)
class Stack:
    """K fitted members and how they become one prediction; see `qiance.artifacts.response`.

    leaves: of a tree. unseen: `[N, H]` calibrated probabilities of the training rows, each by the member that
    did not see it and by a calibrator that did not either. design: see `design_effect`. value: what a
    purchase is worth, None where that cannot be learned. curves: by network, its history by epoch.
    """

    scorer: ResponseScorer
    networks: Networks
    leaves: int
    width: Width
    design: float
    unseen: Floats
    value: ValueModel | None
    curves: tuple[list[dict[str, float]], ...]

    def predict(self, rows: ResponseRows) -> Floats:
        """Calibrated probabilities `[n, H]`, as the artifact will give them."""
        return self.scorer.predict(rows.columns)


def segments_of(rows: ResponseRows) -> NDArray[np.str_] | None:
    """`[n]` names of the segments that are calibrated apart."""
    return None if rows.segment is None else np.asarray(rows.columns[rows.segment]).astype(np.str_)


def fit_stack(rows: ResponseRows, settings: ResponseSettings, tell: Tell) -> Stack:
    """Fit on all of `rows`; `DataError` where they hold too few of either outcome."""
    fold = folds_of(rows, settings.members, settings.seed)
    encoder = Encoder.fit(rows.schema, rows.columns, min_count=settings.network.min_count)
    inputs = Inputs.of(rows, encoder, settings)
    leaves, trees, by_trees = _fit_trees(inputs, fold, settings, lambda share, text: tell(0.3 * share, text))
    networks, by_network, curves = _fit_networks(
        inputs, rows.label, fold, settings, lambda share, text: tell(0.3 + 0.7 * share, text)
    )
    weight = _best_weight(rows.target, by_network, by_trees)
    blended = blend(by_network[:, None], by_trees[:, None], weight)
    unseen = cross_calibrate(rows.target, blended, fold, segments_of(rows))
    together = Networks(networks).eval()
    scorer = ResponseScorer(
        encoder,
        partial(run_networks, together),
        trees,
        weight,
        fit_calibrator(rows.target, blended.mean(axis=1), segments_of(rows)),
        rows.segment,
        background_of(rows, settings.seed),
    )
    value = None if why_no_value(rows) else fit_value(rows, encoder, settings)
    design = design_effect(rows.target - unseen.mean(axis=1), rows.units)
    width = _width(rows, unseen, design, settings.seed)
    return Stack(scorer, together, leaves, width, design, unseen, value, tuple(curves))


def background_of(rows: ResponseRows, seed: int) -> dict[str, NDArray[Any]]:
    """Rows at random that explanations are made against: feature values without ids or outcomes."""
    some = np.random.default_rng(seed).choice(len(rows), size=min(BACKGROUND, len(rows)), replace=False)
    return {name: np.asarray(rows.columns[name])[some] for name in rows.schema.names}


@dataclass(frozen=True)
class _Size:
    """Trees of one size: K boosters, and the log loss of what they say of rows that they have not seen."""

    leaves: int
    boosters: list[Any]
    loss: float


def _fit_trees(
    inputs: Inputs, fold: NDArray[np.int64], settings: ResponseSettings, tell: Tell
) -> tuple[int, list[list[Any]], Floats]:
    """The best size of trees, K × (1 + H) boosters of that size, what they say of rows not seen `[N, H]`."""
    best = _best_size(inputs, fold, settings, lambda share, text: tell(0.4 * share, text))
    trees, unseen = [], np.empty((len(fold), settings.network.heads))
    for member, (train, held) in enumerate(held_out(fold)):
        text = f"bootstraps of trees, {member + 1} of {settings.members}"
        tell(0.4 + 0.6 * member / settings.members, text)
        main, seed = best.boosters[member], settings.seed + 1_000 * (member + 1)
        heads = fit_tree_heads(inputs, train, main.num_trees(), best.leaves, settings.trees, seed)
        trees.append([main, *heads])
        unseen[held] = run_trees(trees[-1:], inputs.table[held])[:, 0]
    return best.leaves, trees, unseen


def _best_size(inputs: Inputs, fold: NDArray[np.int64], settings: ResponseSettings, tell: Tell) -> _Size:
    """From the first size on, until the next is worse."""
    sizes, best = settings.trees.leaves, None
    for number, leaves in enumerate(sizes):
        tell(number / len(sizes), f"trying trees of {leaves} leaves")
        found = _fit_size(inputs, fold, leaves, settings)
        if best is not None and found.loss >= best.loss:
            break
        best = found
    assert best is not None, "TreeSettings has a size"
    return best


def _fit_size(inputs: Inputs, fold: NDArray[np.int64], leaves: int, settings: ResponseSettings) -> _Size:
    boosters, unseen = [], np.empty(len(fold))
    for member, (train, held) in enumerate(held_out(fold)):
        booster = fit_trees(inputs, train, held, leaves, settings.trees, settings.seed + member)
        unseen[held] = booster.predict(inputs.table[held])
        boosters.append(booster)
    return _Size(leaves, boosters, log_loss(inputs.target, unseen))


def _fit_networks(
    inputs: Inputs, label: str, fold: NDArray[np.int64], settings: ResponseSettings, tell: Tell
) -> tuple[list[EffectNetwork], Floats, list[list[dict[str, float]]]]:
    """K networks, what they say of rows not seen `[N, H]`, and their histories."""
    networks, curves, unseen = [], [], np.empty((len(fold), settings.network.heads))
    for member, (train, held) in enumerate(held_out(fold)):

        def told(metrics: dict[str, float], member: int = member) -> None:
            done = min((metrics["epoch"] + 1) / settings.network.epochs, 1.0)
            text = f"network {member + 1} of {settings.members}: validation loss {metrics['valid_loss']:.4f}"
            tell((member + done) / settings.members, text)

        network, curve = fit_network(inputs, label, train, held, settings.network, told)
        unseen[held] = run_networks(Networks([network]), inputs.num[held], inputs.cat[held])[:, 0]
        networks.append(network)
        curves.append(curve)
    return networks, unseen, curves


def _best_weight(target: Floats, networks: Floats, trees: Floats) -> float:
    """The share of the network's log odds with the least log loss on rows that neither saw."""

    def loss(weight: float) -> float:
        return log_loss(target, blend(networks[:, None], trees[:, None], weight).mean(axis=1))

    found = optimize.minimize_scalar(loss, bounds=(0.0, 1.0), method="bounded", options={"xatol": 1e-3})
    return float(min((0.0, 1.0, float(found.x)), key=loss))


def groups_of(rows: ResponseRows, draws: Floats, seed: int) -> list[NDArray[np.intp]]:
    """Groups of rows that intervals must cover: at random, by predicted value, and by category."""
    return make_groups({rows.label: draws.mean(axis=1)}, _natural(rows), seed)


def _natural(rows: ResponseRows) -> list[NDArray[np.str_]]:
    return [np.asarray(rows.columns[name]).astype(np.str_) for name in rows.schema.categorical]


def _width(rows: ResponseRows, unseen: Floats, design: float, seed: int) -> Width:
    draws, labels = {rows.label: unseen.astype(np.float32)}, {rows.label: rows.target}
    return fit_widths(draws, labels, _natural(rows), segments_of(rows), seed, design)
