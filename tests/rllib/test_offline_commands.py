"""The commands about a log, one after the other; in a file without a cluster, since each starts its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner


@pytest.mark.slow
def test_the_commands_lead_from_a_log_to_a_policy_and_on(tmp_path: Path) -> None:
    from qiance.cli.main import app

    runner, path, out = CliRunner(), tmp_path / "log.parquet", tmp_path / "out"
    made = ["train", "planning-log", str(path), "--environment", "promotion", "--episodes", "200"]
    assert runner.invoke(app, made).exit_code == 0
    learn = ["train", "planning-offline", str(path), "--environment", "promotion", "--iterations", "3"]
    result = runner.invoke(app, [*learn, "-a", "bc", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "imitation of the running policy" in result.output
    [policy] = out.glob("planning-policy-*")
    online = ["train", "planning", "--environment", "promotion", "--start", str(policy), "--iterations", "1"]
    result = runner.invoke(app, [*online, "--envs", "8", "--out", str(tmp_path / "online")])
    assert result.exit_code == 0, result.output
    result = runner.invoke(app, [*learn, "-a", "cql", "--out", str(tmp_path / "cql")])
    assert result.exit_code in (0, 1), result.output
    assert ("Not kept" in result.output) == (result.exit_code == 1)
