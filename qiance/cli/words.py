"""What the commands about words share: the guard and the catalogue of a workspace."""

from __future__ import annotations

from pathlib import Path

from qiance.domain import Catalogue
from qiance.guard import Guard
from qiance.settings import Settings
from qiance.workspace import Snapshot, Workspace


def guard_of(settings: Settings) -> Guard:
    """The lint as the settings want it; closed if its rules cannot be read."""
    return Guard.load(settings.guard.rules, currency=settings.currency, min_margin=settings.budget.min_margin)


def catalogue_of(workspace: Path) -> Catalogue | None:
    """The catalogue of a run; None if the folder has none, and words about items are then blocked."""
    folder = Workspace(workspace.resolve()).snapshot
    try:
        return Snapshot.load(folder).catalogue
    except (FileNotFoundError, NotADirectoryError):
        return None
