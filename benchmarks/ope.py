"""Off-policy evaluation: how near to the truth, and how honest about it, beside Open Bandit Pipeline 0.4.1.

Synthetic bandits whose truth is known: 10, 30 and 100 actions, three overlaps of the logging policy with the
target, and a reward model of the right and of the wrong form. Everyone has the same logs, policies and reward
models. OBP runs each of its estimators, Switch-DR and DRos over a range of their parameter; the best of all
is chosen with hindsight, ours by the log alone. Its seeds are other ones than those that the rule was made
with (1000 and on). Then the Open Bandit logs, where the truth is known to 12 to 16 % only.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.harness import Args, emit, log, parse
from benchmarks.opeval import open_bandit
from benchmarks.opeval.grid import BETAS, FORMS, Outcome, Size, outcomes, unsupported
from benchmarks.opeval.peer import Obp, environment
from benchmarks.opeval.problem import GREEDY
from benchmarks.opeval.summary import figures_of, peer_of
from qiance.data.packages import package_folder

SMOKE_REASON = "left out of --smoke, which installs nothing"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark; its last line on stdout is the result."""
    args = parse(argv, __doc__.split("\n", 1)[0])
    size = args.pick(
        smoke=Size(2_000, (10, 30), 2, 0),
        quick=Size(10_000, (10, 30, 100), 8, 6),
        full=Size(10_000, (10, 30, 100), 120, 30),
    )
    missing: dict[str, str] = {}
    found, versions = _outcomes(args, size, missing)
    figures = figures_of(found) | {"no_support": unsupported(size, args.seed)}
    figures["open_bandit"] = _open_bandit(args, missing)
    protocol = {
        "rows": size.rows,
        "actions": size.actions,
        "beta": BETAS,
        "reward_models": FORMS,
        "seeds_per_cell": size.seeds,
        "compared_seeds_per_cell": size.compared if versions else 0,
        "target_policy": f"best action with {GREEDY:g}, any with {1 - GREEDY:g}",
        "missing": missing,
        "obp_versions": versions,
    }
    emit("ope", args, figures, {"obp": peer_of(found) if versions else None}, protocol)


def _outcomes(args: Args, size: Size, missing: dict[str, str]) -> tuple[list[Outcome], dict[str, str]]:
    """All logs of the grid, and what versions OBP ran with, if it did."""
    python = None
    if args.mode == "smoke":
        missing["obp"] = SMOKE_REASON
    else:
        peer = environment()
        python = peer.python
        missing |= peer.missing("obp")
    found: list[Outcome] = []
    total = size.seeds * len(size.actions) * len(BETAS) * len(FORMS)
    with ExitStack() as stack:
        obp = None
        if python:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            obp = stack.enter_context(Obp(python, folder))
        for one in outcomes(size, args.seed, obp):
            found.append(one)
            if len(found) % max(1, total // 20) == 0:
                log(f"{len(found):,} of {total:,} estimates")
        return found, obp.versions if obp else {}


def _open_bandit(args: Args, missing: dict[str, str]) -> dict[str, Any] | None:
    if package_folder("obp") is None:
        missing["open_bandit"] = "the package obp, whose data it is, is not installed"
        return None
    log("Open Bandit")
    campaigns = args.pick(smoke=("men",), quick=open_bandit.CAMPAIGNS, full=open_bandit.CAMPAIGNS)
    return open_bandit.measure(args.seed, args.pick(smoke=2, quick=5, full=30), campaigns)


if __name__ == "__main__":
    main()
