"""Effects of e-mails on who visits, against the libraries of the field: real outcomes and planted ones.

Hillstrom's test, three arms. Half of the users train, half judge, at random, 50 times: what it is worth to
write to the best 10, 30 and 50 % (SNIPS), with corrected resampled t intervals (Nadeau and Bengio, 2003) of
the difference to everyone else. `not_worse_than_any` says that no such interval lies below 0 as a whole; the
differences themselves may be of either sign. Then the same users with effects that are planted, so that
errors are known (PEHE).

`response` writes to whoever visits most likely, `random` to anyone; both with an arm that is best for them. A
peer runs in two configurations; what is compared is the one that is better on the score in question.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import ROOT, Args, Mode, emit, log, parse
from benchmarks.uplifting.cases import PLACES, TEST_SHARE, Case, Users, find_data, read_users
from benchmarks.uplifting.contenders import (
    CONFIGURATIONS,
    REQUIREMENTS,
    environment,
    finish_peer,
    our_effects,
    read_answers,
    start_peer,
    write_tasks,
)
from benchmarks.uplifting.planted import ARMS, FAMILIES
from benchmarks.uplifting.scores import BUDGETS, by_configuration, differences, interval, summary
from training.uplift.learner import UpliftSettings

PEERS = (*CONFIGURATIONS, "response", "random")
SCORES = (*(f"value_{budget:g}" for budget in BUDGETS), "qini_a", "qini_b", "rate")
PLANTED_SEED = 500  # the seeds that peers and learner were tried out with are below

Table = dict[str, dict[str, list[float]]]


def run_peers(users: Users, cases: Sequence[Case], args: Args) -> tuple[dict[str, Any], dict[str, str]]:
    """Case → configuration → effects, of ours and all peers; and which peers are missing, with the reason."""
    missing = dict.fromkeys(CONFIGURATIONS, "not installed for --smoke") if args.mode is Mode.SMOKE else {}
    found: dict[str, Any] = {case.name: {} for case in cases}
    with tempfile.TemporaryDirectory(prefix="qiance-uplift-") as name:
        running: dict[str, tuple[subprocess.Popen[str], Path]] = {}
        for peer in CONFIGURATIONS:
            if peer in missing:
                continue
            place = environment(peer)
            missing |= place.missing(peer)
            if place.python:
                folder = Path(name) / peer
                folder.mkdir()
                write_tasks(folder, users, cases)
                running[peer] = start_peer(peer, place.python, folder), folder
        try:
            _merge(found, our_effects(users, cases, UpliftSettings()))
            for peer, (process, folder) in running.items():
                log(f"  waiting for {peer}")
                finish_peer(peer, process, folder)
                _merge(found, read_answers(folder, cases), f"{peer}.")
        finally:
            for process, _ in running.values():
                process.kill()
                process.wait()
    return found, missing


def _merge(found: dict[str, Any], more: Mapping[str, Mapping[str, Any]], prefix: str = "") -> None:
    for case, effects in more.items():
        found[case] |= {f"{prefix}{name}": own for name, own in effects.items()}


def names_of(peer: str, table: Mapping[str, Any]) -> list[str]:
    """Its configurations in the table: `peer.configuration`, or the peer itself."""
    return [name for name in table if name == peer or name.startswith(f"{peer}.")]


def best_of(peer: str, table: Table, score: str, smallest: bool = False) -> str | None:
    """The configuration of `peer` with the best mean; None where it did not run."""
    sign = -1 if smallest else 1
    return max(
        names_of(peer, table), key=lambda name: sign * float(np.mean(table[name][score])), default=None
    )


def policy_values(table: Table) -> dict[str, Any]:
    """By budget: ours, and the difference to every peer's best configuration, with intervals."""
    found = {}
    for budget in BUDGETS:
        score = f"value_{budget:g}"
        beside = {}
        for peer in PEERS:
            name = best_of(peer, table, score)
            beside[peer] = name and differences(table["qiance"], table[name])[score]
        shown = [one for one in beside.values() if one]
        not_worse = (
            all(one["high"] >= 0 for one in shown) if all(one["high"] is not None for one in shown) else None
        )
        found[f"{budget:g}"] = {
            "qiance": interval(table["qiance"][score]),
            "minus": beside,
            "not_worse_than_any": not_worse,
        }
    return found


def pehe_ratios(tables: Mapping[str, Table]) -> dict[str, float | None]:
    """`vs_PEER_pehe`: median over families and seeds of the PEHE of its best configuration ÷ ours."""
    found: dict[str, float | None] = {}
    for peer in CONFIGURATIONS:
        ratios = []
        for table in tables.values():
            name = best_of(peer, table, "pehe", smallest=True)
            if name is not None:
                ratios += np.divide(table[name]["pehe"], table["qiance"]["pehe"]).tolist()
        found[f"vs_{peer}_pehe"] = float(np.median(ratios)) if ratios else None
    return found


def measure(users: Users, args: Args) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Figures, peers, protocol."""
    splits = args.pick(smoke=2, quick=4, full=50)
    seeds = args.pick(smoke=1, quick=1, full=6)
    real = [users.real(args.seed * 1_000 + number) for number in range(splits)]
    planted = {
        family: [users.planted(family, args.seed * 1_000 + PLANTED_SEED + n) for n in range(seeds)]
        for family in (FAMILIES if args.mode is not Mode.SMOKE else FAMILIES[:1])
    }
    cases = [*real, *(case for own in planted.values() for case in own)]
    log(f"{len(users):,} users, {splits} splits, {len(cases) - splits} planted sets")
    effects, missing = run_peers(users, cases, args)
    table = by_configuration(real, effects, planted=False)
    tables = {family: by_configuration(own, effects, planted=True) for family, own in planted.items()}
    # Scores of response and random order users; they are no effects.
    families = {
        family: {name: float(np.mean(own["pehe"])) for name, own in one.items() if name not in PEERS}
        for family, one in tables.items()
    }
    figures = {
        "policy_value": policy_values(table),
        **{name: interval(table["qiance"][name]) for name in ("qini_a", "qini_b", "rate")},
        "pehe": float(np.mean([own["qiance"] for own in families.values()])),
        "pehe_by_family": {family: own["qiance"] for family, own in families.items()},
        **pehe_ratios(tables),
    }
    peers = {peer: _of_peer(peer, table, families) for peer in PEERS}
    protocol = {
        "users": len(users),
        "splits": splits,
        "test_share": TEST_SHARE,
        "arms": ARMS,
        "planted_seeds": seeds,
        "families": list(planted),
        "peers": {peer: list(REQUIREMENTS[peer]) for peer in REQUIREMENTS},
        "missing": missing,
    }
    return figures, peers, protocol


def _of_peer(peer: str, table: Table, families: Mapping[str, Mapping[str, float]]) -> dict[str, Any] | None:
    names = names_of(peer, table)
    if not names:
        return None
    return {
        name.removeprefix(f"{peer}."): {
            **summary(table[name]),
            "pehe_by_family": {family: own.get(name) for family, own in families.items()},
        }
        for name in names
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Run and print the result line."""
    args = parse(argv, "Effects of e-mails against causalml, scikit-uplift and EconML.")
    path = find_data()
    if path is None:
        reason = (
            f"the e-mail test is not here; put hillstrom.csv.gz into {PLACES[0].parent.relative_to(ROOT)}"
        )
        log(reason)
        nothing = dict.fromkeys(("policy_value", "qini_a", "qini_b", "rate", "pehe"))
        nothing |= {f"vs_{peer}_pehe": None for peer in CONFIGURATIONS}
        missing = dict.fromkeys((*PEERS, "data"), reason)
        emit("uplift", args, nothing, dict.fromkeys(PEERS), {"missing": missing})
        return
    limit = args.pick(smoke=4_000, quick=20_000, full=10**9)
    figures, peers, protocol = measure(read_users(path, limit, args.seed), args)
    emit("uplift", args, figures, peers, protocol)


if __name__ == "__main__":
    main()
