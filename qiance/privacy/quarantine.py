"""Quarantined rows of a user: a fault keeps the bad value, and that may be the user's id."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from qiance.data.faults import FAULT_SCHEMA

_TEXTS = ("value", "detail")


def faults_of(path: Path, user_ids: Collection[str]) -> np.ndarray:
    """`[n]` whether a fault belongs to a row that names one of the users.

    A bad row is known by its number and its bad values alone: one whose user id was sound is not found.
    """
    faults = _read(path)
    named = _naming(faults, user_ids)
    numbers = pc.unique(faults["row"].filter(pa.array(named)))
    return np.asarray(pc.is_in(faults["row"], value_set=numbers), dtype=bool)


def write_faults_without(path: Path, target: Path, gone: np.ndarray) -> None:
    """Write the faults of `path` to `target` but those where `gone` `[n]`."""
    pacsv.write_csv(_read(path).filter(pa.array(~gone)), target)


def _read(path: Path) -> pa.Table:
    return pacsv.read_csv(
        path,
        parse_options=pacsv.ParseOptions(newlines_in_values=True),
        convert_options=pacsv.ConvertOptions(
            column_types=FAULT_SCHEMA, strings_can_be_null=True, quoted_strings_can_be_null=False
        ),
    )


def _naming(faults: pa.Table, user_ids: Collection[str]) -> np.ndarray:
    """`[n]` whether a fault names a user, as a word of its own."""
    named = np.zeros(faults.num_rows, dtype=bool)
    words = re.compile("|".join(rf"(?<!\w){re.escape(user_id)}(?!\w)" for user_id in sorted(user_ids)))
    for column in _TEXTS:
        texts = faults[column].to_pylist()
        named |= np.array([text is not None and words.search(text) is not None for text in texts], dtype=bool)
    return named
