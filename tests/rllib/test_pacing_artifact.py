from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from qiance.artifacts import Artifact, ArtifactError, export_program, write_artifact
from qiance.artifacts.pacing import KIND, POLICY, ExportedPolicy, write_program, write_rule
from qiance.decide.pacing import Constant, EvenPace, observation_hash

OBSERVATIONS = np.random.default_rng(0).uniform(-1, 1, (20, 6)).astype(np.float32)


class _Answer(torch.nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return obs[:, 0] * 0.0 + self.value


def _write(root: Path, settings: object, **more: str) -> Artifact:
    files = {POLICY: lambda path: path.write_text(json.dumps(settings))}
    arguments = {"feature_service": "", "schema_hash": observation_hash(), "data_fingerprint": ""} | more
    return write_artifact(root, arguments.pop("kind", KIND), files, metrics={}, **arguments)


def _program(root: Path, value: float) -> Artifact:
    def write(path: Path) -> None:
        export_program(_Answer(value), {"obs": torch.zeros(2, 6)}, path)

    return write_program(root, write, metrics={}, data_fingerprint="d")


@pytest.mark.parametrize(("rule", "name"), [(Constant(1.7), "constant"), (EvenPace(2.5), "even_pace")])
def test_rules_answer_the_same_after_a_round_trip(
    tmp_path: Path, rule: Constant | EvenPace, name: str
) -> None:
    artifact = write_rule(tmp_path, rule, metrics={"gain": 0.0}, data_fingerprint="d")
    loaded = ExportedPolicy.load(artifact.path)
    assert loaded.rule == name
    assert loaded.version == artifact.version
    assert [loaded.multiplier(o) for o in OBSERVATIONS] == [rule.multiplier(o) for o in OBSERVATIONS]
    assert write_rule(tmp_path, rule, metrics={}, data_fingerprint="d").version == artifact.version


def test_a_program_is_loaded_by_the_same_loader(tmp_path: Path) -> None:
    loaded = ExportedPolicy.load(_program(tmp_path, 2.0).path)
    assert loaded.rule == "program"
    assert loaded.multiplier(OBSERVATIONS[0]) == 2.0


@pytest.mark.parametrize("value", [3.5, 0.1, float("nan")])
def test_a_program_outside_the_range_is_refused(tmp_path: Path, value: float) -> None:
    artifact = _program(tmp_path, value)
    with pytest.raises(ArtifactError, match="outside"):
        ExportedPolicy.load(artifact.path)


@pytest.mark.parametrize(
    ("settings", "more", "message"),
    [
        ({"rule": "pickle"}, {}, "rule: 'pickle' is none of program, even_pace, constant"),
        ({}, {}, "cannot be used"),
        ([], {}, "cannot be used"),
        ({"rule": "even_pace"}, {}, "cannot be used"),
        ({"rule": "even_pace", "gain": -1}, {}, "gain: -1.0 is not"),
        ({"rule": "constant", "value": 9}, {}, "value: 9.0 is outside"),
        ({"rule": "program"}, {}, "cannot be used"),
        ({"rule": "constant", "value": 1}, {"schema_hash": "0"}, "other observations"),
        (
            {"rule": "constant", "value": 1},
            {"kind": "effect-model"},
            "pass a 'pacing-policy' of `qiance run`",
        ),
    ],
)
def test_what_is_no_pacing_policy_is_refused(
    tmp_path: Path, settings: object, more: dict[str, str], message: str
) -> None:
    artifact = _write(tmp_path, settings, **more)
    with pytest.raises(ArtifactError, match=message):
        ExportedPolicy.load(artifact.path)


def test_bad_observations_are_refused(tmp_path: Path) -> None:
    loaded = ExportedPolicy.load(write_rule(tmp_path, EvenPace(), metrics={}, data_fingerprint="d").path)
    with pytest.raises(ValueError, match=r"observation: shape is \[1, 6\]; must be \[6\]"):
        loaded.multiplier(OBSERVATIONS[:1])
    with pytest.raises(ValueError, match="observation: budget_left is not finite"):
        loaded.multiplier(np.array([0, np.nan, 0, 0, 0, 0], dtype=np.float32))
