"""Language models that packages carry as quantised GGUF files, as safetensors folders in a cache.

transformers reads GGUF slowly and will not save it back, so a file is converted once. Processes that start
together wait for one conversion; a folder is either absent or whole.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qiance.strategy.content_ports import EngineUnavailable

_MANIFEST = "conversion.json"
_CHUNK = 1 << 20

log = logging.getLogger(__name__)


class ModelUnavailable(EngineUnavailable):
    """The weights cannot be had; the message names the remedy, and templates write instead."""


@dataclass(frozen=True, slots=True)
class Carried:
    """A model by the file that is its source.

    name: what provenance calls it; file, sha256: of the GGUF; dtype: of the safetensors; languages: that it
    writes well enough to be asked; takes_segment: see `TextEngine`; about: size and time, for who waits.
    """

    name: str
    file: str
    sha256: str
    dtype: str
    languages: frozenset[str]
    takes_segment: bool
    about: str

    def folder(self, cache_dir: Path) -> Path:
        """Where its safetensors are, or will be."""
        return cache_dir / f"{self.name}-{self.sha256[:12]}"

    def is_whole(self, cache_dir: Path) -> bool:
        """Whether it is converted: the manifest is written last and names each file's size."""
        folder = self.folder(cache_dir)
        try:
            manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
            return manifest["source_sha256"] == self.sha256 and all(
                (folder / name).stat().st_size == entry["bytes"] for name, entry in manifest["files"].items()
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False

    def check(self, source: Path) -> None:
        """ModelUnavailable if `source` is not the published file."""
        digest = sha256_of(source)
        if digest != self.sha256:
            raise ModelUnavailable(
                f"{source}: SHA-256 {digest} is not the published {self.sha256}; get it again"
            )

    def convert(self, source: Path, cache_dir: Path) -> Path:
        """The folder, made from `source` if it is not there."""
        cache_dir.mkdir(parents=True, exist_ok=True)
        with _lock(cache_dir / f"{self.name}.lock"):
            if not self.is_whole(cache_dir):
                self.check(source)
                self._convert_into(source, self.folder(cache_dir))
        return self.folder(cache_dir)

    def _convert_into(self, source: Path, folder: Path) -> None:
        """Converts beside `folder`, then renames; what an interrupted run left there is replaced."""
        log.info("converting %s to safetensors in %s (once, %s)", source.name, folder, self.about)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            with quiet_progress():
                convert(source, work, self.dtype)
            files = {
                p.name: {"bytes": p.stat().st_size, "sha256": sha256_of(p)} for p in sorted(work.iterdir())
            }
            manifest = {"source": source.name, "source_sha256": self.sha256, "files": files}
            (work / _MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(work, folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)


SMOLLM2 = Carried(
    name="smollm2-135m-instruct",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    dtype="float32",
    languages=frozenset({"en"}),
    takes_segment=False,
    about="about half a minute, 0.54 GB",
)
# Kept in bfloat16: four bits lose nothing by it that is seen, and float32 takes twice the disk.
QWEN = Carried(
    name="qwen2.5-coder-1.5b-instruct",
    file="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
    sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    dtype="bfloat16",
    languages=frozenset({"en", "zh"}),
    takes_segment=True,
    about="some minutes and 11 GB of memory, 3.6 GB",
)


def in_package(package: str, file: str) -> Path | None:
    """`file` of an installed package, found without importing it; None if it is not there."""
    spec = importlib.util.find_spec(package)
    places = list(spec.submodule_search_locations or ()) if spec else []
    return next((Path(place) / file for place in places if (Path(place) / file).is_file()), None)


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in chunks of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def convert(source: Path, folder: Path, dtype: str = "float32") -> None:
    """Writes the model of a GGUF file into `folder` as safetensors of `dtype`, with its tokenizer.

    transformers refuses to save a model that carries a quantisation entry, so the numbers move into a
    model built fresh from the same configuration without it.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place, file, wanted = str(source.parent), source.name, getattr(torch, dtype)
    tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=file, local_files_only=True)
    read = AutoModelForCausalLM.from_pretrained(place, gguf_file=file, local_files_only=True, dtype=wanted)
    entries = {k: v for k, v in read.config.to_dict().items() if k != "quantization_config"}
    plain = AutoModelForCausalLM.from_config(type(read.config).from_dict(entries), dtype=wanted)
    plain.load_state_dict(read.state_dict())
    plain.tie_weights()
    plain.generation_config = read.generation_config
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def quiet_progress() -> Iterator[None]:
    """Keeps transformers' progress bars out of our own output, and gives them back after."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Holds an advisory lock on `path`; the kernel drops it when the process dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
