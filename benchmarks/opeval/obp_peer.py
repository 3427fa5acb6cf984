"""Open Bandit Pipeline's estimators on logs that it is handed; runs in OBP's own environment.

Reads one JSON line per log from stdin, {"file": an npz with the log, the policy and the reward models}, and
writes one JSON line per log to stdout: {"versions", "values": {estimator: value}, "interval": [low, high]}
for every reward model. The interval is OBP's bootstrap of DR, at 95 % with 200 draws. Nothing of ours is
imported here.
"""

from __future__ import annotations

import json
import sys
import warnings
from importlib import metadata
from typing import Any

import numpy as np
from obp.ope import (
    DirectMethod,
    DoublyRobust,
    DoublyRobustWithShrinkage,
    InverseProbabilityWeighting,
    SelfNormalizedDoublyRobust,
    SelfNormalizedInverseProbabilityWeighting,
    SwitchDoublyRobust,
)

THRESHOLDS = (1, 5, 10, 50, 100, 500)
SHRINKAGES = (1, 10, 100, 1_000, 10_000)
DRAWS = 200


def estimators() -> dict:
    """Every off-policy estimator of OBP 0.4.1, the tuned ones over OBP's own range of their parameter."""
    found = {
        "ipw": InverseProbabilityWeighting(),
        "snipw": SelfNormalizedInverseProbabilityWeighting(),
        "dm": DirectMethod(),
        "dr": DoublyRobust(),
        "sndr": SelfNormalizedDoublyRobust(),
    }
    found |= {f"switch-dr({tau})": SwitchDoublyRobust(tau=tau) for tau in THRESHOLDS}
    found |= {f"dros({scale})": DoublyRobustWithShrinkage(lambda_=scale) for scale in SHRINKAGES}
    return found


def answer(path: str) -> dict:
    """Values by each reward model in the file, and the DR bootstrap's interval."""
    with np.load(path) as arrays:
        log = dict(arrays)
    common = {
        "reward": log["reward"],
        "action": log["action"],
        "pscore": log["propensity"],
        "action_dist": log["policy"][:, :, None],
        "position": np.zeros(len(log["action"]), dtype=int),
    }
    found: dict[str, Any] = {}
    for name in (key for key in log if key.startswith("model_")):
        given = {**common, "estimated_rewards_by_reg_model": log[name][:, :, None]}
        form = name.removeprefix("model_")
        if form == "mrdr":
            found["mrdr"] = float(DoublyRobust().estimate_policy_value(**given))
            continue
        values = {key: float(one.estimate_policy_value(**given)) for key, one in estimators().items()}
        interval = DoublyRobust().estimate_interval(**given, n_bootstrap_samples=DRAWS, random_state=0)
        found[form] = {
            "values": values,
            "interval": [interval["95.0% CI (lower)"], interval["95.0% CI (upper)"]],
        }
    return found


def main() -> None:
    """Answer until stdin ends; the first line says which versions answer."""
    warnings.filterwarnings("ignore")
    packages = ("obp", "numpy", "pandas", "scikit-learn")
    print(json.dumps({name: metadata.version(name) for name in packages}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line)["file"])), flush=True)


if __name__ == "__main__":
    main()
