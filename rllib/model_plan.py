"""Planning in an ensemble that was fitted to a log: gradients of the return, through the model's days."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from rllib.checkpoints import latest, save_checkpoint
from rllib.explore import Exploring, record
from rllib.lockstep import Floats
from rllib.model_env import ModelTask
from rllib.model_fit import Days, Ensemble, fit_ensemble
from rllib.model_network import Tensor
from rllib.policies import Network

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from rllib.offline_algorithms import OfflineSettings
    from rllib.plan_log import PlanningLog
    from rllib.tasks import Task

_FILE, _MOMENTS = "planner.npz", ("step", "exp_avg", "exp_avg_sq")
_IMITATION_BATCH, _IMITATION_RATE = 2_048, 1e-2
# Of the price on leaving the log: steps of its logarithm, which stays where it can soon come back from.
_DUAL_RATE, _CHEAPEST, _DEAREST = 0.05, -6.0, 6.0
_MOST_SHARE = 0.8  # of the judging episodes, where there are few
_PROMISED = 1_000  # episodes
_PROMISE_SEED = 6_000_000


@dataclass(frozen=True, slots=True)
class Promise:
    """What the model says of the policy, before anybody else judges it; returns with exploration.

    logged: mean return of the episodes learned from. running: of the imitation of the running policy in the
    model, which should be near. gain, gain_penalised: what the policy returns more than the imitation,
    without the penalty and with it. members: `gain` by member. r2: `[K, 1 + f]`, as of `Ensemble`.
    """

    logged: float
    running: float
    gain: float
    gain_penalised: float
    members: tuple[float, ...]
    r2: Floats = field(repr=False)

    def metrics(self) -> dict[str, float]:
        """For a manifest; R² is the mean over members, of features the median over them."""
        return {
            "promised_gain": self.gain,
            "promised_gain_penalised": self.gain_penalised,
            "promised_running": self.running,
            "model_r2_reward": float(self.r2[:, 0].mean()),
            "model_r2_features": float(np.median(self.r2[:, 1:].mean(axis=0))),
        }


def plan_in_model(
    log: PlanningLog,
    task: Task,
    settings: OfflineSettings,
    explore: float,
    out: Path,
    said: Mapping[str, Any],
    history: list[float],
    tell: Callable[[float, str], None],
) -> tuple[Network, Promise]:
    """Fit a model to `log`, plan until `settings.iterations` are in `history`, and say what is promised.

    `history` has the planner's loss, the penalised return below 0. The ensemble is not part of a checkpoint:
    it is fitted again from the same episodes and seed.
    """
    days = _days(log, task)
    tell(0.0, f"fitting {settings.model.members} models to {len(log):,} episodes")
    ensemble = fit_ensemble(days, settings.model, settings.seed, lambda s, text: tell(0.3 * s, text))
    judges = len(log) * settings.held_out / (1.0 - settings.held_out)
    planner = Planner(ensemble, days, task, settings, explore, judges)
    tell(0.3, "imitating the running policy")
    planner.imitate()
    imitation = planner.network()
    if history and (checkpoint := latest(out)):
        planner.restore(checkpoint)
    for number in range(len(history) + 1, settings.iterations + 1):
        history.append(planner.improve(number))
        share = 0.35 + 0.4 * number / settings.iterations
        tell(share, f"iteration {number} of {settings.iterations}: return {-history[-1]:.4g} in the model")
        if number % settings.checkpoint_every == 0 or number == settings.iterations:
            save_checkpoint(planner, out, {**said, "history": history})
    tell(0.77, "asking the model what it promises")
    network = planner.network()
    return network, promise_of(network, imitation, ensemble, log, settings, explore)


def promise_of(
    network: Network,
    imitation: Network,
    ensemble: Ensemble,
    log: PlanningLog,
    settings: OfflineSettings,
    explore: float,
) -> Promise:
    """Returns of both in the ensemble, on the same episodes."""
    discounts = settings.discount ** np.arange(ensemble.horizon)

    def returns(policy: Network, penalty: float) -> Floats:
        place = ModelTask(policy.task, ensemble, penalty)
        acting = Exploring(place, replace(policy, task=place), explore)
        return np.asarray(record(acting, _PROMISED, _PROMISE_SEED).reward @ discounts)

    running, learned = returns(imitation, 0.0), returns(network, 0.0)
    penalty = settings.model.penalty
    return Promise(
        float((log.reward @ discounts).mean()),
        float(running.mean()),
        float((learned - running).mean()),
        float((returns(network, penalty) - returns(imitation, penalty)).mean()),
        tuple(float((learned - running)[m :: ensemble.members].mean()) for m in range(ensemble.members)),
        ensemble.r2,
    )


class Planner:
    """A network that gets better in the ensemble, and does not leave what the log can judge.

    It maximises the mean penalised return, with the exploration that it will be judged with, by gradients
    through the days of episodes that follow a member each (Heess et al., "Learning Continuous Control
    Policies by Stochastic Value Gradients", 2015: SVG(∞) with a model). Importance weights decide how much of
    a log can judge a policy: where dials are normal with standard deviation σ, and the policy's mean is d
    away from the imitation's, one in mean exp(Σ_t |d_t|² / σ²) episodes is effective (Kish). That is held at
    what `effective` asks of the episodes that will judge by a price on the logarithm, which rises while it is
    above and falls while it is below (dual ascent, as Haarnoja et al., "Soft Actor-Critic Algorithms and
    Applications", 2018, have it for the entropy).

    judges: episodes that will judge.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        days: Days,
        task: Task,
        settings: OfflineSettings,
        explore: float,
        judges: float,
    ) -> None:
        self._ensemble, self._task, self._settings, self._explore = ensemble, task, settings, explore
        self._features = torch.from_numpy(np.asarray(days.features, dtype=np.float32))
        self._dials = torch.from_numpy(np.asarray(days.dials, dtype=np.float32))
        self._scale = max(float(days.reward.sum(axis=1).std()), 1e-9)
        self._budget = -float(np.log(min(settings.model.effective / judges, _MOST_SHARE)))
        self._layers = self._begin()
        self._start: list[tuple[Tensor, Tensor]] = []
        self._price = 0.0  # natural logarithm, in standard deviations of returns
        self._optimiser = self._adam(settings.learning_rate)

    def imitate(self) -> None:
        """Begin as the running policy, by least squares on its logged dials."""
        rng, optimiser = np.random.default_rng([self._settings.seed, 4]), self._adam(_IMITATION_RATE)
        seen, dials = self._features.flatten(0, 1), self._dials.flatten(0, 1)
        steps = self._settings.model.imitation
        for step in range(steps):
            optimiser.param_groups[0]["lr"] = _IMITATION_RATE * (1.0 - step / steps)
            rows = rng.integers(0, len(seen), _IMITATION_BATCH)
            optimiser.zero_grad()
            (_act(seen[rows], self._layers) - dials[rows]).square().mean().backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        self._start = [(w.detach().clone(), b.detach().clone()) for w, b in self._layers]

    def improve(self, number: int) -> float:
        """Iteration `number`, from 1, of `settings.updates` steps; mean loss, −return, of its second half."""
        settings, rng = self._settings, np.random.default_rng([self._settings.seed, 5, number])
        rate = settings.learning_rate * (1.0 - 0.9 * (number - 1) / settings.iterations)
        self._optimiser.param_groups[0]["lr"] = rate
        returns = []
        for _ in range(settings.updates):
            brought, left = self._live(rng), self._left(rng)
            self._optimiser.zero_grad()
            loss = -brought / self._scale + float(np.exp(self._price)) * left
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimiser.step()
            over = float(np.clip(left.item() / self._budget - 1.0, -1.0, 1.0))
            self._price = float(np.clip(self._price + _DUAL_RATE * over, _CHEAPEST, _DEAREST))
            returns.append(brought.item())
        found = -float(np.mean(returns[len(returns) // 2 :]))
        if not np.isfinite(found):
            raise ValueError(f"learning_rate: {settings.learning_rate} is too high: loss {found}")
        return found

    def network(self) -> Network:
        """As learned so far."""
        weights, biases = zip(
            *((w.detach().numpy().copy(), b.detach().numpy().copy()) for w, b in self._layers), strict=True
        )
        return Network(self._task, weights, biases, squash=False)

    def save_to_path(self, path: str) -> None:
        """Write weights, the optimiser's moments and the price into the folder `path`."""
        Path(path).mkdir(parents=True)
        np.savez(Path(path) / _FILE, **self._state())

    def restore(self, folder: Path) -> None:
        """Go on from `save_to_path`."""
        with np.load(folder / _FILE, allow_pickle=False) as stored:
            self._price = float(stored["price"])
            state = self._optimiser.state
            for number, parameter in enumerate(self._parameters()):
                parameter.data.copy_(torch.from_numpy(stored[f"value{number}"]))
                state[parameter] = {name: torch.from_numpy(stored[f"{name}{number}"]) for name in _MOMENTS}

    def _state(self) -> dict[str, Any]:
        found: dict[str, Any] = {"price": np.float64(self._price)}
        for number, parameter in enumerate(self._parameters()):
            found[f"value{number}"] = parameter.detach().numpy()
            for name in _MOMENTS:
                found[f"{name}{number}"] = self._optimiser.state[parameter][name].numpy()
        return found

    def _live(self, rng: np.random.Generator) -> Tensor:
        """Mean penalised return of episodes in the ensemble."""
        ensemble, settings = self._ensemble, self._settings
        count = max(settings.batch // ensemble.horizon, ensemble.members)
        seen = ensemble.first[rng.integers(0, len(ensemble.first), count)]
        member = torch.arange(count) % ensemble.members
        lost, total = settings.model.penalty * ensemble.unit, torch.zeros(())
        for day in range(ensemble.horizon):
            dials = _act(seen, self._layers)
            dials = dials + self._explore * _tensor(rng.standard_normal(dials.shape))
            draw = torch.from_numpy(rng.integers(0, ensemble.residual.shape[2], count))
            seen, reward, apart = ensemble.live(seen, torch.clamp(dials, -1.0, 1.0), day, member, draw)
            total = total + settings.discount**day * (reward - lost * apart).mean()
        return total

    def _left(self, rng: np.random.Generator) -> Tensor:
        """Logarithm of episodes for an effective one, in logged states."""
        count = max(self._settings.batch // self._ensemble.horizon, self._ensemble.members)
        seen = self._features[rng.integers(0, len(self._features), count)]
        with torch.no_grad():
            before = _act(seen, self._start)
        apart = (_act(seen, self._layers) - before) / self._explore
        return torch.logsumexp(apart.square().sum(dim=(1, 2)), dim=0) - float(np.log(count))

    def _begin(self) -> list[tuple[Tensor, Tensor]]:
        rng = np.random.default_rng([self._settings.seed, 6])
        sizes = (self._features.shape[2], *self._settings.hidden, self._dials.shape[2])
        return [
            (
                _tensor(rng.standard_normal((n, m)) / np.sqrt(n)).requires_grad_(),
                torch.zeros(m).requires_grad_(),
            )
            for n, m in itertools.pairwise(sizes)
        ]

    def _parameters(self) -> list[Tensor]:
        return [part for layer in self._layers for part in layer]

    def _adam(self, rate: float) -> torch.optim.Adam:
        return torch.optim.Adam(self._parameters(), lr=rate)


def _days(log: PlanningLog, task: Task) -> Days:
    least, most = int(log.length.min()), int(log.length.max())
    if least != most:
        raise ValueError(
            f"log: episodes have {least} to {most} days; 'model' plans over episodes of one length: leave "
            "the others out, or take marwil"
        )
    flat = log.observation.reshape(-1, log.observation.shape[-1])
    features = task.features(flat).reshape(*log.reward.shape, -1)
    return Days(features, log.dials, log.reward)


def _act(seen: Tensor, layers: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Dials, as `rllib.policies.Network` has them."""
    for number, (weight, bias) in enumerate(layers):
        seen = seen @ weight + bias
        seen = torch.tanh(seen) if number < len(layers) - 1 else seen
    return seen


def _tensor(x: Floats) -> Tensor:
    return torch.from_numpy(x.astype(np.float32))
