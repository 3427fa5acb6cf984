"""The learned users of NeoRL's SalesPromotion: do they buy today, how often, and for how much."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats32 = NDArray[np.float32]
Floats = NDArray[np.float64]
Arrays = Mapping[str, NDArray[np.floating]]
MODEL_FILE, STATES_FILE = "user_model.npz", "initial_states.npz"
# As the repository polixir/NeoRL has them: the model's state, and arrays of the same two names.
PUBLISHED_MODEL = "user_model.pt"
PUBLISHED_STATES = {
    "internal_states": "test_initial_states_10000_people.npy",
    "agent_obs": "evaluation_init_obs.npy",
}
MODELS, STATE, ORDERS = 5, 18, 6
# Rows at a time: the widest activations of a block stay in a core's cache.
_BLOCK = 256
_SLOPE = np.float32(0.01)
_LOG_STD = (-20.0, 2.0)
_HEADS = {
    "do_action_model": ("discrete_policy_model", ("output_layer.0",)),
    "disc_order_policy": ("discrete_policy_model", ("output_layer",)),
    "cont_order_policy": ("gaussian_net_model", ("mean_layer", "log_std_layer")),
}


@dataclass(frozen=True)
class Net:
    """An MLP with leaky ReLU between its layers; weights `[in, out]`, biases `[out]`, float32."""

    weights: tuple[Floats32, ...]
    biases: tuple[Floats32, ...]

    def __call__(self, x: Floats32) -> Floats32:
        """Inputs `[n, in]` → outputs `[n, out]`."""
        if len(x) <= _BLOCK:
            return self._forward(x)
        return np.concatenate([self._forward(x[at : at + _BLOCK]) for at in range(0, len(x), _BLOCK)])

    def _forward(self, x: Floats32) -> Floats32:
        last = len(self.weights) - 1
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = x @ weight
            x += bias
            if layer < last:
                np.maximum(x, _SLOPE * x, out=x)
        return x


@dataclass(frozen=True)
class UserNets:
    """One of the five user models.

    acts: state 10 to 17 → two logits, of not buying and of buying. orders: state 1 to 4 → logits of 1 to 6
    orders. fee: state 6 to 9 → mean (before the sigmoid) and logarithm of the standard deviation.
    """

    acts: Net
    orders: Net
    fee: Net


@dataclass(frozen=True)
class SalesUsers:
    """The five models, and where users start.

    states: `[U, 18]` scaled, as the models see them; seen: `[U, 4]` what an agent sees of them.
    """

    models: tuple[UserNets, ...]
    states: Floats
    seen: Floats

    def sample(self, state: Floats32, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """Orders and mean fee of a day, `[n]` each, for scaled states `[n, 18]`.

        Each user is asked of one of the models at random: that is the same as asking all and taking one.
        """
        model = rng.integers(0, len(self.models), len(state))
        orders, fee = np.zeros(len(state)), np.zeros(len(state))
        for number, nets in enumerate(self.models):
            rows = np.flatnonzero(model == number)
            if rows.size:
                orders[rows], fee[rows] = _ask(nets, state[rows], rng)
        return orders, fee


def load_users(folder: Path) -> SalesUsers:
    """Users from `folder`, as NeoRL publishes them or as two `.npz`; ValueError says what is wrong."""
    read = _read_published if (folder / PUBLISHED_MODEL).exists() else _read_arrays
    try:
        arrays, states, seen = read(folder)
        models = tuple(_nets(arrays, number) for number in range(MODELS))
    except FileNotFoundError as error:
        raise ValueError(
            f"data: {folder} has no {Path(str(error.filename)).name}; it must hold the user model of "
            "SalesPromotion, see docs/planning.md"
        ) from None
    except (KeyError, ValueError, OSError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        raise ValueError(f"data: {folder} holds no users of SalesPromotion ({error})") from None
    if states.ndim != 2 or states.shape[1] != STATE or seen.shape != (len(states), 4) or not len(states):
        raise ValueError(
            f"data: {folder} has states {states.shape} and {seen.shape}; must be [U, {STATE}] and [U, 4]"
        )
    return SalesUsers(models, states.astype(np.float64), seen.astype(np.float64))


def _read_arrays(folder: Path) -> tuple[Arrays, Floats, Floats]:
    with np.load(folder / MODEL_FILE, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    with np.load(folder / STATES_FILE, allow_pickle=False) as stored:
        return arrays, stored["internal_states"], stored["agent_obs"]


def _read_published(folder: Path) -> tuple[Arrays, Floats, Floats]:
    import torch

    state = torch.load(folder / PUBLISHED_MODEL, map_location="cpu", weights_only=True)
    arrays = {name: value.numpy() for name, value in state.items()}
    found = {name: np.load(folder / file, allow_pickle=False) for name, file in PUBLISHED_STATES.items()}
    return arrays, found["internal_states"], found["agent_obs"]


def _ask(nets: UserNets, state: Floats32, rng: np.random.Generator) -> tuple[Floats, Floats]:
    logits = nets.acts(state[:, 10:18])
    buys = np.flatnonzero(rng.random(len(state)) < _sigmoid(logits[:, 1] - logits[:, 0]))
    orders, fee = np.zeros(len(state)), np.zeros(len(state))
    if buys.size:
        # The largest of logit + Gumbel noise is a draw from the softmax.
        noisy = nets.orders(state[buys, 1:5]) + rng.gumbel(size=(buys.size, ORDERS))
        orders[buys] = noisy.argmax(axis=1) + 1
        mean, log_std = nets.fee(state[buys, 6:10]).T.astype(np.float64)
        drawn = _sigmoid(mean) + np.exp(np.clip(log_std, *_LOG_STD)) * rng.standard_normal(buys.size)
        fee[buys] = 100.0 * np.clip(drawn, 1e-10, 1.0)
    return orders, fee


def _sigmoid(x: NDArray[np.floating]) -> Floats:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * x)), dtype=np.float64)


def _nets(arrays: Arrays, number: int) -> UserNets:
    return UserNets(*(_net(arrays, f"models.{number}.{head}", *parts) for head, parts in _HEADS.items()))


def _net(arrays: Arrays, name: str, body: str, heads: tuple[str, ...]) -> Net:
    """Three hidden layers, and the heads side by side as one last layer; stored weights are `[out, in]`."""
    layers = [[f"{name}.{body}.{layer}"] for layer in range(3)] + [[f"{name}.{head}" for head in heads]]
    weights = [np.concatenate([arrays[f"{part}.weight"] for part in parts]) for parts in layers]
    biases = [np.concatenate([arrays[f"{part}.bias"] for part in parts]) for parts in layers]
    return Net(
        tuple(np.ascontiguousarray(weight.T, dtype=np.float32) for weight in weights),
        tuple(bias.astype(np.float32) for bias in biases),
    )
