"""Conversions that come late: a log cut today against the truth, with and without the correction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import optimize
from scipy.special import expit, logit

from benchmarks.harness import emit, log, parse
from qiance.data.faults import TableReport
from qiance.data.responses import ResponseTable
from training.delay.correct import correct_delays
from training.delay.feedback import overall_rate
from training.delay.hazard import fit_delay

DAYS = 28.0  # of the log
DAY_US = 86_400e6
RECENT = 7.0  # days before the end, on which bias is looked at too
START = datetime(2026, 1, 5, tzinfo=UTC)  # a Monday
FEATURES = ("recency", "spend", "channel", "device")

Floats = np.ndarray
Delays = Callable[[np.random.Generator, Floats, Floats], Floats]


def exponential(random: np.random.Generator, _features: Floats, _at: Floats) -> Floats:
    """6 days on average, the same for all."""
    return random.exponential(6.0, len(_at))


def weibull(random: np.random.Generator, _features: Floats, _at: Floats) -> Floats:
    """Shape 0.6: many within the hour, and a long tail."""
    return 5.0 * random.weibull(0.6, len(_at))


def weekly(random: np.random.Generator, _features: Floats, at: Floats) -> Floats:
    """Half within hours; the others order at the next week-end, or one later."""
    soon = random.exponential(0.2, len(at))
    week_end = (5.0 - at % 7.0) % 7.0 + random.random(len(at)) * 2 + 7.0 * random.integers(0, 2, len(at))
    return np.where(random.random(len(at)) < 0.5, soon, week_end)


def by_channel(random: np.random.Generator, features: Floats, at: Floats) -> Floats:
    """Who converts rarely also does so late: one channel takes 10 days, the others 1."""
    return random.exponential(1.0, len(at)) * np.where(features[:, 2] == 0, 10.0, 1.0)


FAMILIES: Mapping[str, Delays] = {
    "exponential": exponential,
    "weibull": weibull,
    "weekly_wave": weekly,
    "by_channel": by_channel,
}


@dataclass(frozen=True)
class Planted:
    """A log cut at day `DAYS`: contacts with features `[N, 4]`, true chances `[N]`, what was seen of them.

    at, delay: days; delay is inf without a conversion. fresh, fresh_truth: other contacts, to be predicted.
    """

    features: Floats
    truth: Floats
    at: Floats
    delay: Floats
    fresh: Floats
    fresh_truth: Floats

    @property
    def elapsed(self) -> Floats:
        return DAYS - self.at

    @property
    def observed(self) -> Floats:
        return (self.delay <= self.elapsed).astype(np.float64)


def plant(family: Delays, rows: int, seed: int) -> Planted:
    """About 8 % convert in the end; the rate hangs on all features."""
    random = np.random.default_rng(seed)
    features = np.column_stack(
        [
            random.gamma(2, 10, rows),
            random.lognormal(3, 1, rows),
            random.integers(0, 3, rows),
            random.integers(0, 2, rows),
        ]
    )
    at = random.random(rows) * DAYS
    truth = _chances(features)
    converts = random.random(rows) < truth
    delay = np.where(converts, family(random, features, at), np.inf)
    fresh = features[random.permutation(rows)[: rows // 2]]
    return Planted(features, truth, at, delay, fresh, _chances(fresh))


def _chances(features: Floats) -> Floats:
    recency, spend, channel, device = features.T
    score = -2.4 - 0.03 * (recency - 20) + 0.4 * (np.log(spend) - 3) - 0.7 * (channel == 0)
    return np.asarray(expit(score + 0.3 * device * (channel == 1)))


Labels = tuple[Floats, Floats]  # rows that are learned from, and their labels


def none(case: Planted, _seed: int) -> Labels:
    """What was seen is taken for what is."""
    return np.ones(len(case.at), dtype=bool), case.observed


def drop_recent(case: Planted, _seed: int) -> Labels:
    """Without contacts younger than the delay by which 95 % of the seen conversions had come."""
    came = case.delay[case.observed > 0]
    return case.elapsed > np.quantile(came, 0.95), case.observed


def chapelle(case: Planted, seed: int) -> Labels:
    """Chapelle (2014): conversion and exponential delay, both linear in the features, by joint likelihood.

    Labels are then drawn as ours are.
    """
    inputs = _design(case.features)
    elapsed, seen, delay = case.elapsed, case.observed, np.where(case.observed > 0, case.delay, 0.0)

    def loss(weights: Floats) -> tuple[float, Floats]:
        beta, gamma = weights[: inputs.shape[1]], weights[inputs.shape[1] :]
        rate = expit(inputs @ beta)
        pace = np.exp(np.clip(inputs @ gamma, -12, 8))
        late = np.exp(-pace * elapsed)
        none_yet = np.maximum(1 - rate + rate * late, 1e-12)
        value = np.where(
            seen > 0, np.log(np.maximum(rate, 1e-12)) + np.log(pace) - pace * delay, np.log(none_yet)
        )
        by_rate = np.where(seen > 0, 1 - rate, -rate * (1 - rate) * (1 - late) / none_yet)
        by_pace = np.where(seen > 0, 1 - pace * delay, -rate * late * pace * elapsed / none_yet)
        ridge = 1e-6 * weights
        slope = np.concatenate([inputs.T @ by_rate, inputs.T @ by_pace]) / len(seen)
        return float(-value.mean() + 0.5 * ridge @ weights), -slope + ridge

    start = np.zeros(2 * inputs.shape[1])
    start[0], start[inputs.shape[1]] = logit(seen.mean()), -np.log(max(delay[seen > 0].mean(), 1e-3))
    found = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 500}).x
    rate = expit(inputs @ found[: inputs.shape[1]])
    come = 1 - np.exp(-np.exp(np.clip(inputs @ found[inputs.shape[1] :], -12, 8)) * elapsed)
    return _drawn(seen, rate, come, seed)


def hazard_for_all(case: Planted, seed: int) -> Labels:
    """One delay distribution and one rate for everybody."""
    came = case.observed > 0
    seen = fit_delay(case.delay[came], case.elapsed[came]).seen(case.elapsed, case.features)
    rate = np.full(len(seen), overall_rate(case.observed, seen))
    return _drawn(case.observed, rate, seen, seed)


def ours(case: Planted, seed: int) -> Labels:
    """What `qiance train effect` does."""
    corrected = correct_delays(response_log(case), seed)
    label = corrected.responses.table["conversion"].to_numpy().astype(np.float64)
    return np.ones(len(label), dtype=bool), label


def ripe(case: Planted, _seed: int) -> Labels:
    """The same log, years later: the best that labels can do."""
    return np.ones(len(case.at), dtype=bool), np.isfinite(case.delay).astype(np.float64)


METHODS: Mapping[str, Callable[[Planted, int], Labels]] = {
    "ours": ours,
    "none": none,
    "drop_recent": drop_recent,
    "hazard_for_all": hazard_for_all,
    "chapelle": chapelle,
    "ripe": ripe,
}


def _drawn(seen: Floats, rate: Floats, come: Floats, seed: int) -> Labels:
    still = np.where(seen > 0, 0.0, rate * (1 - come) / np.maximum(1 - rate * come, 1e-9))
    drawn = np.random.default_rng([seed, 11]).random(len(seen)) < still
    return np.ones(len(seen), dtype=bool), seen + drawn


def _design(features: Floats) -> Floats:
    recency, spend, channel, device = features.T
    columns = [
        np.ones(len(features)),
        (recency - 20) / 14,
        np.log(spend) - 3,
        channel == 0,
        channel == 1,
        device,
    ]
    return np.column_stack(columns).astype(np.float64)


def response_log(case: Planted) -> ResponseTable:
    """As `qiance train effect` would read it."""
    start = int(START.timestamp() * 1e6)
    seen = case.observed > 0
    at = start + np.round(case.at * DAY_US).astype(np.int64)
    converted = start + np.round((case.at + np.where(seen, case.delay, 0.0)) * DAY_US).astype(np.int64)
    ids = pa.array([str(n) for n in range(len(at))])
    names = {name: pa.array(case.features[:, n]) for n, name in enumerate(FEATURES[:2])}
    words = {
        name: pa.array([f"{name}{value:.0f}" for value in case.features[:, n + 2]])
        for n, name in enumerate(FEATURES[2:])
    }
    stamp = pa.timestamp("us", "UTC")
    columns = {"row_id": ids, "unit_id": ids, "occurred_at": pa.array(at).cast(stamp)}
    columns["converted_at"] = pa.array(converted, mask=~seen).cast(stamp)
    table = pa.table({**columns, **names, **words, "conversion": pa.array(seen.astype(np.int8))})
    end = datetime.fromtimestamp(START.timestamp() + DAYS * 86_400, UTC)
    report = TableReport("responses", "planted", len(at), len(at), 0, (), None)
    return ResponseTable(
        name="planted",
        table=table,
        numeric=FEATURES[:2],
        categorical=FEATURES[2:],
        labels=("conversion",),
        arms=(),
        control_arm=None,
        arm_cost={},
        currency="USD",
        randomised=False,
        report=report,
        log_end=end,
    )


def learn(features: Floats, label: Floats, fresh: Floats, seed: int) -> Floats:
    """Boosted trees of a fixed size: the same learner for every method. `[n]` chances of `fresh`."""
    import lightgbm

    settings = {
        "objective": "binary",
        "learning_rate": 0.05,
        "num_leaves": 8,
        "min_data_in_leaf": 100,
        "num_threads": 1,
        "seed": seed,
        "deterministic": True,
        "force_row_wise": True,
        "verbosity": -1,
    }
    model = lightgbm.train(settings, lightgbm.Dataset(features, label), 120)
    return np.asarray(model.predict(fresh))


def judge(case: Planted, labels: Labels, seed: int) -> dict[str, float]:
    """bias: conversions by the labels over those that came in the end − 1, of rows kept and the last week.

    model_bias: mean prediction of a model learned from the labels over the mean truth − 1, on other contacts;
    excess_log_loss: its expected log loss there, beyond the truth's own.
    """
    kept, label = labels
    chance = np.clip(learn(case.features[kept], label[kept], case.fresh, seed), 1e-9, 1 - 1e-9)
    truth, final = case.fresh_truth, np.isfinite(case.delay)
    beyond = truth * np.log(truth / chance) + (1 - truth) * np.log((1 - truth) / (1 - chance))
    figures = {
        "bias": float(label[kept].sum() / final[kept].sum() - 1),
        "model_bias": float(chance.mean() / truth.mean() - 1),
        "excess_log_loss": float(beyond.mean()),
    }
    late = kept & (case.elapsed < RECENT)
    if late.sum() == (case.elapsed < RECENT).sum():  # who drops some of that week says nothing of it
        figures["bias_last_week"] = float(label[late].sum() / final[late].sum() - 1)
    return figures


def main(argv: Sequence[str] | None = None) -> None:
    """Every family of delays, every method, several seeds; means over the seeds."""
    args = parse(argv, "Late conversions: the correction against a known truth, beside none.")
    rows = args.pick(smoke=3_000, quick=20_000, full=20_000)
    seeds = [args.seed + n for n in range(args.pick(smoke=1, quick=1, full=5))]
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, family in FAMILIES.items():
        cases = [plant(family, rows, seed) for seed in seeds]
        scores = {
            method: [judge(case, label(case, seed), seed) for case, seed in zip(cases, seeds, strict=True)]
            for method, label in METHODS.items()
        }
        found[name] = {
            method: {key: float(np.mean([one[key] for one in all_])) for key in all_[0]}
            | {"abs_bias": float(np.mean([abs(one["bias"]) for one in all_]))}
            for method, all_ in scores.items()
        }
        seen = float(np.mean([case.observed.sum() / np.isfinite(case.delay).sum() for case in cases]))
        found[name]["share_seen"] = {"share": seen}
        mine, without = (found[name][method]["bias"] for method in ("ours", "none"))
        log(f"{name}: {seen:.0%} seen; bias {mine:+.3f}, without a correction {without:+.3f}")
    emit("delay", args, _figures(found), _peers(found), _protocol(rows, len(seeds)))


def _figures(found: Mapping[str, Any]) -> dict[str, Any]:
    own = {
        name: {**methods["ours"], "share_seen": methods["share_seen"]["share"]}
        for name, methods in found.items()
    }
    top: dict[str, Any] = {
        "worst_abs_bias": max(one["abs_bias"] for one in own.values()),
        "worst_excess_log_loss": max(one["excess_log_loss"] for one in own.values()),
    }
    for method in METHODS:
        if method not in ("ours", "ripe"):
            ratios = [m[method]["excess_log_loss"] / m["ours"]["excess_log_loss"] for m in found.values()]
            top[f"vs_{method}"] = float(np.median(ratios))
            top[f"vs_{method}_worst"] = float(min(ratios))
    return {**top, **own}


def _peers(found: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    names = [method for method in METHODS if method != "ours"]
    return {f"{method}.{family}": found[family][method] for method in names for family in found}


def _protocol(rows: int, seeds: int) -> dict[str, Any]:
    return {
        "rows": rows,
        "seeds": seeds,
        "log_days": DAYS,
        "vs": "excess log loss of a model learned from the peer's labels over ours, median of families",
        "learner": "LightGBM, 120 trees of 8 leaves, the same for every method",
        "ripe": "the same log with every conversion: the bound",
    }


if __name__ == "__main__":
    main()
