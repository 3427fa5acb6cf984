"""Promotion and rollback by command: tested, recorded, verified, and followed by the version row."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from qiance.artifacts import Artifact, EffectModel, write_artifact
from qiance.artifacts.effect import KIND, TASKS
from qiance.cli.main import app
from qiance.domain import Purpose
from qiance.features.columns import EFFECT_SCHEMA
from qiance.features.encoder import Encoder, NumericCode
from qiance.ledger import Ledger
from qiance.settings import Settings
from training.effect.export import effect_files
from training.effect.network import EffectNetwork, NetworkConfig
from training.promotion import split_name, write_held_out
from training.registry import CHAMPION, changes, current, register

RUNNER = CliRunner()
ROWS = 2_400
HELD_OUT = Path("held_out/effect.parquet")
ARTIFACTS: dict[str, Artifact] = {}


@dataclass
class Shop:
    """A workspace with held-out rows, whose outcomes were drawn from what the model `good` says."""

    root: Path
    ledger: Ledger

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.root / 'mlflow.db'}"

    def add(self, name: str, split: str = split_name(0)) -> str:
        """Register an artifact as challenger; its version."""
        source = ARTIFACTS[name]
        path = self.root / "artifacts" / source.path.name
        if not path.exists():
            shutil.copytree(source.path, path)
        artifact = Artifact(path, source.manifest)
        register(artifact, self.uri, "effect", metrics={"click_auc": 0.7}, split=split)
        return artifact.version

    def run(self, *words: str, code: int = 0) -> str:
        result = RUNNER.invoke(app, ["models", *words, "-w", str(self.root)])
        assert result.exit_code == code, result.output + repr(result.exception)
        return " ".join(result.output.split())

    def fails(self, *words: str) -> str:
        result = RUNNER.invoke(app, ["models", *words, "-w", str(self.root)])
        assert isinstance(result.exception, ValueError), result.output
        return str(result.exception)

    @property
    def served(self) -> str:
        return self.ledger.versions().model


def write(folder: Path, shift: float, width: float) -> Artifact:
    """A model of random weights whose log odds of a click are off by `shift`."""
    codes = tuple(NumericCode(20.0, 15.0, False) for _ in EFFECT_SCHEMA.numeric)
    encoder = Encoder(EFFECT_SCHEMA, codes, (("email",), ("soup",)))
    torch.manual_seed(0)
    rates = {"click": 0.3, "conversion": 0.1}
    sizes = (encoder.num_width, encoder.cardinalities, TASKS, True, 3, (8,), rates)
    network = EffectNetwork(NetworkConfig(*sizes, 900.0, 100.0, 50.0))
    with torch.no_grad():
        network.bias[:, 0] += shift
        num, cat = torch.randn(4, encoder.num_width), torch.zeros(4, 2, dtype=torch.long)
    return write_artifact(
        folder,
        KIND,
        effect_files(network.eval(), encoder, num.numpy(), cat.numpy(), width, {"click": width}),
        metrics={},
        feature_service=EFFECT_SCHEMA.service,
        schema_hash=EFFECT_SCHEMA.hash,
        data_fingerprint="d",
    )


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace without models: making databases and models takes longer than the tests."""
    root = tmp_path_factory.mktemp("template")
    for name, shift, width in (("good", 0.0, 1.0), ("wide", 0.0, 1.5), ("bad", 1.0, 1.0)):
        ARTIFACTS[name] = write(root.parent / "models", shift, width)
    ledger = Ledger.from_settings(Settings(), root)
    users = [f"u{n // 4}" for n in range(ROWS)]
    ledger.set_consents(sorted(set(users)), dict.fromkeys(Purpose, True), "test")
    ledger.close()
    assert current(f"sqlite:///{root / 'mlflow.db'}", "effect") is None
    random = np.random.default_rng(0)
    columns = {name: pa.array(random.normal(20, 15, ROWS)) for name in EFFECT_SCHEMA.numeric}
    columns |= {"channel": pa.array(["email"] * ROWS), "category": pa.array(["soup"] * ROWS)}
    drawn = EffectModel.load(ARTIFACTS["good"].path).predict(EFFECT_SCHEMA.columns(pa.table(columns)))
    click, conversion = (x.mean(axis=1) for x in (drawn.click, drawn.conversion))
    clicked = random.random(ROWS) < click
    bought = clicked & (random.random(ROWS) < conversion / click)
    labels = {"click": clicked.astype(int), "conversion": bought.astype(int)}
    rest = {"user_id": pa.array(users), "at": pa.array(np.full(ROWS, 2_000_000_000))}
    write_held_out(root / HELD_OUT, pa.table({**columns, **labels, **rest}), split_name(0))
    (root / "data").mkdir()
    people = {"user_id": sorted(set(users)), "age": pa.array(["young", "old", None] * 200)}
    pq.write_table(pa.table(people), root / "data" / "users.parquet")
    return root


@pytest.fixture
def shop(template: Path, tmp_path: Path) -> Iterator[Shop]:
    root = tmp_path / "run"
    shutil.copytree(template, root)
    ledger = Ledger.from_settings(Settings(), root)
    yield Shop(root, ledger)
    ledger.close()


def test_from_challenger_to_champion_and_back(shop: Shop) -> None:
    first = shop.add("good")
    assert "nothing to compare with" in shop.run("promote", "--by", "ann")
    assert shop.served == first
    second = shop.add("wide")
    serial = shop.ledger.versions().serial
    assert "not worse" in shop.run("compare")
    assert shop.served == first, "comparing changes nothing"
    shop.run("promote", "effect", second, "--by", "bob", "--reason", "wider")
    assert shop.served == second
    assert shop.ledger.versions().serial > serial
    assert first in shop.run("rollback", "--by", "ann", "--reason", "complaints")
    assert shop.served == first
    champion = current(shop.uri, "effect", CHAMPION)
    assert champion is not None
    assert champion.artifact_version == first
    log = changes(shop.uri, "effect")
    assert [(c.action, c.artifact_version, c.by, c.override) for c in log] == [
        ("promote", first, "ann", False),
        ("promote", second, "bob", False),
        ("rollback", first, "ann", False),
    ]  # fmt: skip
    assert [c.reason for c in log[1:]] == ["wider", "complaints"]
    assert "first champion" in shop.fails("rollback")
    shown = shop.run("show")
    assert "bob: promote version 2" in shown
    assert "click_auc 0.7000" in shown


def test_a_worse_model_needs_a_name_and_a_reason(shop: Shop) -> None:
    first = shop.add("good")
    shop.run("promote")
    worse = shop.add("bad")
    assert "may be worse: click: log loss" in shop.run("compare", code=1)
    output = shop.run("promote", code=1)
    assert "--override-by NAME --reason TEXT" in output
    assert shop.served == first
    assert shop.run("promote", "--override-by", "cyd", code=2)
    assert shop.served == first
    shop.run("promote", "--override-by", "cyd", "--reason", "the log is wrong")
    assert shop.served == worse
    last = changes(shop.uri, "effect")[-1]
    assert (last.by, last.reason, last.override) == ("cyd", "the log is wrong", True)
    listed = json.loads(RUNNER.invoke(app, ["models", "list", "--json", "-w", str(shop.root)]).output)
    assert [(one["version"], one["aliases"]) for one in listed] == [
        ("2", ["challenger", "champion"]), ("1", [])
    ]  # fmt: skip
    assert json.loads(listed[0]["tags"]["qiance.promotion_test"])["passed"] is False


def test_the_files_of_the_one_put_back_are_checked(shop: Shop) -> None:
    shop.add("good")
    shop.run("promote")
    second = shop.add("wide")
    shop.run("promote")
    (path,) = (one.path for one in [current(shop.uri, "effect")] if one is not None)
    assert second in path.name
    first = next(p for p in (shop.root / "artifacts").iterdir() if second not in p.name)
    (first / "effect.json").write_text("{}")
    assert "file 'effect.json' was changed" in shop.fails("rollback")
    assert shop.served == second


def test_rows_that_it_may_have_been_trained_on_are_refused(shop: Shop) -> None:
    shop.add("good")
    shop.run("promote")
    shop.add("wide", split=split_name(7))
    assert "its training held out users by hash, seed 7" in shop.fails("compare")
    (shop.root / HELD_OUT).unlink()
    assert "no held-out rows are kept here" in shop.fails("compare")


def test_who_does_not_agree_to_learning_is_not_compared_on(shop: Shop) -> None:
    shop.add("good")
    shop.ledger.set_consents(["u0", "u1"], {Purpose.LEARNING: False}, "test")
    shop.run("promote")
    report = json.loads(next((shop.root / "promotion").glob("*.json")).read_text())
    assert report["test"]["rows"] == ROWS - 8


def test_a_protected_group_blocks_and_is_reported(shop: Shop, tmp_path: Path) -> None:
    config = tmp_path / "shop.yaml"
    config.write_text("promotion: {protected: [age], max_gap: 0.05}")
    table = pq.read_table(shop.root / HELD_OUT)
    users = pq.read_table(shop.root / "data" / "users.parquet")
    old = users.filter(pa.compute.equal(users["age"], "old"))["user_id"]
    is_old = pa.compute.is_in(table["user_id"], value_set=old.combine_chunks())
    never = pa.compute.if_else(is_old, 0, table["click"])
    table = table.set_column(table.column_names.index("click"), "click", never)
    write_held_out(shop.root / HELD_OUT, table, split_name(0))
    shop.add("good")
    output = shop.run("promote", "-c", str(config), code=1)
    assert "unfair: click: age 'old'" in output
    assert shop.served == "none"
    report = json.loads(next((shop.root / "promotion").glob("*.json")).read_text())
    groups = {one["group"]: one for one in report["fairness"]["click"]["groups"]["age"]}
    assert set(groups) == {"young", "old", "None"}
    assert groups["old"]["gap_low"] > 0.05
    allowed = "promotion: {protected: [age, shoe_size], max_gap: 1.0, max_depth_gap: %s}"
    deeper = pa.array(np.where(np.asarray(is_old), 0.4, 0.1))
    table = table.set_column(table.column_names.index("depth"), "depth", deeper)
    write_held_out(shop.root / HELD_OUT, table, split_name(0))
    config.write_text(allowed % 0.05)
    output = shop.run("promote", "-c", str(config), code=1)
    assert "unfair: click: age 'old': offer depth 0.4" in output
    assert "not audited by 'shoe_size': users have age" in output
    report = json.loads(next((shop.root / "promotion").glob("*.json")).read_text())
    assert report["fairness"]["click"]["thresholds"]["max_depth_gap"] == 0.05
    assert report["notes"] == ["not audited by 'shoe_size': users have age"]
    config.write_text(allowed % 0.5)
    assert "nothing to compare with" in shop.run("promote", "-c", str(config))
    config.write_text("promotion: {protected: [depth]}")
    assert "'depth' is a feature that the model sees" in shop.fails("compare", "-c", str(config))
    config.write_text("promotion: {protected: [shoe_size]}")
    assert "'shoe_size' is not among the users' age" in shop.fails("promote", "-c", str(config))


def test_mistakes_are_named(shop: Shop, tmp_path: Path) -> None:
    shop.add("good")
    assert "version '9' is not registered" in shop.fails("show", "effect", "9")
    assert "version 'champion' is not registered" in shop.fails("compare")
    assert "nothing is registered under this name" in shop.fails("rollback", "nobody")
    assert "has no champion" in shop.fails("rollback")
    result = RUNNER.invoke(app, ["models", "list", "-w", str(tmp_path / "nowhere")])
    assert "holds no registry" in str(result.exception)
