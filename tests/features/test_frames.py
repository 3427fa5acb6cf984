"""Frames of item values: found by their content, whole or not at all."""

from __future__ import annotations

import os
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from qiance.features.frames import FrameStore, content_hash

VALUES = {"price": np.array([100.0, np.nan, 3.5]), "stock": np.array([1.0, 0.0, -0.0])}


def test_a_frame_comes_back_and_is_written_once(tmp_path: Path) -> None:
    store = FrameStore(tmp_path / "frames")
    key = store.put(VALUES)
    [file] = (tmp_path / "frames").iterdir()
    written = file.stat().st_ino
    assert store.put(dict(reversed(VALUES.items()))) == key == content_hash(VALUES)
    assert [f.stat().st_ino for f in (tmp_path / "frames").iterdir()] == [written]
    found = FrameStore(tmp_path / "frames").get(key)
    assert found.keys() == VALUES.keys()
    for name, values in VALUES.items():
        assert found[name].tobytes() == values.tobytes()


def test_names_shapes_and_bytes_decide_the_hash() -> None:
    others = [
        {"price": VALUES["price"]},
        {"price": VALUES["stock"], "stock": VALUES["price"]},
        {**VALUES, "stock": np.array([1.0, 0.0, 0.0])},
        {**VALUES, "stock": VALUES["stock"][:, None]},
        {"pric": VALUES["price"], "estock": VALUES["stock"]},
    ]
    assert len({content_hash(values) for values in (VALUES, *others)}) == 6


def test_old_frames_are_pruned_and_a_frame_in_use_stays(tmp_path: Path) -> None:
    store = FrameStore(tmp_path)
    old, kept = store.put(VALUES), store.put({"price": VALUES["price"]})
    long_ago = (datetime.now(UTC) - timedelta(days=40)).timestamp()
    for file in tmp_path.iterdir():
        os.utime(file, (long_ago, long_ago))
    store.put({"price": VALUES["price"]})
    assert store.prune(datetime.now(UTC) - timedelta(days=30)) == 1
    assert store.get(kept).keys() == {"price"}
    with pytest.raises(KeyError):
        store.get(old)
    with pytest.raises(ValueError, match=r"before: .* has no offset"):
        store.prune(datetime(2025, 1, 1))


def test_many_writers_leave_one_whole_frame(tmp_path: Path) -> None:
    keys: list[str] = []
    writers = [
        threading.Thread(target=lambda: keys.append(FrameStore(tmp_path).put(VALUES))) for _ in range(8)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(keys) == 8
    assert [file.name for file in tmp_path.iterdir()] == [f"{keys[0]}.npz"]
    assert FrameStore(tmp_path).get(keys[0])["price"].size == 3


def test_what_was_changed_or_is_no_frame_is_refused(tmp_path: Path) -> None:
    store = FrameStore(tmp_path)
    key = store.put(VALUES)
    other = store.put({"price": VALUES["price"]})
    (tmp_path / f"{other}.npz").replace(tmp_path / f"{key}.npz")
    with pytest.raises(ValueError, match="was changed"):
        store.get(key)
    (tmp_path / f"{key}.npz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="cannot be read"):
        store.get(key)
    np.savez(tmp_path / f"{key}.npz", price=np.array([object()], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="cannot be read"):
        store.get(key)
    with pytest.raises(ValueError, match="is no content hash"):
        store.get("../secrets")
