"""A small network as plain arrays: what the neural-linear bandit sees a user through."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qiance.evaluate.arrays import FloatArray


@dataclass(frozen=True, eq=False)
class Network:
    """Layers of rectified units, in numpy: weights `[in, out]` and biases `[out]` of each."""

    weights: tuple[FloatArray, ...]
    biases: tuple[FloatArray, ...]

    def __post_init__(self) -> None:
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            width = self.weights[number - 1].shape[1] if number else weight.shape[0]
            if weight.shape != (width, bias.size):
                raise ValueError(f"network: layer {number} is {weight.shape}; must be {(width, bias.size)}")

    @property
    def width(self) -> int:
        """Of the last layer."""
        return int(self.biases[-1].size)

    def hidden(self, x: FloatArray) -> FloatArray:
        """`[n, in]` → `[n, width]`, the last layer's units."""
        for weight, bias in zip(self.weights, self.biases, strict=True):
            x = np.maximum(x @ weight + bias, 0.0)
        return x

    def state(self) -> dict[str, NDArray[Any]]:
        """As arrays by name."""
        named = {f"weight{k}": weight for k, weight in enumerate(self.weights)}
        return named | {f"bias{k}": bias for k, bias in enumerate(self.biases)}

    @classmethod
    def from_state(cls, state: Mapping[str, NDArray[Any]]) -> Network:
        """The inverse of `state`."""
        layers = range(len(state) // 2)
        return cls(tuple(state[f"weight{k}"] for k in layers), tuple(state[f"bias{k}"] for k in layers))
