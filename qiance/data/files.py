"""The bytes of a file, its format, and the refusals when it is not what it says."""

from __future__ import annotations

import codecs
import gzip
import zlib
from enum import StrEnum
from pathlib import Path

from qiance.data.errors import DataError

MAX_BYTES = 4 << 30
_CHUNK = 1 << 22
_GZIP = b"\x1f\x8b"
_PARQUET = b"PAR1"
_SIGNATURES = {
    b"PK\x03\x04": ("a zip archive or an Excel workbook", "export the sheet as CSV, or unpack the archive"),
    b"BZh": ("bzip2", "unpack it, or compress it with gzip"),
    b"\x28\xb5\x2f\xfd": ("zstandard", "unpack it, or compress it with gzip"),
    b"\xd0\xcf\x11\xe0": ("an old Excel workbook", "export the sheet as CSV"),
    b"%PDF": ("a PDF document", "export the table as CSV"),
}


class FileFormat(StrEnum):
    """Formats of a table in a file; each may be gzipped."""

    CSV = "csv"
    JSONL = "jsonl"
    PARQUET = "parquet"


_SUFFIXES = {
    ".csv": FileFormat.CSV,
    ".tsv": FileFormat.CSV,
    ".txt": FileFormat.CSV,
    ".jsonl": FileFormat.JSONL,
    ".ndjson": FileFormat.JSONL,
    ".parquet": FileFormat.PARQUET,
    ".pq": FileFormat.PARQUET,
}


def format_of(path: Path, declared: FileFormat | None) -> FileFormat:
    """The declared format, else the one that the file name ends in (before `.gz`)."""
    if declared is not None:
        return declared
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if suffix.lower() not in _SUFFIXES:
        raise DataError(path, f"the name does not tell the format ({suffix or 'no'} suffix)", _declare())
    return _SUFFIXES[suffix.lower()]


def _declare() -> str:
    return "set file.format to csv, jsonl or parquet in the mapping"


def read_bytes(path: Path, limit: int = MAX_BYTES) -> bytes:
    """The whole content, unpacked if it is gzip (told by its first bytes, not by its name)."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(path, what, "pass the path of a CSV, JSONL or Parquet file")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(path, f"cannot be read ({error.strerror})", "check its permissions") from error
    if data[:2] == _GZIP:
        return _unpack(path, limit)
    if path.suffix == ".gz" and data:
        raise DataError(path, "is named .gz but is not gzip", "rename it, or compress it with gzip")
    if len(data) > limit:
        raise _too_large(path, limit)
    return data


def _unpack(path: Path, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    try:
        with gzip.open(path) as stream:
            while part := stream.read(_CHUNK):
                size += len(part)
                if size > limit:
                    raise _too_large(path, limit)
                parts.append(part)
    except EOFError:
        raise DataError(path, f"the gzip stream breaks off after {size} bytes", "copy it again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(path, f"the gzip stream is damaged ({error})", "copy it again") from None
    return b"".join(parts)


def _too_large(path: Path, limit: int) -> DataError:
    return DataError(path, f"holds more than {limit >> 20} MiB", "split it, or convert it to Parquet")


def refuse_other(path: Path, data: bytes, expected: FileFormat) -> None:
    """Refuse an empty file, and one whose first bytes tell another format than `expected`."""
    if not data.strip(b" \t\r\n\x00\xef\xbb\xbf"):
        raise DataError(path, "is empty", "export it again with a header and at least one row")
    for signature, (what, remedy) in _SIGNATURES.items():
        if data.startswith(signature):
            raise DataError(path, f"is {what}, not {expected.value}", remedy)
    is_parquet = data.startswith(_PARQUET)
    if is_parquet and expected is not FileFormat.PARQUET:
        raise DataError(path, f"is Parquet, not {expected.value}", "set file.format: parquet")
    if not is_parquet and expected is FileFormat.PARQUET:
        raise DataError(path, "is not Parquet (it does not begin with PAR1)", _declare())


def to_utf8(path: Path, data: bytes, encoding: str) -> bytes:
    """The text as UTF-8 without a byte order mark; UTF-8 itself is checked line by line later."""
    if codecs.lookup(encoding).name in ("utf-8", "utf-8-sig"):
        if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise DataError(
                path, "is UTF-16, not UTF-8 (byte order mark at byte 0)", "set file.encoding: utf-16"
            )
        if b"\x00" in data[: 1 << 16]:
            raise DataError(path, f"is binary (a zero byte at byte {data.index(0)})", "export it as text")
        return data.removeprefix(b"\xef\xbb\xbf")
    try:
        return data.decode(encoding).removeprefix("\ufeff").encode()
    except UnicodeError as error:
        place = f" at byte {error.start}" if isinstance(error, UnicodeDecodeError) else ""
        problem = f"is not {encoding}{place}"
        raise DataError(path, problem, "set file.encoding to what the file was written in") from None
