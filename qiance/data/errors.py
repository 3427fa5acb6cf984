"""What is raised when a file or a mapping cannot be used at all."""

from __future__ import annotations

from pathlib import Path


class DataError(ValueError):
    """A file is not what it says; the message states the file, what is wrong, and the remedy."""

    def __init__(self, source: Path | str, problem: str, remedy: str) -> None:
        super().__init__(f"{source}: {problem}; {remedy}")
        self.source = str(source)
        self.problem = problem
        self.remedy = remedy


class MappingError(ValueError):
    """A mapping is wrong; the message names its file, each key at fault, and the remedy."""
