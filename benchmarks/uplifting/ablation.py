"""What each part of the uplift learner brings: `python -m benchmarks.uplifting.ablation [--smoke | --quick]`.

Prints a table: PEHE on planted effects and the value of targeting on real visits, of each candidate alone, of
what was tried beside them, and of how they are put together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import log, parse
from benchmarks.uplifting.cases import Case, Users, find_data, read_users
from benchmarks.uplifting.peers.tasks import trees
from benchmarks.uplifting.planted import FAMILIES
from benchmarks.uplifting.scores import BUDGETS, by_configuration
from qiance.artifacts.uplift import CANDIDATES
from training.uplift.crossing import PRIOR, weigh
from training.uplift.learner import UpliftSettings
from training.uplift.stack import fit_uplift

SEED = 700  # neither the benchmark's nor those that settings were chosen with
_EPOCHS, _BATCH, _PATIENCE = 15, 512, 3

Floats = NDArray[np.float64]


def learned(users: Users, case: Case) -> dict[str, Floats]:
    """`[m, K]` effects of the test rows by every learner."""
    rows = users.rows(case).take(case.train)
    fitted = fit_uplift(rows, replace(UpliftSettings(), seed=case.seed), _silent, intervals=False)
    scorer, inputs = fitted.scorer, fitted.scorer.inputs(users.columns(case.test))
    parts = np.mean([one.candidates(inputs) for one in scorer.members], axis=0)
    crossed, anchor, equal = fitted.crossed, scorer.anchor, np.full(len(CANDIDATES), 1 / len(CANDIDATES))
    found = {"mean effect for all": np.tile(anchor.ate, (len(parts), 1))}
    found |= {name: parts[:, :, place] for place, name in enumerate(CANDIDATES)}
    found["two models"] = _two_models(users, case)
    found["network, a head per arm"] = _network(users, case)
    found["equal weights"] = anchor.effects(parts, equal)
    for name in CANDIDATES:
        others = {other: share for other, share in PRIOR.items() if other != name}
        weights = weigh(crossed.candidates, crossed.scores, anchor, others)
        found[f"weighed, without {name}"] = anchor.effects(parts, weights)
    return {**found, "weighed": scorer.value(inputs)}


def _silent(_share: float, _text: str) -> None:
    pass


def _two_models(users: Users, case: Case) -> Floats:
    """The T-learner: boosted trees of each arm by itself."""
    from lightgbm import LGBMClassifier

    arm, outcome = case.arm[case.train], case.outcome[case.train]
    x, test = users.matrix[case.train], users.matrix[case.test]
    fit = [
        trees(LGBMClassifier, case.seed, 100).fit(x[arm == k], outcome[arm == k])
        for k in range(len(case.share))
    ]
    chance = np.column_stack([one.predict_proba(test)[:, 1] for one in fit])
    return np.asarray(chance - chance[:, :1])


def _network(users: Users, case: Case) -> Floats:
    """TARNet (Shalit, Johansson and Sontag, 2017): layers in common, then some of each arm's own."""
    import torch

    torch.manual_seed(case.seed)
    random = np.random.default_rng(case.seed)
    x = torch.from_numpy(users.matrix.astype(np.float32))
    arm, y = torch.from_numpy(case.arm)[:, None], torch.from_numpy(case.outcome.astype(np.float32))
    model = _tarnet(x.shape[1], len(case.share))
    order = torch.from_numpy(random.permutation(case.train))
    fit, choose = order[len(order) // 7 :], order[: len(order) // 7]
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)

    def loss(rows: Any) -> Any:
        score = model(x[rows]).gather(1, arm[rows])[:, 0]
        return torch.nn.functional.binary_cross_entropy_with_logits(score, y[rows])

    best, state, waited = np.inf, {}, 0
    for _ in range(_EPOCHS):
        for batch in fit[torch.randperm(len(fit))].split(_BATCH):
            optimiser.zero_grad()
            loss(batch).backward()
            optimiser.step()
        with torch.no_grad():
            now = float(loss(choose))
        waited = 0 if now < best else waited + 1
        if now < best:
            best, state = now, {name: value.clone() for name, value in model.state_dict().items()}
        if waited >= _PATIENCE:
            break
    model.load_state_dict(state)
    with torch.no_grad():
        chance = torch.sigmoid(model(x[torch.from_numpy(case.test)])).numpy().astype(np.float64)
    return np.asarray(chance - chance[:, :1])


def _tarnet(width: int, arms: int, hidden: int = 64, own: int = 24) -> Any:
    from torch import cat, nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = nn.Sequential(
                nn.Linear(width, hidden), nn.ELU(), nn.Linear(hidden, hidden), nn.ELU()
            )
            self.heads = nn.ModuleList(
                nn.Sequential(nn.Linear(hidden, own), nn.ELU(), nn.Linear(own, 1)) for _ in range(arms)
            )

        def forward(self, x: Any) -> Any:
            shared = self.trunk(x)
            return cat([head(shared) for head in self.heads], dim=1)

    return Net()


def table_of(planted: Mapping[str, Any], real: Mapping[str, Any]) -> list[str]:
    """Lines of Markdown."""
    heads = ["learner", *(f"PEHE {family}" for family in planted), *(f"value {b:.0%}" for b in BUDGETS)]
    lines = [f"| {' | '.join(heads)} |", f"| {' | '.join('---' for _ in heads)} |"]
    for name, values in real.items():
        errors = [f"{np.mean(own[name]['pehe']):.4f}" for own in planted.values()]
        worth = [f"{np.mean(values[f'value_{budget:g}']):.4f}" for budget in BUDGETS]
        lines.append(f"| {' | '.join([name, *errors, *worth])} |")
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    args = parse(argv, "What each part of the uplift learner brings.")
    path = find_data()
    if path is None:
        raise SystemExit("the e-mail test is not here; see python -m benchmarks.uplift")
    users = read_users(path, args.pick(smoke=4_000, quick=20_000, full=10**9), args.seed)
    real = [users.real(SEED + n) for n in range(args.pick(smoke=1, quick=2, full=10))]
    planted = {
        f: [users.planted(f, SEED + n) for n in range(args.pick(smoke=1, quick=1, full=3))] for f in FAMILIES
    }
    cases, effects = [*real, *(case for own in planted.values() for case in own)], {}
    for number, case in enumerate(cases):
        log(f"{case.name}, {number + 1} of {len(cases)}")
        effects[case.name] = learned(users, case)
    errors = {family: by_configuration(own, effects, planted=True) for family, own in planted.items()}
    print("\n".join(table_of(errors, by_configuration(real, effects, planted=False))))


if __name__ == "__main__":
    main()
