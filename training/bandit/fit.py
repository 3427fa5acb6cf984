"""A small network that predicts the reward of every arm; its last layer is what neural-linear bandits see.

Riquelme, Tucker & Snoek, Deep Bayesian Bandits Showdown, ICLR 2018: the network finds features, and Bayesian
regression on them says how sure the bandit is. The network's own output layer is thrown away.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from qiance.bandits.network import Network
from qiance.evaluate.arrays import FloatArray, IndexArray
from training.effect.loop import torch_left_alone

_HELD_OUT = 5  # every fifth decision says when to stop


@dataclass(frozen=True, slots=True)
class FitSettings:
    """hidden: widths of the layers; the last one is the number of features. epochs: at most; patience: epochs
    without a smaller error on the fifth of the decisions that is held out. decay: AdamW's weight decay."""

    hidden: tuple[int, ...] = (64, 16)
    epochs: int = 20
    patience: int = 3
    batch: int = 512
    learning_rate: float = 2e-3
    decay: float = 0.1
    threads: int = 1
    seed: int = 0


class _Rewards(nn.Module):
    """x `[b, d]` → reward of every arm `[b, A]`, in standard deviations."""

    def __init__(self, num_features: int, num_arms: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        widths = (num_features, *hidden)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.out = nn.Linear(widths[-1], num_arms)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.hidden(x))

    def hidden(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x


def fit_network(
    context: FloatArray, action: IndexArray, reward: FloatArray, settings: FitSettings | None = None
) -> Network:
    """Fit by squared error on the arm that was taken: context `[n, d]` standardised, action, reward `[n]`.

    The same rows in the same order give the same network. ValueError for fewer than 10 rows.
    """
    told = settings or FitSettings()
    if len(context) < 10:
        raise ValueError(f"context: has {len(context)} rows; a network needs at least 10")
    spread = reward.std()
    with torch_left_alone():
        torch.set_num_threads(told.threads)
        torch.use_deterministic_algorithms(True)
        torch.manual_seed(told.seed)
        x = torch.from_numpy(np.asarray(context, np.float32))
        y = torch.from_numpy(((reward - reward.mean()) / (spread if spread > 0 else 1.0)).astype(np.float32))
        network = _Rewards(x.shape[1], int(action.max()) + 1, told.hidden)
        _train(network, x, torch.from_numpy(action), y, told)
        return _exported(network, x)


def _train(network: _Rewards, x: Tensor, action: Tensor, y: Tensor, told: FitSettings) -> None:
    """Leave the network with the weights of its best epoch."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=told.learning_rate, weight_decay=told.decay)
    held = torch.arange(len(x)) % _HELD_OUT == 0
    learned = torch.nonzero(~held)[:, 0]
    best, since, state = float("inf"), 0, copy.deepcopy(network.state_dict())
    for _ in range(told.epochs):
        for rows in learned[torch.randperm(len(learned))].split(told.batch):
            optimiser.zero_grad()
            _error(network, x[rows], action[rows], y[rows]).backward()
            optimiser.step()
        with torch.no_grad():
            error = float(_error(network, x[held], action[held], y[held]))
        if error < best:
            best, since, state = error, 0, copy.deepcopy(network.state_dict())
        elif (since := since + 1) >= told.patience:
            break
    network.load_state_dict(state)


def _error(network: _Rewards, x: Tensor, action: Tensor, y: Tensor) -> Tensor:
    return functional.mse_loss(network(x).gather(1, action[:, None])[:, 0], y)


@torch.no_grad()
def _exported(network: _Rewards, x: Tensor) -> Network:
    """As arrays, with the last layer's units scaled to a mean square of 1, as the ridge expects.

    A rectified unit divided by s is the unit of weights divided by s.
    """
    size = network.hidden(x).square().mean(dim=0).sqrt().double().numpy()
    weights = [layer.weight.double().numpy().T.copy() for layer in network.layers]
    biases = [layer.bias.double().numpy().copy() for layer in network.layers]
    scale = np.where(size > 1e-6, size, 1.0)
    weights[-1], biases[-1] = weights[-1] / scale, biases[-1] / scale
    return Network(tuple(weights), tuple(biases))
