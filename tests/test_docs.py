"""The documents agree with the code (dependencies, settings, routes, links); none names a machine."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from qiance.settings import Settings, known_keys
from serve.haproxy import ERRORS
from serve.problems import TITLES

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
_NAME = re.compile(r"[A-Za-z0-9._-]+")
_ROW = re.compile(r"^\| `([A-Za-z0-9._-]+)` \| ([^|]+) \| ([^|]+) \|$", re.M)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
# What belongs to a machine and not to the project; written so that this file does not match itself.
_PLACES = re.compile(r"(?<![\w.$}/-])/(?:wor[k]|roo[t]|User[s]|hom[e]/\w+)/")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def canonical(requirement: str) -> str:
    match = _NAME.match(requirement)
    assert match is not None, requirement
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def declared() -> dict[str, set[str]]:
    """Direct dependencies by where they are declared."""
    project = tomllib.loads(read("pyproject.toml"))
    data = [line for line in read("requirements-data.txt").splitlines() if line and not line.startswith("#")]
    return {
        "run": {canonical(name) for name in project["project"]["dependencies"]},
        "dev": {canonical(name) for group in project["dependency-groups"].values() for name in group},
        "data": {canonical(name) for name in data},
    }


def test_every_dependency_has_its_reason_and_licence() -> None:
    rows = {
        canonical(name): (reason, licence)
        for name, reason, licence in _ROW.findall(read("docs/dependencies.md"))
    }
    wanted = set().union(*declared().values())
    assert wanted - rows.keys() == set(), "add a row to docs/dependencies.md"
    assert rows.keys() - wanted == set(), "remove the row: it is no direct dependency"
    assert [name for name, row in rows.items() if not all(part.strip() for part in row)] == []


def test_every_dependency_is_pinned() -> None:
    pins = dict(line.split("==") for line in read("constraints.txt").splitlines() if "==" in line)
    pinned = {canonical(name) for name in pins}
    found = declared()
    assert (found["run"] | found["dev"]) - pinned == set(), "pin it in constraints.txt"
    assert all("==" in line for line in read("requirements-data.txt").splitlines() if line and line[0] != "#")


def shown(value: Any) -> str:
    """A default as the page writes it."""
    if value is None or isinstance(value, bool | tuple | dict):
        return json.dumps(value)
    text = str(value)
    return (
        f'"{text}"'
        if isinstance(value, str) and re.fullmatch(r"[\d.]+", text) and text.count(".") < 2
        else text
    )


def default_of(key: str) -> Any:
    value: Any = Settings()
    for part in key.split("."):
        value = getattr(value, part)
    return value


def test_every_setting_is_described_with_its_default() -> None:
    text = read("docs/configuration.md")
    rows = {key: f"| `{key}` | `{shown(default_of(key))}` | {said} |" for key, said in known_keys().items()}
    stale = [row for key, row in rows.items() if f"{row.rsplit(' | ', 1)[0]} | " not in text]
    assert not stale, "docs/configuration.md should have these rows:\n" + "\n".join(stale)
    documented = set(re.findall(r"(?m)^\| `([a-z_.]+)` \| `", text))
    assert documented - known_keys().keys() == set(), "these settings do not exist any more"


@pytest.fixture(scope="module")
def openapi() -> dict[str, Any]:
    from serve.gateway import Gateway, build_api

    def not_yet() -> Gateway:
        raise AssertionError("the description needs no services")

    return build_api(not_yet, max_body_bytes=1_024).openapi()


def test_every_route_is_described(openapi: dict[str, Any]) -> None:
    text = read("docs/api.md")
    routes = {f"{method.upper()} {path}" for path, methods in openapi["paths"].items() for method in methods}
    assert [route for route in sorted(routes) if f"| `{route}` |" not in text] == []
    assert set(re.findall(r"(?m)^\| `([A-Z]+ /[^`]*)` \|", text)) - routes == set(), "no such route any more"


def test_every_error_is_described() -> None:
    """Those of the application, and those that HAProxy gives by itself."""
    table = read("docs/api.md").partition("\n## Errors\n")[2]
    told = {int(n) for cell in re.findall(r"^\| ([0-9, ]+) \|", table, re.M) for n in cell.split(",")}
    assert told == TITLES.keys() | ERRORS.keys()


def test_every_field_is_described(openapi: dict[str, Any]) -> None:
    text = read("docs/api.md")
    ours = {
        name: schema.get("properties", {})
        for name, schema in openapi["components"]["schemas"].items()
        if name not in ("HTTPValidationError", "ValidationError")
    }
    missing = [
        f"{name}.{field}" for name, fields in ours.items() for field in fields if f"`{field}`" not in text
    ]
    assert missing == []
    values = [
        value for schema in openapi["components"]["schemas"].values() for value in schema.get("enum", ())
    ]
    assert [value for value in values if f"`{value}`" not in text] == []


def test_every_command_of_the_makefile_is_in_the_readme() -> None:
    targets = set(re.findall(r"(?m)^([a-z][a-z-]*):.*## ", read("Makefile"))) - {"help", "format"}
    for readme in ("README.md", "README.zh.md"):
        assert [target for target in sorted(targets) if f"`make {target}`" not in read(readme)] == []


def anchors(document: Path) -> set[str]:
    """Anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"(?m)^#+ (.+)$", document.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in _LINK.findall(document.read_text(encoding="utf-8")):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = unquote(target).partition("#")
        where = (document.parent / path).resolve() if path else document
        assert where.exists(), f"{document.name}: {target} does not exist"
        assert where.is_relative_to(ROOT), f"{document.name}: {target} leaves the project"
        assert not anchor or anchor in anchors(where), f"{document.name}: {target} has no such heading"


def committed() -> Iterator[tuple[str, str]]:
    """Path and text of every text file that is, or would be, committed."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("this is not a git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if not path.is_file() or b"\0" in (raw := path.read_bytes()):
            continue
        yield name, raw.decode("utf-8")


def test_no_file_names_a_machine() -> None:
    host = socket.gethostname()
    names = {str(ROOT), str(Path.home()) + "/"}
    if len(host) > 6 and host != "localhost":
        names.add(host)
    for path, text in committed():
        found = _PLACES.search(text)
        assert found is None, f"{path} has {found and found[0]!r}"
        assert [name for name in names if name in text] == [], path


def test_continuous_integration_can_be_started() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111, "make it executable"
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_hooks_use_the_tools_of_the_environment() -> None:
    import yaml

    hooks = [
        hook for repo in yaml.safe_load(read(".pre-commit-config.yaml"))["repos"] for hook in repo["hooks"]
    ]
    assert {hook["language"] for hook in hooks} == {"system"}, "nothing is downloaded"
    assert all(hook["entry"].startswith(".venv/bin/") for hook in hooks)
