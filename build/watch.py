"""What a person sees of a long build: how far it is, how long it takes, and of a failure the first real error."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from time import time

from build.diagnosis import first_error, progress, words
from core.config import shown
from core.errors import BuildFailed, SparkstackError

BEGAN = re.compile(r"began at (\d+)")
"""What the runner says first: seconds since 1970, so that a build that is followed later has its true age."""


class Watch:
    """Keeps every line in the build's log and says, instead of the line, how far the build is.

    ``expected`` is how many seconds the last build of this recipe took on this machine, where one is known.
    """

    def __init__(self, log: Path, expected: float | None) -> None:
        self._log = log
        self._expected = expected
        self._began = time()
        self._told = False
        self._step = ""
        self._first = True

    def __call__(self, line: str) -> str:
        """Take a line; return what to show."""
        self._keep(line)
        if not self._told and (began := BEGAN.fullmatch(line)):
            self._told, self._began = True, float(began[1])
        found = progress(line)
        if found:
            self._step = f"[{found[0]}/{found[1]}] "
        return f"{self._step}{self._clock()} {line.strip()}"

    def _keep(self, line: str) -> None:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("w" if self._first else "a", encoding="utf-8") as file:
            file.write(line + "\n")
        self._first = False

    def _clock(self) -> str:
        elapsed = max(0.0, time() - self._began)
        if self._expected is None:
            return words(elapsed)
        return f"{words(elapsed)} of {words(self._expected)} last time"


def failure(title: str, node: str, how: str, lines: Sequence[str], log: Path) -> SparkstackError:
    """Return the error of a build that did not end well: the first real error in its lines, not the last ones."""
    return BuildFailed(
        f"{title}: {how}",
        node=node,
        next_move=f"read {shown(log)}; what was fetched is kept, and the same command builds it again",
        evidence=first_error(lines) or "\n".join(lines[-5:]),
    )
