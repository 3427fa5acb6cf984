"""What a mapping must satisfy beyond the types of its keys; each problem names its key and the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from qiance.data.convert import Kind
from qiance.data.roles import CONSTANT_ROLES, EVENT_TYPES, LABEL_ROLES, NEEDED_ROLES, ROLES, MappingKind

if TYPE_CHECKING:
    from qiance.data.mapping import Constant, Mapping


def problems(mapping: Mapping) -> list[str]:
    """Sentences, one per problem; empty if the mapping is sound."""
    return [
        *_unknown(mapping),
        *_lacking(mapping),
        *_ill_typed(mapping),
        *_bad_constants(mapping),
        *_bad_key(mapping),
    ]


def _unknown(mapping: Mapping) -> Iterator[str]:
    known = ROLES[mapping.kind]
    for name in mapping.columns.keys() - known.keys():
        yield f"columns.{name}: no such role for kind {mapping.kind.value}; use one of {', '.join(known)}"
    for name in mapping.labels.keys() - LABEL_ROLES.keys():
        yield f"labels.{name}: no such label; use one of {', '.join(LABEL_ROLES)}"
    names = [name for _, name, _, _ in mapping.specs()]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"{name}: mapped more than once; give each target its own name"
    reserved = ROLES[MappingKind.RESPONSES].keys() | LABEL_ROLES.keys()
    for name in sorted(reserved & (mapping.features.numeric.keys() | mapping.features.categorical.keys())):
        yield f"features: {name!r} is the name of a role or label; choose another target name"


def _lacking(mapping: Mapping) -> Iterator[str]:
    given = mapping.columns.keys() | mapping.constants.keys()
    for name in NEEDED_ROLES[mapping.kind]:
        if name not in given:
            yield f"columns.{name}: missing; name the source column that holds it"
    if mapping.kind is not MappingKind.RESPONSES:
        if (
            mapping.labels
            or mapping.features.numeric
            or mapping.features.categorical
            or mapping.control
            or mapping.arm_cost
            or mapping.log_end
        ):
            yield "labels, features, control, arm_cost, log_end: belong to kind responses; remove them"
        return
    if "converted_at" in given and not ("occurred_at" in given and "conversion" in mapping.labels):
        yield "columns.converted_at: is the time of labels.conversion after columns.occurred_at: map both"
    if mapping.log_end and "converted_at" not in given:
        yield "log_end: says until when conversions were seen; map columns.converted_at, or remove it"
    if not mapping.labels:
        yield "labels: missing; map at least one of click, conversion, sales"
    if "arm" not in given and (mapping.control or mapping.arm_cost or "propensity" in given):
        yield "columns.arm: missing; control, arm_cost and propensity are those of arms: name their column"


def _ill_typed(mapping: Mapping) -> Iterator[str]:
    for place, _, spec, role in mapping.specs():
        kind = spec.type or role.types[0]
        if kind not in role.types:
            yield f"{place}.type: {kind.value} does not fit; use one of {', '.join(role.types)}"
        if (kind is Kind.MONEY) != (spec.unit is not None):
            fix = (
                "say unit: major or unit: minor" if kind is Kind.MONEY else "only money has a unit; remove it"
            )
            yield f"{place}.unit: {fix}"
        if spec.format and kind is not Kind.TIMESTAMP:
            yield f"{place}.format: only a timestamp has a format; remove it"
        if (spec.allowed or spec.values) and kind is not Kind.STRING:
            yield f"{place}.allowed, values: only text has them; use min and max for numbers"
        if (spec.min is not None or spec.max is not None) and kind in (Kind.STRING, Kind.TIMESTAMP):
            yield f"{place}.min, max: only numbers have them; use allowed for text"
        if spec.min is not None and spec.max is not None and spec.min > spec.max:
            yield f"{place}.min: {spec.min:g} is above max {spec.max:g}"
        if role.required and spec.required is False and role.if_missing is None:
            yield f"{place}.required: {place.rsplit('.', 1)[-1]} cannot be optional; remove it"
        if role.allowed and not set(spec.allowed) <= set(role.allowed):
            yield f"{place}.allowed: use a subset of {', '.join(role.allowed)}"


def _bad_constants(mapping: Mapping) -> Iterator[str]:
    allowed = CONSTANT_ROLES[mapping.kind]
    for name, value in mapping.constants.items():
        if name not in allowed:
            yield f"constants.{name}: cannot be constant; use one of {', '.join(allowed)}"
        elif name in mapping.columns:
            yield f"constants.{name}: is mapped under columns too; keep one of the two"
        elif name == "type":
            if value not in EVENT_TYPES:
                yield f"constants.type: {value!r} is not one of {', '.join(EVENT_TYPES)}"
        elif name == "propensity":
            yield from _bad_propensity(value)
        elif not isinstance(value, int) or value < (name == "quantity"):
            yield f"constants.{name}: {value!r} is not a whole number of at least {int(name == 'quantity')}"


def _bad_propensity(value: Constant) -> Iterator[str]:
    shares = value if isinstance(value, dict) else {"": value}
    for arm, share in shares.items():
        if not isinstance(share, int | float) or not 0 < share <= 1:
            yield f"constants.propensity{'.' if arm else ''}{arm}: {share!r} is outside (0, 1]"
    if isinstance(value, dict) and abs(sum(value.values()) - 1) > 1e-3:
        yield f"constants.propensity: the shares of the arms sum to {sum(value.values()):g}, not to 1"


def _bad_key(mapping: Mapping) -> Iterator[str]:
    for name in mapping.key:
        if name not in mapping.columns:
            yield f"key: {name!r} is not mapped under columns"
    if mapping.kind is MappingKind.EVENTS and not mapping.key and "event_id" not in mapping.columns:
        yield "columns.event_id: missing; map it, or list in `key` the roles that identify a row"
    if mapping.key and (mapping.kind is not MappingKind.EVENTS or "event_id" in mapping.columns):
        yield "key: stands in for a missing event_id only; remove it"
