"""`qiance recommend --user`: a slate by a sequence model and the champion of a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from built_cases import Built, events, user_ids
from typer.testing import CliRunner

from qiance.artifacts.manifest import Artifact, load_manifest
from qiance.cli.main import app
from qiance.workspace import Workspace
from training.recommend.events import read_events
from training.recommend.fit import RecommendSettings
from training.recommend.train import train_recommender
from training.registry import find, make_champion, register

RUNNER = CliRunner()
SMALL = RecommendSettings(width=8, blocks=1, heads=1, length=8, epochs=1, batch=32)


@pytest.fixture(scope="module")
def run(built: Built, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Path]:
    """A copy of the run with its events and a champion, and a sequence model of them."""
    root = tmp_path_factory.mktemp("run") / "copy"
    shutil.copytree(built.workspace.root, root)
    workspace = Workspace(root)
    workspace.data.mkdir(exist_ok=True)
    pq.write_table(events(), workspace.data / "events.parquet")
    path = workspace.artifact("effect-model", built.model)
    register(Artifact(path, load_manifest(path)), workspace.tracking_url, "effect", metrics={})
    found = find(workspace.tracking_url, "effect", built.model)
    make_champion(workspace.tracking_url, found, by="ann", reason="first")
    purchases, _ = read_events(workspace.data / "events.parquet")
    train_recommender(purchases, root / "next", SMALL)
    return workspace, root / "next"


def slate(run: tuple[Workspace, Path], *more: str) -> dict[str, Any]:
    workspace, model = run
    base = ["recommend", "--model", str(model), "--run", str(workspace.root), *more]
    result = RUNNER.invoke(app, base)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def bought(user: str) -> set[str]:
    rows = events().to_pylist()
    return {row["item_id"] for row in rows if row["user_id"] == user and row["type"] == "purchase"}


def test_a_slate_adds_margin_and_leaves_out_what_was_bought(
    run: tuple[Workspace, Path], built: Built
) -> None:
    found = slate(run, "--user", "u3", "-n", "20", "--diversity", "0.5")
    assert (found["user"], found["champion"], found["cold"]) == ("u3", built.model, False)
    ids = [row["item_id"] for row in found["items"]]
    assert set(ids).isdisjoint(bought("u3"))
    assert len(ids) == min(20, found["retrieved"] - found["without_gain"])
    gains = [row["in_slate"] for row in found["items"]]
    assert gains == sorted(gains, reverse=True)
    turns: dict[str, int] = {}
    for row in sorted(found["items"], key=lambda one: -one["margin_added"]):
        assert row["margin_added"] > 0
        turn = turns[row["category"]] = turns.get(row["category"], -1) + 1
        assert row["in_slate"] == pytest.approx(row["margin_added"] * 0.5**turn, abs=0.02)


def test_what_is_out_of_stock_stays_out(run: tuple[Workspace, Path], tmp_path: Path) -> None:
    slates = ((user, slate(run, "--user", user, "-n", "20")["items"]) for user in user_ids()[:20])
    user, every = next((user, items) for user, items in slates if len(items) > 1)
    first, second = every[0]["item_id"], every[1]["item_id"]
    stock = tmp_path / "stock.csv"
    stock.write_text("item_id,stock\n" + f"{first},0\n{second},3\n")
    assert [row["item_id"] for row in slate(run, "--user", user, "--stock", str(stock))["items"]] == [second]
    stock.write_text(f"item_id,stock\n{first},many\n")
    base = ["recommend", "--model", str(run[1]), "--run", str(run[0].root), "--user", "u3"]
    refused = RUNNER.invoke(app, [*base, "--stock", str(stock)])
    assert refused.exit_code != 0
    assert "stock: 'many' is no number" in refused.output + str(refused.exception)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--user", "nobody"), "has nothing of user 'nobody'"),
        (("i1", "--user", "u3"), "give items or --user, not both"),
        (("--user", "u3", "--run", "nowhere"), "holds no run"),
    ],
)
def test_what_is_wrong_is_said(run: tuple[Workspace, Path], more: tuple[str, ...], message: str) -> None:
    base = ["recommend", "--model", str(run[1]), "--run", str(run[0].root), *more]
    result = RUNNER.invoke(app, base)
    assert result.exit_code != 0
    assert message in result.output + str(result.exception)
