"""Hyper-parameters of the response model as YAML: read, checked, written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from qiance.settings_sources import SettingsError, explain, flatten, nest, read_yaml, refuse_unknown
from training.response.members import ResponseSettings


def _no_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("should be a number, not true or false")
    return value


def _as_list(value: object) -> object:
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else value


_Number = BeforeValidator(_no_boolean)
_Count = Annotated[int, _Number, Field(ge=1, le=1_000_000)]
_Step = Annotated[float, _Number, Field(gt=0.0, lt=1.0)]
_Penalty = Annotated[float, _Number, Field(ge=0.0, le=1e6)]
_Share = Annotated[float, _Number, Field(gt=0.0, le=1.0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class NetworkParameters(_Section):
    """Of the networks; what is left out keeps its default."""

    learning_rate: _Step | None = Field(None, description="step size of AdamW, above 0 and below 1")
    weight_decay: _Penalty | None = Field(None, description="weight decay of AdamW, 0 or more")
    dropout: Annotated[float, _Number, Field(ge=0.0, le=0.9)] | None = Field(
        None, description="share of hidden values set to 0 while training, 0 to 0.9"
    )
    batch_size: _Count | None = Field(None, description="rows per gradient step, 1 or more")
    hidden: Annotated[tuple[_Count, ...], BeforeValidator(_as_list), Field(min_length=1)] | None = Field(
        None, description="sizes of the hidden layers, such as [64, 32]"
    )
    embedding: Annotated[int, _Number, Field(ge=1, le=256)] | None = Field(
        None, description="widest vector of a category, 1 to 256"
    )
    epochs: _Count | None = Field(None, description="most epochs, 1 or more")
    patience: _Count | None = Field(None, description="epochs without improvement before it stops")
    heads: Annotated[int, _Number, Field(ge=2, le=64)] | None = Field(
        None, description="bootstrap heads, 2 to 64"
    )
    min_count: _Count | None = Field(None, description="rows that a category needs to get its own vector")


class TreeParameters(_Section):
    """Of the boosted trees; what is left out keeps its default."""

    learning_rate: _Step | None = Field(None, description="shrinkage of a tree, above 0 and below 1")
    leaves: (
        Annotated[
            tuple[Annotated[int, _Number, Field(ge=2, le=4096)], ...],
            BeforeValidator(_as_list),
            Field(min_length=1),
        ]
        | None
    ) = Field(None, description="leaves of a tree, 2 to 4096; several sizes are tried in turn")
    min_rows: _Count | None = Field(None, description="least rows of a leaf, 1 or more")
    row_share: _Share | None = Field(None, description="share of the rows drawn for a tree, above 0 to 1")
    feature_share: _Share | None = Field(None, description="share of the features drawn for a tree")
    l2: _Penalty | None = Field(None, description="penalty on the values of leaves, 0 or more")
    rounds: _Count | None = Field(None, description="most trees, 1 or more")
    patience: _Count | None = Field(None, description="trees without improvement before it stops")


class ResponseParameters(_Section):
    """A configuration of the response model."""

    members: Annotated[int, _Number, Field(ge=2, le=50)] | None = Field(
        None, description="networks and boosters, each without one of as many folds, 2 to 50"
    )
    network: NetworkParameters = NetworkParameters()
    trees: TreeParameters = TreeParameters()


SECTIONS: dict[str, type[BaseModel]] = {"network": NetworkParameters, "trees": TreeParameters}


def known_parameters() -> dict[str, str]:
    """Every dotted key with its description."""
    keys = {"members": ResponseParameters.model_fields["members"].description or ""}
    for section, model in SECTIONS.items():
        keys |= {f"{section}.{name}": field.description or "" for name, field in model.model_fields.items()}
    return keys


def check_parameters(nested: Mapping[str, Any], origin: str) -> ResponseParameters:
    """`nested` as parameters; SettingsError with a line per key that is unknown or out of its range."""
    known = known_parameters()
    values = flatten(nested, SECTIONS)
    origins = dict.fromkeys(values, origin)
    refuse_unknown(values, origins, known)
    try:
        return ResponseParameters.model_validate(nest(values))
    except ValidationError as error:
        problems = [explain(dict(problem), origins, known) for problem in error.errors()]
        raise SettingsError("\n".join(problems)) from None


def load_parameters(path: Path) -> ResponseParameters:
    """The parameters in a YAML file, such as `best.yaml` of a sweep."""
    return check_parameters(read_yaml(path), str(path))


def apply_parameters(parameters: ResponseParameters, settings: ResponseSettings) -> ResponseSettings:
    """`settings` with the parameters that are given."""
    network = parameters.network.model_dump(exclude_none=True)
    trees = parameters.trees.model_dump(exclude_none=True)
    return replace(
        settings,
        members=parameters.members or settings.members,
        network=replace(settings.network, **network),
        trees=replace(settings.trees, **trees),
    )


def default_value(section: str, name: str) -> Any:
    """The value of a parameter where nothing else is asked for."""
    part = getattr(ResponseSettings(), section)
    assert name in {field.name for field in fields(part)}, f"{section}.{name} is a setting"
    return getattr(part, name)


def write_parameters(path: Path, nested: Mapping[str, Any], comment: str) -> None:
    """A file that `load_parameters` reads, headed by `comment`."""
    check_parameters(nested, str(path))
    head = "".join(f"# {line}\n" for line in comment.splitlines())
    text = yaml.safe_dump(dict(nested), sort_keys=False)
    path.write_text(head + text, encoding="utf-8")
