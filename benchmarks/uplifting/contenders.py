"""Everyone who predicts effects: ours and the two baselines here, the peers in environments of their own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import ROOT, PeerEnvironment, log, peer_environment
from benchmarks.uplifting.cases import Case, Users
from benchmarks.uplifting.peers.tasks import ANSWER
from training.uplift.learner import UpliftSettings
from training.uplift.stack import fit_uplift

Floats = NDArray[np.float64]
Effects = dict[str, Floats]

REQUIREMENTS = {
    "causalml": ("causalml==0.18.0", "lightgbm==4.7.0"),
    "sklift": ("scikit-uplift==0.5.1", "lightgbm==4.7.0"),
    "econml": ("econml==0.17.0", "lightgbm==4.7.0"),
}
# Those that did best on planted effects with other seeds than those that are reported.
CONFIGURATIONS = {
    "causalml": ("x_learner", "dr_learner"),
    "sklift": ("solo_model", "two_models"),
    "econml": ("linear_dr", "dr_learner"),
}


def environment(peer: str) -> PeerEnvironment:
    """The environment of `peer`, made by uv once."""
    return peer_environment(f"uplift_{peer}", REQUIREMENTS[peer])


def write_tasks(folder: Path, users: Users, cases: Sequence[Case]) -> None:
    """What a peer reads; see `benchmarks.uplifting.peers.tasks`."""
    np.save(folder / "x.npy", users.matrix)
    for case in cases:
        np.savez(
            folder / f"{case.name}.npz",
            train=case.train,
            test=case.test,
            arm=case.arm,
            outcome=case.outcome,
            share=case.share,
            seed=case.seed,
        )


def start_peer(peer: str, python: Path, folder: Path) -> subprocess.Popen[str]:
    """The peer at work on the tasks in `folder`; its output goes to `peer.log` there."""
    paths = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [str(python), "-m", f"benchmarks.uplifting.peers.run_{peer}", str(folder)]
    with (folder / "peer.log").open("w", encoding="utf-8") as stream:
        return subprocess.Popen(
            [*command, *CONFIGURATIONS[peer]],
            cwd=ROOT,
            env={**os.environ, **paths},
            stdout=stream,
            stderr=subprocess.STDOUT,
            text=True,
        )


def finish_peer(peer: str, process: subprocess.Popen[str], folder: Path) -> None:
    """Wait for it; RuntimeError with its last words where it failed."""
    if process.wait() != 0:
        last = (folder / "peer.log").read_text(encoding="utf-8").strip()[-400:]
        raise RuntimeError(f"{peer}: ended with {process.returncode}: {last}")


def read_answers(folder: Path, cases: Sequence[Case]) -> dict[str, Effects]:
    """Case → configuration → `[m, K]`."""
    found = {}
    for case in cases:
        with np.load(folder / f"{case.name}{ANSWER}", allow_pickle=False) as file:
            found[case.name] = {name: file[name] for name in file.files}
    return found


def our_effects(users: Users, cases: Sequence[Case], settings: UpliftSettings) -> dict[str, Effects]:
    """Case → `qiance`, `response` and `random` → `[m, K]` scores for targeting; ours are effects.

    response: the predicted outcome under each arm, by the same outcome models: whoever answers most likely
    comes first, with the arm under which he does. random: everyone alike, the arm with the largest mean
    effect.
    """
    found = {}
    for number, case in enumerate(cases):
        log(f"  qiance: {case.name}, {number + 1} of {len(cases)}")
        rows = users.rows(case).take(case.train)
        fitted = fit_uplift(rows, replace(settings, seed=case.seed), _silent, intervals=False)
        inputs = fitted.scorer.inputs(users.columns(case.test))
        chance = np.random.default_rng(case.seed).random(len(case.test)) + 1e-9
        best = 1 + int(fitted.scorer.anchor.ate[1:].argmax())
        found[case.name] = {
            "qiance": fitted.scorer.value(inputs),
            "response": fitted.scorer.chances(inputs),
            "random": np.eye(len(case.share))[best] * chance[:, None],
        }
    return found


def _silent(_share: float, _text: str) -> None:
    pass
