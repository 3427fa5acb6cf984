"""Where settings come from (YAML, environment) and how a mistake in them is told."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ENV_PREFIX = "QIANCE__"
HIDDEN = "***"
_SECRET_KEYS = ("ledger.url", "grafana.token")


class SettingsError(ValueError):
    """A setting that cannot be used; the message names the key, the value and the remedy."""


class _StrictLoader(yaml.SafeLoader):
    """YAML that refuses a key given twice: the second would silently win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            name = str(key_node.value)
            if name in seen:
                raise SettingsError(f"{name}: given twice (line {key_node.start_mark.line + 1}); keep one")
            seen.add(name)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Mapping[str, Any]:
    """The mapping in a YAML file; an empty file is an empty mapping."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        loaded = yaml.load(text, _StrictLoader)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise SettingsError(
            f"{path}: cannot be read ({error.strerror}); name an existing YAML file"
        ) from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path}: is not UTF-8 text; save it as UTF-8") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{path}: is not YAML ({' '.join(str(error).split())})") from None
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise SettingsError(
            f"{path}: holds a {type(loaded).__name__}; write keys such as 'serve: {{port: 8000}}'"
        )
    return loaded


def env_values(env: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    """Dotted key and value of each override; text is left to the field's type, lists are read as YAML."""
    for name, raw in sorted(env.items()):
        if not name.startswith(ENV_PREFIX) or not raw.strip():
            continue
        key = name.removeprefix(ENV_PREFIX).lower().replace("__", ".")
        value: Any = raw
        if raw.strip()[0] in "[{" or raw.strip() == "null":
            try:
                value = yaml.safe_load(raw)
            except yaml.YAMLError:
                shown = HIDDEN if key in _SECRET_KEYS else repr(raw)
                raise SettingsError(
                    f"{key}: {shown} in {name} is not YAML; write a list as [64, 32]"
                ) from None
        yield key, value


def flatten(nested: Mapping[Any, Any], sections: Collection[str]) -> dict[str, Any]:
    """{"serve": {"port": 1}} and {"serve.port": 1} alike → {"serve.port": 1}."""
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        if name not in sections:
            flat[str(name)] = value
        elif isinstance(value, Mapping):
            flat |= {f"{name}.{key}": inner for key, inner in value.items()}
        elif value is not None:  # an empty section keeps its defaults
            raise SettingsError(f"{name}: {value!r} is not a section; write its keys below it")
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of `flatten`."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        section, dot, name = key.partition(".")
        if dot:
            nested.setdefault(section, {})[name] = value
        else:
            nested[key] = value
    return nested


def refuse_unknown(values: Mapping[str, Any], origins: Mapping[str, str], known: Mapping[str, str]) -> None:
    """SettingsError for keys that do not exist, with the nearest that does."""
    problems = []
    for key in values:
        if key in known:
            continue
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
        remedy = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(sorted(known))}"
        problems.append(f"{key}: unknown key (from {origins[key]}); {remedy}")
    if problems:
        raise SettingsError("\n".join(problems))


def explain(problem: Mapping[str, Any], origins: Mapping[str, str], known: Mapping[str, str]) -> str:
    """One line: key, value, what is wrong, where it came from, what to give instead."""
    path = ".".join(str(part) for part in problem["loc"])
    if not path:  # a rule over several keys, which names them itself
        return str(problem["msg"]).removeprefix("Value error, ")
    key = next((name for name in known if path == name or path.startswith(f"{name}.")), path)
    shown = HIDDEN if key in _SECRET_KEYS else repr(problem["input"])
    reason = str(problem["msg"]).removeprefix("Value error, ").replace("Input should", "should")
    suggestion = ""
    if problem["type"] == "literal_error":
        choices = re.findall(r"'([^']+)'", str(problem["ctx"]["expected"]))
        near = difflib.get_close_matches(str(problem["input"]), choices, n=1)
        suggestion = f", perhaps {near[0]!r}" if near else ""
    origin = f" (from {origins[key]})" if key in origins else ""
    return f"{path}: {shown} {reason}{suggestion}{origin}; set {key} to: {known.get(key, 'a known value')}"


def without_password(url: str) -> str:
    """`url` with its password hidden, also one given as a query parameter."""
    hidden = re.sub(r"(://[^:/@]*):[^@]*@", rf"\1:{HIDDEN}@", url)
    return re.sub(r"(?i)((?:password|passfile|sslpassword)=)[^&]*", rf"\g<1>{HIDDEN}", hidden)
