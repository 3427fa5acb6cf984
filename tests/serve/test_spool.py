"""The spool: what was kept is handed over, whoever looks for what others left, and whenever."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Any

from serve.spool import Spool


def test_nothing_is_lost_or_refused_while_others_hand_over(tmp_path: Path) -> None:
    """Two spools on one folder hand over all the time, also at the moment when a file is made."""
    spools, stop, taken = [Spool(tmp_path, 1 << 20) for _ in range(2)], threading.Event(), Counter[int]()

    def take(entries: Any) -> None:
        taken.update(entry["n"] for entry in entries)

    def hand_over(spool: Spool) -> None:
        while not stop.is_set():
            spool.replay(take)

    threads = [threading.Thread(target=hand_over, args=(spool,)) for spool in spools]
    for thread in threads:
        thread.start()
    try:
        for n in range(400):
            spools[n % 2].append([{"n": n}])
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    for spool in spools:
        spool.replay(take)
    assert set(taken) == set(range(400))
    assert list(tmp_path.iterdir()) == []


def test_what_a_dead_replica_left_is_handed_over_once_it_is_dead(tmp_path: Path) -> None:
    left, found = Spool(tmp_path, 1 << 20), list[Any]()
    left.append([{"n": 1}, {"n": 2}])
    other = Spool(tmp_path, 1 << 20)
    assert other.replay(found.extend) == 0, "it lives"
    left.close()
    assert other.replay(found.extend) == 2
    assert [entry["n"] for entry in found] == [1, 2]
    assert other.is_empty
