"""What a command shows while it runs: a line a finished step, and on a terminal one live row a node."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

LIVE_WIDTH = 100
SILENCE = 60
"""Seconds after which a long step leaves a line where there is no live display."""


class Screen:
    """Progress for people, on stderr; what a command answers goes to stdout."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, soft_wrap=True, highlight=False)
        self._progress: Progress | None = None
        self._began = monotonic()

    def line(self, text: str, *, style: str = "") -> None:
        """Show one lasting line with the seconds since the command began."""
        stamp = f"[{monotonic() - self._began:6.1f} s] "
        self.console.print(f"[dim]{escape(stamp)}[/]{escape(text)}", style=style)

    @contextmanager
    def stage(self, title: str, nodes: list[str]) -> Iterator[dict[str, Row]]:
        """Show a stage with one live row a node (on a terminal); gives the rows by node."""
        self.line(title, style="bold")
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as progress:
            yield {node: Row(self, progress, node) for node in nodes}


class Row:
    """One node's live row."""

    def __init__(self, screen: Screen, progress: Progress, node: str) -> None:
        self._screen = screen
        self._progress = progress
        self._node = node
        self._title = ""
        self._began = self._spoke = monotonic()
        self._task = progress.add_task(node, total=None)

    def begin(self, title: str) -> None:
        """Show that the node works on ``title``."""
        self._title = title
        self._began = self._spoke = monotonic()
        self._progress.reset(self._task, description=f"{self._node}  {title}")

    def say(self, text: str) -> None:
        """Leave a lasting line about the step that begins."""
        self._screen.line(f"  {self._node}: {self._title}: {text}", style="dim")

    def now(self, line: str) -> None:
        """Show the newest line of output behind the title."""
        text = f"{self._node}  {self._title}: {line.strip()}"
        self._progress.update(self._task, description=text[:LIVE_WIDTH])
        if not self._screen.console.is_terminal and monotonic() - self._spoke > SILENCE:
            self._spoke = monotonic()
            self._screen.line(f"  {text[:LIVE_WIDTH]}")

    def end(self, outcome: str = "") -> None:
        """Leave a lasting line: the step, its seconds, and how it ended when not well."""
        seconds = monotonic() - self._began
        self._screen.line(f"  {self._node}: {self._title} ({seconds:.1f} s){outcome}", style="red" if outcome else "")
