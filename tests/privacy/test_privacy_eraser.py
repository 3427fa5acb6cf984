"""The whole erasure: every byte of the workspace, halfway failures, restored backups, later training."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from privacy_cases import KEY, NOW, PROJECT, USERS, build, online, payload, words_in

from qiance.domain import (
    CONTROL_ACTION,
    Action,
    Channel,
    Decision,
    EventType,
    Offer,
    Outcome,
    OutcomeType,
    Purpose,
    ShopEvent,
    StrategyKind,
)
from qiance.ledger import Entry, ErasureState, Ledger
from qiance.privacy import Eraser, erase_packed_sqlite
from qiance.workspace import Workspace

GONE, KEPT = USERS[1], USERS[5]
ACTIONS = (CONTROL_ACTION, Action("a", "s", StrategyKind.AD, None, Offer(), None, Channel.EMAIL, 1))
BOTH = dict.fromkeys(Purpose, True)


def decision(ledger: Ledger, user: str, number: int) -> Decision:
    return Decision(
        decision_id=f"d-{user[::-1]}-{number}",
        tenant_id=ledger.tenant,
        request_id=f"{user}-visit-{number}",
        pseudonym=ledger.pseudonym(user),
        surface="home",
        decided_at=NOW,
        candidates=tuple(action.action_id for action in ACTIONS),
        candidate_set=ledger.put_candidates(ACTIONS),
        admissible=b"\x03",
        scores=bytes(8),
        chosen=1,
        propensity=0.5,
        uniform=0.7,
        epsilon=1.0,
        shadow_price=0.0,
        channel="email",
        holdout=False,
        model_version="m",
        policy_version="p",
        user_row=payload(user).encode(),
    )


def live(ledger: Ledger, user: str) -> None:
    decisions = [decision(ledger, user, number) for number in range(4)]
    ledger.record_slates([(Entry(decision),) for decision in decisions])
    ledger.record_outcomes(
        [
            Outcome(f"{user}-{d.decision_id}", d.decision_id, OutcomeType.CONVERSION, NOW, 99)
            for d in decisions
        ]
    )
    ledger.set_consent(user, BOTH, by="shop")
    ledger.record_events([ShopEvent(f"{user}-1", user, EventType.SEARCH, NOW, query=payload(user))])


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return build(tmp_path / "run")


def open_ledger(workspace: Workspace) -> Ledger:
    return Ledger.open(workspace.ledger_url, key=KEY)


@pytest.fixture
def ledger(workspace: Workspace) -> Iterator[Ledger]:
    opened = open_ledger(workspace)
    for user in USERS[:8]:
        live(opened, user)
    yield opened
    opened.close()


def eraser(ledger: Ledger, workspace: Workspace, also: Callable[[], None] = lambda: None) -> Eraser:
    def erase_online(user_id: str) -> int:
        also()
        return erase_packed_sqlite(workspace.features / "online.db", PROJECT, user_id)

    return Eraser(ledger, workspace, erase_online, patience_s=5.0)


def test_no_byte_of_the_user_is_left_in_any_file(workspace: Workspace, ledger: Ledger) -> None:
    name = ledger.pseudonym(GONE)
    words = [GONE, payload(GONE), GONE[::-1], name]
    before = words_in(workspace.root, words)
    assert {word for _, word in before} == set(words)
    assert any(file.startswith("ledger.db") for file, _ in before)
    report = eraser(ledger, workspace).erase(GONE, by="hotline", reason="asked by letter")
    assert report.is_done
    assert report.problems == ()
    assert report.removed["decisions"] == 4
    assert (report.removed["data"], report.removed["online"], report.removed["snapshot"]) == (54, 3, 4)
    assert words_in(workspace.root, words) == set()
    assert KEPT in {word for _, word in words_in(workspace.root, [KEPT])}
    assert ledger.erased_aggregates()["sales"].to_pylist() == [4 * 99]
    assert GONE not in str(report)


def test_later_training_sets_leave_the_user_out(workspace: Workspace, ledger: Ledger) -> None:
    name = ledger.pseudonym(GONE)
    eraser(ledger, workspace).erase(GONE, by="test")
    assert name not in ledger.decision_outcomes()["pseudonym"].to_pylist()
    assert name not in ledger.shop_events_table()["pseudonym"].to_pylist()
    for file in ("data/events.parquet", "features/data/user_profile.parquet"):
        assert GONE not in pq.read_table(workspace.root / file)["user_id"].to_pylist()
    assert set(ledger.erased_before(USERS)) == {GONE}, "who reads the source again leaves them out by this"


def test_what_fails_is_told_and_tried_again(workspace: Workspace, ledger: Ledger) -> None:
    down = [True]

    def fail() -> None:
        if down[0]:
            raise ConnectionError(f"no answer about {GONE}")

    erasing = eraser(ledger, workspace, fail)
    shutil.move(workspace.snapshot / "user_category.parquet", workspace.root / "aside")
    (workspace.snapshot / "user_category.parquet").write_bytes(b"no parquet")
    report = erasing.erase(GONE, by="test")
    assert report.state is ErasureState.PENDING
    assert [problem.split(":")[0] for problem in report.problems] == ["online", "snapshot"]
    assert GONE not in str(report), "what went wrong is told without the user"
    assert report.removed["data"] == 54, "the rest is done all the same"
    shutil.move(workspace.root / "aside", workspace.snapshot / "user_category.parquet")
    down[0] = False
    (finished,) = eraser(ledger, workspace).resume()
    assert finished.erasure_id == report.erasure_id
    assert finished.is_done
    assert finished.removed["data"] == 54
    assert words_in(workspace.root, [GONE, payload(GONE)]) == set()
    assert eraser(ledger, workspace).resume() == []


def test_a_process_that_dies_halfway_is_made_good_by_another(workspace: Workspace, ledger: Ledger) -> None:
    begun = eraser(ledger, workspace).begin(GONE, by="test")
    ledger.close()
    again = open_ledger(workspace)
    (report,) = eraser(again, workspace).resume()
    assert (report.erasure_id, report.is_done) == (begun.erasure_id, True)
    assert words_in(workspace.root, [GONE, payload(GONE)]) == set()
    again.close()


def test_repeating_an_erasure_is_harmless(workspace: Workspace, ledger: Ledger) -> None:
    first = eraser(ledger, workspace).erase(GONE, by="test")
    second = eraser(ledger, workspace).erase(GONE, by="test")
    assert (first.is_done, second.is_done, second.removed) == (True, True, {})


def test_restored_files_are_cleaned_with_the_restored_ledger(workspace: Workspace, ledger: Ledger) -> None:
    ledger.close()
    shutil.copytree(workspace.root, workspace.root.parent / "backup")
    ledger = open_ledger(workspace)
    for user in (GONE, USERS[2]):
        eraser(ledger, workspace).erase(user, by="test")
    exported = ledger.export_erasures()
    ledger.close()

    shutil.rmtree(workspace.root)
    shutil.move(workspace.root.parent / "backup", workspace.root)
    ledger = open_ledger(workspace)
    removed = eraser(ledger, workspace).replay(exported, by="restore")
    assert (removed["users"], removed["data"], removed["online"]) == (2, 2 * 51 + 4, 6)
    words = [GONE, payload(GONE), USERS[2], payload(USERS[2])]
    assert words_in(workspace.root, words) == set()
    assert eraser(ledger, workspace).replay(exported, by="restore") == {}
    ledger.close()


def test_several_erasures_and_traffic_at_once(workspace: Workspace, ledger: Ledger) -> None:
    gone = USERS[:4]

    def traffic(user: str) -> None:
        for number in range(10, 25):
            ledger.record_slates([(Entry(decision(ledger, user, number)),)])

    with ThreadPoolExecutor(8) as pool:
        busy = [pool.submit(traffic, user) for user in gone]
        reports = list(pool.map(lambda user: eraser(ledger, workspace).erase(user, by="test"), gone))
        for worker in busy:
            worker.result()
    assert {report.state for report in reports} <= {ErasureState.DONE, ErasureState.SCRUBBING}
    for user in gone:  # traffic may have made strangers of them since
        assert eraser(ledger, workspace).erase(user, by="test").is_done
    assert words_in(workspace.root, [*gone, *map(payload, gone)]) == set()
    rows = ledger.decision_outcomes().num_rows
    assert rows + sum(ledger.erased_aggregates()["decisions"].to_pylist()) == 8 * 4 + 4 * 15


def test_features_that_arrive_late_are_erased_too(workspace: Workspace, ledger: Ledger) -> None:
    """A push that was under way writes the user's row between the first and the last look."""
    calls = [0]

    def late_push() -> None:
        calls[0] += 1
        if calls[0] == 2:
            online(workspace.features / "online.db", [GONE]).close()

    report = eraser(ledger, workspace, late_push).erase(GONE, by="test")
    assert report.removed["online"] == 6
    assert words_in(workspace.features, [GONE]) == set()


def test_the_clock_of_the_ledger_dates_the_erasure(workspace: Workspace) -> None:
    ledger = Ledger.open(workspace.ledger_url, key=KEY, now=lambda: NOW)
    report = eraser(ledger, workspace).erase(GONE, by="test")
    assert report.erased_at == ledger.erased_before([GONE])[GONE] == NOW
    assert NOW + timedelta(seconds=1) > report.erased_at
    ledger.close()
