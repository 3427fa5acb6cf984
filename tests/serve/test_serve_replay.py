"""`qiance replay` on what the service logged: the same numbers, or what differs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from built_cases import Built, user_ids
from serve_cases import Shop, open_shop
from sqlalchemy import text
from typer.testing import CliRunner

from qiance.cli.main import app
from qiance.cli.replay import replayer
from qiance.workspace import Workspace
from serve.answers import Answer
from serve.schemas import DecisionRequest
from serve.slates import Call

CALLS = 640


@pytest.fixture(scope="module")
def decided(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Shop, Path, list[str]]]:
    """A shop that answered, its workspace, and the ids of the decisions it logged."""
    folder = tmp_path_factory.mktemp("replayed")
    with open_shop(built, folder, epsilon=0.3) as shop:
        random, users = np.random.default_rng(0), list(user_ids())
        at = shop.gateway.args.now()
        calls = [
            Call.of(
                DecisionRequest(user_id=str(random.choice([*users, "stranger"])), surface="home", n=2), at
            )
            for _ in range(CALLS)
        ]
        answers = [
            answer for n in range(0, CALLS, 32) for answer in shop.service.engine.decide(calls[n : n + 32])
        ]
        assert all(isinstance(answer, Answer) for answer in answers)
        made = shop.ledger.decision_outcomes()["decision_id"].to_pylist()
        root = folder / "workspace"
        for part in ("snapshot", "artifacts", "frames", "secrets"):
            shutil.copytree(built.workspace.root / part, root / part)
        (root / "ledger.db").symlink_to(folder / "ledger.db")
        yield shop, root, made


def run(root: Path, decision_id: str, *more: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["replay", decision_id, "--workspace", str(root), *more])
    return done.exit_code, done.output


def test_everything_the_service_logged_replays(decided: tuple[Shop, Path, list[str]]) -> None:
    shop, root, made = decided
    again = replayer(Workspace(root), shop.ledger)
    found = [again.replay(decision) for name in made if (decision := shop.ledger.decision(name))]
    assert len(found) >= 1_000, "positions too"
    assert {what for one in found for what in one.differs} == set()
    assert all(one.unscored == "" for one in found)
    assert max(one.relative for one in found) <= 1e-5
    assert any(one.action_id != "control" for one in found)


def test_the_command_tells_it_in_words_and_as_json(decided: tuple[Shop, Path, list[str]]) -> None:
    shop, root, made = decided
    name = next(n for n in made if (d := shop.ledger.decision(n)) and d.chosen)
    code, told = run(root, name)
    assert (code, told.splitlines()[0]) == (0, f"{name}: same")
    code, told = run(root, name, "--json")
    document, logged = json.loads(told), shop.ledger.decision(name)
    assert logged is not None
    assert (code, document["status"], document["differs"]) == (0, "same", [])
    assert document["choice"] == {"logged": logged.action_id, "replayed": logged.action_id}
    assert document["scores"]["largest_relative_difference"] <= 1e-5
    chosen = document["chosen"]
    assert chosen["score_logged"] == pytest.approx(
        chosen["value"] - logged.shadow_price * chosen["cost"], abs=1e-3
    )


def test_a_changed_row_is_found(decided: tuple[Shop, Path, list[str]]) -> None:
    shop, root, made = decided
    rows = [decision for name in made if (decision := shop.ledger.decision(name))]
    one = next(d for d in rows if d.chosen)
    other = next(d for d in rows if d.user_row != one.user_row)

    def change(column: str, value: object) -> None:
        with shop.ledger.write() as connection:
            connection.execute(
                text(f"UPDATE decisions SET {column} = :value WHERE tenant_id = :t AND decision_id = :id"),
                {"value": value, "t": shop.ledger.tenant, "id": one.decision_id},
            )

    for column, value, before, told in (
        ("user_row", other.user_row, one.user_row, "differs: scores"),
        ("propensity", one.propensity / 2, one.propensity, "differs: propensity"),
        ("chosen", 0, one.chosen, "differs: choice"),
    ):
        change(column, value)
        code, said = run(root, one.decision_id)
        change(column, before)
        assert code == 1
        assert told in said.splitlines()[0]
    assert run(root, one.decision_id)[0] == 0


def test_what_is_not_there_is_a_clear_error(decided: tuple[Shop, Path, list[str]], tmp_path: Path) -> None:
    shop, root, made = decided
    name = next(n for n in made if (d := shop.ledger.decision(n)) and d.items)
    assert run(root, "nobody") == (1, "error: decision_id: 'nobody' is not a logged decision of 'default'\n")
    assert "error: workspace: " in run(tmp_path / "no", name)[1]
    for part, message in (
        ("frames", "error: items: frame "),
        ("artifacts", "error: effect-model: version "),
        ("snapshot", "has no snapshot"),
    ):
        bare = tmp_path / part
        shutil.copytree(root, bare, ignore=shutil.ignore_patterns(part, "ledger.db"))
        (bare / "ledger.db").symlink_to((root / "ledger.db").resolve())
        code, told = run(bare, name)
        assert (code, message in told) == (1, True), told


def test_decisions_by_bfloat16_replay_in_bfloat16(built: Built, tmp_path: Path) -> None:
    """In float32 they differ, by no more than the command says that bfloat16 rounds."""
    root = tmp_path / "workspace"
    with open_shop(built, tmp_path, epsilon=0.3, predictor={"dtype": "bfloat16"}) as shop:
        at, users = shop.gateway.args.now(), shop.users(held=False)[:32]
        answers = shop.service.engine.decide([Call(user, "home", at, None, 1, None) for user in users])
        for part in ("snapshot", "artifacts", "frames", "secrets"):
            shutil.copytree(built.workspace.root / part, root / part)
    (root / "ledger.db").symlink_to(tmp_path / "ledger.db")
    exact = []
    for answer in answers[:8]:
        assert isinstance(answer, Answer)
        code, told = run(root, answer.decision_id)
        exact.append(code)
        assert ("add --dtype bfloat16" in told) == (code == 1)
        code, told = run(root, answer.decision_id, "--dtype", "bfloat16")
        assert (code, "products in bfloat16" in told) == (0, True)
    assert 1 in exact
    assert isinstance(answers[0], Answer)
    code, told = run(root, answers[0].decision_id, "--dtype", "float16")
    assert (code, told) == (1, "error: dtype: 'float16' is not one of float32, bfloat16\n")


def test_an_erased_decision_says_so(built: Built, tmp_path: Path) -> None:
    with open_shop(built, tmp_path) as shop:
        answer = shop.decide("u0")
        shop.ledger.erase("u0", by="test")
    root = tmp_path / "w"
    root.mkdir()
    for part in ("snapshot", "artifacts", "secrets"):
        shutil.copytree(built.workspace.root / part, root / part)
    shutil.copy(tmp_path / "ledger.db", root / "ledger.db")
    assert run(root, answer["decision_id"]) == (0, f"{answer['decision_id']}: erased\n")
    code, told = run(root, answer["decision_id"], "--json")
    assert (code, json.loads(told)) == (0, {"decision_id": answer["decision_id"], "status": "erased"})
