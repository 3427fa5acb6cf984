"""The parts of a sweep, without a cluster: trials that go on, early stopping, the search and its memory."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tune_cases import SPACE, small_sweep, written

from qiance.data.errors import DataError
from training.response.config import check_parameters
from training.tune.engine import only_one, open_sweep
from training.tune.experiment import Halving, better_of
from training.tune.outcome import best_of, efficiency, importance, outcomes
from training.tune.record import Point, Record
from training.tune.response_space import load_space
from training.tune.search import StudySearch, finished, open_studies
from training.tune.stopping import HalvingByModel
from training.tune.sweep import SHARES
from training.tune.trial import Run, tell_tune
from training.tune.work import FoldWork, ResponseWorkshop, SweepData


def point(step: int, value: float, last: bool = False, started: float = 0.0, ended: float = 1.0) -> Point:
    return Point(step, step, value, value, last, started, ended, ended - started, {"auc": 0.5})


def judged(points: list[Point]) -> list[tuple[int, float | None, bool]]:
    return [(one.step, one.value, one.last) for one in points]


@pytest.mark.parametrize("model", ["network", "trees"])
def test_a_trial_that_is_interrupted_comes_to_the_same_curve(tmp_path: Path, model: str) -> None:
    sweep = small_sweep(tmp_path)
    base = sweep.base()
    data = SweepData.of(sweep.rows, 2, base)
    parameters = sweep.space.decode(model, sweep.space.defaults(model)[0])
    config = {"model": model, "number": 0, "parameters": parameters}

    def run(folder: Path, interrupted: bool) -> list[Point]:
        workshop = ResponseWorkshop(data, base, "log_loss")
        trial = Run.begin(workshop, folder, "min", config)
        while not trial.step().last:
            if interrupted:  # everything but what is on disk is lost
                trial = Run.begin(workshop, folder, "min", config)
        workshop.close()
        return trial.curve

    whole, parts = run(tmp_path / "a", False), run(tmp_path / "b", True)
    assert len(whole) >= 2
    assert judged(parts) == judged(whole)
    assert Record.of(tmp_path / "b", model, 0).curve() == parts
    again = Run.begin(ResponseWorkshop(data, base, "log_loss"), tmp_path / "b", "min", config)
    assert again.step() == parts[-1], "a trial that is over trains no more"


def test_a_half_written_state_is_never_read(tmp_path: Path) -> None:
    record = Record.of(tmp_path, "trees", 1)
    record.begin({"leaves": 4})
    record.save({"n": 1}, [point(1, 0.5)])
    (record.folder / ".state.pt.1").write_bytes(b"half")
    state, curve = record.load() or ({}, [])
    assert (state["n"], curve) == (1, [point(1, 0.5)])


class Diverging(FoldWork):
    """Worse and worse, then no number."""

    steps, patience = 50, 50

    def __init__(self) -> None:
        super().__init__(np.repeat([0.0, 1.0], 5), "log_loss")

    def unseen(self, step: int) -> Any:
        return np.full(10, np.nan if step == 3 else 0.5)

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, state: Any) -> None:
        raise AssertionError


def test_training_that_diverges_ends_with_its_best(tmp_path: Path) -> None:
    record = Record.of(tmp_path, "network", 0)
    record.begin({})
    run = Run(Diverging(), record, "min", [])
    found = [run.step() for _ in range(3)]
    assert [one.value is None for one in found] == [False, False, True]
    assert found[-1].last
    assert tell_tune(found[-1], "min")["value"] == pytest.approx(np.log(2))
    assert tell_tune(replace(found[-1], best=None), "min")["value"] == float("inf")
    assert "NaN" not in (record.folder / "curve.json").read_text()


def test_patience_counts_steps_without_a_better_value(tmp_path: Path) -> None:
    class Worse(Diverging):
        patience = 2

        def unseen(self, step: int) -> Any:
            return np.where(np.arange(10) < 5, 0.4, 0.6) if step == 2 else np.full(10, 0.5)

    record = Record.of(tmp_path, "network", 0)
    record.begin({})
    run = Run(Worse(), record, "min", [])
    found = [run.step() for _ in range(4)]
    assert [one.last for one in found] == [False, False, False, True]


@given(st.lists(st.one_of(st.none(), st.floats(0, 10)), min_size=1))
def test_the_best_is_the_best(values: list[float | None]) -> None:
    best: float | None = None
    for value in values:
        best = better_of("min", value, best)
    known = [value for value in values if value is not None]
    assert best == (min(known) if known else None)


def trial(model: str, number: int) -> Any:
    config = {"model": model, "number": number}
    return SimpleNamespace(trial_id=f"{model}{number}", config=config)


def decide(scheduler: HalvingByModel, one: Any, curve: list[Point]) -> list[str]:
    """Decisions until the first STOP."""
    scheduler.on_trial_add(None, one)
    said = []
    for step in curve:
        said.append(scheduler.on_trial_result(None, one, tell_tune(step, "min")))
        if said[-1] == "STOP":
            break
    return said


def falling(to: float) -> list[Point]:
    return [point(step, to + 1 / step) for step in range(1, 10)]


def test_bad_trials_are_stopped_early_and_good_ones_go_on() -> None:
    scheduler = HalvingByModel({"network": Halving(9, 3), "trees": Halving(9, 3)}, "min")
    assert len(decide(scheduler, trial("network", 0), falling(0.5))) == 9
    assert len(decide(scheduler, trial("network", 1), falling(0.4))) == 9, "better than all before"
    bad = decide(scheduler, trial("network", 2), falling(0.9))
    assert bad == ["CONTINUE", "CONTINUE", "STOP"], "at the first rung"
    assert len(decide(scheduler, trial("trees", 0), falling(0.9))) == 9, "measured among trees only"


def test_a_trial_of_small_steps_is_judged_when_it_has_come_as_far() -> None:
    scheduler = HalvingByModel({"trees": Halving(9, 3)}, "min")
    decide(scheduler, trial("trees", 0), falling(0.5))
    slow = [replace(one, reach=one.step / 2) for one in falling(0.9)]
    assert decide(scheduler, trial("trees", 1), slow) == ["CONTINUE"] * 5 + ["STOP"]


def test_trees_of_half_the_learning_rate_come_half_as_far(tmp_path: Path) -> None:
    sweep = small_sweep(tmp_path)
    workshop = ResponseWorkshop(SweepData.of(sweep.rows, 2, sweep.base()), sweep.base(), "log_loss")
    drawn = [("trees", 0.05), ("trees", 0.025), ("network", 0.001)]
    made = [workshop.make(model, {"learning_rate": rate}) for model, rate in drawn]
    workshop.close()
    assert [one.pace for one in made] == [1.0, 0.5, 1.0]


def test_early_stopping_remembers_an_earlier_process() -> None:
    halving = {"network": Halving(9, 3)}
    scheduler = HalvingByModel(halving, "min")
    scheduler.remember({("network", 0): falling(0.5)}, {("network", 1): falling(0.9)[:4]})
    assert decide(scheduler, trial("network", 2), falling(0.9))[-1] == "STOP"
    # Number 1 has been let through its rung before; it is judged at the next one.
    assert decide(scheduler, trial("network", 1), falling(0.9)[4:]) == ["CONTINUE"] * 4 + ["STOP"]
    fresh = HalvingByModel(halving, "min")
    assert len(decide(fresh, trial("network", 2), falling(0.9))) == 9


def search_of(folder: Path, trials: int = 6) -> StudySearch:
    space = load_space(written(folder, SPACE))
    return StudySearch(open_studies(folder, space, "min", 0, trials), space, "min", trials, SHARES)


def test_the_search_goes_on_in_another_process(tmp_path: Path) -> None:
    before = search_of(tmp_path)
    first = [before.suggest(f"a{n}") for n in range(4)]
    assert [(one["model"], one["number"]) for one in first] == [
        ("network", 0), ("trees", 0), ("trees", 1), ("network", 1),
    ]  # fmt: skip
    assert first[0]["parameters"] == {"learning_rate": 0.003, "hidden": [64, 32]}, "the defaults come first"
    before.on_trial_complete("a1", {"value": 0.4})
    after = search_of(tmp_path)
    given = [after.suggest(f"b{n}") for n in range(5)]
    assert given[:3] == [first[0], first[3], first[2]], "those in flight, with their numbers"
    assert [(one["model"], one["number"]) for one in given[3:]] == [("trees", 2), ("trees", 3)]
    assert after.suggest("b5") == "FINISHED"
    for number in range(5):
        after.on_trial_complete(f"b{number}", {"value": 0.5 + number} if number else None, error=not number)
    studies = open_studies(tmp_path, load_space(written(tmp_path, SPACE)), "min", 0, 6)
    assert sum(len(finished(study)) for study in studies.values()) == 6
    found = outcomes(tmp_path, studies, load_space(tmp_path / "space.yaml"))
    assert [one.name for one in found if one.state == "failed"] == ["network-00"]
    assert best_of(found, "min")["trees"].value == 0.4
    assert search_of(tmp_path, 8).suggest("c0") != "FINISHED", "more may be asked for"


def test_draws_hang_on_seed_and_number(tmp_path: Path) -> None:
    """Two sweeps with the same seed draw the same, also when one is opened anew for each trial."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, drawn = search_of(tmp_path / "a", 12), ([], [])
    for number in range(6):
        drawn[0].append(one.suggest(str(number)))
        one.on_trial_complete(str(number), {"value": float(number % 3)})
        anew = search_of(tmp_path / "b", 12)
        drawn[1].append(anew.suggest(str(number)))
        anew.on_trial_complete(str(number), {"value": float(number % 3)})
    assert drawn[0] == drawn[1]
    assert len({json.dumps(found["parameters"]) for found in drawn[0]}) == 6


@pytest.mark.parametrize("drawn", [0, 1])
def test_a_trial_that_was_half_drawn_when_it_was_killed_is_drawn_to_its_end(
    tmp_path: Path, drawn: int
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    space = load_space(written(tmp_path, SPACE))
    whole, halved = search_of(tmp_path / "a"), open_studies(tmp_path / "b", space, "min", 0, 6)
    every = {(one["model"], one["number"]): one for one in (whole.suggest(str(n)) for n in range(4))}
    for model in ("network", "trees"):
        halved[model].ask(fixed_distributions=space.distributions(model))  # the defaults
        names = list(space.distributions(model))[:drawn]
        halved[model].ask({name: space.distributions(model)[name] for name in names})
    again = search_of(tmp_path / "b")
    found = {(one["model"], one["number"]): one for one in (again.suggest(str(n)) for n in range(4))}
    assert found.keys() == every.keys()
    for key, one in found.items():
        other = every[key]
        assert one["parameters"].keys() == other["parameters"].keys()
        names = list(other["parameters"])[: None if drawn == 0 else drawn]
        assert [one["parameters"][name] for name in names] == [other["parameters"][name] for name in names]
    assert all(len(trial.params) == 2 for study in halved.values() for trial in study.get_trials())


def test_importance_finds_what_matters(tmp_path: Path) -> None:
    space = load_space(written(tmp_path, {"trees": {**SPACE["trees"], "row_share": {
        "kind": "uniform", "low": 0.5, "high": 1.0}}}))  # fmt: skip
    studies = open_studies(tmp_path, space, "min", 0, 12)
    search = StudySearch(studies, space, "min", 12, SHARES)
    assert importance(studies) == {}, "nothing is claimed of too few trials"
    for number in range(12):
        config = search.suggest(str(number))
        search.on_trial_complete(str(number), {"value": (config["parameters"]["row_share"] - 0.6) ** 2})
    shares = importance(studies)["trees"]
    assert max(shares, key=lambda name: shares[name]) == "row_share"
    assert sum(shares.values()) == pytest.approx(1)


def test_a_sweep_over_something_else_is_refused(tmp_path: Path) -> None:
    sweep, out = small_sweep(tmp_path), tmp_path / "out"
    with pytest.raises(DataError, match="holds no sweep that could go on; leave out --resume"):
        open_sweep(sweep.inputs(), out, resume=True)
    out.mkdir()
    first = open_sweep(sweep.inputs(), out, resume=False)
    assert open_sweep(sweep.inputs(), out, resume=True) == first
    more = replace(sweep, settings=replace(sweep.settings, trials=99, workers=3))
    assert open_sweep(more.inputs(), out, resume=False) == first, "more trials are the same sweep"
    other = replace(sweep, rows=replace(sweep.rows, fingerprint="0123456789ab"))
    with pytest.raises(
        DataError, match=r"over something else: data was .*, is 0123456789ab; give what it began"
    ):
        open_sweep(other.inputs(), out, resume=False)
    with pytest.raises(DataError, match="something else: mapping was m, is n"):
        open_sweep(replace(sweep, mapping="n").inputs(), out, resume=False)
    narrow = load_space(written(tmp_path, {"trees": SPACE["trees"]}))
    with pytest.raises(DataError, match="something else: space was"):
        open_sweep(replace(sweep, space=narrow).inputs(), out, resume=False)
    with pytest.raises(DataError, match=r'config was .*, is {"members": 3, "network": {}, "trees": {}}'):
        open_sweep(replace(sweep, given=check_parameters({"members": 3}, "t")).inputs(), out, resume=False)
    with pytest.raises(DataError, match="seed was 0, is 1"):
        open_sweep(replace(sweep, settings=replace(sweep.settings, seed=1)).inputs(), out, resume=False)


def test_one_sweep_at_a_time(tmp_path: Path) -> None:
    with only_one(tmp_path), pytest.raises(DataError, match="has a sweep running"), only_one(tmp_path):
        pass
    with only_one(tmp_path):
        pass


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trials": 0}, "trials: 0 is below 1"),
        ({"folds": 1}, "folds: 1 is below 2"),
        ({"metric": "mse"}, "metric: 'mse' is unknown"),
        ({"workers": 0}, "workers: 0 is below 1"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_sweep(tmp_path, **settings)


def test_efficiency_counts_the_steady_part_only() -> None:
    """Two cores from second 1, when the second begins, to 9, when one trial is left: 14 of 16 s."""
    long = [point(1, 0.5, started=0, ended=5), point(2, 0.5, started=5, ended=20)]
    short = [point(1, 0.5, started=1, ended=4), point(2, 0.5, started=6, ended=9)]
    found = efficiency([long, short], 2, since=0)
    assert found is not None
    assert found["inside_s"] == pytest.approx(14)
    assert found["share"] == pytest.approx(14 / 16)
    assert efficiency([long], 2, since=0) is None
    assert efficiency([long, short], 2, since=100) is None
