"""`qiance allocate`: limits kept to the last row, as good as an independent solver, in clear words."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from offer_cases import check_choices, full_spec, make_offers, reference, written_spec
from typer.testing import CliRunner

from qiance.allocate import Stock, allocate
from qiance.cli.main import app

PAGE = Path(__file__).resolve().parents[2] / "docs" / "allocation.md"


def invoke(folder: Path, frame: pd.DataFrame, spec: dict[str, Any], out: str = "out.csv", *more: str) -> Any:
    data = folder / "offers.csv"
    frame.to_csv(data, index=False)
    words = ["--data", str(data), "--spec", str(written_spec(folder, spec)), "--out", str(folder / out)]
    return CliRunner().invoke(app, ["allocate", *words, *more])


def report_in(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "out.json").read_text(encoding="utf-8"))


@settings(max_examples=15, deadline=None)
@given(users=st.integers(4, 16), seed=st.integers(0, 10**6))
def test_limits_hold_in_the_file_and_the_plan_is_the_solvers(
    users: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("one")
    frame = make_offers(users, seed)
    spec = full_spec(frame)
    best = reference(frame, spec)
    done = invoke(folder, frame, spec)
    if best is None:
        assert done.exit_code == 1, done.output
        assert not (folder / "out.csv").exists()
        return
    assert done.exit_code == 0, done.output
    check_choices(frame, spec, pd.read_csv(folder / "out.csv"))
    report = report_in(folder)
    assert report["value"] == pytest.approx(best, rel=1e-4, abs=1e-6)
    assert report["bound"] >= best * (1 - 1e-4) - 1e-6


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), most=st.integers(0, 2), shared=st.booleans())
def test_days_and_caps_hold(
    seed: int, most: int, shared: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("one")
    frame = make_offers(6, seed, days=3)
    total = float(frame["cost"].sum())
    spec = {
        "columns": {"day": "day"},
        "budget": 0.3 * total,
        "daily_budgets": {"limits": {"d0": 0.05 * total, "d1": 0.1 * total, "d2": 0.15 * total}},
        "frequency_cap": {"most": most, **({"column": "house"} if shared else {})},
    }
    done = invoke(folder, frame, spec)
    assert done.exit_code == 0, done.output
    check_choices(frame, spec, pd.read_csv(folder / "out.csv"))
    report = report_in(folder)
    assert report["value"] == pytest.approx(reference(frame, spec), rel=1e-4, abs=1e-6)
    assert report["frequency_cap"]["most"] == most
    assert f"{report['frequency_cap']['people']:,} get {most} offers" in " ".join(done.output.split())


def test_unsure_values_do_not_spend_the_budget(tmp_path: Path) -> None:
    """One offer is known well; of the other only noise says that some users want it much more."""
    rng = np.random.default_rng(4)
    users, error = 2_000, {"sure": 0.5, "unsure": 12.0}
    parts, truth = [], {}
    for offer, spread in error.items():
        true = (8.0 if offer == "sure" else 4.0) + rng.normal(0, 2, users)
        names = [f"u{number}" for number in range(users)]
        truth |= dict(zip(((name, offer) for name in names), true, strict=True))
        seen = true + rng.normal(0, spread, users)
        parts.append(pd.DataFrame({"user": names, "offer": offer, "value": seen, "cost": 1.0, "se": spread}))
    frame, worth = pd.concat(parts), {}
    for name, columns in (("plain", {}), ("shrunken", {"spread": "se"})):
        done = invoke(tmp_path, frame, {"budget": 600, "columns": columns})
        assert done.exit_code == 0, done.output
        chosen = pd.read_csv(tmp_path / "out.csv").dropna(subset="offer")
        worth[name] = sum(truth[pair] for pair in zip(chosen["user"], chosen["offer"], strict=True))
        told = report_in(tmp_path)["value"]
        if name == "plain":
            assert told > 1.5 * worth[name], "the winner's curse"
        else:
            assert told == pytest.approx(worth[name], rel=0.05)
    assert worth["shrunken"] > 1.2 * worth["plain"]
    refused = invoke(tmp_path, frame, {"budget": 600, "columns": {"spread": "se"}}, "o.csv", "--distributed")
    assert refused.exit_code != 0
    assert "columns.spread: values cannot be shrunken with --distributed" in str(refused.exception)


def test_it_is_what_allocate_does_with_the_same_arrays(tmp_path: Path) -> None:
    frame = make_offers(2_000, 3)
    users = list(dict.fromkeys(frame["user"]))
    wide = frame.pivot(index="user", columns="offer")
    value, cost = (wide[name].loc[users].to_numpy() for name in ("value", "cost"))
    admissible = np.hstack([np.ones((len(users), 1), dtype=bool), np.isfinite(value)])
    value, cost = (np.hstack([np.zeros((len(users), 1)), np.nan_to_num(x)]) for x in (value, cost))
    budget = 0.3 * cost.max(axis=1).sum()
    units = {"coffee": 150}
    limits = [Stock(np.array([np.inf, np.inf, 150.0, np.inf]))]
    direct = allocate(value, cost, budget, admissible, limits=limits)
    done = invoke(tmp_path, frame, {"budget": float(budget), "stock": {"units": units}}, "out.parquet")
    assert done.exit_code == 0, done.output
    chosen, report = pd.read_parquet(tmp_path / "out.parquet"), report_in(tmp_path)
    assert list(chosen["user"]) == users, "as they come"
    named = np.array([None, "cheese", "coffee", "pasta"])[direct.choice]
    assert (chosen["offer"].fillna("") == pd.Series(named).fillna("")).all()
    assert report["value"] == pytest.approx(direct.value)
    assert report["bound"] == pytest.approx(direct.bound)
    prices = {one["name"]: one["price"] for one in report["limits"]}
    assert prices == {"budget": direct.shadow_price[0], "stock of coffee": direct.limits[1].price}
    assert (report["limits"][1]["used"], report["limits"][1]["binds"]) == (150, True)
    counts = chosen["offer"].value_counts()
    assert {name: one["given"] for name, one in report["offers"].items()} == counts.to_dict()
    reasons = chosen.loc[chosen["offer"].isna(), "reason"].value_counts()
    assert report["without_offer"]["reasons"] == reasons.to_dict()


def test_whole_numbers_stay_whole_and_who_has_no_offer_is_there(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "id": [7, 7, 8, 9, 9],
            "offer": ["a", "b", "none", "a", "none"],
            "gain": [3.0, 5.0, 0.0, -1.0, 0.5],
            "cost": [1.0, 1.0, 0.0, 1.0, 0.0],
        }
    )
    frame.to_parquet(tmp_path / "in.parquet")
    spec = {"budget": 9, "columns": {"user": "id", "value": "gain"}, "control": "none"}
    words = ["--data", str(tmp_path / "in.parquet"), "--spec", str(written_spec(tmp_path, spec))]
    done = CliRunner().invoke(app, ["allocate", *words, "--out", str(tmp_path / "out.parquet")])
    assert done.exit_code == 0, done.output
    chosen = pd.read_parquet(tmp_path / "out.parquet")
    assert chosen["user"].dtype == np.int64
    assert chosen[["user", "value"]].to_numpy().tolist() == [[7, 5.0], [8, 0.0], [9, 0.5]]
    assert list(chosen["offer"].fillna("-")) == ["b", "-", "-"]
    assert list(chosen["reason"].fillna("-")) == ["-", "no offer in the data", "no offer is worth it"]
    assert report_in(tmp_path)["value"] == 5.5, "what users are worth without an offer counts"


def test_the_price_of_a_limit_is_said_in_words(tmp_path: Path) -> None:
    frame = make_offers(400, 5)
    spec = full_spec(frame)
    done = invoke(tmp_path, frame, spec)
    said = {one["name"]: one for one in report_in(tmp_path)["limits"]}
    assert len(said) == 3 + 1 + 1 + 1 + 2
    for one in said.values():
        assert one["binds"] == (one["price"] > 0)
        assert one["meaning"].startswith(
            "binds" if one["binds"] else ("does not bind", "used up", "just met")
        )
        if one["limit"]:
            assert one["gain_of_a_hundredth"] == pytest.approx(one["price"] * abs(one["limit"]) / 100)
    assert any(one["binds"] for one in said.values())
    assert {"depth fairness, north over south", "floor of region north", "stock of own"} <= set(said)
    assert "what it means" in done.output


def test_limits_that_no_plan_keeps_end_with_1_and_are_named(tmp_path: Path) -> None:
    frame = make_offers(60, 7)
    floor = {"column": "region", "value": "north", "share": 0.9}
    done = invoke(tmp_path, frame, {"budget": 3.0, "segment_floors": [floor]})
    assert done.exit_code == 1
    assert "no plan keeps the limits" in done.output
    assert "floor of region north" in done.output
    assert not (tmp_path / "out.csv").exists()
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "x.xlsx"], "ends in none of .parquet, .pq, .csv"),
        (["--out", "a.csv", "--report", "a.csv"], "is the file of the choices"),
        (["--out", "a.csv", "--workers", "2"], "belongs to --distributed"),
    ],
)
def test_the_command_names_the_option_that_is_wrong(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = written_spec(tmp_path, {"budget": 1})
    done = CliRunner().invoke(app, ["allocate", "--data", "x.csv", "--spec", str(spec), *arguments])
    assert done.exit_code == 2
    assert message in " ".join(re.sub(r"[│╭╰─╮╯]", "", done.output).split())


def test_the_example_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Table, spec, command and what it prints, as the page has them; the second spec is one too."""
    from qiance.allocate.spec import load_spec

    section = PAGE.read_text(encoding="utf-8").split("## By the command")[1].split("\n## ")[0]
    blocks = {kind: re.findall(rf"```{kind}\n(.*?)```", section, re.S) for kind in ("csv", "yaml", "text")}
    monkeypatch.chdir(tmp_path)
    Path("offers.csv").write_text(blocks["csv"][0], encoding="utf-8")
    Path("spec.yaml").write_text(blocks["yaml"][0], encoding="utf-8")
    [command] = re.findall(r"`qiance (allocate --data offers.csv .*?)`", section)
    done = CliRunner(env={"COLUMNS": "120"}).invoke(app, command.split())
    assert done.exit_code == 0, done.output
    printed = [line.rstrip() for line in done.output.splitlines()]
    for line in blocks["text"][0].splitlines():
        assert line.rstrip() in printed, done.output
    chosen = pd.read_csv("choices.csv").set_index("user")
    assert chosen["offer"].dropna().to_dict() == {
        "ann": "coffee", "bob": "coffee", "cat": "cheese", "dan": "cheese",
    }  # fmt: skip
    Path("more.yaml").write_text(blocks["yaml"][1], encoding="utf-8")
    load_spec(Path("more.yaml"))
