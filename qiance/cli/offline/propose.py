"""Strategies from a log: each arm for everybody, and for the customers whom it moves most."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qiance.artifacts.effect import EffectDraws, EffectModel
from qiance.cli.offline.estimate import Log
from qiance.cli.offline.learn import Draws, Predictions, draws_under
from qiance.cli.offline.sources import Source
from qiance.cli.offline.study import Floats, Mask, Study
from qiance.domain import Audience, Effect, Interval, StrategyKind, UserTable
from qiance.domain.prediction import interval_of
from qiance.evaluate.ope import Estimate
from qiance.strategy.audience import audience_mask, uplift_audiences
from qiance.strategy.segments import EVERYBODY

MAX_ARMS = 6
EFFECT_CONFIDENCE = 0.9
_MAX_LEVELS = 12  # of a categorical feature, that rules may name
_MAX_SHARE = 0.9  # a rule that admits nearly everybody says nothing
_UNKNOWN = Interval(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Proposal:
    """An arm for an audience.

    name: the arm in words. reach: rows of the log whose customer is in the audience.
    effect: by the model on unseen rows. uplift: of the primary outcome over control (else over the logging
    policy), predicted there. checked: the same, off-policy; None where the log cannot tell, for the reason
    in `problem`.
    """

    arm: str
    name: str
    kind: StrategyKind
    title: str
    audience: Audience
    reach: int
    effect: Effect
    uplift: Interval
    checked: Estimate | None
    problem: str = ""


def propose(
    study: Study,
    log: Log,
    predictions: Predictions,
    model: EffectModel,
    source: Source,
    cost_fraction: float,
) -> list[Proposal]:
    """Proposals made of the first half and checked on the second, by predicted uplift, best first.

    Arms beyond six are left out, the least promising of the first half first.
    """
    users = rule_features(study)
    base = predictions.own[:, 0] if study.has_control else predictions.own @ study.shares
    uplift = predictions.own - base[:, None]
    arms = np.argsort(-uplift.mean(axis=0), kind="stable")
    chosen = [int(k) for k in arms if not (study.has_control and k == 0)][:MAX_ARMS]
    found = []
    for place in chosen:
        draws = draws_under(study, model, study.arms[place], ~study.first)
        maker = _Maker(study, log, predictions, model, source, cost_fraction, place, by_label(draws))
        found.append(maker.make(EVERYBODY, users, source.arm_kind))
        rule = best_rule(users, study.first, uplift[:, place])
        if rule is not None:
            found.append(maker.make(rule, users, StrategyKind.AD))
    return sorted(found, key=lambda proposal: -proposal.uplift.value)


def by_label(draws: EffectDraws) -> dict[str, Draws]:
    """Draws by label."""
    return {name: getattr(draws, name) for name in ("click", "conversion", "sales")}


def rule_features(study: Study) -> UserTable:
    """What a rule may name: the row's own features as numbers, a level of a categorical one as 0 or 1.

    Features of the arm say nothing of a customer and are left out.
    """
    responses = study.responses
    of_arm = {*responses.pair_features}
    if responses.arm_features is not None:
        of_arm |= set(responses.arm_features.column_names)
    columns: dict[str, Floats] = {}
    for name in responses.numeric:
        if name not in of_arm:
            columns[name] = responses.table[name].to_numpy(zero_copy_only=False).astype(np.float64)
    for name in responses.categorical:
        if name not in of_arm:
            values = responses.table[name].to_numpy(zero_copy_only=False).astype(np.str_)
            levels, counts = np.unique(values, return_counts=True)
            for level in levels[np.argsort(-counts, kind="stable")][:_MAX_LEVELS]:
                columns[level_name(name, str(level), columns)] = (values == level).astype(np.float64)
    return UserTable(tuple(str(number) for number in range(len(study))), columns)


def level_name(feature: str, level: str, taken: Mapping[str, object]) -> str:
    """`channel_is_web` for level `Web` of `channel`; long levels are cut, and numbered if that hides one."""
    word = re.sub(r"\W+", "_", level.lower()).strip("_")[:12] or "blank"
    name, number = f"{feature}_is_{word}", 1
    while name in taken:
        number += 1
        name = f"{feature}_is_{word}_{number}"
    return name


def best_rule(users: UserTable, rows: Mask, uplift: Floats) -> Audience | None:
    """The rule with the highest predicted uplift over the `rows`, if it tells customers apart.

    uplift: `[n]` for the n `rows`.
    """
    index = np.flatnonzero(rows)
    part = UserTable(
        tuple(users.user_ids[row] for row in index), {n: c[index] for n, c in users.columns.items()}
    )
    leaves = uplift_audiences(part, uplift, max_depth=2)
    best = next((leaf for leaf in leaves if leaf.share <= _MAX_SHARE and leaf.uplift > leaf.average), None)
    if best is None:
        return None
    conditions = tuple(_plain(condition, users.columns) for condition in best.audience.conditions)
    return Audience(" and ".join(_words(condition, users.columns) for condition in conditions), conditions)


def _is_flag(column: Floats) -> bool:
    return bool(np.isin(column[np.isfinite(column)], (0.0, 1.0)).all())


def _plain(condition: tuple[str, str, float], columns: Mapping[str, Floats]) -> tuple[str, str, float]:
    """A bound on a yes-or-no feature as an equality."""
    feature, symbol, _ = condition
    if not _is_flag(columns[feature]):
        return condition
    return feature, "==", float(symbol in (">", ">="))


def _words(condition: tuple[str, str, float], columns: Mapping[str, Floats]) -> str:
    feature, symbol, value = condition
    name = feature.replace("_is_", ": ", 1).replace("_", " ")
    if _is_flag(columns[feature]):
        return name if value else f"no {name}"
    return f"{name} {'over' if symbol.startswith('>') else 'up to'} {value:g}"


@dataclass(frozen=True)
class _Maker:
    """Makes the proposals of one arm; place: its column; draws: label → `[m, H]` for the second half."""

    study: Study
    log: Log
    predictions: Predictions
    model: EffectModel
    source: Source
    cost_fraction: float
    place: int
    draws: dict[str, Draws]

    def make(self, audience: Audience, users: UserTable, kind: StrategyKind) -> Proposal:
        study = self.study
        mask = audience_mask(audience, users)
        arm = study.arms[self.place]
        name = self.source.arm_words.format(arm=arm)
        whom = f"customers with {audience.name}" if audience.conditions else "everybody"
        inside = mask[~study.first]
        checked, problem = self._check(mask & ~study.first)
        primary = self._interval(study.primary, self.draws[study.primary] - self._base(study.primary), inside)
        return Proposal(
            arm=arm,
            name=name,
            kind=kind,
            title=f"{name} for {whom}",
            audience=audience,
            reach=int(mask.sum()),
            effect=self._effect(inside),
            uplift=primary,
            checked=checked,
            problem=problem,
        )

    def _base(self, label: str) -> Draws:
        return self.predictions.base[label]

    def _check(self, rows: Mask) -> tuple[Estimate | None, str]:
        study = self.study
        probs = np.zeros((int(rows.sum()), len(study.arms)))
        probs[:, self.place] = 1.0
        try:
            if not study.has_control:
                return self.log.gain_over_logged(study.primary, probs, rows), ""
            control = np.zeros_like(probs)
            control[:, 0] = 1.0
            return self.log.gain(study.primary, probs, control, rows), ""
        except ValueError as error:
            return None, str(error)

    def _effect(self, inside: NDArray[np.bool_]) -> Effect:
        labels = self.study.labels
        known = {name: self.draws[name] for name in labels}
        ctr = self._interval("click", known["click"], inside, 0.0, 1.0) if "click" in known else _UNKNOWN
        cvr = (
            self._interval("conversion", known["conversion"], inside, 0.0, 1.0)
            if "conversion" in known
            else _UNKNOWN
        )
        if "sales" not in known:
            return Effect(ctr, cvr, _UNKNOWN, _UNKNOWN, _UNKNOWN)
        sales = known["sales"]
        rest = np.float32(1.0 - self.cost_fraction)
        cost = np.float32(self.study.cost[self.place])
        of_base = np.float32(0.0 if self.study.has_control else self.study.cost @ self.study.shares)
        return Effect(
            ctr,
            cvr,
            self._interval("sales", sales, inside, 0.0),
            self._interval("sales", rest * sales - cost, inside),
            self._interval("sales", rest * (sales - self._base("sales")) - (cost - of_base), inside),
        )

    def _interval(
        self,
        label: str,
        draws: Draws,
        inside: NDArray[np.bool_],
        low: float = -np.inf,
        high: float = np.inf,
    ) -> Interval:
        """Mean over the audience's unseen rows, with the width that the label needs."""
        if not inside.any():
            return _UNKNOWN
        scale = self.model.info.width_scales.get(label, self.model.width_scale)
        return interval_of(draws[inside].mean(axis=0), scale, EFFECT_CONFIDENCE, low, high)


def kinds_in(proposals: Sequence[Proposal]) -> str:
    """Which kinds were proposed, e.g. `2 content, 2 ad`."""
    kinds = [proposal.kind.value for proposal in proposals]
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
