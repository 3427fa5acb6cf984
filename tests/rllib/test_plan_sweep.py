"""The parts of a sweep of planning policies: what may be drawn, who is best, and trials that go on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from sales_cases import write_users
from typer.testing import CliRunner

from qiance.settings_sources import SettingsError
from rllib.plan_algorithms import DEFAULTS, PlanningSettings
from rllib.plan_evaluate import compare
from rllib.plan_keep import HELD_OUT_SEED, SWEEP_SEED, TUNING_SEED
from rllib.plan_space import PlanningTunable, trial_settings
from rllib.plan_sweep import GRACE, SHARES, STEPS, PlanningWork, policy_in
from rllib.policies import read_network, write_network
from rllib.tasks import Constant, PromotionTask, SalesTask
from training.tune.experiment import Halving
from training.tune.outcome import best_of, outcomes
from training.tune.record import Point, Record
from training.tune.search import StudySearch, open_studies
from training.tune.space import Space, read_space
from training.tune.stopping import HalvingByModel
from training.tune.trial import Run, tell_tune

SMALL = PlanningSettings(iterations=4, num_envs=8, hidden=(16,), episodes=24, rounds=1, epochs=1, updates=1)
TASK = PromotionTask(num_segments=2)
SPACE = {
    "ppo": {
        "learning_rate": {"kind": "loguniform", "low": 0.0005, "high": 0.02},
        "num_envs": {"kind": "int", "low": 4, "high": 16},
        "hidden": {"kind": "choice", "values": [[16], [8, 8]]},
    },
    "sac": {"updates": {"kind": "int", "low": 1, "high": 3}},
}


def written(folder: Path, content: Any) -> Path:
    path = folder / "space.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return path


def space_of(folder: Path, content: Any = SPACE, base: PlanningSettings = SMALL) -> Space:
    return read_space(written(folder, content), PlanningTunable(base))


@pytest.mark.parametrize("environment", list(DEFAULTS))
def test_the_packaged_space_begins_with_the_defaults(environment: str) -> None:
    base = DEFAULTS[environment]
    space = read_space(None, PlanningTunable(base))
    [drawn] = space.defaults("ppo")
    assert trial_settings(base, "ppo", space.decode("ppo", drawn)) == base


@given(st.integers(1, 200), st.integers(1, 5_000), st.integers(1, 5_000))
def test_all_trials_live_as_many_episodes(iterations: int, envs: int, own: int) -> None:
    base = replace(SMALL, iterations=iterations, num_envs=envs)
    found = trial_settings(base, "ppo", {"num_envs": own})
    episodes = iterations * envs
    assert found.iterations >= 1
    assert abs(found.iterations * own - episodes) <= own / 2 or found.iterations == 1
    work = PlanningWork(TASK, found, Constant(TASK, np.zeros(5)))
    assert work.steps <= STEPS
    assert work.steps * work.pace == pytest.approx(STEPS), "so that early stopping compares equal shares"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dqn: {learning_rate: {kind: uniform, low: 0.1, high: 0.2}}", "dqn: unknown model .*ppo, sac"),
        ("ppo: {updates: {kind: int, low: 1, high: 2}}", "ppo.updates: unknown key"),
        ("ppo: {iterations: {kind: int, low: 1, high: 2}}", "ppo.iterations: unknown key"),
        ("ppo: {learning_rate: {kind: uniform, low: 0.1, high: 1.5}}", r"ppo.learning_rate: 1.5 is outside"),
        ("ppo: {discount: {kind: choice, values: [0.9, 1.1]}}", r"ppo.discount: 1.1 is outside \(0, 1\]"),
        ("ppo: {discount: {kind: choice, values: [yes]}}", "ppo.discount: True is no number"),
        ("ppo: {epochs: {kind: uniform, low: 1.0, high: 2.5}}", "ppo.epochs: 1.0 is no whole number"),
        ("ppo: {epochs: {kind: int, low: 0, high: 2}}", "ppo.epochs: 0 is less than 1"),
        ("ppo: {hidden: {kind: choice, values: [64]}}", "ppo.hidden: 64 are no sizes of layers"),
        ("sac: {hidden: {kind: choice, values: [[8, 0]]}}", r"sac.hidden: \[8, 0\] are no sizes"),
        ("", "is empty; give parameters of ppo or sac"),
    ],
)
def test_a_mistake_in_the_space_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        space_of(tmp_path, text)


def test_the_search_finds_what_earns_most_and_forgets_nothing(tmp_path: Path) -> None:
    """Without training: a made-up return over the learning rate, a kill in between, and no draw is lost."""
    space = space_of(tmp_path)

    def search(trials: int) -> StudySearch:
        return StudySearch(open_studies(tmp_path, space, "max", 0, trials), space, "max", trials, SHARES)

    def earned(config: dict[str, Any]) -> float:
        return -abs(np.log10(config["parameters"].get("learning_rate", 1e-9) / 0.004))

    before, told = search(14), {}
    first = [before.suggest(str(n)) for n in range(3)]
    assert [(one["model"], one["number"]) for one in first] == [("ppo", 0), ("sac", 0), ("ppo", 1)]
    assert first[0]["parameters"] == {"learning_rate": 2e-3, "num_envs": 8, "hidden": [16]}
    before.on_trial_complete("0", {"value": earned(first[0])})
    after = search(14)  # another process: one is over, two were in flight
    again = [after.suggest(f"b{n}") for n in range(2)]
    assert sorted(again, key=str) == sorted(first[1:], key=str)
    for n, config in enumerate(again):
        after.on_trial_complete(f"b{n}", {"value": earned(config)})
    while (config := after.suggest(f"c{len(told)}")) != "FINISHED":
        after.on_trial_complete(f"c{len(told)}", {"value": earned(config)})
        told[len(told)] = config
    found = outcomes(tmp_path, open_studies(tmp_path, space, "max", 0, 14), space)
    assert len(found) == 14
    assert sum(one.model == "ppo" for one in found) in (9, 10), "two of three"
    best = best_of(found, "max")["ppo"]
    assert best.value == max(one.value for one in found if one.model == "ppo")
    assert 0.003 < best.parameters["learning_rate"] < 0.0055, "nearer than the default"
    for one in found:
        trial_settings(SMALL, one.model, one.parameters)


def test_who_earns_less_is_stopped_early() -> None:
    scheduler = HalvingByModel({"ppo": Halving(STEPS, GRACE)}, "max")

    def steps_of(number: int, level: float) -> int:
        trial = SimpleNamespace(trial_id=str(number), config={"model": "ppo", "number": number})
        scheduler.on_trial_add(None, trial)
        for step in range(1, STEPS + 1):
            value = level + 0.01 * step
            point = Point(step, step, value, value, step == STEPS, 0.0, 1.0, 1.0, {})
            if scheduler.on_trial_result(None, trial, tell_tune(point, "max")) == "STOP":
                return step
        return STEPS

    assert [steps_of(n, level) for n, level in enumerate((2.0, 2.1, 1.9))] == [STEPS, STEPS, GRACE]


@pytest.mark.parametrize(
    ("environment", "model", "parameters"),
    [
        ("promotion", "ppo", {"num_envs": 16}),
        pytest.param("promotion", "sac", {}, marks=pytest.mark.slow),
        pytest.param("sales", "ppo", {"num_envs": 16}, marks=pytest.mark.slow),
        pytest.param("sales", "sac", {}, marks=pytest.mark.slow),
    ],
)
def test_a_trial_that_was_killed_goes_on_from_its_last_step(
    environment: str, model: str, parameters: dict[str, Any], tmp_path: Path, ray_cluster: None
) -> None:
    task = TASK if environment == "promotion" else SalesTask(str(write_users(tmp_path)))
    constant = Constant(task, task.constants()[10])

    class Shop:
        def make(self, model: str, parameters: dict[str, Any]) -> PlanningWork:
            return PlanningWork(task, trial_settings(SMALL, model, parameters), constant)

    config = {"model": model, "number": 0, "parameters": parameters}
    killed = Run.begin(Shop(), tmp_path, "max", config)
    first = killed.step()
    assert np.isfinite(first.scores["exploring"])
    killed.work.close()  # and all that is not on disk is gone
    again = Run.begin(Shop(), tmp_path, "max", config)
    assert again.curve == [first]
    while not again.step().last:
        pass
    again.work.close()
    assert len(again.curve) == again.work.steps == (2 if model == "ppo" else 4)
    assert [point.reach for point in again.curve][-1] == pytest.approx(STEPS)
    saved = Record.of(tmp_path, model, 0).load()
    assert saved is not None
    value, network = policy_in(saved[0], task)
    assert value == max(point.value for point in again.curve) == again.curve[-1].best
    write_network(tmp_path / "policy.npz", network)
    kept = read_network(tmp_path / "policy.npz", task)
    seeds = range(SWEEP_SEED, SWEEP_SEED + SMALL.rounds)
    assert compare(task, {"a": kept}, SMALL.episodes, seeds)["a"].mean() == pytest.approx(value)
    over = Run.begin(Shop(), tmp_path, "max", config)
    assert over.step() == again.curve[-1], "a trial that is over trains no more"


def test_no_episode_is_both_chosen_by_and_judged_on() -> None:
    rounds = max(settings.rounds for settings in DEFAULTS.values())
    used = [range(seed, seed + max(rounds, 2)) for seed in (TUNING_SEED, HELD_OUT_SEED, SWEEP_SEED)]
    assert len({seed for part in used for seed in part}) == sum(map(len, used))


def test_the_command_refuses_before_it_works(tmp_path: Path) -> None:
    from qiance.cli.main import app

    out = tmp_path / "out"
    words = ["train", "planning-sweep", "--environment", "promotion", "--out", str(out)]
    done = CliRunner().invoke(app, [*words, "--data", "x"])
    assert done.exit_code == 2
    assert "--data" in done.output
    done = CliRunner().invoke(app, [*words, "--space", str(written(tmp_path, {"ppo": {"epoch": 1}}))])
    assert "did you mean ppo.epochs?" in str(done.exception)
    done = CliRunner().invoke(app, [*words, "--resume"])
    assert "holds no sweep that could go on" in str(done.exception)
    out.mkdir(exist_ok=True)
    (out / "inputs.json").write_text(json.dumps({"id": "a"}))
    done = CliRunner().invoke(app, [*words, "--seed", "3"])
    assert "holds a sweep over something else: environment was null" in str(done.exception)
