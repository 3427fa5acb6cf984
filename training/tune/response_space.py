"""What `qiance tune` may search: the response model's networks and trees."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from training.response.config import SECTIONS, check_parameters, default_value
from training.tune.space import Space, read_space

# How long a trial may last is the sweep's matter, and members and heads share one encoding of the rows.
_FIXED = ("epochs", "patience", "rounds", "heads", "min_count")


class ResponseTunable:
    """See `training.tune.space.Tunable`."""

    models = ("network", "trees")
    packaged = Path(__file__).parent / "space.yaml"

    def names(self, model: str) -> list[str]:
        """All but those that are the sweep's matter."""
        return [name for name in SECTIONS[model].model_fields if name not in _FIXED]

    def usual(self, model: str, names: Sequence[str]) -> list[dict[str, Any]]:
        """The defaults; of sizes of trees, which training tries in turn, the middle one and the smallest."""
        return [{name: _default(model, name, place) for name in names} for place in (_middle, min)]

    def check(self, nested: Mapping[str, Mapping[str, Any]], origin: str) -> None:
        """By what `train effect --config` takes."""
        check_parameters(nested, origin)


def load_space(path: Path | None = None) -> Space:
    """The space in a YAML file, by default the packaged one; SettingsError with a line per mistake."""
    return read_space(path, ResponseTunable())


def _default(model: str, name: str, place: Callable[[Sequence[Any]], Any]) -> Any:
    """As YAML would say it."""
    value = default_value(model, name)
    if (model, name) == ("trees", "leaves"):
        return place(value)
    return list(value) if isinstance(value, tuple) else value


def _middle(sizes: Sequence[Any]) -> Any:
    return sizes[len(sizes) // 2]
