"""Open Bandit: the log of one policy estimates the other, whose own log says what it earned.

The sample in the package obp has 10,000 rows and 38 to 69 clicks a log, so the truth itself is known to 12 to
16 % only. Bernoulli TS is context-free: its probabilities follow from the priors that the shop began with, by
simulation, as OBP does it (`BernoulliTS.compute_batch_action_dist`). The shop's own went on learning during
the week, so that what it earned is not quite what is estimated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from qiance.data.open_bandit import read_open_bandit
from qiance.data.packages import package_folder
from qiance.evaluate.ope import BanditLog, estimate
from qiance.evaluate.ope_models import fit_reward_model

CAMPAIGNS = ("all", "men", "women")
DIRECTIONS = (("random", "bts"), ("bts", "random"))
ESTIMATORS = ("ipw", "clipped-ipw", "snipw", "dm", "dr", "sndr", "greg", "switch-dr", "dros", "mrdr", "auto")
_SIMULATIONS = 200_000
_CHUNK = 10_000
_USER = ("user_feature_0", "user_feature_1", "user_feature_2", "user_feature_3")

# Mean and standard deviation of the relative error over 30 bootstrap samples, Random → Bernoulli TS, campaign
# "all", logistic regression: examples/obd/README.md of github.com/st-tech/zr-obp.
PUBLISHED = {
    "dm": (0.156876, 0.109898),
    "ipw": (0.311082, 0.311170),
    "snipw": (0.311795, 0.334736),
    "dr": (0.292464, 0.315485),
    "sndr": (0.302407, 0.328434),
    "switch-dr": (0.258410, 0.160598),
    "dros": (0.159520, 0.109660),
}


@dataclass(frozen=True)
class Logs:
    """A campaign: one log per behaviour, and `[slots, K]` probabilities of each policy."""

    logs: dict[str, BanditLog]
    probs: dict[str, NDArray[np.float64]]

    def policy(self, behaviour: str, evaluated: str) -> NDArray[np.float64]:
        """`[n, K]` the evaluated policy in every row of the behaviour's log."""
        position = self.logs[behaviour].position
        assert position is not None
        return self.probs[evaluated][position]


def read(campaign: str, seed: int) -> Logs:
    """Both logs of a campaign from the package obp."""
    logs = {behaviour: _log(campaign, behaviour) for behaviour in ("random", "bts")}
    thompson = _thompson(campaign, seed)
    return Logs(logs, {"bts": thompson, "random": np.full_like(thompson, 1 / thompson.shape[1])})


def _log(campaign: str, behaviour: str) -> BanditLog:
    found = read_open_bandit(campaign=campaign, behaviour=behaviour)  # type: ignore[arg-type]
    table = found.table
    users = [np.asarray(table[name].to_numpy(zero_copy_only=False)) for name in _USER]
    context = np.hstack([(column[:, None] == np.unique(column)[1:]).astype(float) for column in users])
    position = table["position"].to_numpy(zero_copy_only=False).astype(np.int64)
    return BanditLog(
        action=found.arm_index(),
        reward=table["click"].to_numpy().astype(np.float64),
        propensity=table["propensity"].to_numpy(),
        context=context,
        position=position - position.min(),
    )


def _thompson(campaign: str, seed: int) -> NDArray[np.float64]:
    """`[3, K]` probability of each item at each slot: how often its draw is the first, second, third best."""
    folder = package_folder("obp")
    assert folder is not None, "read_open_bandit has read from it"
    priors = yaml.safe_load((folder / "policy" / "conf" / "prior_bts.yaml").read_text())[campaign]
    rng, alpha, beta = np.random.default_rng(seed), np.array(priors["alpha"]), np.array(priors["beta"])
    counts = np.zeros((3, alpha.size))
    for _ in range(_SIMULATIONS // _CHUNK):
        draws = rng.beta(alpha, beta, size=(_CHUNK, alpha.size))
        best = np.argsort(-draws, axis=1)[:, :3]
        for slot in range(3):
            counts[slot] += np.bincount(best[:, slot], minlength=alpha.size)
    return counts / _SIMULATIONS


def measure(seed: int, runs: int, campaigns: tuple[str, ...] = CAMPAIGNS) -> dict[str, Any]:
    """Relative errors by campaign and direction, with OBP's published ones where it gives them."""
    found: dict[str, Any] = {}
    for campaign in campaigns:
        data = read(campaign, seed)
        for behaviour, evaluated in DIRECTIONS:
            found[f"{campaign}: {behaviour} to {evaluated}"] = _direction(
                data, behaviour, evaluated, runs, seed
            )
    published = {name: {"mean": mean, "std": std} for name, (mean, std) in PUBLISHED.items()}
    return {"directions": found, "obp_published_all_random_to_bts": published}


def _direction(data: Logs, behaviour: str, evaluated: str, runs: int, seed: int) -> dict[str, Any]:
    log, probs = data.logs[behaviour], data.policy(behaviour, evaluated)
    outcome = data.logs[evaluated].reward
    truth, clicks = float(outcome.mean()), int(outcome.sum())
    whole = {name: estimate(log, probs, _model(log, probs, seed), name) for name in ESTIMATORS}
    errors: dict[str, list[float]] = {name: [] for name in ESTIMATORS}
    for name, value in _resampled(log, probs, runs, seed):
        errors[name].append(abs(value - truth) / truth)
    return {
        "truth": truth,
        "clicks": clicks,
        "truth_std_error": float(1 / np.sqrt(clicks)),
        "effective_sample_size": whole["auto"].diagnostics.effective_sample_size,
        "estimators": {
            name: {
                "value": one.value,
                "low": one.low,
                "high": one.high,
                "relative_error": abs(one.value - truth) / truth,
                "bootstrap_mean": float(np.mean(errors[name])),
                "bootstrap_std": float(np.std(errors[name])),
                "bootstrap_low": float(np.quantile(errors[name], 0.025)),
                "bootstrap_high": float(np.quantile(errors[name], 0.975)),
            }
            for name, one in whole.items()
        },
    }


def _resampled(
    log: BanditLog, probs: NDArray[np.float64], runs: int, seed: int
) -> Iterator[tuple[str, float]]:
    """Estimates on bootstrap samples of the log, the model fitted anew on each, as OBP's example does."""
    rng = np.random.default_rng([seed, 7])
    for run in range(runs):
        rows = rng.integers(len(log), size=len(log))
        assert log.context is not None
        assert log.position is not None
        drawn = BanditLog(
            log.action[rows],
            log.reward[rows],
            log.propensity[rows],
            log.context[rows],
            log.position[rows],
            rows,
        )
        model = _model(drawn, probs[rows], seed + run)
        plain = BanditLog(drawn.action, drawn.reward, drawn.propensity, position=drawn.position)
        for name in ESTIMATORS:
            yield name, estimate(plain, probs[rows], model, name, interval="normal").value


def _model(log: BanditLog, probs: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    return fit_reward_model(log, probs.shape[1], seed=seed)
