"""The status again and again: drawn over itself on a terminal, one screen a change elsewhere, until Ctrl-C."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import sleep

from rich.console import Console
from rich.live import Live

from serve.view.screen import as_text, gist, screen
from serve.view.status import Status, as_data

PAUSE = 2.0
"""Seconds between the end of one look and the next."""

Say = Callable[[str], None]


class Looking:
    """Looks again and again on a thread of its own, so that Ctrl-C does not wait for a node that is silent.

    ``end`` breaks a look that is under way.
    """

    def __init__(
        self, look: Callable[[], Status], end: Callable[[], None], pause: Callable[[float], None] = sleep
    ) -> None:
        self._look = look
        self._end = end
        self._pause = pause
        self.last: Status | None = None

    def until_interrupted(self, show: Callable[[Status], object]) -> None:
        """Hand on what each look finds, until Ctrl-C."""
        with ThreadPoolExecutor(1) as pool:
            try:
                while True:
                    self.last = pool.submit(self._look).result()
                    show(self.last)
                    self._pause(PAUSE)
            except KeyboardInterrupt:
                self._end()


def watch(looking: Looking, say: Say, console: Console) -> None:
    """Show the status until Ctrl-C; the last screen stays."""
    if not console.is_terminal:
        _told(looking, say)
        return
    # the terminal's other page is written over from its corner, and never empty between two screens
    with Live(console=console, screen=True, auto_refresh=False) as live:
        looking.until_interrupted(lambda status: live.update(screen(status), refresh=True))
    if looking.last is not None:
        console.print(screen(looking.last))


def _told(looking: Looking, say: Say) -> None:
    """Say one screen a change."""
    before: list[object] = [None]

    def tell(status: Status) -> None:
        if gist(status) != before[0]:
            say(as_text(screen(status)))
        before[0] = gist(status)

    looking.until_interrupted(tell)


def stream(looking: Looking, say: Say) -> None:
    """Say every look as one line of JSON, until Ctrl-C."""
    looking.until_interrupted(lambda status: say(json.dumps(as_data(status))))
