"""Synthetic users: marginals and dependences are kept, no one's own values are; a copycat is caught."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from qiance.cli.main import app
from qiance.data.errors import DataError
from qiance.ledger.records import Override
from training.synth import release
from training.synth.fidelity import fidelity, two_sample
from training.synth.generate import fit_generator
from training.synth.leakage import auc_interval, leakage
from training.synth.release import SynthSettings, make_cohort, write_cohort
from training.synth.table import RARE, TOGETHER, fit_marginal, read_users

RUNNER = CliRunner()
SETTINGS = SynthSettings(shadows=3, target="spend")


def people(size: int = 500, seed: int = 0) -> pd.DataFrame:
    """Spend follows baskets, of which some are none; a third of the ages are unknown; a city is rare."""
    rng = np.random.default_rng(seed)
    baskets = rng.poisson(3.0, size) * (rng.random(size) < 0.8)
    spend = baskets * rng.lognormal(3.0, 0.4, size)
    age = np.where(rng.random(size) < 0.3, np.nan, rng.normal(45, 12, size))
    city = np.where(spend > 60, "north", "south").astype(object)
    city[:3] = "nowhere"
    return pd.DataFrame({"baskets": baskets.astype(float), "age": age, "city": city, "spend": spend})


class Copycat:
    """Gives out those it learned from, with a little noise."""

    def __init__(self, users: pd.DataFrame, noise: float) -> None:
        self.users, self.noise = users, noise

    def sample(self, count: int, seed: int = 0) -> pd.DataFrame:
        rng = np.random.default_rng(seed)
        found = self.users.iloc[rng.permutation(len(self.users))[:count]].reset_index(drop=True)
        found["spend"] += rng.normal(0, self.noise, len(found))
        return found


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.sampled_from(["baskets", "age", "city", "spend"]))
def test_marginals_give_out_what_many_share_and_means_of_the_others(seed: int, name: str) -> None:
    column = people(200, seed)[name]
    own = fit_marginal(column)
    made = pd.Series(own.values(np.random.default_rng(seed).random(500)))
    counts = column.value_counts()
    common = set(counts.index[counts >= TOGETHER])
    alone = set(column.dropna()) - common
    if name == "city":
        assert set(made) <= common | {RARE}
    elif name in ("age", "spend"):
        assert not alone & set(made)
        assert made.min() > min(alone) or 0.0 in common
        assert made.max() < max(alone)
    else:
        assert (made == made.round()).all()
    assert own.edges[-1] == pytest.approx(1.0)
    assert abs(made.isna().mean() - column.isna().mean()) < 0.12


@pytest.mark.parametrize("method", ["copula", "vae"])
def test_dependences_are_kept(method: str) -> None:
    users, held = people(500), people(500, 1)
    made = fit_generator(users, method).sample(500, seed=1)  # type: ignore[arg-type]
    found = fidelity(users, held, made, "spend")
    assert found["mean_distance"]["synthetic"] < 0.08
    assert made["spend"].corr(made["baskets"], method="spearman") > 0.7
    assert found["utility"]["trained_on_synthetic"] > 0.85
    shuffled = pd.DataFrame(
        {name: made[name].sample(frac=1, random_state=k).to_numpy() for k, name in enumerate(made)}
    )
    broken = fidelity(users, held, shuffled, "spend")
    assert broken["two_sample"]["synthetic"] > found["two_sample"]["synthetic"] + 0.1
    assert broken["correlation"]["synthetic"]["mean"] > 2 * found["correlation"]["synthetic"]["mean"]


def test_users_of_one_kind_cannot_be_told_apart_however_the_table_is_sorted() -> None:
    users = people(700).sort_values("spend", ignore_index=True)
    for seed in range(2):
        half = np.random.default_rng(seed).random(700) < 0.4
        assert 0.4 < two_sample(users[half], users[~half], seed) < 0.58


def test_equal_seeds_give_equal_users() -> None:
    users = people(300)
    one, other = (fit_generator(users, seed=2).sample(50, seed=3) for _ in range(2))
    pd.testing.assert_frame_equal(one, other)
    assert not one.equals(fit_generator(users, seed=2).sample(50, seed=4))


def test_a_copycat_is_caught_and_a_fair_generator_is_not() -> None:
    users = people(900)
    member = np.random.default_rng(0).random(900) < 0.5
    learned = users[member].reset_index(drop=True)

    def attacked(fit: object) -> dict[str, float]:
        made = fit(learned, 0).sample(450, 0)  # type: ignore[operator]
        return {name: own.value for name, own in leakage(users, member, made, fit, shadows=3).attacks.items()}  # type: ignore[arg-type]

    copied = attacked(lambda some, seed: Copycat(some, 0.01))
    assert min(copied.values()) > 0.85
    blurred = attacked(lambda some, seed: Copycat(some, 3.0))
    assert max(blurred.values()) > 0.6
    fair = attacked(lambda some, seed: fit_generator(some, "copula", seed))
    fresh = attacked(lambda some, seed: Copycat(people(len(some), seed + 77), 0.0))
    assert max(fair.values()) < 0.57
    assert max(fresh.values()) < 0.57


def test_the_interval_holds_the_auc_of_normal_scores() -> None:
    rng, inside = np.random.default_rng(0), 0
    for _ in range(200):
        label = np.arange(300) < 150
        found = auc_interval(label, rng.standard_normal(300) + label)
        inside += found.low <= 0.7602 <= found.high  # Φ(1 ÷ √2)
    assert inside >= 180
    tied = auc_interval(np.array([True, True, False, False]), np.zeros(4))
    assert tied.value == 0.5


def test_a_leaking_cohort_is_refused_unless_a_person_says_so(tmp_path: Path) -> None:
    cohort = make_cohort(people(), 300, SETTINGS, lambda some, seed: Copycat(some, 0.01))
    assert "above 0.55" in cohort.refused
    (tmp_path / release.USERS).write_bytes(b"of an earlier call")
    assert not write_cohort(cohort, tmp_path)
    assert not (tmp_path / release.USERS).exists()
    assert "Not written" in (tmp_path / release.PAGE).read_text()
    assert write_cohort(cohort, tmp_path, Override("Ada", "made-up users"))
    report = json.loads((tmp_path / release.REPORT).read_text())
    assert report["override"] == {"by": "Ada", "reason": "made-up users"}
    assert "by order of Ada (made-up users)" in (tmp_path / release.PAGE).read_text()
    assert len(pd.read_parquet(tmp_path / release.USERS)) == 300


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user_id\n1\n", "has no column but 'user_id'"),
        ("a\n" + "1\n" * 20, "has 20 users; give at least 200"),
        ("a,b\n" + "1,\n" * 300, "b: is empty in every row"),
        ("a\n" + "\n".join(f"name {n}" for n in range(300)), "a: has 300 different texts"),
    ],
)
def test_tables_that_cannot_be_used_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "users.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_users(path)


def test_settings_and_targets_are_checked() -> None:
    with pytest.raises(ValueError, match="held_out: 0 is outside"):
        SynthSettings(held_out=0.0)
    with pytest.raises(ValueError, match=r"max_leakage: 0.4 is outside"):
        SynthSettings(max_leakage=0.4)
    with pytest.raises(ValueError, match="target: 'x' is no column; use one of baskets"):
        make_cohort(people(), 100, SynthSettings(target="x", shadows=2))


def test_from_users_to_a_cohort_by_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out = tmp_path / "users.csv", tmp_path / "cohort"
    people(400).assign(user_id=[f"u{n}" for n in range(400)]).to_csv(data, index=False)
    asked = ["synth", "--data", str(data), "--out", str(out), "-n", "250", "--max-leakage", "0.7"]
    done = RUNNER.invoke(app, [*asked, "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["written"]
    assert set(report["leakage"]["attacks"]) == {"closest_record", "shadow"}
    made = pd.read_parquet(out / release.USERS)
    assert list(made) == ["baskets", "age", "city", "spend"]
    assert len(made) == 250

    monkeypatch.setattr(release, "fit_generator", lambda some, _method, _seed: Copycat(some, 0.01))
    refused = RUNNER.invoke(app, asked)
    assert refused.exit_code == 1
    assert "not written" in refused.output
    assert not (out / release.USERS).exists()
    forced = RUNNER.invoke(app, [*asked, "--override-by", "Ada", "--reason", "for a test"])
    assert forced.exit_code == 0, forced.output
    assert "by order of Ada" in " ".join(forced.output.split())
    alone = RUNNER.invoke(app, [*asked, "--reason", "for a test"])
    assert alone.exit_code == 2
    nameless = RUNNER.invoke(app, [*asked, "--override-by", "Ada"])
    assert "override.reason: is empty" in str(nameless.exception)
