"""The search for the largest rate, and the result object of the decision benchmark."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.deciding import contenders
from benchmarks.deciding.contenders import Contender, Log
from benchmarks.deciding.environments import pins
from benchmarks.deciding.load import Result
from benchmarks.deciding.rates import Effort, Found, search
from benchmarks.deciding.recovery import Overload
from benchmarks.deciding.report import Seen, figures_of, peers_of
from benchmarks.deciding.servers import ServerError, free_port, running
from benchmarks.deciding.tally import Tally
from benchmarks.page import table

ROOT = Path(__file__).resolve().parent.parent.parent
EFFORT = Effort(1.0, 1.0, 1.0, 8, first=0.8, fineness=1.04, confirm_s=1.0)
EVERYBODY = (
    contenders.QIANCE, contenders.TWO_HOP, contenders.BARE, contenders.NAIVE_RAY,
    contenders.NAIVE_TWO_HOP, contenders.LITSERVE, contenders.BENTOML,
)  # fmt: skip
KEYS = {
    "qiance_rps", "p50_ms", "p99_ms", "errors", "vs_naive_ray", "vs_litserve", "vs_bentoml", "vs_bare",
    "two_hop_rps", "vs_naive_two_hop",
}  # fmt: skip


@given(st.floats(1.0, 5_000.0), st.floats(0.02, 1.6))
def test_the_search_ends_just_below_the_limit(limit: float, guess: float) -> None:
    tried: list[float] = []

    def holds(rate: float) -> bool:
        tried.append(rate)
        return rate <= limit

    found = search(holds, limit * guess, EFFORT)
    assert found is not None
    assert found <= limit <= found * 1.1
    assert len(tried) <= EFFORT.probes + max(0.0, math.log2(1.0 / guess)) + 2
    assert max(tried) <= 2.0 * limit * max(guess, 1.0), "no leap far beyond what a server can do"


def test_the_search_finds_nothing_where_nothing_holds() -> None:
    tried: list[float] = []
    assert search(lambda rate: bool(tried.append(rate)), 100.0, EFFORT) is None
    assert len(tried) == EFFORT.probes
    assert tried == sorted(tried, reverse=True)


def phase(rate: float, **changes: Any) -> Tally:
    sent = int(rate * 10)
    given: dict[str, Any] = {
        "rate": rate, "seconds": 10.0, "sent": sent, "accepted": sent, "refused": 0, "errors": {},
        "p50_ms": 4.0, "p99_ms": 30.0, "max_ms": 44.0, "refusal_p99_ms": None, "lag_p99_ms": 0.2,
        "rests": [(0.0, True, 30.0)],
    }  # fmt: skip
    return Tally(**{**given, **changes})


def seen(contender: Contender, *rates: float | None) -> Seen:
    found = []
    for rate in rates:
        run = None if rate is None else Result([phase(rate)], True, 10.0, 0.1, 5)
        found.append(Found(rate, run, 4.0, 8, 3.0, 1.5))
    return Seen(contender, found)


def test_ratios_are_of_medians_and_of_the_closed_loop_where_the_limit_is_never_met() -> None:
    rates = {"qiance": (400.0, 420.0), "two_hop": (300.0,), "bare": (500.0, 480.0), "naive_ray": (None,)}
    everybody = [seen(c, *rates.get(c.name, (100.0,))) for c in EVERYBODY]
    figures = figures_of(everybody)
    assert set(figures) >= KEYS
    assert figures["qiance_rps"] == 410.0
    assert figures["vs_bare"] == pytest.approx(410 / 490)
    assert figures["vs_naive_ray"] == pytest.approx(410 / 4)
    assert figures["vs_naive_two_hop"] == pytest.approx(3.0)
    peers = peers_of(everybody)
    assert set(peers) == {"bare", "naive_ray", "naive_two_hop", "litserve", "bentoml"}
    assert peers["naive_ray"] == {**(peers["naive_ray"] or {}), "meets_50_ms": False, "p99_ms": None}
    assert (peers["bare"] or {})["meets_50_ms"]


def test_a_peer_that_could_not_be_had_is_no_number() -> None:
    everybody = [seen(c, 100.0) for c in EVERYBODY]
    everybody[-1] = Seen(contenders.BENTOML)
    everybody[-1].fail("wheel at /srv/shop/x.whl from https://index.example/x\n  does not fit")
    assert everybody[-1].reason == "wheel at … from … does not fit"
    assert figures_of(everybody)["vs_bentoml"] is None
    assert peers_of(everybody)["bentoml"] is None


def test_overload_is_told_as_it_was() -> None:
    during = phase(200.0, accepted=900, refused=1_090, errors={"timeout": 10}, refusal_p99_ms=3.0)
    everybody = [seen(c, 100.0) for c in EVERYBODY]
    everybody[0].overloads = [Overload(phase(100.0), during, phase(100.0, rests=[(1.5, True, 30.0)]))]
    told = figures_of(everybody)["overload"]
    assert told["accepted_rps"] == 90.0
    assert (told["refused"], told["errors"], told["recovery_s"]) == (1_090, 10, 1.5)
    assert told["error_kinds"] == {"timeout": 10}
    json.dumps(told, allow_nan=False)
    assert "error_kinds" in table(list(told), [list(map(str, told.values()))])


def test_an_overload_says_nothing_of_a_rate_that_was_not_held_before_it() -> None:
    late, never = phase(110.0, p99_ms=51.0), phase(100.0, rests=[(0.0, False, 9.0)])
    quick, slow = phase(100.0, rests=[(0.5, True, 9.0)]), phase(100.0, rests=[(7.0, True, 9.0)])
    ours = seen(contenders.QIANCE, 100.0)
    others = [seen(c, 100.0) for c in EVERYBODY if c is not contenders.QIANCE]
    ours.overloads = [Overload(late, phase(220.0, accepted=1), never)]
    assert figures_of([ours, *others])["overload"] == {"judged": 0, "not_clean_before": 1}
    ours.overloads += [Overload(phase(100.0), phase(200.0), after) for after in (quick, never, slow)]
    told = figures_of([ours, *others])["overload"]
    assert (told["judged"], told["not_clean_before"], told["rate"]) == (3, 1, 200.0)
    assert (told["recovery_s"], told["recovered_within_5_s"]) == (7.0, 1), (
        "one that never ended is the longest"
    )
    ours.overloads = [Overload(phase(100.0), phase(200.0), never)]
    assert figures_of([ours, *others])["overload"]["recovery_s"] is None


def test_an_answer_that_is_not_in_the_log_is_found() -> None:
    one = seen(contenders.BARE, 100.0)
    one.check_log(1_000, Log(0, 40_000), Log(1_010, 1_050_000))
    assert one.log_bytes == pytest.approx(1_000.0)
    with pytest.raises(RuntimeError, match="1000 decisions were answered, 999 are in the log"):
        one.check_log(1_000, Log(1, 40_000), Log(1_000, 1_050_000))


def test_pins_are_those_of_the_project() -> None:
    assert pins(["SQLAlchemy"])[0].startswith("SQLAlchemy==")
    with pytest.raises(ValueError, match="'no-such-thing' has no pin"):
        pins(["no-such-thing"])


def test_a_server_that_ends_tells_why(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('the port is taken')"]
    with (
        pytest.raises(ServerError, match="ended with 1: the port is taken"),
        running(command, free_port(), "/", tmp_path / "log", {}),
    ):
        pass


def test_a_server_is_gone_after_its_block(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.deciding.trivial", "--port", str(port)]
    with running(command, port, "/", tmp_path / "log", {}) as server:
        assert server.cpu_s() > 0
        process = server.process
    assert not process.is_running()


@pytest.mark.slow
def test_smoke_measures_ours_and_bare() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.decide", "--smoke"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3_000:]
    report = json.loads(done.stdout.strip().splitlines()[-1])
    assert report["figures"]["qiance_rps"] > 0
    assert report["peers"]["bare"]["rps"] > 0
    assert report["peers"]["naive_ray"] is None
