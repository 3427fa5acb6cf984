"""Small sweeps for the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from response_cases import write_log

from qiance.data.mapped import read_mapped
from qiance.data.mapping import load_mapping
from training.response.config import check_parameters
from training.response.rows import ResponseRows, response_rows
from training.tune.response_space import load_space
from training.tune.sweep import Sweep, SweepSettings

SHORT = {"network": {"epochs": 4, "heads": 2}, "trees": {"rounds": 100}}
SPACE = {
    "network": {
        "learning_rate": {"kind": "loguniform", "low": 0.001, "high": 0.02},
        "hidden": {"kind": "choice", "values": [[8], [64, 32]]},
    },
    "trees": {
        "learning_rate": {"kind": "loguniform", "low": 0.02, "high": 0.2},
        "leaves": {"kind": "int", "low": 4, "high": 32, "log": True},
    },
}


def written(folder: Path, content: Any, name: str = "space.yaml") -> Path:
    """`content` as a YAML file."""
    path = folder / name
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def small_rows(folder: Path, n: int = 600) -> ResponseRows:
    """A response log whose outcome hangs on its features."""
    log = write_log(folder, n=n)
    found = read_mapped(log.data, load_mapping(log.mapping)).responses
    assert found is not None
    return response_rows(found)


def small_sweep(folder: Path, space: Any = SPACE, config: Any = SHORT, **settings: Any) -> Sweep:
    """A sweep of seconds."""
    return Sweep(
        rows=small_rows(folder),
        space=load_space(written(folder, space)),
        settings=SweepSettings(**{"trials": 4, "folds": 2, **settings}),
        given=check_parameters(config, "the test"),
        mapping="m",
    )
