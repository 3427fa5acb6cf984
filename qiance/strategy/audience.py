"""Audiences: who matches a rule, the named segments of a user table, and rules found from uplift."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qiance.domain import Audience, UserTable
from qiance.strategy.segments import EVERYBODY, segment_words

Condition = tuple[str, str, float]
Mask = NDArray[np.bool_]

OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
}
_RULE = re.compile(r"\s*([A-Za-z_]\w*)\s*(<=|>=|==|<|>)\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*")

# Named segments: name, feature, operator, quantile of the feature (None: the value 0).
_SEGMENTS: tuple[tuple[str, str, str, float | None], ...] = (
    ("recent-shoppers", "recency_days", "<=", 0.5),
    ("lapsed-shoppers", "recency_days", ">", 0.75),
    ("frequent-shoppers", "baskets_90d", ">", 0.75),
    ("high-spenders", "spend_90d", ">", 0.75),
    ("deal-seekers", "discount_share", ">", 0.75),
    ("big-baskets", "avg_basket", ">", 0.75),
    ("coupon-users", "coupon_redemption_rate", ">", None),
)
SEGMENT_NAMES = frozenset({EVERYBODY.name, *(name for name, *_ in _SEGMENTS)})


def audience_mask(audience: Audience, users: UserTable) -> Mask:
    """Which users match every condition, `[U]`; an unknown (NaN) value matches none.

    Raises ValueError for a feature that the table lacks or an operator that does not exist.
    """
    mask = np.ones(len(users), dtype=np.bool_)
    for feature, symbol, value in audience.conditions:
        if feature not in users.columns:
            known = ", ".join(sorted(users.columns)) or "none"
            raise ValueError(
                f"audience.conditions: feature {feature!r} is not in the users table; has {known}"
            )
        if symbol not in OPERATORS:
            raise ValueError(f"audience.conditions: operator {symbol!r} is not one of {', '.join(OPERATORS)}")
        column = users.columns[feature]
        mask &= OPERATORS[symbol](column, value) & ~np.isnan(column)
    return mask


def take_users(users: UserTable, rows: NDArray[np.int64]) -> UserTable:
    """The users at `rows`, in that order."""
    columns = {name: column[rows] for name, column in users.columns.items()}
    return UserTable(tuple(users.user_ids[row] for row in rows), columns)


def named_segments(users: UserTable) -> tuple[Audience, ...]:
    """The segments that the table's columns allow, thresholds at quantiles of its own values.

    A segment that holds nobody or everybody is left out.
    """
    segments = []
    for name, feature, symbol, quantile in _SEGMENTS:
        column = users.columns.get(feature)
        if column is None or not np.isfinite(column).any():
            continue
        finite = column[np.isfinite(column)]
        raw = 0.0 if quantile is None else float(np.quantile(finite, quantile))
        segment = Audience(name, ((feature, symbol, round_threshold(raw, column)),))
        if 0 < audience_mask(segment, users).sum() < len(users):
            segments.append(segment)
    return tuple(segments)


def resolve_audience(name: str | None, users: UserTable) -> Audience:
    """The audience that a brief names: a segment, or a rule like `recency_days > 14 and baskets_90d <= 6`.

    Raises ValueError when it is neither, or when it matches nobody.
    """
    if name is None or name == EVERYBODY.name:
        return EVERYBODY
    segments = {segment.name: segment for segment in named_segments(users)}
    audience = segments.get(name) or parse_rule(name)
    if audience is None:
        known = ", ".join([EVERYBODY.name, *segments])
        raise ValueError(
            f"brief.audience: {name!r} is no segment of this users table;"
            f" use one of {known}, or a rule such as 'recency_days > 14 and baskets_90d <= 6'"
        )
    if not audience_mask(audience, users).any():
        raise ValueError(
            f"brief.audience: {name!r} ({audience.describe()}) matches none of the {len(users)} users;"
            " loosen it"
        )
    return audience


def parse_rule(text: str) -> Audience | None:
    """The audience whose `describe()` is `text`; None when `text` is no such rule."""
    conditions: list[Condition] = []
    for part in re.split(r"\s+and\s+", text):
        match = _RULE.fullmatch(part)
        if match is None:
            return None
        try:
            conditions.append((match[1], match[2], float(match[3])))
        except ValueError:
            return None
    return Audience(text, merge_conditions(conditions))


def intersect(base: Audience, extra: Audience) -> Audience:
    """Users that match both; named after `extra` unless that is everybody."""
    if not extra.conditions:
        return base
    return Audience(extra.name, merge_conditions([*base.conditions, *extra.conditions]))


def merge_conditions(conditions: list[Condition]) -> tuple[Condition, ...]:
    """The same rule with one bound per feature and operator: the tightest."""
    merged: dict[tuple[str, str, float], float] = {}
    for feature, symbol, value in conditions:
        # Distinct equalities exclude each other and must both stay.
        key = (feature, symbol, value if symbol == "==" else 0.0)
        tighter = min if symbol in ("<", "<=") else max
        merged[key] = tighter(merged.get(key, value), value)
    return tuple((feature, symbol, value) for (feature, symbol, _), value in merged.items())


def round_threshold(value: float, column: NDArray[np.float64], tolerance: float = 0.01) -> float:
    """The shortest number near `value` that moves at most `tolerance` of the users across it.

    Made for rules with `<=` and `>`; for a column of whole numbers the result is whole.
    """
    finite = column[np.isfinite(column)]
    base = float(np.floor(value)) if np.equal(finite, np.floor(finite)).all() else value
    below = float(np.mean(finite <= base)) if finite.size else 0.0
    for digits in range(1, 6):
        short = float(f"{base:.{digits}g}")
        if not finite.size or abs(float(np.mean(finite <= short)) - below) <= tolerance:
            return short
    return base


@dataclass(frozen=True, slots=True)
class UpliftAudience:
    """A rule found from predicted uplift.

    uplift, average: mean of the rule's users and of all, minor units per contact; share: of all.
    """

    audience: Audience
    uplift: float
    average: float
    share: float


def uplift_audiences(
    users: UserTable,
    uplift: NDArray[np.floating],
    *,
    max_depth: int = 3,
    min_share: float = 0.1,
    seed: int = 0,
) -> tuple[UpliftAudience, ...]:
    """Readable rules for users of like uplift, the best first; empty when no feature tells them apart.

    A shallow regression tree on `uplift` `[U]`; each leaf is a rule with rounded thresholds, and its
    figures are measured again with that rule, so that what is read is what is meant.
    """
    # Imported here: it takes two seconds, and replicas that only check a rule never fit a tree.
    from sklearn.tree import DecisionTreeRegressor

    names, matrix = _usable_features(users)
    spread = float(np.var(uplift))
    if not names or spread == 0.0 or len(users) < 4:
        return ()
    tree = DecisionTreeRegressor(
        max_depth=max_depth,
        min_samples_leaf=max(2, int(np.ceil(min_share * len(users)))),
        # A split must explain 1 % of the variance, or the rule gains words and no sense.
        min_impurity_decrease=0.01 * spread,
        random_state=seed,
    ).fit(matrix, np.asarray(uplift, dtype=np.float64))
    rules = [_readable(conditions, users) for conditions in _leaf_conditions(tree.tree_, names) if conditions]
    found = [_measure(rule, users, uplift) for rule in rules]
    kept = [leaf for leaf in found if leaf.share >= min_share / 2]
    return tuple(sorted(kept, key=lambda leaf: (-leaf.uplift, leaf.audience.describe())))


def _usable_features(users: UserTable) -> tuple[list[str], NDArray[np.float32]]:
    """Columns with at least two known values, as the tree reads them (float32, NaN for unknown)."""
    names = []
    columns = []
    for name in sorted(users.columns):
        column = np.where(np.isfinite(users.columns[name]), users.columns[name], np.nan)
        known = column[~np.isnan(column)]
        if known.size and known.min() < known.max():
            names.append(name)
            columns.append(np.clip(column, -1e30, 1e30).astype(np.float32))
    matrix = np.stack(columns, axis=1) if columns else np.empty((len(users), 0), dtype=np.float32)
    return names, matrix


def _leaf_conditions(tree: Any, names: list[str]) -> list[list[Condition]]:
    """The conditions on the way from the root to each leaf."""
    leaves: list[list[Condition]] = []
    stack: list[tuple[int, list[Condition]]] = [(0, [])]
    while stack:
        node, path = stack.pop()
        left, right = int(tree.children_left[node]), int(tree.children_right[node])
        if left < 0:
            leaves.append(path)
            continue
        feature, threshold = names[int(tree.feature[node])], float(tree.threshold[node])
        stack.append((right, [*path, (feature, ">", threshold)]))
        stack.append((left, [*path, (feature, "<=", threshold)]))
    return leaves


def _readable(conditions: list[Condition], users: UserTable) -> Audience:
    merged = merge_conditions(conditions)
    rounded = tuple((f, symbol, round_threshold(value, users.columns[f])) for f, symbol, value in merged)
    audience = Audience("", rounded)
    return Audience(", ".join(segment_words(audience)), rounded)


def _measure(audience: Audience, users: UserTable, uplift: NDArray[np.floating]) -> UpliftAudience:
    mask = audience_mask(audience, users)
    inside = float(uplift[mask].mean()) if mask.any() else -np.inf
    return UpliftAudience(audience, inside, float(uplift.mean()), float(mask.mean()))
