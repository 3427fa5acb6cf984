"""Files that several replicas share: whenever one looks at them, nothing of another is lost."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from io import FileIO
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from serve import spool as spool_module
from serve.spool import Entry, Spool, SpoolFullError

MAX_BYTES = 100_000


class Taker:
    """Takes every entry, and remembers it; gives back those that `waits` holds for."""

    def __init__(self, waits: Callable[[Entry], bool] = lambda _: False) -> None:
        self.taken: list[int] = []
        self.waits = waits

    def __call__(self, entries: Sequence[Entry]) -> list[Entry]:
        kept = [e for e in entries if self.waits(e)]
        self.taken += [e["n"] for e in entries if e not in kept]
        return kept


def entries(*numbers: int) -> list[Entry]:
    return [{"n": n} for n in numbers]


def at_line(number: int, work: Callable[[], Any], meanwhile: Callable[[], Any]) -> bool:
    """Run `work`, and `meanwhile` before its `number`th line of the spool; whether it got there."""
    seen = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal seen
        if frame.f_code.co_filename != spool_module.__file__:
            return None
        if event == "line":
            seen += 1
            if seen == number:
                meanwhile()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return seen >= number


def moments(run: Callable[[int], bool]) -> None:
    """`run` at every moment there is; it says whether the moment was there."""
    number = 1
    while run(number):
        number += 1
    assert number > 10, "the spool's lines were followed"


class EndError(BaseException):
    """The process ends here."""


def ends_at_line(number: int, owner: Spool, work: Callable[[], Any]) -> bool:
    """As `at_line`, where `owner` ends instead; its locks go, what it has on the disk stays."""

    def end() -> None:
        raise EndError

    try:
        reached = at_line(number, work, end)
    except EndError:
        reached = True
    if owner._own is not None:
        owner._own[1].close()
    return reached


def files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def test_whenever_another_replica_looks_an_append_is_not_lost(tmp_path: Path) -> None:
    def run(number: int) -> bool:
        folder = tmp_path / str(number)
        owner, other, taker = Spool(folder, MAX_BYTES), Spool(folder, MAX_BYTES), Taker()
        reached = at_line(number, lambda: owner.append(entries(1)), lambda: other.replay(taker))
        owner.append(entries(2))
        other.replay(taker)
        assert taker.taken == [], "it belongs to one who lives"
        owner.replay(taker)
        assert taker.taken == [1, 2]
        assert list(files(folder)) == []
        return reached

    moments(run)


def test_whatever_its_owner_does_while_another_replica_looks_nothing_is_lost(tmp_path: Path) -> None:
    """The other has opened a file that the owner hands over and begins anew."""

    def run(number: int) -> bool:
        folder = tmp_path / str(number)
        owner, other, taker = Spool(folder, MAX_BYTES), Spool(folder, MAX_BYTES), Taker()

        def meanwhile() -> None:
            owner.replay(taker)
            owner.append(entries(3))

        owner.append(entries(1, 2))
        reached = at_line(number, lambda: other.replay(taker), meanwhile)
        owner.append(entries(4))
        owner.replay(taker)
        assert taker.taken == ([1, 2, 3, 4] if reached else [1, 2, 4])
        assert list(files(folder)) == []
        return reached

    moments(run)


def test_one_that_ends_at_any_moment_of_an_append_leaves_what_it_answered(tmp_path: Path) -> None:
    def run(number: int) -> bool:
        folder = tmp_path / str(number)
        owner, taker = Spool(folder, MAX_BYTES), Taker()
        reached = ends_at_line(number, owner, lambda: owner.append(entries(1)))
        for draft in folder.rglob("*.new"):
            os.utime(draft, (0, 0))
        Spool(folder, MAX_BYTES).replay(taker)
        assert taker.taken in ([[1], []] if reached else [[1]])
        assert list(files(folder)) == []
        return reached

    moments(run)


def test_drafts_are_swept_when_they_are_old(tmp_path: Path) -> None:
    """A process that is killed leaves its draft; one that is at it now needs it."""
    spool = Spool(tmp_path, MAX_BYTES)
    (tmp_path / "waiting").mkdir()
    for name in ("old.new", "waiting/old.new", "now.new"):
        (tmp_path / name).touch()
        if "old" in name:
            os.utime(tmp_path / name, (0, 0))
    assert spool.is_empty
    assert not spool.has_waiting
    spool.replay(Taker())
    assert [path.name for path in files(tmp_path)] == ["now.new"]


def test_what_cannot_be_locked_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a volume without locks; written all the same, any replica would take it for left."""

    def flock(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    spool, taker = Spool(tmp_path, MAX_BYTES), Taker()
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", flock)
        for _ in range(2):
            with pytest.raises(SpoolFullError, match="cannot be written \\(No locks available\\)"):
                spool.append(entries(1))
    assert list(files(tmp_path)) == []
    spool.append(entries(2))
    spool.replay(taker)
    assert taker.taken == [2]


def test_an_append_that_fails_half_way_leaves_nothing_and_spoils_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk; in a process of its own, which it ends with."""
    code = """
        import resource, sys
        from pathlib import Path
        from serve.spool import Spool, SpoolFullError

        spool, taken = Spool(Path(sys.argv[1]), 1_000_000), []
        spool.append([{"n": 1}])
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, hard))
        try:
            spool.append([{"n": n} for n in range(2, 2_000)])
        except SpoolFullError as error:
            assert "cannot be written" in str(error), error
        else:
            raise AssertionError("the limit did not hold")
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        spool.append([{"n": 3_000}])
        spool.replay(lambda part: taken.extend(part) or [])
        print([e["n"] for e in taken])
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [1, 3000]


def test_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", MAX_BYTES)
    spool.append(entries(1))
    (path,) = files(tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_every_lock_is_one_that_nfs_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It locks a file exclusively only where it is open for writing (flock(2), "NFS details")."""
    flock = fcntl.flock

    def of_nfs(file: FileIO, operation: int) -> None:
        if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", of_nfs)
    owner, taker = Spool(tmp_path, MAX_BYTES), Taker()
    owner.append(entries(1))
    owner.close()
    Spool(tmp_path, MAX_BYTES).replay(taker)
    assert taker.taken == [1]


def test_what_the_ledger_does_not_take_yet_waits_apart(tmp_path: Path) -> None:
    owner, other = Spool(tmp_path, MAX_BYTES), Spool(tmp_path, MAX_BYTES)
    taker = Taker(lambda e: e["n"] % 2 == 1)
    owner.append(entries(1, 2, 3))
    assert owner.replay(taker) == 1
    assert (owner.is_empty, owner.has_waiting, other.has_waiting) == (True, True, True)
    (waiting,) = files(tmp_path)
    assert owner.retry(taker) == 0
    assert list(files(tmp_path)) == [waiting], "nothing changed, nothing is written"
    taker.waits = lambda e: e["n"] == 3
    assert other.retry(taker) == 1, "anybody may"
    taker.waits = lambda _: False
    assert owner.retry(taker) == 1
    assert taker.taken == [2, 1, 3]
    assert not owner.has_waiting
    assert list(files(tmp_path)) == []


def test_one_that_ends_at_any_moment_of_a_replay_loses_nothing(tmp_path: Path) -> None:
    def run(number: int) -> bool:
        folder = tmp_path / str(number)
        owner, taker = Spool(folder, MAX_BYTES), Taker(lambda e: e["n"] == 1)
        owner.append(entries(1, 2))
        reached = ends_at_line(number, owner, lambda: owner.replay(taker))
        after = Spool(folder, MAX_BYTES)
        after.replay(taker)
        taker.waits = lambda _: False
        after.retry(taker)
        assert set(taker.taken) == {1, 2}
        return reached

    moments(run)
