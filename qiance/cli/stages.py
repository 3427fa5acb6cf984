"""Stages of a long job: what is going on, how far it is, how long it took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn


@dataclass
class Stage:
    """A running stage; `tell` moves its bar, `note` keeps a line in the output."""

    name: str
    _progress: Progress
    _task: TaskID
    seconds: float = 0.0

    def tell(self, fraction: float, message: str = "") -> None:
        """Show the fraction done in [0, 1] and what is being done."""
        self._progress.update(self._task, completed=min(max(fraction, 0.0), 1.0), message=message[:60])

    def note(self, message: str) -> None:
        """Print a line that stays."""
        self._progress.console.print(f"  {message}", highlight=False, markup=False)


@dataclass
class Stages:
    """Runs stages one after the other and remembers their times."""

    console: Console
    done: list[Stage] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """One stage; its line stays with the time it took."""
        started = time.monotonic()
        columns = (
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("{task.fields[message]}"),
        )
        if not self.console.is_terminal:
            self.console.print(f"… {name}", highlight=False)
        with Progress(*columns, console=self.console, transient=True, refresh_per_second=4) as progress:
            stage = Stage(name, progress, progress.add_task(name, total=1.0, message=""))
            yield stage
        stage.seconds = time.monotonic() - started
        self.done.append(stage)
        self.console.print(f"[green]✓[/] {name} [dim]{stage.seconds:.1f} s[/]", highlight=False)

    def seconds(self) -> list[dict[str, object]]:
        """Name and seconds of every finished stage."""
        return [{"name": stage.name, "seconds": round(stage.seconds, 2)} for stage in self.done]
