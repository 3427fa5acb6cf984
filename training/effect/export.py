"""The files of an effect model: its programs, its encoder and what it says about itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from qiance.artifacts import EffectInfo, export_program, load_program
from qiance.artifacts.effect import ACTIONS, ENCODER, INFO, OTHER, PAIRS, PROGRAM, Calibration
from qiance.artifacts.json_file import write_json
from qiance.artifacts.width import WidthScale
from qiance.features.encoder import Encoder
from qiance.features.grid import GridColumns
from training.effect.network import EffectNetwork
from training.effect.served import Curves, ServedActions, ServedNetwork, ServedPairs

Files = dict[str, Callable[[Path], None]]

# Sizes that the inputs of `ServedPairs` may have any of.
_DIMS = {
    "action": {1: "actions"},
    "product": {1: "actions"},
    "user": {1: "users"},
    "pair": {1: "users", 2: "actions"},
}
_USERS = 3
_TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def effect_files(
    network: EffectNetwork,
    encoder: Encoder,
    num: NDArray[np.float32],
    cat: NDArray[np.int64],
    width_scale: float,
    width_scales: Mapping[str, float],
    calibration: Calibration | None = None,
    width: WidthScale | None = None,
) -> Files:
    """What an artifact of kind `effect-model` holds, as functions that write each file.

    num `[n, Dn]`, cat `[n, Dc]`: some rows; what is written must predict of them what was trained. width: of
    segments, and the groups behind it; its marginal factor is `width_scale`.
    """
    config, columns = network.config, GridColumns.of(encoder)
    info = EffectInfo(
        config.tasks,
        config.heads,
        config.hidden,
        config.entire_space,
        width_scale,
        width_scales,
        columns,
        calibration,
        {} if width is None else width.segments,
        None if width is None else width.groups,
    )
    curves = None if calibration is None else curves_of(calibration, encoder)
    rows = torch.from_numpy(num), torch.from_numpy(cat)
    files: Files = {
        PROGRAM: lambda path: _export(ServedNetwork(network, curves).eval(), *rows, path),
        ENCODER: lambda path: write_json(path, encoder.to_dict()),
        INFO: lambda path: write_json(path, info.to_dict()),
    }
    return files if columns is None else files | _grid_files(network, *rows, columns, curves)


def curves_of(calibration: Calibration, encoder: Encoder) -> Curves:
    """The same by code of the segment's feature, for the programs."""
    place = None if calibration.segment is None else encoder.schema.categorical.index(calibration.segment)
    names = (OTHER, *encoder.vocabularies[place]) if place is not None else (OTHER,)
    found = calibration.tasks.items()
    rows = [[own.c + own.offsets.get(name, 0.0) for _, own in found] for name in names]
    return Curves({task: (own.a, own.b) for task, own in found}, torch.tensor(rows), place)


def _export(served: ServedNetwork, num: torch.Tensor, cat: torch.Tensor, path: Path) -> None:
    export_program(served, {"num": num, "cat": cat}, path)
    program = load_program(path)
    with torch.inference_mode():
        for n in (0, 1, len(num)):
            torch.testing.assert_close(program(num[:n], cat[:n]), served(num[:n], cat[:n]), **_TOLERANCE)


def _grid_files(
    network: EffectNetwork,
    num: torch.Tensor,
    cat: torch.Tensor,
    columns: GridColumns,
    curves: Curves | None,
) -> Files:
    """The programs for users × actions."""
    first = ServedActions(network, columns.user, columns.pair, curves).eval()
    second = ServedPairs(network, columns.user, columns.pair, curves).eval()
    with torch.no_grad():
        action, product = first(num, cat)
    inputs = {
        "action": action,
        "product": product,
        "user": num[:1, list(columns.user)].t().repeat(1, _USERS),
        "pair": num[:, list(columns.pair)].t().unsqueeze(1).repeat(1, _USERS, 1),
    }
    return {
        ACTIONS: lambda path: export_program(first, {"num": num, "cat": cat}, path),
        PAIRS: lambda path: export_program(second, inputs, path, _DIMS),
    }
