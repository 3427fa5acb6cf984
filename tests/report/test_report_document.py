"""The document: strict about our names, kind to missing numbers, always valid JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from page_reader import Page
from pydantic import ValidationError
from report_cases import bare_document, loop_document, offline_document

from qiance.report import RunReport, write_report
from qiance.report.page import render, to_json

POLICY_KEYS = {"predicted", "measured", "low", "high", "holdout", "oracle_share", "overspend"}


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def strict(text: str) -> Any:
    return json.loads(text, parse_constant=refuse_constant)


def number_places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to every float in a document."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from number_places(part, (*path, key))
    elif isinstance(value, list):
        for place, part in enumerate(value):
            yield from number_places(part, (*path, place))
    elif isinstance(value, float):
        yield path


def at(document: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        document = document[step]
    return document


def put(document: Any, path: tuple[Any, ...], value: Any) -> None:
    for step in path[:-1]:
        document = document[step]
    document[path[-1]] = value


@pytest.mark.parametrize("make", [loop_document, offline_document, bare_document])
def test_json_has_the_keys_that_others_read(make: Any, tmp_path: Path) -> None:
    path, _ = write_report(RunReport.model_validate(make()), tmp_path)
    found = strict(path.read_text(encoding="utf-8"))
    assert {"stages", "models", "strategies", "policy"} <= found.keys()
    assert found["policy"].keys() >= POLICY_KEYS
    assert all({"name", "seconds"} <= stage.keys() for stage in found["stages"])
    assert all("kind" in strategy for strategy in found["strategies"])


@pytest.mark.parametrize("make", [loop_document, offline_document, bare_document])
def test_json_reads_back_as_the_same_report(make: Any) -> None:
    report = RunReport.model_validate(make())
    assert RunReport.model_validate(strict(to_json(report))) == report


def test_what_other_rooms_add_to_their_scores_and_tables_is_kept() -> None:
    document = loop_document()
    document["data"]["tables"][0]["checked_by"] = "x"
    document["models"]["effect"]["scores"]["click"][0]["brier"] = math.nan
    found = strict(to_json(RunReport.model_validate(document)))
    assert found["data"]["tables"][0]["checked_by"] == "x"
    assert found["models"]["effect"]["scores"]["click"][0]["brier"] is None


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("polcy",), {}, "polcy"),
        (("policy", "measurd"), 1.0, "policy.measurd"),
        (("strategies", 0, "kind"), "banner", "strategies.0.kind"),
        (("strategies", 0, "effect", "ctr", "mid"), 0.1, "strategies.0.effect.ctr.mid"),
        (("kind",), "online", "kind"),
        (("currency",), "dollars", "currency"),
        (("created_at",), "2026-03-02T09:14:07", "created_at"),
        (("data", "tables", 0, "accepted"), -1, "data.tables.0.accepted"),
        (("models", "effect", "metrics"), {"auc": "high"}, "models.effect.metrics.auc"),
    ],
)
def test_a_mistake_is_refused_by_name(path: tuple[Any, ...], value: Any, said: str) -> None:
    document = loop_document()
    put(document, path, value)
    with pytest.raises(ValidationError) as error:
        RunReport.model_validate(document)
    assert said in [".".join(map(str, found["loc"])) for found in error.value.errors()]


@pytest.mark.parametrize("key", sorted(POLICY_KEYS))
def test_the_policy_keys_may_be_null_but_not_left_out(key: str) -> None:
    document = bare_document()
    del document["policy"][key]
    with pytest.raises(ValidationError, match=f"policy.{key}"):
        RunReport.model_validate(document)


@pytest.mark.parametrize("make", [loop_document, offline_document])
@pytest.mark.parametrize("hole", [None, -math.inf, np.float64("nan")])
def test_a_report_without_any_number_is_still_written(make: Any, hole: Any) -> None:
    document = make()
    document["models"].pop("redemption", None)  # its list becomes a dict: places would differ
    holes = list(number_places(document))
    for path in holes:
        put(document, path, hole)
    report = RunReport.model_validate(document)
    written = strict(to_json(report))
    assert [at(written, path) for path in holes] == [None] * len(holes)
    assert not re.search(r"\b(nan|inf|None)\b", Page(render(report)).text)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_numbers_missing_or_extreme_give_a_page_and_strict_json(data: st.DataObject) -> None:
    document = data.draw(st.sampled_from([loop_document, offline_document]))()
    places = list(number_places(document))
    chosen = data.draw(st.lists(st.sampled_from(places), min_size=1, max_size=12))
    for path in chosen:
        put(document, path, data.draw(st.none() | st.floats(-1e12, 1e12) | st.floats(-1e-9, 1e-9)))
    report = RunReport.model_validate(document)
    strict(to_json(report))
    assert "</html>" in render(report)


@pytest.mark.parametrize("make", [loop_document, offline_document])
def test_every_optional_part_may_be_left_out(make: Any) -> None:
    needed = {"kind", "title", "created_at", "version", "seed", "policy"}
    for key in make().keys() - needed:
        document = make()
        del document[key]
        assert "</html>" in render(RunReport.model_validate(document)), key
    for key in make()["policy"].keys() - POLICY_KEYS:
        document = make()
        del document["policy"][key]
        assert "</html>" in render(RunReport.model_validate(document)), key


def test_writing_again_replaces_both_files_and_leaves_nothing_else(tmp_path: Path) -> None:
    write_report(RunReport.model_validate(loop_document()), tmp_path / "run")
    document = {**loop_document(), "title": "Second"}
    paths = write_report(RunReport.model_validate(document), tmp_path / "run")
    assert sorted(tmp_path.rglob("*.*")) == sorted(paths)
    assert all("Second" in path.read_text(encoding="utf-8") for path in paths)


def test_a_failed_write_keeps_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = write_report(RunReport.model_validate(loop_document()), tmp_path)[1].read_bytes()

    def full(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_report(RunReport.model_validate({**loop_document(), "title": "New"}), tmp_path)
    assert (tmp_path / "report.html").read_bytes() == old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]


def test_a_flat_list_of_redemption_scores_is_grouped_by_label() -> None:
    scores = RunReport.model_validate(loop_document()).models.redemption
    assert scores is not None
    assert list(scores.scores) == ["conversion"]
    assert len(scores.scores["conversion"]) == 6
