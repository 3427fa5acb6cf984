"""The mapping schema: how a shop's own file becomes events or a flat response table (see docs/data.md)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from qiance.data.convert import Column, Kind
from qiance.data.errors import MappingError
from qiance.data.files import FileFormat
from qiance.data.mapping_rules import problems
from qiance.data.roles import CATEGORICAL_ROLE, LABEL_ROLES, NUMERIC_ROLE, ROLES, MappingKind, Role
from qiance.data.tabular import TextOptions
from qiance.domain.money import minor_exponent


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)


class FileOptions(_Strict):
    """How the file is written. Timestamps without an offset are taken in `timezone`."""

    format: FileFormat | None = None
    delimiter: str = Field(",", min_length=1, max_length=1)
    encoding: str = "utf-8"
    timezone: str = "UTC"
    decimal: Literal[".", ","] = "."
    null_values: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        try:
            "a".encode(self.encoding)
        except (LookupError, UnicodeError):
            raise ValueError(
                f"encoding: {self.encoding!r} is unknown; use utf-8, utf-16, cp1252, ..."
            ) from None
        try:
            ZoneInfo(self.timezone)
        except (KeyError, ValueError, OSError):
            raise ValueError(f"timezone: {self.timezone!r} is no IANA name such as Europe/Berlin") from None
        if self.delimiter == self.decimal or self.delimiter in '"\r\n':
            raise ValueError(f"delimiter: {self.delimiter!r} cannot be told from the decimal mark or a quote")
        return self

    def text_options(self) -> TextOptions:
        """The part that the file readers need."""
        return TextOptions(self.format, self.delimiter, self.encoding)


class ColumnSpec(_Strict):
    """One source column; a bare string in the YAML is its name. min and max are in the file's own units."""

    column: str
    type: Kind | None = None
    required: bool | None = None
    unit: Literal["major", "minor"] | None = None
    min: float | None = Field(None, allow_inf_nan=False)
    max: float | None = Field(None, allow_inf_nan=False)
    allowed: tuple[str, ...] = ()
    values: dict[str, str] = Field(default_factory=dict)
    format: str | None = None


def _spelled_out(value: object) -> object:
    return {"column": value} if isinstance(value, str) else value


def _by_name(value: object) -> object:
    """`[recency, zip]` is short for `{recency: recency, zip: zip}`."""
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return {name: name for name in value}
    return value


Spec = Annotated[ColumnSpec, BeforeValidator(_spelled_out)]
Specs = Annotated[dict[str, Spec], BeforeValidator(_by_name)]


class Features(_Strict):
    """Feature columns of a response table, by target name."""

    numeric: Specs = Field(default_factory=dict)
    categorical: Specs = Field(default_factory=dict)


Constant = str | int | float | dict[str, float]


class Mapping(_Strict):
    """How a file becomes the events table or a response table.

    columns: role → source column; constants: role → the value of every row; key: roles that together
    identify an event, where there is no column for `event_id`. control, arm_cost (minor units per
    contact), randomised, features, labels, log_end (until when conversions were collected; without an
    offset UTC) belong to response tables.
    """

    kind: MappingKind
    name: str = "own"
    currency: str = Field("USD", pattern="^[A-Z]{3}$")
    file: FileOptions = FileOptions()
    columns: Specs = Field(default_factory=dict)
    constants: dict[str, Constant] = Field(default_factory=dict)
    key: tuple[str, ...] = ()
    features: Features = Features()
    labels: Specs = Field(default_factory=dict)
    control: str | None = None
    arm_cost: dict[str, Annotated[int, Field(ge=0)]] = Field(default_factory=dict)
    randomised: bool = False
    log_end: datetime | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        found = problems(self)
        if found:
            raise ValueError("; ".join(found))
        return self

    def specs(self) -> Iterator[tuple[str, str, ColumnSpec, Role]]:
        """(place in the YAML, target, spec, role) of every mapped column."""
        roles = ROLES[self.kind]
        for name, spec in self.columns.items():
            if name in roles:
                yield f"columns.{name}", name, spec, roles[name]
        for name, spec in self.labels.items():
            if name in LABEL_ROLES:
                yield f"labels.{name}", name, spec, LABEL_ROLES[name]
        for name, spec in self.features.numeric.items():
            yield f"features.numeric.{name}", name, spec, NUMERIC_ROLE
        for name, spec in self.features.categorical.items():
            yield f"features.categorical.{name}", name, spec, CATEGORICAL_ROLE

    def checks(self) -> tuple[Column, ...]:
        """The checks of every mapped column."""
        return tuple(_column(self, name, spec, role) for _, name, spec, role in self.specs())


def _column(mapping: Mapping, name: str, spec: ColumnSpec, role: Role) -> Column:
    kind = spec.type or role.types[0]
    scale = 10 ** minor_exponent(mapping.currency) if spec.unit == "major" else 1
    low = [bound for bound in (role.minimum, spec.min) if bound is not None]
    high = [bound for bound in (role.maximum, spec.max) if bound is not None]
    return Column(
        name=name,
        source=spec.column,
        kind=kind,
        required=role.required if spec.required is None else spec.required,
        minimum=max(low, default=None),
        maximum=min(high, default=None),
        above=role.above,
        allowed=spec.allowed or role.allowed,
        rename=spec.values,
        scale=scale,
        timestamp_format=spec.format or "iso",
        timezone=mapping.file.timezone,
        decimal=mapping.file.decimal,
        null_values=mapping.file.null_values,
    )


def load_mapping(path: Path) -> Mapping:
    """Read and check a mapping; `MappingError` names every key at fault and the remedy."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MappingError(
            f"{path}: cannot be read ({error.strerror}); pass the path of a YAML file"
        ) from None
    except UnicodeDecodeError as error:
        raise MappingError(f"{path}: is not UTF-8 (byte {error.start}); save the YAML as UTF-8") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise MappingError(f"{path}: is not YAML; {str(error)[:300]}") from None
    if not isinstance(data, dict):
        raise MappingError(
            f"{path}: holds no keys; start with `kind: events`, `kind: purchases` or `kind: responses`"
        )
    try:
        return Mapping.model_validate(data)
    except ValidationError as error:
        raise MappingError(f"{path}: " + "; ".join(_sentences(error))) from None


def _sentences(error: ValidationError) -> Iterator[str]:
    for fault in error.errors():
        place = ".".join(str(part) for part in fault["loc"])
        text = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            text = "no such key; remove it or correct its spelling (docs/data.md lists the keys)"
        yield f"{place}: {text}" if place else text
