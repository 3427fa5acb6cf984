"""What `qiance allocate` is asked for: budget and limits as YAML, each checked before the data is read."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from qiance.data.files import FileFormat
from qiance.data.tabular import TextOptions
from qiance.settings_sources import SettingsError, explain, read_yaml


def _as_text(value: object) -> object:
    """Names may look like numbers or days to YAML."""
    if isinstance(value, bool):
        raise ValueError("is a truth value to YAML, which reads yes, no, on and off so; put it in quotes")
    return value if value is None or isinstance(value, str | list | dict) else str(value)


def _no_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("should be a number, not true or false")
    return value


Name = Annotated[str, BeforeValidator(_as_text), Field(min_length=1)]
_Amount = Annotated[float, BeforeValidator(_no_boolean), Field(ge=0.0)]
_Share = Annotated[float, BeforeValidator(_no_boolean), Field(ge=0.0, le=1.0)]
_Count = Annotated[int, BeforeValidator(_no_boolean), Field(ge=0)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class FileOptions(_Part):
    """How the data is written, where the name of the file does not say it."""

    format: FileFormat | None = None
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = ","
    encoding: str = "utf-8"
    decimal: Annotated[str, Field(min_length=1, max_length=1)] = "."

    def text(self) -> TextOptions:
        """For `qiance.data.tabular`."""
        return TextOptions(self.format, self.delimiter, self.encoding)


class Columns(_Part):
    """Names of the columns. day: where a user may get an offer on each of several days.

    spread: standard error of the value, where values are estimates.
    """

    user: Name = "user"
    offer: Name = "offer"
    value: Name = "value"
    cost: Name = "cost"
    day: Name | None = None
    spread: Name | None = None


class ExtraBudget(_Part):
    """A budget of its own: of another column of costs, or of the rows where `column` has one of `values`."""

    name: Name
    limit: _Amount
    cost: Name | None = None
    column: Name | None = None
    values: tuple[Name, ...] = ()

    @model_validator(mode="after")
    def _of_something(self) -> Self:
        if (self.column is None) != (not self.values):
            raise ValueError("column and values go together: the budget is of rows where it has one of them")
        if self.column is None and self.cost is None:
            raise ValueError("is the same as budget; name a cost column, or column and values")
        return self


class DailyLimits(_Part):
    """The same limit on every day, or one by day."""

    limit: _Amount | None = None
    limits: dict[Name, _Amount] | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.limit is None) == (not self.limits):
            raise ValueError("give limit for every day, or limits by day; not both")
        return self


class StockUnits(_Part):
    """Units by offer, or by what `column` says that an offer is taken from."""

    units: Annotated[dict[Name, _Amount], Field(min_length=1)]
    column: Name | None = None


class Floor(_Part):
    """At least `share` of the users whose `column` is `value` get an offer."""

    column: Name
    value: Name
    share: _Share

    @property
    def name(self) -> str:
        """As it is reported."""
        return f"floor of {self.column} {self.value}"


class Margin(_Part):
    """Σ margin ≥ floor · Σ sales, over columns of those names."""

    floor: Annotated[float, BeforeValidator(_no_boolean), Field(ge=-1.0, le=1.0)]
    margin: Name = "margin"
    sales: Name = "sales"


class Fairness(_Part):
    """The mean depth of any two groups, those of `column`, differs by at most `spread`.

    depth: a column that has the depth of an offer as a fraction. depths: the same by offer, instead.
    """

    column: Name
    spread: _Amount
    depth: Name | None = None
    depths: dict[Name, _Share] | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.depth is None) == (not self.depths):
            raise ValueError("give depth, a column, or depths by offer; not both")
        return self


class Cap(_Part):
    """At most `most` offers to a user, or to those who share a `column`, such as a household."""

    most: _Count
    column: Name | None = None


class AllocationSpec(_Part):
    """Everything but the data."""

    budget: _Amount = Field(description="most that all offers may cost, in the units of the cost column")
    columns: Columns = Field(
        default=Columns(), description="names of the columns user, offer, value, cost, day and spread"
    )
    control: Name = Field("control", description="offer that means doing nothing, for rows that have one")
    file: FileOptions = Field(default=FileOptions(), description="format, delimiter, encoding, decimal")
    budgets: tuple[ExtraBudget, ...] = Field(
        (), description="a list of name, limit, and cost (a column), or column and values"
    )
    daily_budgets: DailyLimits | None = Field(None, description="limit for every day, or limits by day")
    stock: StockUnits | None = Field(None, description="units by offer, or by what column says")
    segment_floors: tuple[Floor, ...] = Field((), description="a list of column, value and share (0 to 1)")
    margin_floor: Margin | None = Field(
        None, description="floor (a share of sales), and columns margin and sales"
    )
    depth_fairness: Fairness | None = Field(
        None, description="column, spread, and depth (a column) or depths (a fraction by offer)"
    )
    frequency_cap: Cap | None = Field(None, description="most, and column if not by user")

    @model_validator(mode="after")
    def _together(self) -> Self:
        day, cap = self.columns.day, self.frequency_cap
        if self.daily_budgets is not None and day is None:
            raise ValueError("daily_budgets: needs to know the day of a row; set columns.day")
        if cap is not None and cap.column is None and day is None:
            raise ValueError(
                "frequency_cap: a user gets at most one offer without columns.day; set that, or a column "
                "that several users share, or leave the cap out"
            )
        named = [self.columns.user, self.columns.offer, self.columns.value, self.columns.cost]
        _refuse_twice("columns", [*named, *(one for one in (day, self.columns.spread) if one is not None)])
        _refuse_twice("budgets", ["budget", *(one.name for one in self.budgets)])
        _refuse_twice("segment_floors", [one.name for one in self.segment_floors])
        return self

    def segments(self) -> tuple[str, ...]:
        """Columns that say something of a user."""
        fair = [] if self.depth_fairness is None else [self.depth_fairness.column]
        return tuple(dict.fromkeys([*(one.column for one in self.segment_floors), *fair]))


def _refuse_twice(where: str, names: list[str]) -> None:
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"{where}: {twice[0]!r} is there twice; each needs its own name")


def load_spec(path: Path) -> AllocationSpec:
    """The spec in a YAML file; SettingsError with a line per mistake."""
    return check_spec(read_yaml(path), str(path))


def check_spec(nested: Mapping[str, Any], origin: str) -> AllocationSpec:
    """The spec; SettingsError names key, value, file and remedy."""
    try:
        return AllocationSpec.model_validate(dict(nested))
    except ValidationError as error:
        lines = [_line(dict(problem), origin) for problem in error.errors()]
        raise SettingsError("\n".join(lines)) from None


def _line(problem: Mapping[str, Any], origin: str) -> str:
    fields = AllocationSpec.model_fields
    known = {name: field.description or "" for name, field in fields.items()}
    place = [part for part in problem["loc"] if part != "[key]"]
    path = ".".join(str(part) for part in place)
    if not place:  # a rule over several keys, which names them itself
        return f"{str(problem['msg']).removeprefix('Value error, ')} (in {origin})"
    if problem["type"] == "missing":
        return f"{path}: missing (from {origin}); set {place[0]} to: {known.get(str(place[0]), 'a value')}"
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(place[-1]), _siblings(place), n=1, cutoff=0.6)
        remedy = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(_siblings(place))}"
        return f"{path}: unknown key (from {origin}); {remedy}"
    return explain({**problem, "loc": tuple(place)}, dict.fromkeys(known, origin), known)


def _siblings(place: list[Any]) -> list[str]:
    """Keys that are known where an unknown one stands."""
    if len(place) == 1:
        return list(AllocationSpec.model_fields)
    parts: dict[str, type[BaseModel]] = {
        "columns": Columns, "file": FileOptions, "budgets": ExtraBudget, "daily_budgets": DailyLimits,
        "stock": StockUnits, "segment_floors": Floor, "margin_floor": Margin, "depth_fairness": Fairness,
        "frequency_cap": Cap,
    }  # fmt: skip
    return list(parts[str(place[0])].model_fields)
