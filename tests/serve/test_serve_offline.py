"""Decisions for a file of users: the same engine, the same log, whole or not at all."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq
import pytest
from built_cases import BRIEF, DAYS, START, Built

from qiance.ledger import Ledger, load_or_create_key
from serve.offline import OUTPUT, Campaign, DecideUsers, decide_users

MAILING = Campaign("spring", "email", 2)


@pytest.fixture
def args(built: Built, tmp_path: Path) -> dict[str, Any]:
    """Arguments of the application on a copy of the shop's ledger."""
    shutil.copy(built.workspace.root / "ledger.db", tmp_path / "ledger.db")
    return {
        "workspace": str(built.workspace.root),
        "ledger_url": f"sqlite:///{tmp_path / 'ledger.db'}",
        "key_file": str(built.workspace.key_file),
        "clock_offset_s": (START + timedelta(days=DAYS, hours=1) - datetime.now(UTC)).total_seconds(),
        "unrecorded_consent": "granted",
        "llm": {"enabled": False},
    }


def open_ledger(built: Built, args: dict[str, Any]) -> Ledger:
    return Ledger.open(args["ledger_url"], key=load_or_create_key(built.workspace.key_file))


def users_file(folder: Path, users: list[Any]) -> Path:
    path = folder / "users.parquet"
    pq.write_table(pa.table({"user_id": users, "country": ["DE"] * len(users)}), path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_every_user_of_a_file_gets_a_logged_decision(
    built: Built, args: dict[str, Any], tmp_path: Path, workers: int
) -> None:
    users = [f"u{n}" for n in range(150)] + ["a stranger", "u7"]
    out, told = tmp_path / "out" / "decided.parquet", list[float]()
    counts = decide_users(
        users_file(tmp_path, users), out, args, MAILING, workers=workers, batch=40,
        progress=lambda share, _: told.append(share),
    )  # fmt: skip
    table = pq.read_table(out)
    assert table.schema.equals(OUTPUT)
    assert [path.name for path in out.parent.iterdir()] == ["decided.parquet"]
    assert (counts["users"], counts["decisions"], counts["problems"]) == (152, 152, 0)
    assert told == sorted(told)
    assert told[-1] == 1.0
    rows = table.to_pylist()
    first = {row["user_id"]: row for row in rows if row["position"] == 0}
    assert set(first) == set(users)
    ledger = open_ledger(built, args)
    pseudonyms = dict(zip(users, ledger.pseudonyms(users), strict=True))
    for row in rows:
        name = row["decision_id"] + (f".{row['position']}" if row["position"] else "")
        logged = ledger.decision(name)
        assert logged is not None
        assert (logged.action_id, logged.propensity) == (row["action_id"], row["propensity"])
        assert logged.pseudonym == pseudonyms[row["user_id"]]
        assert logged.request_id is None or row["user_id"] not in logged.request_id
    contacted = [row for row in rows if row["channel"] != "none"]
    assert counts["contacts"] == len(contacted) > 0
    assert all(row["headline"] and "{" not in row["headline"] for row in contacted)
    assert len({row["decision_id"] for row in rows if row["user_id"] == "u7"}) == 1, "in the file twice"
    status = ledger.budget(BRIEF)
    assert status.spent + status.reserved <= status.cap
    assert status.leased == 0, "nothing waits for the term of a lease that nobody has"
    ledger.close()


def test_the_same_campaign_again_decides_nothing_anew(
    built: Built, args: dict[str, Any], tmp_path: Path
) -> None:
    users = users_file(tmp_path, [f"u{n}" for n in range(40)])
    decide_users(
        users_file(tmp_path, [f"u{n}" for n in range(20)]), tmp_path / "a.parquet", args, MAILING, workers=0
    )
    users = users_file(tmp_path, [f"u{n}" for n in range(40)])
    decide_users(users, tmp_path / "b.parquet", args, MAILING, workers=0)
    before, after = (pq.read_table(tmp_path / name).to_pylist() for name in ("a.parquet", "b.parquet"))
    ids = {row["user_id"]: row["decision_id"] for row in before}
    assert all(ids[row["user_id"]] == row["decision_id"] for row in after if row["user_id"] in ids)
    assert all("repeated" in row["degraded"] for row in after if row["user_id"] in ids)
    other = Campaign("summer", "email", 2)
    decide_users(users, tmp_path / "c.parquet", args, other, workers=0)
    assert not {row["decision_id"] for row in pq.read_table(tmp_path / "c.parquet").to_pylist()} & set(
        ids.values()
    )


def test_users_that_are_none_are_told_and_hold_up_nobody(
    built: Built, args: dict[str, Any], tmp_path: Path
) -> None:
    counts = decide_users(
        users_file(tmp_path, ["u1", None, "", "x" * 300, "a\x00b", "u2"]),
        tmp_path / "o.parquet",
        args,
        MAILING,
        workers=0,
    )
    rows = pq.read_table(tmp_path / "o.parquet").to_pylist()
    problems = [row["problem"] for row in rows if row["problem"]]
    assert (counts["problems"], len(problems)) == (4, 4)
    assert all(problem.startswith("user_id: ") for problem in problems)
    assert {row["user_id"] for row in rows if row["decision_id"]} == {"u1", "u2"}


def test_numbers_of_a_csv_file_are_users(built: Built, args: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "users.csv"
    pcsv.write_csv(pa.table({"user_id": [17, 18]}), path)
    decide_users(path, tmp_path / "o.parquet", args, MAILING, workers=0)
    assert set(pq.read_table(tmp_path / "o.parquet")["user_id"].to_pylist()) == {"17", "18"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.parquet", None, "none.parquet does not exist"),
        ("users.json", b"{}", "is of no kind that is read; give .parquet, .pq, .csv"),
        ("users.csv", b"customer,country\n1,DE\n", "has no column 'user_id' \\(has customer, country\\)"),
        ("users.parquet", b"not parquet", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(
    args: dict[str, Any], tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        decide_users(tmp_path / name, tmp_path / "o.parquet", args, MAILING, workers=0)
    assert not (tmp_path / "o.parquet").exists()


def test_a_run_that_breaks_off_leaves_no_half_file(
    built: Built, args: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    users, calls = users_file(tmp_path, [f"u{n}" for n in range(60)]), list[int]()
    decide = DecideUsers.__call__

    def breaking(self: DecideUsers, table: pa.Table) -> pa.Table:
        calls.append(table.num_rows)
        if len(calls) == 2:
            raise OSError("the disk is full")
        return decide(self, table)

    monkeypatch.setattr(DecideUsers, "__call__", breaking)
    with pytest.raises(OSError, match="the disk is full"):
        decide_users(users, tmp_path / "o.parquet", args, MAILING, workers=0, batch=30)
    assert not (tmp_path / "o.parquet").exists()
    monkeypatch.undo()
    counts = decide_users(users, tmp_path / "o.parquet", args, MAILING, workers=0, batch=30)
    assert counts["decisions"] == 60
    ledger = open_ledger(built, args)
    made = [d for d in ledger.decision_outcomes()["decision_id"].to_pylist() if "." not in d]
    assert len(made) == 60, "who was decided for before keeps his decision"
    assert ledger.budget(BRIEF).leased == 0
    ledger.close()
