"""Cut each input file into fragments at line ends or row groups, in one pass that holds a few MiB.

A record of CSV or JSON Lines ends at the line break, also inside quotes: that is how `qiance.data` reads
them, so a cut at any line break gives every record to one fragment.
"""

from __future__ import annotations

import codecs
import gzip
import uuid
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qiance.data.errors import DataError
from qiance.data.files import FileFormat, format_of, refuse_other, to_utf8
from qiance.data.lines import Lines, lines_of, not_utf8
from qiance.data.mapping import Mapping
from qiance.data.store import fingerprint_file
from qiance.data.tabular import csv_header, damaged, no_rows, parquet_columns, refuse_array
from training.preprocess.work import CODE, Work, digest, read_marker, write_marker

CHUNK = 4 << 20
MAX_RECORD = 64 << 20
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class Fragment:
    """A run of records of one file.

    name: of its outputs, from the file's name, content and place; path: what is read, the file or its
    unpacked copy; start, end: bytes of text, or row groups of Parquet; first_row: number of its first
    record in the file, from 1.
    """

    name: str
    path: str
    form: FileFormat
    start: int
    end: int
    first_row: int
    rows: int


@dataclass(frozen=True)
class FilePlan:
    """One input file; header: the CSV's column names; fingerprint: SHA-256 of its bytes."""

    name: str
    source: str
    fingerprint: str
    form: FileFormat
    header: tuple[str, ...]
    rows: int
    fragments: tuple[Fragment, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> FilePlan:
        """The inverse of `to_dict`."""
        fragments = tuple(Fragment(**{**f, "form": FileFormat(f["form"])}) for f in data["fragments"])
        given = {"form": FileFormat(data["form"]), "header": tuple(data["header"]), "fragments": fragments}
        return cls(**{**data, **given})


def fingerprint(file: Sequence[str]) -> list[str]:
    """Name and path of a file with the SHA-256 of its bytes."""
    path = Path(file[1])
    if not path.is_file():
        raise DataError(path, "does not exist", "pass a CSV, JSONL or Parquet file, or a folder of them")
    return [*file, fingerprint_file(path)]


@dataclass(frozen=True)
class Planner:
    """What planning depends on; called with name, path and fingerprint of each file."""

    work: Work
    mapping: Mapping
    fragment_bytes: int
    again: bool = False

    def __call__(self, file: Sequence[str]) -> dict[str, Any]:
        """The plan of a file as plain values; `DataError` if it is not what it says."""
        name, path, fingerprint = file[0], Path(file[1]), file[2]
        key = digest(CODE, name, fingerprint, self.fragment_bytes, self.mapping.model_dump(mode="json"))
        marker = self.work.plans / f"{key}.json"
        before = None if self.again else read_marker(marker)
        return before or write_marker(marker, self._plan(name, path, fingerprint, key).to_dict())

    def _plan(self, name: str, path: Path, fingerprint: str, key: str) -> FilePlan:
        options = self.mapping.file.text_options()
        form = format_of(path, options.format)
        local = _unpacked(path, form, options.encoding, self.work.unpacked / key)
        wanted = tuple(dict.fromkeys(column.source for column in self.mapping.checks()))
        header: tuple[str, ...] = ()
        if form is FileFormat.PARQUET:
            pieces = _row_groups(path, local, wanted)
        else:
            header, pieces = _text(path, local, form, wanted, options.delimiter, self.fragment_bytes)
        fragments, row = [], 1
        for number, (start, end, rows) in enumerate(pieces):
            fragments.append(Fragment(f"{key}-{number:06d}", str(local), form, start, end, row, rows))
            row += rows
        return FilePlan(name, str(path), fingerprint, form, header, row - 1, tuple(fragments))


def _row_groups(path: Path, local: Path, wanted: Sequence[str]) -> list[tuple[int, int, int]]:
    with local.open("rb") as stream:
        refuse_other(path, stream.read(1 << 16), FileFormat.PARQUET)
    try:
        with pq.ParquetFile(local) as file:
            parquet_columns(path, file.schema_arrow, wanted)
            rows = [file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups)]
    except (pa.ArrowException, OSError) as error:
        raise damaged(path, error) from None
    if not sum(rows):
        raise DataError(path, "has no rows", "export it again with at least one row")
    return [(group, group + 1, count) for group, count in enumerate(rows) if count]


def _text(
    path: Path, local: Path, form: FileFormat, wanted: Sequence[str], delimiter: str, size: int
) -> tuple[tuple[str, ...], list[tuple[int, int, int]]]:
    """Header and (start, end, rows) of each fragment."""
    with local.open("rb") as stream:
        head = stream.read(CHUNK)
    refuse_other(path, head, form)
    begin = len(head) - len(to_utf8(path, head, "utf-8"))  # a byte order mark is no part of the first name
    first, body = _first_line(path, head[begin:])
    header: tuple[str, ...] = ()
    if form is FileFormat.CSV:
        header = tuple(csv_header(path, first.text(0), wanted, delimiter))
        begin += body
    else:
        refuse_array(path, first.text(0))
    pieces = list(_cut(path, local, begin, size))
    if not pieces:
        raise no_rows(path)
    return header, pieces


def _first_line(path: Path, head: bytes) -> tuple[Lines, int]:
    """The first line that is not blank, and where the next one begins."""
    lines, _ = lines_of(head)
    line = Lines(lines.data, lines.starts[:1], lines.ends[:1], lines.utf8[:1])
    if not line.utf8[0]:
        raise not_utf8(path, "in its first line")
    feed = head.find(b"\n", int(line.ends[0]))
    return line, len(head) if feed < 0 else feed + 1


def _cut(path: Path, local: Path, begin: int, size: int) -> Iterator[tuple[int, int, int]]:
    """(start, end, records) of fragments of at least `size` bytes that end at a line break."""
    start = line = place = begin
    rows = before = 0  # records up to here, and up to the start of the fragment
    last = b"\n"
    with local.open("rb") as stream:
        stream.seek(begin)
        while chunk := stream.read(CHUNK):
            feeds, filled = _line_ends(chunk, last, place, line)
            counts = rows + np.cumsum(filled)
            while len(feeds) and feeds[-1] + 1 - start >= size:
                at = int(np.searchsorted(feeds, start + size - 1))
                end = int(feeds[at]) + 1
                if counts[at] > before:
                    yield start, end, int(counts[at]) - before
                start, before = end, int(counts[at])
            rows = int(counts[-1]) if len(feeds) else rows
            line = int(feeds[-1]) + 1 if len(feeds) else line
            place, last = place + len(chunk), chunk[-1:]
            if place - line > MAX_RECORD:
                raise DataError(
                    path, f"has a line of over {MAX_RECORD >> 20} MiB", "check that it is a table"
                )
    rows += int(place > line and not (place == line + 1 and last == b"\r"))
    if rows > before:
        yield start, place, rows - before


def _line_ends(chunk: bytes, last: bytes, place: int, line: int) -> tuple[np.ndarray, np.ndarray]:
    """Offsets of the line feeds of a chunk, and whether the line that each ends holds anything."""
    buffer = np.frombuffer(last + chunk, dtype=np.uint8)
    found = np.flatnonzero(buffer[1:] == ord("\n")).astype(np.int64)
    feeds = found + place
    starts = np.concatenate([[line], feeds[:-1] + 1])[: len(feeds)]
    returned = (buffer[found] == ord("\r")) & (feeds > starts)
    return feeds, feeds - returned > starts


def _unpacked(path: Path, form: FileFormat, encoding: str, copy: Path) -> Path:
    """The file itself if it can be cut as it is, else a copy: unpacked, in UTF-8, with line feeds."""
    text = form is not FileFormat.PARQUET
    with path.open("rb") as stream:
        gzipped = stream.read(2) == _GZIP
    if path.suffix == ".gz" and not gzipped and path.stat().st_size:
        raise DataError(path, "is named .gz but is not gzip", "rename it, or compress it with gzip")
    foreign = text and codecs.lookup(encoding).name not in ("utf-8", "utf-8-sig")
    returns = text and not foreign and _ends_in_returns(path, gzipped)
    if not (gzipped or foreign or returns):
        return path
    copy.parent.mkdir(parents=True, exist_ok=True)
    part = copy.with_name(f".{copy.name}.{uuid.uuid4().hex[:8]}")
    try:
        with part.open("wb") as out:
            chunks = _bytes(path, gzipped)
            if foreign:
                chunks = _recoded(path, chunks, encoding)
            for chunk in chunks:
                out.write(chunk.replace(b"\r", b"\n") if returns else chunk)
        if foreign and _ends_in_returns(part, False):
            _replace_returns(part)
        part.replace(copy)
    finally:
        part.unlink(missing_ok=True)
    return copy


def _replace_returns(path: Path) -> None:
    with path.open("r+b") as stream:
        while chunk := stream.read(CHUNK):
            stream.seek(-len(chunk), 1)
            stream.write(chunk.replace(b"\r", b"\n"))


def _bytes(path: Path, gzipped: bool) -> Iterator[bytes]:
    size = 0
    try:
        with gzip.open(path) if gzipped else path.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                size += len(chunk)
                yield chunk
    except EOFError:
        raise DataError(path, f"the gzip stream breaks off after {size} bytes", "copy it again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(path, f"the gzip stream is damaged ({error})", "copy it again") from None


def _ends_in_returns(path: Path, gzipped: bool) -> bool:
    """Whether lines end in CR, for want of any LF; most files tell by their first chunk."""
    returned = False
    for chunk in _bytes(path, gzipped):
        if b"\n" in chunk:
            return False
        returned = returned or b"\r" in chunk
    return returned


def _recoded(path: Path, chunks: Iterable[bytes], encoding: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)()
    done = 0
    try:
        for chunk in chunks:
            yield decoder.decode(chunk).encode().removeprefix(b"" if done else b"\xef\xbb\xbf")
            done += len(chunk)
        yield decoder.decode(b"", final=True).encode()
    except UnicodeError as error:
        start = error.start if isinstance(error, UnicodeDecodeError) else 0
        remedy = "set file.encoding to what the file was written in"
        raise DataError(path, f"is not {encoding} near byte {done + start}", remedy) from None
