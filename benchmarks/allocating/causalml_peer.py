"""Runs in the peer's own environment: purchase probabilities by CausalML's meta-learners over LightGBM.

    python causalml_peer.py IN.npz OUT.npz

IN: x, level, bought, propensity `[n, D]`, and queries `[m, F]`. OUT: `[m, D]` for each learner.
"""

import sys
import warnings

import numpy as np
from causalml.inference.meta import BaseSClassifier, BaseTClassifier, BaseXClassifier
from lightgbm import LGBMClassifier, LGBMRegressor

warnings.filterwarnings("ignore")


def classifier():
    """LightGBM with the settings that our own boosted members have."""
    return LGBMClassifier(
        n_estimators=100, learning_rate=0.06, num_leaves=8, min_child_samples=100, reg_lambda=5.0,
        n_jobs=1, verbose=-1,
    )  # fmt: skip


def regressor():
    """The same for effects."""
    return LGBMRegressor(
        n_estimators=100, learning_rate=0.06, num_leaves=8, min_child_samples=100, reg_lambda=5.0,
        n_jobs=1, verbose=-1,
    )  # fmt: skip


def main(source, target):
    """Fit S, T and X learners and predict."""
    data = np.load(source)
    x, bought, queries = data["x"], data["bought"], data["queries"]
    names = [f"level{k}" for k in range(data["propensity"].shape[1])]
    treatment = np.array(["control", *names[1:]])[data["level"]]
    # The X-learner refuses 0, which levels under the margin floor have.
    chance = {name: np.clip(data["propensity"][:, k], 0.01, 0.99) for k, name in enumerate(names) if k}
    base = classifier().fit(x[data["level"] == 0], bought[data["level"] == 0])
    control = base.predict_proba(queries)[:, 1]
    found = {}
    single = BaseSClassifier(classifier(), control_name="control")
    single.fit(x, treatment, bought)
    found["s"] = np.column_stack([control, control[:, None] + single.predict(queries)])
    two = BaseTClassifier(classifier(), control_name="control")
    two.fit(x, treatment, bought)
    found["t"] = np.column_stack([control, control[:, None] + two.predict(queries)])
    cross = BaseXClassifier(outcome_learner=classifier(), effect_learner=regressor(), control_name="control")
    cross.fit(x, treatment, bought, p=chance)
    mean = {name: np.full(len(queries), part.mean()) for name, part in chance.items()}
    found["x"] = np.column_stack([control, control[:, None] + cross.predict(queries, p=mean)])
    np.savez(target, **{name: np.clip(part, 1e-6, 1 - 1e-6) for name, part in found.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
