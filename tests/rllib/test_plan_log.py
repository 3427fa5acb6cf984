from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sales_cases import write_users
from scipy.integrate import quad
from typer.testing import CliRunner

from qiance.data.errors import DataError
from rllib.explore import Exploring, record
from rllib.plan_log import COLUMNS, PlanningLog, read_log, write_log
from rllib.tasks import Constant, PromotionTask, SalesTask

PROMOTION = PromotionTask(num_segments=2)


@pytest.fixture(scope="module")
def sales(tmp_path_factory: pytest.TempPathFactory) -> SalesTask:
    return SalesTask(str(write_users(tmp_path_factory.mktemp("users"))))


@pytest.fixture(scope="module")
def log() -> PlanningLog:
    return record(Exploring(PROMOTION, PROMOTION.cautious(), 0.3), 6, 0)


def test_a_log_is_read_as_it_was_written(log: PlanningLog, sales: SalesTask, tmp_path: Path) -> None:
    choices = record(Exploring(sales, sales.cautious(), 0.2), 5, 0)
    for task, one in ((PROMOTION, log), (sales, choices)):
        short = replace(one, length=np.arange(len(one)) + 3)
        path = write_log(tmp_path / task.name / "part.parquet", short, task)
        for place in (path, path.parent):
            found = read_log(place, task)
            assert found.explore == one.explore
            inside = found.inside()
            assert inside.sum() == short.length.sum()
            np.testing.assert_array_equal(found.length, short.length)
            for name in ("observation", "dials", "propensity", "reward"):
                kept, whole = getattr(found, name), getattr(short, name)[:, : inside.shape[1]]
                np.testing.assert_array_equal(kept[inside], whole[inside], err_msg=name)


def test_rows_may_come_in_any_order_and_episodes_may_be_numbered(log: PlanningLog, tmp_path: Path) -> None:
    table = pq.read_table(write_log(tmp_path / "log.parquet", log, PROMOTION))
    number = pa.array([int(name.split("-")[1]) for name in table["episode"].to_pylist()])
    mixed = table.set_column(0, "episode", number).take(np.random.default_rng(0).permutation(len(table)))
    plain = pa.table({name: mixed[name].combine_chunks() for name in reversed(COLUMNS)})
    pq.write_table(plain, tmp_path / "mixed.parquet")
    found = read_log(tmp_path / "mixed.parquet", PROMOTION)
    assert found.explore is None, "no longer said"
    np.testing.assert_array_equal(found.reward, log.reward)
    np.testing.assert_array_equal(found.dials, log.dials)


def _changed(table: pa.Table, name: str, row: int, value: object) -> pa.Table:
    values = table[name].to_pylist()
    values[row] = value
    kind = table[name].type
    if isinstance(value, list):
        kind = pa.list_(kind.value_type)
    return table.set_column(table.column_names.index(name), name, pa.array(values, kind))


@pytest.mark.parametrize(
    ("name", "row", "value", "message"),
    [
        ("propensity", 7, 0.0, r"propensity: row 7 is 0\.0; must be above 0"),
        ("propensity", 7, float("nan"), "propensity: row 7 is nan; must be finite"),
        ("reward", 3, float("inf"), "reward: row 3 is inf; must be finite"),
        ("reward", 3, None, "reward: row 3 is missing"),
        ("day", 2, 40, r"day: row 2 is 40 .*; must be 0, 1, … in each episode"),
        ("day", 2, 1, r"day: row 2 is 1"),
        ("done", 4, True, "done: row 4 is True; must be true on the last day"),
        ("done", 29, False, "done: row 29 is False"),
        ("dials", 5, [0.0] * 4, "dials: row 5 is 4; numbers; the environment has 5"),
        ("dials", 5, [0.0] * 4 + [float("nan")], "dials: row 5, number 4 is nan; must be finite"),
        ("observation", 1, [7.0] + [0.0] * 8, r"observation: row 1, number 0 is 7\.0; lies outside"),
    ],
)
def test_what_is_wrong_is_named(
    log: PlanningLog, tmp_path: Path, name: str, row: int, value: object, message: str
) -> None:
    path = write_log(tmp_path / "log.parquet", log, PROMOTION)
    pq.write_table(_changed(pq.read_table(path), name, row, value), path)
    with pytest.raises(DataError, match=message):
        read_log(path, PROMOTION)


def test_what_is_no_log_is_refused(log: PlanningLog, sales: SalesTask, tmp_path: Path) -> None:
    path = write_log(tmp_path / "log.parquet", log, PROMOTION)
    with pytest.raises(DataError, match="is a log of the environment 'promotion'"):
        read_log(path, sales)
    pq.write_table(pq.read_table(path).drop_columns(["propensity"]), path)
    with pytest.raises(DataError, match="has no column 'propensity'"):
        read_log(path, PROMOTION)
    path.write_text("episode,day\n")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read_log(path, PROMOTION)
    with pytest.raises(DataError, match=r"does not exist; make one with .qiance train planning-log"):
        read_log(tmp_path / "other.parquet", PROMOTION)


def test_a_choice_must_be_one_and_its_propensity_a_probability(sales: SalesTask, tmp_path: Path) -> None:
    found = record(Exploring(sales, sales.cautious(), 0.2), 3, 0)
    path = write_log(tmp_path / "log.parquet", found, sales)
    table = pq.read_table(path)
    pq.write_table(_changed(table, "dials", 8, 21), path)
    with pytest.raises(DataError, match="dials: row 8 is 21; must be a choice, 0 to 20"):
        read_log(path, sales)
    pq.write_table(_changed(table, "propensity", 8, 1.5), path)
    with pytest.raises(DataError, match=r"propensity: row 8 is 1\.5; must be above 0, and a probability"):
        read_log(path, sales)


@settings(max_examples=20, deadline=None)
@given(middle=st.floats(-1.5, 1.5), explore=st.floats(0.05, 1.0))
def test_densities_integrate_to_one_and_draws_follow_them(middle: float, explore: float) -> None:
    dials = np.zeros(5)
    dials[2] = middle
    one = Exploring(PROMOTION, Constant(PROMOTION, dials), explore)
    seen = np.zeros((1, 9), dtype=np.float32)
    peak = 4 * np.log(explore * np.sqrt(2 * np.pi))

    def density(x: float) -> float:
        at = dials.copy()
        at[2] = x
        return float(np.exp(one.log_propensity(seen, at[None]) + peak)[0])

    assert quad(density, middle - 9 * explore, middle + 9 * explore)[0] == pytest.approx(1.0, abs=1e-6)
    many = one.draw(np.zeros((4_000, 9), dtype=np.float32), np.random.default_rng(0))
    assert many[:, 2].mean() == pytest.approx(middle, abs=5 * explore / np.sqrt(4_000))
    assert many[:, 2].std() == pytest.approx(explore, rel=0.06)


def test_choices_are_drawn_with_their_propensity(sales: SalesTask) -> None:
    one = Exploring(sales, sales.cautious(), 0.42)
    seen = np.tile(np.array([[65.0, 1.0, 4.0, 2.0]], dtype=np.float32), (20_000, 1))
    drawn = one.draw(seen, np.random.default_rng(0))
    chance = np.exp(one.log_propensity(seen, drawn))
    shares = np.bincount(drawn, minlength=21) / len(drawn)
    np.testing.assert_allclose(shares, one.chances(seen[:1])[0], atol=0.012)
    np.testing.assert_allclose(chance, one.chances(seen)[np.arange(len(drawn)), drawn])
    assert one.chances(seen[:1]).sum() == pytest.approx(1.0)


def test_exploration_that_is_none_is_refused(sales: SalesTask) -> None:
    with pytest.raises(ValueError, match=r"explore: 0 must be a positive number"):
        Exploring(PROMOTION, PROMOTION.cautious(), 0)
    with pytest.raises(ValueError, match=r"explore: 1\.5 must be in \(0, 1\]"):
        Exploring(sales, sales.cautious(), 1.5)


def test_the_command_writes_a_log(tmp_path: Path) -> None:
    from qiance.cli.main import app

    path = tmp_path / "log.parquet"
    arguments = ["train", "planning-log", str(path), "--environment", "promotion", "--episodes", "3"]
    result = CliRunner().invoke(app, [*arguments, "--explore", "0.1"])
    assert result.exit_code == 0, result.output
    found = read_log(path, PromotionTask())
    assert len(found) == 3
    assert found.explore == 0.1
    assert "mean return" in result.output
