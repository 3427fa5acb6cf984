"""Made-up users of SalesPromotion in the files' own form, and where the published ones lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rllib.sales import SCALE

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT.parent / "shared" / "data" / "neorl_sales_promotion"
_HEADS = {
    "do_action_model.discrete_policy_model": (8, {"do_action_model.output_layer.0": 2}),
    "disc_order_policy.discrete_policy_model": (4, {"disc_order_policy.output_layer": 6}),
    "cont_order_policy.gaussian_net_model": (
        4,
        {"cont_order_policy.mean_layer": 1, "cont_order_policy.log_std_layer": 1},
    ),
}
_WIDTHS = (16, 8, 4)


def random_states(num_users: int, rng: np.random.Generator) -> np.ndarray:
    """Scaled states `[n, 18]` of habits that can be: least ≤ mean ≤ most."""
    states = rng.random((num_users, 18)) * 0.5
    for at in (0, 5):
        low, middle, high = np.sort(rng.uniform(0.5, 3.0, (3, num_users)) * SCALE[at + 1] / 4, axis=0)
        times = rng.integers(1, 40, num_users)
        states[:, at] = middle * times / SCALE[at]
        for place, value in ((1, middle), (3, low), (4, high)):
            states[:, at + place] = np.minimum(value / SCALE[at + place], 1.0)
    states[:, 14] = rng.choice([0.1, 0.25, 0.5, 1.0], num_users)
    states[:, 15] = rng.integers(0, 7, num_users) / 6
    states[:, 16:] = 0.0
    return states


def write_users(folder: Path, num_users: int = 200, seed: int = 0) -> Path:
    """Both files, with small random networks."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for number in range(5):
        for body, (inputs, heads) in _HEADS.items():
            sizes = (inputs, *_WIDTHS)
            layers = {f"{body}.{n}": (sizes[n + 1], sizes[n]) for n in range(3)}
            layers |= {name: (outputs, _WIDTHS[-1]) for name, outputs in heads.items()}
            for name, shape in layers.items():
                arrays[f"models.{number}.{name}.weight"] = rng.normal(0, 0.7, shape).astype(np.float32)
                arrays[f"models.{number}.{name}.bias"] = rng.normal(0, 0.3, shape[0]).astype(np.float32)
    np.savez(folder / "user_model.npz", **arrays)
    states = random_states(num_users, rng)
    states[:, 15] = 1 / 6
    rate = rng.uniform(0.1, 2.0, num_users)
    seen = np.stack([60 * rate, rate, rng.uniform(1, 40, num_users), np.ones(num_users)], axis=1)
    np.savez(folder / "initial_states.npz", internal_states=states, agent_obs=seen.astype(np.float32))
    return folder
