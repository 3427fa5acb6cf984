"""Files of a workspace: rows of the user go, everything else stays as it was, also across crashes."""

from __future__ import annotations

import fcntl
import json
import threading
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from privacy_cases import PROJECT, SETTINGS, USERS, age, build, online, payload, words_in

from qiance.data.ingest import IngestReport, fingerprint_all, recorded
from qiance.data.store import fingerprint_table
from qiance.privacy import (
    Swap,
    WorkspaceBusyError,
    erase_packed_sqlite,
    recover,
    workspace_lock,
    workspace_stores,
)
from qiance.privacy.parquet import rows_of, write_without
from qiance.privacy.snapshot import SnapshotStore
from qiance.privacy.stores import LeftoverStore, TablesStore
from qiance.workspace import Snapshot, Workspace
from training.promotion import read_held_out, write_held_out

GONE = USERS[1]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return build(tmp_path)


def test_every_file_of_the_workspace_lets_the_user_go(workspace: Workspace) -> None:
    words = [GONE, payload(GONE)]
    files = {file for file, _ in words_in(workspace.root, words)}
    assert {
        "data/events.parquet", "data/users.parquet", "data/quarantine/events.csv", "snapshot/users.parquet",
        "features/data/user_profile.parquet", "features/.work/checked-1/part.arrow",
        "features/data/.user_profile.part", "features/online.db",
    } == {file.removesuffix("-wal") for file in files}  # fmt: skip
    kept = words_in(workspace.root, [USERS[5], payload(USERS[5])])
    removed = {store.name: store.erase([GONE]) for store in workspace_stores(workspace)}
    assert removed == {"data": 50 + 1 + 3, "features": 2, "snapshot": 1 + 3, "training": 0, "held_out": 0}
    assert erase_packed_sqlite(workspace.features / "online.db", PROJECT, GONE) == 3
    assert words_in(workspace.root, words) == set()
    still = {file.removesuffix("-wal") for file, _ in words_in(workspace.root, [USERS[5], payload(USERS[5])])}
    assert still == {file.removesuffix("-wal") for file, _ in kept}


def test_rows_that_models_are_compared_on_let_the_user_go(workspace: Workspace) -> None:
    write_held_out(workspace.held_out / "effect.parquet", pa.table({"user_id": [GONE, USERS[5], GONE]}), "s")
    removed = {store.name: store.erase([GONE]) for store in workspace_stores(workspace)}
    assert removed["held_out"] == 2
    table, split = read_held_out(workspace.held_out / "effect.parquet")
    assert table["user_id"].to_pylist() == [USERS[5]]
    assert split == "s", "the rows can still be compared on"


def test_the_rest_of_the_tables_is_untouched(workspace: Workspace) -> None:
    before = pq.read_table(workspace.data / "events.parquet")
    items = (workspace.data / "items.parquet").stat().st_mtime_ns
    TablesStore("data", workspace.data).erase([GONE])
    after = pq.read_table(workspace.data / "events.parquet")
    assert after.equals(before.filter(pa.compute.not_equal(before["user_id"], GONE)))
    assert (workspace.data / "items.parquet").stat().st_mtime_ns == items
    assert "-1" not in (workspace.data / "quarantine" / "events.csv").read_text(), "of the same bad row"
    assert USERS[2] in (workspace.data / "quarantine" / "events.csv").read_text()


def test_the_manifest_vouches_for_what_is_there_now(workspace: Workspace) -> None:
    assert TablesStore("data", workspace.data).erase([GONE])
    report = recorded(workspace.data, SETTINGS)
    assert isinstance(report, IngestReport), "the next run does not read the source again"
    assert report.rows == {"events": 39 * 50, "users": 39, "items": 2}
    prints = {
        name: fingerprint_table(pq.read_table(workspace.data / f"{name}.parquet")) for name in report.rows
    }
    assert report.fingerprint == fingerprint_all(prints)


def test_who_is_not_there_changes_no_file(workspace: Workspace) -> None:
    stores = workspace_stores(workspace)
    for store in stores:
        store.erase([GONE])
    before = {path: path.stat().st_mtime_ns for path in workspace.root.rglob("*") if path.is_file()}
    assert [store.erase([GONE, "user-00", "nobody"]) for store in stores] == [0, 0, 0, 0, 0]
    assert {path: path.stat().st_mtime_ns for path in workspace.root.rglob("*") if path.is_file()} == before
    assert set(USERS) - {GONE} == stores[0].users() == stores[1].users() == stores[2].users()


def test_the_snapshot_stays_in_step(workspace: Workspace) -> None:
    SnapshotStore(workspace.snapshot).erase([USERS[0], USERS[7], USERS[39]])
    loaded = Snapshot.load(workspace.snapshot)
    kept = [number for number in range(40) if number not in (0, 7, 39)]
    assert loaded.users.user_ids == tuple(USERS[number] for number in kept)
    for values in (*loaded.users.columns.values(), loaded.user_category["category_share"][:, 2]):
        assert values.tolist() == kept


def test_a_snapshot_out_of_step_is_not_made_worse(workspace: Workspace) -> None:
    file = workspace.snapshot / "user_category.parquet"
    pq.write_table(pq.read_table(file).slice(1), file)
    with pytest.raises(
        ValueError, match=r"user_category\.parquet has 119 rows for 40 users; write the snapsh"
    ):
        SnapshotStore(workspace.snapshot).erase([GONE])
    assert GONE in SnapshotStore(workspace.snapshot).users()


@pytest.mark.parametrize("renamed", [0, 1, 2])
def test_a_crash_while_files_are_replaced_is_made_good(workspace: Workspace, renamed: int) -> None:
    """The renaming is stopped after `renamed` files; whoever takes the lock next finishes it."""
    real, left = Path.replace, [renamed + 1]

    def crash(self: Path, target: Path) -> Path:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        return real(self, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", crash)
        if renamed == 2:  # all files are renamed, the list is not yet removed
            patch.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            SnapshotStore(workspace.snapshot).erase([GONE])
    with workspace_lock(workspace.root):
        pass
    loaded = Snapshot.load(workspace.snapshot)
    assert GONE not in loaded.users.user_ids
    assert loaded.user_category["category_share"].shape == (39, 3)
    assert [path for path in workspace.snapshot.iterdir() if path.name.startswith(".")] == []


def test_a_crash_before_the_list_leaves_everything_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    Swap(tmp_path).stage(tmp_path / "a").write_text("half")
    recover(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_a_preprocessing_that_runs_is_not_disturbed(workspace: Workspace) -> None:
    with (workspace.features / ".work" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="unavailable"):
            TablesStore("features", workspace.features).erase([GONE])
    assert TablesStore("features", workspace.features).erase([GONE]) == 2


def test_one_rewrites_at_a_time(tmp_path: Path) -> None:
    inside, most = [0], [0]

    def work() -> None:
        with workspace_lock(tmp_path, patience_s=20.0):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    busy = pytest.raises(WorkspaceBusyError, match="is being rewritten by another process; try again")
    with workspace_lock(tmp_path), busy, workspace_lock(tmp_path, patience_s=0.2):
        pass


def test_leftovers_of_trainings_go_when_nobody_writes_them(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows.npz").write_bytes(b"x")
    for path in (tmp_path / "old" / "rows.npz", tmp_path / "old"):
        age(path, timedelta(days=2))
    assert LeftoverStore(tmp_path).erase([GONE]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    assert LeftoverStore(tmp_path / "none").erase([GONE]) == 0


def test_a_manifest_that_cannot_be_read_is_left_alone(workspace: Workspace) -> None:
    (workspace.data / "manifest.json").write_text("{")
    assert TablesStore("data", workspace.data).erase([GONE]) == 54
    assert recorded(workspace.data, SETTINGS) is None
    (workspace.data / "manifest.json").write_text(json.dumps({"files": []}))
    assert TablesStore("data", workspace.data).erase([USERS[2]]) == 52


def test_the_online_store_is_rewritten_although_others_hold_it_open(tmp_path: Path) -> None:
    rows = online(tmp_path / "online.db")
    assert erase_packed_sqlite(tmp_path / "online.db", PROJECT, GONE) == 3
    assert words_in(tmp_path, [GONE, payload(GONE)]) == set()
    rows.close()
    assert erase_packed_sqlite(tmp_path / "none.db", PROJECT, GONE) == 0


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ids=st.lists(st.sampled_from(("a", "b", "c", None)), max_size=40),
    gone=st.sets(st.sampled_from(("a", "b", "d")), min_size=1),
    group=st.integers(1, 9),
)
def test_exactly_the_rows_of_the_users_go(
    tmp_path: Path, ids: list[str | None], gone: set[str], group: int
) -> None:
    path = tmp_path / "t.parquet"
    table = pa.table({"user_id": pa.array(ids, pa.string()), "n": pa.array(range(len(ids)), pa.int64())})
    pq.write_table(table, path, row_group_size=group)
    mask = rows_of(path, gone)
    write_without(path, tmp_path / "out.parquet", mask)
    kept = pq.read_table(tmp_path / "out.parquet")
    assert kept["n"].to_pylist() == [n for n, user in enumerate(ids) if user not in gone]
    assert kept.schema.equals(table.schema)
    assert int(np.sum(mask)) == len(ids) - kept.num_rows
