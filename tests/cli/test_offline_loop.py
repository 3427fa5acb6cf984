"""The offline loop from a log to its report: on planted uplift, and on the real sets."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from offline_cases import planted
from rich.console import Console

from qiance.cli.offline import run_offline
from qiance.cli.offline.conductor import judge
from qiance.cli.offline.learn import train_models
from qiance.cli.offline.sources import SOURCES
from qiance.cli.offline.study import prepare_study
from qiance.cli.stages import Stages
from qiance.report import RunReport, write_report
from qiance.settings import load_settings
from qiance.workspace import Workspace

ROOT = Path(__file__).parents[2]
HILLSTROM = ROOT.parent / "shared" / "data" / "hillstrom" / "hillstrom.csv.gz"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> RunReport:
    """Of a planted log, trained in this process."""
    source = SOURCES["mapped"]
    settings = load_settings(None, {}, {"training": {"heads": 4, "hidden": [32]}})
    workspace = Workspace(tmp_path_factory.mktemp("run"))
    table = planted(8_000, labels=("click", "conversion", "sales"))
    study = prepare_study(table, ("click", "conversion", "sales"), 0)
    stages = Stages(Console(quiet=True))
    with stages.stage("train") as stage:
        learned = train_models(workspace, study, settings, stage, workers=0)
    document = judge(workspace, study, learned, source, settings, stages)
    write_report(document, workspace.root)
    return document


def test_the_proposed_policy_is_better_than_the_log_and_than_any_single_arm(report: RunReport) -> None:
    assert report.kind == "offline"
    assert not report.simulated
    gate = report.policy.gate
    assert gate is not None
    assert gate.passed
    assert gate.low is not None
    assert gate.low > 0
    # The truth of the best arm per customer is 0.3; of the better single arm 0.2.
    assert report.policy.predicted_low is not None
    assert report.policy.predicted_low > 0.22
    assert report.policy.predicted_high is not None
    assert report.policy.predicted_high < 0.34
    assert report.policy.measured is None


def test_every_figure_of_the_log_is_there(report: RunReport) -> None:
    offline = report.offline
    assert offline is not None
    assert offline.chosen == "best arm per customer"
    assert [arm.arm for arm in offline.logged.arms] == ["none", "shoes", "hats"]
    assert sum(arm.n for arm in offline.logged.arms) == offline.logged.n == 8_000
    assert set(offline.logged.arms[0].rates) == {"click", "conversion", "sales"}
    assert [p.name for p in offline.policies][-3:] == [
        f"contact {share}% by predicted uplift" for share in (10, 30, 50)
    ]
    for policy in offline.policies:
        assert {e.estimator for e in policy.estimates} == {"sndr", "snipw", "ipw"}
        assert set(policy.diagnostics) >= {"conversion", "sales", "margin", "effective_sample_size"}


def test_strategies_are_readable_and_checked_off_policy(report: RunReport) -> None:
    kinds = {(s.kind.value, s.actions[0].action_id) for s in report.strategies}
    assert kinds >= {("content", "shoes"), ("content", "hats"), ("ad", "shoes"), ("ad", "hats")}
    for strategy in report.strategies:
        if strategy.kind.value == "ad":
            assert "age" in strategy.audience.rule
            assert 0 < strategy.reach < 8_000
        assert any(reason.startswith("Off-policy on") for reason in strategy.reasons)
        assert strategy.effect is not None
        uplift = strategy.effect.uplift
        assert uplift.low is not None
        assert uplift.value is not None
        assert uplift.high is not None
        assert uplift.low < uplift.value < uplift.high


def test_the_model_is_compared_with_the_baselines(report: RunReport) -> None:
    assert report.models.effect is not None
    scores = {score.name: score for score in report.models.effect.scores["click"]}
    assert {"population mean", "linear regression", "LightGBM", "effect model"} <= set(scores)
    ours, mean = scores["effect model"].log_loss, scores["population mean"].log_loss
    assert ours is not None
    assert mean is not None
    assert ours < mean
    assert not any("does not beat" in note for note in report.notes)


def run(tmp_path: Path, **data: str) -> dict[str, Any]:
    folder = run_offline(load_settings(None, {}, {"data": data}), tmp_path, Console(quiet=True))
    assert (tmp_path / "latest").resolve() == folder
    assert (folder / "report.html").stat().st_size > 10_000
    document: dict[str, Any] = json.loads((folder / "report.json").read_text())
    RunReport.model_validate(document)
    assert document["simulated"] is False
    return document


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not HILLSTROM.is_file(), reason="the Hillstrom file is not beside the repository")
def test_hillstrom(tmp_path: Path) -> None:
    found = run(tmp_path, source="hillstrom", path=str(HILLSTROM))
    arms = {arm["arm"]: arm for arm in found["offline"]["logged"]["arms"]}
    assert arms["No E-Mail"]["rates"]["click"] == pytest.approx(0.106, abs=0.001)
    assert arms["Mens E-Mail"]["rates"]["click"] == pytest.approx(0.183, abs=0.001)
    # The better e-mail for everybody reaches 18.3 % of visits: less would be a policy made worse.
    assert found["policy"]["predicted"] == pytest.approx(0.183, abs=0.008)
    assert found["policy"]["gate"]["passed"]
    scores = {s["name"]: s["log_loss"] for s in found["models"]["effect"]["scores"]["click"]}
    assert scores["effect model"] < scores["population mean"]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(find_spec("obp") is None, reason="the package obp is not installed")
def test_open_bandit(tmp_path: Path) -> None:
    found = run(tmp_path, source="open-bandit")
    assert found["offline"]["logged"]["n"] == 10_000
    assert len(found["offline"]["logged"]["arms"]) == 80
    assert found["currency"] == "JPY"
    assert any("Only 38 of 10,000 rows have click" in note for note in found["notes"])
    # A few dozen clicks do not prove a gain.
    assert not found["policy"]["gate"]["passed"]
    low, high = found["policy"]["predicted_low"], found["policy"]["predicted_high"]
    assert low < 0.0038 < high


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_example_of_a_shop(tmp_path: Path) -> None:
    found = run(
        tmp_path,
        source="mapped",
        path=str(ROOT / "examples" / "shop_responses.jsonl"),
        mapping=str(ROOT / "examples" / "shop_responses.map.yaml"),
    )
    assert found["currency"] == "EUR"
    assert not found["policy"]["gate"]["passed"]
