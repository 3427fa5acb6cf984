"""The workspace that a command works on, with its settings and its ledger."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qiance.ledger import Ledger
from qiance.settings import Settings, load_settings
from qiance.workspace import Workspace


@dataclass(frozen=True)
class Place:
    """A workspace with its settings and its ledger, for as long as a command runs."""

    workspace: Workspace
    settings: Settings
    ledger: Ledger


@contextmanager
def open_place(config: Path | None, folder: Path, needed: str, remedy: str) -> Iterator[Place]:
    """The workspace in `folder`; ValueError with `remedy` where it lacks the file or folder `needed`."""
    settings, root = load_settings(config, os.environ), folder.resolve()
    if not (root / needed).exists():
        raise ValueError(f"--workspace: {folder} {remedy}")
    ledger = Ledger.from_settings(settings, root)
    try:
        yield Place(Workspace(root), settings, ledger)
    finally:
        ledger.close()
