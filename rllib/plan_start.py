"""Where PPO starts in the planning environments: from constants that are known to work, or from a network.

Dials that are numbers start at the best constant. Choices start at what is best for each user if it is held
for the whole episode. Habits change slowly, so that a single other day costs and shows nothing: exploring by
days stays at the best constant, and exploring by episodes finds who is better off with another one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray

from rllib.explore import Exploring
from rllib.lockstep import Floats, Floats32
from rllib.policies import Network
from rllib.quadratic import expanded
from rllib.start import least_squares
from rllib.tasks import Constant, Task, TrainingEnv

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm import Algorithm

Ints = NDArray[np.int64]
# Actor and critic are fitted on so many days of so many episodes, ten times as many where there are choices.
_ROWS, _EPISODES = 8_000, 200
_SMALL = 0.01  # of the actor's last weights
_SHARE = 0.1  # of random choices, where the critic of a network is fitted
_SHORTLIST, _RIDGE = 6, 30.0
_TRIALS, _LEAST_TRIALS = 25, 20  # held choices tried, per environment; at least, per choice
_STEPS, _LEARNING_RATE = 300, 1e-2


def start_from(ppo: Algorithm, start: Constant | Network, num_envs: int, seed: int) -> None:
    """Let the actor of `ppo` begin as above, and fit its critic to what follows.

    start: the best constant, or a network to go on from, such as an imitation. num_envs: trials of held
    choices grow with it. ValueError for a network that `ppo` cannot take over.
    """
    task = start.task
    choices = isinstance(task.dials, gymnasium.spaces.Discrete)
    if isinstance(start, Network):
        shown = _explored(start, seed)
    else:
        shown = _choosing(task, num_envs, seed) if choices else _around(start, seed)
    some = np.random.default_rng([seed, 2]).permutation(len(shown[0]))[:_ROWS]
    features, outputs, returns = (torch.from_numpy(x[some]) for x in shown)

    def fit(learner: Any, **_: Any) -> None:
        module = learner.module["default_policy"]
        last = [layer for layer in module.pi.modules() if isinstance(layer, torch.nn.Linear)][-1]
        if isinstance(start, Network):
            take_over(module, start)
        elif choices:
            _imitate([module.encoder.actor_encoder, module.pi], features, outputs)
        else:
            last.weight.data.mul_(_SMALL)
            last.bias.data.copy_(outputs[0])
            module.pi.log_std.data.fill_(task.explore)
        least_squares([module.encoder.critic_encoder, module.vf], {"obs": features}, returns.numpy())

    ppo.learner_group.foreach_learner(fit)
    ppo.env_runner_group.sync_weights(from_worker_or_learner_group=ppo.learner_group, inference_only=True)


def _around(constant: Constant, seed: int) -> tuple[Floats32, Floats32, Floats32]:
    """Days of the constant with exploration: features, its dials, and returns to the end."""
    env = TrainingEnv({"task": constant.task, "num_envs": _EPISODES})
    spread, rng = np.exp(constant.task.explore), np.random.default_rng([seed, 1])

    def act() -> Floats:
        return constant.dials + spread * rng.standard_normal(env.action_space.shape)

    features, returns = _days(env, seed, act)
    return features, np.repeat(constant.dials[None], len(features), axis=0), returns


def _explored(network: Network, seed: int) -> tuple[Floats32, Floats32, Floats32]:
    """Days of the network with exploration: features, nothing to imitate, and returns to the end."""
    task = network.task
    env = TrainingEnv({"task": task, "num_envs": _EPISODES})
    wide = _SHARE if isinstance(task.dials, gymnasium.spaces.Discrete) else float(np.exp(task.explore))
    policy, rng = Exploring(task, network, wide), np.random.default_rng([seed, 1])
    features, returns = _days(env, seed, lambda: policy.draw(env.seen, rng))
    return features, features, returns


def take_over(module: Any, network: Network) -> None:
    """Copy a network into the actor of PPO's module, in place; ValueError if it has another form."""
    parts = (module.encoder.actor_encoder, module.pi)
    layers = [layer for part in parts for layer in part.modules() if isinstance(layer, torch.nn.Linear)]
    own = [tuple(layer.weight.shape) for layer in layers]
    given = [weight.T.shape for weight in network.weights]
    if network.squash or own != given:
        how = "is squashed, as those of SAC, IQL and CQL are" if network.squash else f"has layers {given}"
        raise ValueError(
            f"start: the network {how}; PPO goes on from one of bc, marwil, model or ppo, layers {own}"
        )
    for layer, weight, bias in zip(layers, network.weights, network.biases, strict=True):
        layer.weight.data.copy_(torch.from_numpy(weight.T.copy()))
        layer.bias.data.copy_(torch.from_numpy(bias.copy()))
    if isinstance(network.task.dials, gymnasium.spaces.Box):
        module.pi.log_std.data.fill_(network.task.explore)


def _choosing(task: Task, num_envs: int, seed: int) -> tuple[Floats32, Floats32, Floats32]:
    """Days of each user's best held choice with exploration: features, log-odds wanted, returns."""
    env = TrainingEnv({"task": task, "num_envs": 10 * _EPISODES})
    trials = max(_TRIALS * num_envs, _LEAST_TRIALS * task.dials.n)
    rng, best = np.random.default_rng([seed, 1]), held_choice(task, trials, seed)
    seen, _ = env.reset(seed=seed + 2)
    wanted = task.explore * np.eye(task.dials.n, dtype=np.float32)[best(seen)]

    def act() -> Ints:
        return np.asarray((wanted + rng.gumbel(size=wanted.shape)).argmax(axis=1))

    features, returns = _days(env, seed + 2, act)
    return features, np.tile(wanted, (env.env.horizon, 1)), returns


def held_choice(task: Task, trials: int, seed: int) -> Any:
    """A function from first features `[n, f]` to choices `[n]`: the best ones to hold for an episode.

    All choices are tried on `trials` users at random, then those with the highest means on as many others;
    their returns are fitted by ridge regression on features, squares and products.
    """
    every = np.arange(task.dials.n)
    _, choices, returns = _hold(task, every, trials, seed)
    means = np.array([returns[choices == one].mean() for one in every])
    few = every[np.argsort(means)[::-1][:_SHORTLIST]]
    features, choices, returns = _hold(task, few, trials, seed + 1)
    x = expanded(features)
    fits = []
    for one in few:
        own = x[choices == one]
        square = own.T @ own + _RIDGE * np.diag(np.arange(x.shape[1]) > 0)
        fits.append(np.linalg.solve(square, own.T @ returns[choices == one]))
    weights = np.stack(fits, axis=1)
    return lambda seen: few[(expanded(seen) @ weights).argmax(axis=1)]


def _hold(task: Task, few: Ints, trials: int, seed: int) -> tuple[Floats32, Ints, Floats]:
    """First features, a random choice of `few` that is held, and the return of each episode."""
    # Not of the environment's own stream, whose first numbers say who the users are.
    env, rng = TrainingEnv({"task": task, "num_envs": trials}), np.random.default_rng([seed, 1])
    choices, returns = few[rng.integers(0, len(few), trials)], np.zeros(trials)
    first, _ = env.reset(seed=seed)
    for _ in range(env.env.horizon):
        returns += env.step(choices)[1]
    return first, choices, returns


def _days(env: TrainingEnv, seed: int, act: Any) -> tuple[Floats32, Floats32]:
    """Live episodes: features and returns to the end, of all days one after the other."""
    seen, _ = env.reset(seed=seed)
    features, rewards = [], []
    for _ in range(env.env.horizon):
        features.append(seen)
        seen, reward, *_ = env.step(act())
        rewards.append(reward)
    returns = np.cumsum(np.array(rewards)[::-1], axis=0)[::-1]
    return np.concatenate(features), np.concatenate(list(returns)).astype(np.float32)


def _imitate(parts: list[Any], features: torch.Tensor, wanted: torch.Tensor) -> None:
    """Fit head(encoder(features)) to the distribution with log-odds `wanted` `[n, m]`, in place."""
    encoder, head = parts
    optimiser = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=_LEARNING_RATE)
    target = torch.softmax(wanted, dim=1)
    for step in range(_STEPS):
        optimiser.param_groups[0]["lr"] = _LEARNING_RATE * (1.0 - step / _STEPS)
        loss = torch.nn.functional.cross_entropy(head(encoder({"obs": features})["encoder_out"]), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
