"""`qiance evaluate ope` on a log whose truth is known: policies by name and by file, gate, JSON, mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from qiance.cli.main import app
from qiance.cli.policy_source import policy_of, read_log
from qiance.evaluate.ope_sequence import difference_sequence

RUNNER = CliRunner()
ARMS = ["hats", "none", "shoes"]  # as the log is read: by the alphabet
SHARES = np.array([0.3, 0.4, 0.3])

MAPPING = """
kind: responses
name: shop
currency: EUR
columns: {arm: shown, propensity: p, unit_id: user}
features:
  numeric: {age: {column: age}}
  categorical: {wanted: {column: wanted}}
labels: {click: clicked}
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """log.csv, mapping.yaml and policies: young users like hats, old ones shoes."""
    folder = tmp_path_factory.mktemp("shop")
    rng, n = np.random.default_rng(4), 3000
    age = rng.integers(18, 80, n)
    action = rng.choice(3, n, p=SHARES)
    best = np.where(age < 45, 0, 2)
    click = rng.random(n) < np.where(action == 1, 0.1, np.where(action == best, 0.4, 0.15))
    probs = np.full((n, 3), 0.05)
    probs[np.arange(n), best] = 0.9
    table = {
        "shown": [ARMS[a] for a in action],
        "p": SHARES[action],
        "user": [f"u{i // 2}" for i in range(n)],
        "visit": [f"v{i}" for i in range(n)],
        "age": age,
        "wanted": [ARMS[b] for b in best],
        "clicked": click.astype(int),
    }
    pacsv.write_csv(pa.table(table), folder / "log.csv")
    (folder / "mapping.yaml").write_text(MAPPING)
    (folder / "visits.yaml").write_text(MAPPING.replace("unit_id: user", "unit_id: visit"))
    pq.write_table(pa.table({arm: probs[:, k] for k, arm in enumerate(ARMS)}), folder / "policy.parquet")
    order = rng.permutation(n)
    shuffled = {"row_id": order + 1, **{arm: probs[order, k] for k, arm in enumerate(ARMS)}}
    pacsv.write_csv(pa.table(shuffled), folder / "shuffled.csv")
    return folder


def run(shop: Path, *words: str) -> tuple[int, str]:
    files = ["--data", str(shop / "log.csv"), "--mapping", str(shop / "mapping.yaml")]
    found = RUNNER.invoke(app, ["evaluate", "ope", *files, *words], env={"COLUMNS": "160"})
    ended = found.exception is None or isinstance(found.exception, SystemExit)
    return found.exit_code, found.stdout if ended else str(found.exception)


def as_json(shop: Path, *words: str, ends: int = 0) -> dict:
    code, text = run(shop, *words, "--json")
    assert code == ends, text
    return json.loads(text)


def test_policies_are_estimated_and_judged(shop: Path) -> None:
    policies = ("uniform", "best-arm", "column:wanted", "arm:none", str(shop / "policy.parquet"))
    asked = (w for p in policies for w in ("--policy", p))
    found = as_json(shop, *asked, "--baseline", "arm:none", ends=1)  # arm:none is not better than itself
    assert found["reward"] == "click"
    truth = {"uniform": 0.65 / 3, "column:wanted": 0.4, "arm:none": 0.1, policies[4]: 0.3725}
    for one in found["policies"]:
        assert [e["estimator"] for e in one["estimates"]] == ["auto", "sndr", "snipw", "ipw"]
        assert one["gate"]["passed"] is (one["policy"] != "arm:none")
        for e in one["estimates"]:
            assert e["diagnostics"]["units"] == 1500
            if one["policy"] in truth:
                assert e["low"] - 0.02 < truth[one["policy"]] < e["high"] + 0.02
    gain = found["policies"][2]["improvement"]
    assert gain["low"] < 0.3 < gain["high"]
    assert gain["baseline_value"] == pytest.approx(0.1, abs=0.03)


def test_a_file_may_name_its_rows(shop: Path) -> None:
    plain, named = (
        as_json(shop, "--policy", str(shop / name), "--estimator", "snipw")["policies"][0]["estimates"][0]
        for name in ("policy.parquet", "shuffled.csv")
    )
    assert plain["value"] == pytest.approx(named["value"])


def test_people_read_a_table_with_what_the_log_holds(shop: Path) -> None:
    code, text = run(shop, "--policy", "column:wanted", "--baseline", "uniform", "--estimator", "dros")
    assert code == 0
    for word in (
        "column:wanted",
        "dros (",
        "improvement over uniform, dros",
        "effective rows",
        "gate passed",
    ):
        assert word in text


def test_a_closed_gate_ends_with_1_and_an_open_one_with_0(shop: Path) -> None:
    judged = ("--policy", "column:wanted", "--baseline", "uniform", "--estimator", "sndr")
    assert run(shop, *judged)[0] == 0
    code, text = run(shop, *judged, "--margin", "0.9")
    assert code == 1
    assert "gate not passed: lower bound of the improvement" in " ".join(text.split())
    assert run(shop, *judged, "--policy", "uniform")[0] == 1, "one of two is closed"
    assert run(shop, *judged[:2], "--estimator", "sndr")[0] == 0, "no baseline, no gate"


def test_the_improvement_is_by_the_first_estimator_named(shop: Path) -> None:
    judged = ("--policy", "column:wanted", "--baseline", "uniform")
    for first, second in (("snipw", "ipw"), ("ipw", "snipw"), ("mrdr", "snipw")):
        found = as_json(shop, *judged, "--estimator", first, "--estimator", second)["policies"][0]
        assert found["improvement"]["estimator"] == first
        own = found["estimates"][0]["value"] - found["improvement"]["baseline_value"]
        assert found["improvement"]["value"] == pytest.approx(own)
    closed = as_json(shop, *judged, "--estimator", "dm", ends=1)["policies"][0]["gate"]
    assert closed["reason"].startswith("dm is no better than its reward model")


@pytest.mark.parametrize("interval", ["anytime", "bernstein", "normal"])
def test_the_gate_is_by_the_interval_that_was_asked_for(shop: Path, interval: str) -> None:
    judged = ("--mapping", str(shop / "visits.yaml"), "--policy", "column:wanted", "--baseline", "uniform")
    usual, found = (
        as_json(shop, *judged, "--interval", name)["policies"][0]["improvement"]
        for name in ("default", interval)
    )
    assert (found["interval"], found["estimator"]) == (interval, "auto")
    assert found["centre"] == ("greg" if interval == "normal" else "ipw")
    between = (usual["low"] + found["low"]) / 2  # a margin that one of the two lower bounds clears
    _, text = run(shop, *judged, "--interval", interval, "--margin", str(between))
    assert ("gate passed" in text) is (found["low"] > usual["low"])
    if interval != "normal":
        assert found["low"] < usual["low"] - 0.02
    if interval == "anytime":
        given = read_log(shop / "log.csv", shop / "visits.yaml", None)
        policy, live = (policy_of(given, name) for name in ("column:wanted", "uniform"))
        sequence = difference_sequence(given.log, policy, live, np.array([len(given.log)]))
        assert found["low"] == pytest.approx(sequence.low[0])


def test_intervals_for_every_moment_want_independent_rows(shop: Path) -> None:
    code, text = run(shop, "--policy", "uniform", "--interval", "anytime")
    assert code != 0
    assert "'anytime' is for independent rows, and cluster has 1500 units for 3000 rows" in text


def write(shop: Path, name: str, columns: dict) -> str:
    pacsv.write_csv(pa.table(columns), shop / name)
    return str(shop / name)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--policy", "boldest"], "policy: 'boldest' is neither a known policy nor a file; pass uniform"),
        (
            ["--policy", "arm:boots"],
            "policy: arm 'boots' was never logged; the arms are 'hats', 'none', 'shoes'",
        ),
        (
            ["--policy", "column:age"],
            "policy: 'age' is not a categorical feature of the mapping; there are: wanted",
        ),
        (["--policy", "uniform", "--reward", "sales"], "has no label 'sales'; choose --reward among click"),
        (
            ["--policy", "uniform", "--estimator", "magic"],
            "estimator: 'magic' is not known; choose one of auto",
        ),
        (["--policy", "uniform", "--confidence", "2"], "confidence: 2.0 is outside"),
        (["--policy", "{lacking}"], "has no column for the arm 'shoes'"),
        (["--policy", "{short}"], "has no row for row_id '2' of the log"),
        (["--policy", "{words}"], "column 'hats' holds no numbers"),
        (["--policy", "{sums}"], "policy_probs row sum: row 0 is 1.2"),
    ],
)
def test_mistakes_are_named(shop: Path, words: list[str], message: str) -> None:
    files = {
        "lacking": write(shop, "lacking.csv", {"hats": [0.5], "none": [0.5]}),
        "short": write(shop, "short.csv", {arm: [1 / 3] for arm in ARMS}),
        "words": write(
            shop, "words.csv", {"none": [0.5] * 3000, "shoes": [0.5] * 3000, "hats": ["much"] * 3000}
        ),
        "sums": write(shop, "sums.csv", {arm: [0.4] * 3000 for arm in ARMS}),
    }
    code, text = run(shop, *(word.format(**files) for word in words))
    assert code != 0
    assert message in text
