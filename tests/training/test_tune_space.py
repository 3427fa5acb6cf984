"""The search space and configurations: what is read, and what is said of mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tune_cases import written
from typer.testing import CliRunner

from qiance.cli.main import app
from qiance.settings_sources import SettingsError
from training.response.config import apply_parameters, load_parameters, write_parameters
from training.response.members import ResponseSettings
from training.tune.response_space import load_space
from training.tune.search import open_studies


def test_the_packaged_space_holds_the_defaults() -> None:
    space = load_space()
    assert list(space.models) == ["network", "trees"]
    assert space.decode("network", space.defaults("network")[0]) == {
        "learning_rate": 3e-3, "weight_decay": 0.1, "dropout": 0.1, "batch_size": 256, "hidden": [64, 32],
        "embedding": 16,
    }  # fmt: skip
    assert len(space.defaults("network")) == 1
    middle, small = (space.decode("trees", drawn) for drawn in space.defaults("trees"))
    assert middle == {"leaves": 16, "min_rows": 50, "learning_rate": 0.05, "feature_share": 0.7}
    assert small == {**middle, "leaves": 4}


def test_a_default_outside_of_a_range_is_moved_to_its_end(tmp_path: Path) -> None:
    penalty = {"kind": "loguniform", "low": 0.001, "high": 10.0}
    space = load_space(written(tmp_path, {"trees": {"l2": penalty}}))
    assert space.defaults("trees") == [{"l2": 0.001}]


def test_whatever_is_drawn_is_a_configuration(tmp_path: Path) -> None:
    """Every draw of the packaged space passes the check that `train effect --config` makes."""
    space = load_space()
    studies = open_studies(tmp_path, space, "min", seed=3, trials=16)
    drawn = set()
    for model, study in studies.items():
        for _ in range(4):
            trial = study.ask(fixed_distributions=space.distributions(model))
            parameters = space.decode(model, trial.params)
            write_parameters(tmp_path / "one.yaml", {model: parameters}, "drawn")
            settings = apply_parameters(load_parameters(tmp_path / "one.yaml"), ResponseSettings())
            part = getattr(settings, model)
            for name, value in parameters.items():
                kept = getattr(part, name)
                assert (list(kept) if isinstance(kept, tuple) else kept) in (value, [value])
            drawn.add(str(parameters))
            study.tell(trial.number, float(trial.number))
    assert len(drawn) == 8, "each draw is another"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("forest: {depth: {kind: int, low: 1, high: 2}}", "forest: unknown model .* known: network, trees"),
        ("network: {learning_rat: {kind: uniform}}", "did you mean network.learning_rate"),
        ("network: {epochs: {kind: int, low: 1, high: 2}}", "network.epochs: unknown key"),
        ("network: {}", "network: {} .* has no parameters; write some below it"),
        ("network: {dropout: 0.1}", "network.dropout: 0.1 .*kind: choice"),
        ("network: {dropout: {kind: normal, low: 0.1, high: 0.2}}", "network.dropout: .*'normal'"),
        ("network: {dropout: {kind: uniform, low: 0.1}}", "network.dropout.high: "),
        ("network: {dropout: {kind: uniform, low: 0.1, high: 0.2, q: 1}}", "network.dropout.q: 1 Extra"),
        ("network: {dropout: {kind: uniform, low: 0.3, high: 0.2}}", "low 0.3 is not below high 0.2"),
        ("network: {dropout: {kind: uniform, low: 0.3, high: 1.2}}", "network.dropout: 1.2 should be less"),
        ("network: {hidden: {kind: choice, values: [[64], [0]]}}", "network.hidden.0: 0 should be greater"),
        ("network: {hidden: {kind: choice, values: []}}", "network.hidden.values: "),
        ("trees: {l2: {kind: loguniform, low: 0.0, high: 1.0}}", "low 0.0 is not above 0"),
        ("trees: {leaves: {kind: int, low: 2, high: 9, step: 2, log: true}}", "step 2 with log"),
        ("trees: {leaves: {kind: int, low: 2.5, high: 9}}", "leaves.low: 2.5 should be a valid integer"),
        ("trees: {leaves: {kind: int, low: true, high: 9}}", "should be a number, not true or false"),
        ("", "is empty; give parameters of network or trees"),
    ],
)
def test_a_mistake_in_the_space_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError, match=message):
        load_space(path)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    space = {"network": {"dropout": 0.1}, "trees": {"leaves": {"kind": "int", "low": 9, "high": 2}}}
    with pytest.raises(SettingsError) as caught:
        load_space(written(tmp_path, space))
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"trees": {"leafs": 8}}, "trees.leafs: unknown key .*; did you mean trees.leaves"),
        ({"tree": {"leaves": 8}}, "tree: unknown key .*; did you mean"),
        ({"trees": {"leaves": 1}}, "trees.leaves.0: 1 should be greater than or equal to 2"),
        ({"network": {"dropout": True}}, "network.dropout: True should be a number"),
        ({"network": {"learning_rate": 3}}, "network.learning_rate: 3 should be less than 1"),
        ({"members": 1}, "members: 1 should be greater than or equal to 2"),
        ({"network": 3}, "network: 3 is not a section"),
    ],
)
def test_a_mistake_in_a_configuration_is_named(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load_parameters(written(tmp_path, content))


def test_a_configuration_changes_what_it_names_only() -> None:
    from training.response.config import check_parameters

    given = check_parameters(
        {"members": 3, "network": {"hidden": [8]}, "trees": {"leaves": 6, "l2": 1}}, "a test"
    )
    found, default = apply_parameters(given, ResponseSettings(seed=4)), ResponseSettings(seed=4)
    assert (found.members, found.network.hidden, found.trees.leaves, found.trees.l2) == (3, (8,), (6,), 1.0)
    assert found.network.learning_rate == default.network.learning_rate
    assert found.seed == 4
    assert apply_parameters(check_parameters({}, "a test"), default) == default


def test_the_commands_refuse_before_they_work(tmp_path: Path) -> None:
    words = ["--data", "no.csv", "--mapping", "no.yaml", "--out", str(tmp_path / "out")]
    bad = written(tmp_path, {"network": {"learning_rat": 0.1}}, "bad.yaml")
    done = CliRunner().invoke(app, ["train", "effect", *words, "--config", str(bad)])
    assert isinstance(done.exception, SettingsError)
    assert "did you mean network.learning_rate?" in str(done.exception)
    done = CliRunner().invoke(app, ["tune", *words, "--metric", "accuracy"])
    assert "metric: 'accuracy' is unknown; choose from log_loss, auc, ne" in str(done.exception)
    done = CliRunner().invoke(app, ["tune", *words, "--space", str(written(tmp_path, {"x": 1}))])
    assert "x: unknown model" in str(done.exception)
    assert not (tmp_path / "out").exists()
