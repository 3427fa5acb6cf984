"""From a trained algorithm to a program: raw observation in, multiplier of the shadow price out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from qiance.artifacts import export_program
from qiance.decide.pacing import LIMIT, OBSERVATION

if TYPE_CHECKING:
    from ray.rllib.core.rl_module.rl_module import RLModule


class _Served(torch.nn.Module):
    """Actor network, mean of its Gaussian, unsquashing, and the environment's map to a multiplier.

    Nothing else lies between observation and action: the environment's observations are bounded, so that the
    default connectors neither normalise nor stack them.
    """

    def __init__(self, module: RLModule) -> None:
        super().__init__()
        parts: Any = module
        self.encoder = parts.encoder.actor_encoder
        # Of the head only the mean: the free log standard deviations are no part of a deterministic action,
        # and repeating them per row would fix the size of the batch.
        self.mean = parts.pi.net

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        """Observations `[n, 6]` → multipliers `[n]`."""
        mean = self.mean(self.encoder({"obs": obs})["encoder_out"])[:, 0]
        # Box(−1, 1): unsquashing is the identity, then clips.
        return torch.exp(torch.clamp(mean, -1.0, 1.0) * math.log(LIMIT))


def export_module(module: RLModule, path: Path) -> None:
    """Export the deterministic policy of a PPO module to the archive at `path`.

    The module must have been built with `vf_share_layers=False` (see `rllib.train.algorithm`): only its actor
    is exported.
    """
    observations = torch.zeros(2, len(OBSERVATION), dtype=torch.float32)
    export_program(_Served(module), {"obs": observations}, path)
