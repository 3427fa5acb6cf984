"""The search space: which hyper-parameters of which model, over which values."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from qiance.settings_sources import SettingsError, explain, read_yaml, refuse_unknown

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


class Tunable(Protocol):
    """What may be searched: models with parameters."""

    @property
    def models(self) -> tuple[str, ...]:
        """In the order in which they take turns."""
        ...

    @property
    def packaged(self) -> Path:
        """File of the space where no other is given."""
        ...

    def names(self, model: str) -> Sequence[str]:
        """Of the parameters that may be searched."""
        ...

    def usual(self, model: str, names: Sequence[str]) -> Sequence[Mapping[str, Any]]:
        """Values of `names`, as YAML has them, of the configurations that are tried first."""
        ...

    def check(self, nested: Mapping[str, Mapping[str, Any]], origin: str) -> object:
        """SettingsError for values, by model and name, that the model would not take."""
        ...


def _no_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("should be a number, not true or false")
    return value


_Real = Annotated[float, BeforeValidator(_no_boolean)]
_Whole = Annotated[int, BeforeValidator(_no_boolean)]


class _Kind(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Choice(_Kind):
    """One of some values, which may be lists."""

    kind: Literal["choice"]
    values: tuple[Any, ...] = Field(min_length=1)

    def extremes(self) -> tuple[Any, ...]:
        """What must be allowed for the whole range to be."""
        return self.values

    def distribution(self) -> BaseDistribution:
        """For Optuna, which takes plain values: each is its JSON."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution([json.dumps(value) for value in self.values])

    def nearest(self, value: Any) -> Any:
        """`value` as the distribution has it; None where it is no choice."""
        return json.dumps(value) if value in self.values else None

    def decode(self, drawn: Any) -> Any:
        """A drawn value as the model takes it."""
        return json.loads(drawn)


class _Range(_Kind):
    low: _Real
    high: _Real

    def extremes(self) -> tuple[Any, ...]:
        """What must be allowed for the whole range to be."""
        return (self.low, self.high)

    def nearest(self, value: Any) -> Any:
        """What the range has nearest to `value`; None where it is no number."""
        return min(max(value, self.low), self.high) if isinstance(value, int | float) else None

    def decode(self, drawn: Any) -> Any:
        """A drawn value as the model takes it."""
        return drawn


class Uniform(_Range):
    """A number in [low, high]."""

    kind: Literal["uniform"]

    def distribution(self) -> BaseDistribution:
        """For Optuna."""
        from optuna.distributions import FloatDistribution

        return FloatDistribution(self.low, self.high)


class LogUniform(_Range):
    """A number in [low, high], each factor alike."""

    kind: Literal["loguniform"]

    def distribution(self) -> BaseDistribution:
        """For Optuna."""
        from optuna.distributions import FloatDistribution

        return FloatDistribution(self.low, self.high, log=True)


class Int(_Range):
    """A whole number in [low, high], in steps, or each factor alike."""

    kind: Literal["int"]
    low: _Whole
    high: _Whole
    step: Annotated[int, BeforeValidator(_no_boolean), Field(ge=1)] = 1
    log: bool = False

    def distribution(self) -> BaseDistribution:
        """For Optuna."""
        from optuna.distributions import IntDistribution

        return IntDistribution(self.low, self.high, log=self.log, step=self.step)

    def nearest(self, value: Any) -> Any:
        """What the range has nearest to `value`; None where it is no number."""
        if not isinstance(value, int | float):
            return None
        within = min(max(value, self.low), self.high)
        return min(self.low + round((within - self.low) / self.step) * self.step, self.high)


Parameter = Annotated[Choice | Uniform | LogUniform | Int, Field(discriminator="kind")]
_PARAMETER: TypeAdapter[Choice | Uniform | LogUniform | Int] = TypeAdapter(Parameter)
_HELP = "kind: choice (values), uniform, loguniform or int (low, high)"


@dataclass(frozen=True)
class Space:
    """models: by model, its parameters by name. usual: by model, the configurations that are tried first."""

    models: Mapping[str, Mapping[str, Choice | Uniform | LogUniform | Int]]
    usual: Mapping[str, Sequence[Mapping[str, Any]]]

    @cached_property
    def plain(self) -> dict[str, Any]:
        """As JSON has it: what two spaces are compared by."""
        return {
            model: {name: one.model_dump(mode="json") for name, one in sorted(parameters.items())}
            for model, parameters in self.models.items()
        }

    def distributions(self, model: str) -> dict[str, BaseDistribution]:
        """Optuna's, by parameter of `model`."""
        return {name: one.distribution() for name, one in self.models[model].items()}

    def decode(self, model: str, drawn: Mapping[str, Any]) -> dict[str, Any]:
        """Drawn values as the model takes them, in the order of the space."""
        return {name: one.decode(drawn[name]) for name, one in self.models[model].items() if name in drawn}

    def defaults(self, model: str) -> list[dict[str, Any]]:
        """The usual configurations as drawn values, moved into the ranges; none where a choice lacks it."""
        found: list[dict[str, Any]] = []
        for usual in self.usual[model]:
            drawn = {name: one.nearest(usual[name]) for name, one in self.models[model].items()}
            if None not in drawn.values() and drawn not in found:
                found.append(drawn)
        return found


def read_space(path: Path | None, tunable: Tunable) -> Space:
    """The space in a YAML file, by default the packaged one; SettingsError with a line per mistake."""
    place = path or tunable.packaged
    nested = read_yaml(place)
    if not nested:
        raise SettingsError(f"{place}: is empty; give parameters of {' or '.join(tunable.models)}")
    known = {f"{model}.{name}": _HELP for model in tunable.models for name in tunable.names(model)}
    flat = _flat(nested, place, tunable)
    origins = dict.fromkeys(flat, str(place))
    refuse_unknown(flat, origins, known)
    problems, models = list[str](), dict[str, dict[str, Any]]()
    for key, value in flat.items():
        model, _, name = key.partition(".")
        try:
            models.setdefault(model, {})[name] = _parameter(key, value, origins, known, tunable)
        except SettingsError as error:
            problems.append(str(error))
    if problems:
        raise SettingsError("\n".join(problems))
    ordered = {model: models[model] for model in tunable.models if model in models}
    return Space(ordered, {model: tunable.usual(model, list(found)) for model, found in ordered.items()})


def _flat(nested: Mapping[str, Any], place: Path, tunable: Tunable) -> dict[str, Any]:
    flat = {}
    for model, parameters in nested.items():
        if model not in tunable.models:
            known = ", ".join(tunable.models)
            raise SettingsError(f"{model}: unknown model (from {place}); known: {known}")
        if not isinstance(parameters, Mapping) or not parameters:
            raise SettingsError(
                f"{model}: {parameters!r} (from {place}) has no parameters; write some below it, such as "
                "'learning_rate: {kind: loguniform, low: 0.001, high: 0.01}', or remove it"
            )
        flat |= {f"{model}.{name}": value for name, value in parameters.items()}
    return flat


def _parameter(
    key: str, value: Any, origins: Mapping[str, str], known: Mapping[str, str], tunable: Tunable
) -> Choice | Uniform | LogUniform | Int:
    """Checked by itself, then by what the model takes at both ends."""
    try:
        found = _PARAMETER.validate_python(value)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            # The union's own tag is no key of the file.
            tail = [part for part in problem["loc"] if part not in ("choice", "uniform", "loguniform", "int")]
            lines.append(explain({**problem, "loc": (*key.split("."), *tail)}, origins, known))
        raise SettingsError("\n".join(lines)) from None
    if isinstance(found, _Range):
        _check_range(key, found, origins[key])
    model, _, name = key.partition(".")
    for extreme in found.extremes():
        tunable.check({model: {name: extreme}}, origins[key])
    return found


def _check_range(key: str, found: Any, origin: str) -> None:
    if found.low >= found.high:
        raise SettingsError(
            f"{key}: low {found.low} is not below high {found.high} (from {origin}); exchange them, or leave "
            "the parameter out"
        )
    logarithmic = isinstance(found, LogUniform) or getattr(found, "log", False)
    if logarithmic and found.low <= 0:
        raise SettingsError(
            f"{key}: low {found.low} is not above 0 (from {origin}); a logarithmic range needs a positive low"
        )
    if getattr(found, "log", False) and found.step != 1:
        raise SettingsError(f"{key}: step {found.step} with log (from {origin}); leave out one of them")
