"""The rooms: what may import what, and that their names are ours."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("qiance", "feature_repo", "training", "rllib", "serve", "k8s")
MAY_IMPORT = {
    "qiance": {"qiance"},
    "feature_repo": {"qiance", "feature_repo"},
    "training": {"qiance", "training"},
    "rllib": {"qiance", "rllib"},
    "serve": {"qiance", "serve"},
    "k8s": {"k8s", "qiance"},
}
HEAVY = {"ray", "torch", "feast"}


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Top-level name of each import, and whether it stands inside a function."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        id(node)
        for scope in ast.walk(tree)
        if isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef) or _only_for_types(scope)
        for node in ast.walk(scope)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.split(".")[0], id(node) in inside
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0], id(node) in inside


def _only_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def files(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_meet_only_where_they_may(room: str) -> None:
    for path in files(room):
        conductor = path.is_relative_to(ROOT / "qiance" / "cli")
        for name, inside in imports(path):
            if name in ROOMS and name not in MAY_IMPORT[room]:
                where = path.relative_to(ROOT)
                assert conductor, f"{where} imports {name}, which is another room"
                assert inside, f"{where} imports {name} outside a function"


def test_the_domain_is_free_of_ray_torch_and_feast() -> None:
    for path in files("qiance"):
        for name, inside in imports(path):
            if name in HEAVY:
                where = path.relative_to(ROOT)
                allowed = path.is_relative_to(ROOT / "qiance" / "artifacts") and name == "torch"
                assert allowed, f"{where} imports {name}"
                assert inside, f"{where} imports {name} outside a function"


@pytest.mark.parametrize("room", ["qiance", "serve", "training", "rllib"])
def test_the_names_are_ours(room: str) -> None:
    module = __import__(room)
    assert Path(str(module.__file__)).is_relative_to(ROOT)


def test_no_module_called_utils() -> None:
    assert not [path for room in ROOMS for path in files(room) if path.stem in ("utils", "helpers", "common")]
