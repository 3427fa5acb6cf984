"""What a sweep of planning policies may search, and the settings of a trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qiance.settings_sources import SettingsError
from rllib.plan_algorithms import ALGORITHMS, PlanningSettings

_SHARED = ("learning_rate", "num_envs", "discount", "hidden")
_NAMES = {"ppo": (*_SHARED, "epochs", "minibatch"), "sac": (*_SHARED, "updates")}
_WHOLE = ("num_envs", "epochs", "minibatch", "updates")


@dataclass(frozen=True, slots=True)
class PlanningTunable:
    """Parameters of PPO and SAC, laid over `base`."""

    base: PlanningSettings
    models: tuple[str, ...] = ALGORITHMS
    packaged: Path = Path(__file__).parent / "plan_space.yaml"

    def names(self, model: str) -> tuple[str, ...]:
        """Of the parameters that may be searched. How long a trial lasts is the sweep's matter."""
        return _NAMES[model]

    def usual(self, model: str, names: Sequence[str]) -> list[dict[str, Any]]:
        """Those of `base`, as YAML has them."""
        values = {name: getattr(self.base, name) for name in names}
        return [{name: list(one) if isinstance(one, tuple) else one for name, one in values.items()}]

    def check(self, nested: Mapping[str, Mapping[str, Any]], origin: str) -> None:
        """SettingsError for values that no trial can have."""
        for model, parameters in nested.items():
            for name, value in parameters.items():
                problem = _wrong(name, value)
                if problem:
                    raise SettingsError(f"{model}.{name}: {value!r} {problem} (from {origin})")
            try:
                trial_settings(self.base, model, parameters)
            except ValueError as error:
                raise SettingsError(f"{model}.{error} (from {origin})") from None


def _wrong(name: str, value: Any) -> str | None:
    """What is wrong with the kind of a value."""
    if name == "hidden":
        fits = isinstance(value, list) and bool(value) and all(_is_count(one) for one in value)
        return None if fits else "are no sizes of layers; write a list of whole numbers such as [64, 64]"
    if name in _WHOLE:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return None if whole else "is no whole number; write one of 1 or more"
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return None if number else "is no number; write one such as 0.001"


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def trial_settings(base: PlanningSettings, model: str, parameters: Mapping[str, Any]) -> PlanningSettings:
    """Of a trial: `base` with its parameters, and as many iterations as make the episodes of `base`."""
    values = {name: tuple(one) if isinstance(one, list) else one for name, one in parameters.items()}
    own = replace(base, algorithm=model, **values)
    episodes = base.iterations * base.num_envs
    return replace(own, iterations=max(round(episodes / own.num_envs), 1))
