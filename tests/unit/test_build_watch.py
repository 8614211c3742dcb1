"""What is shown of a build while it runs, kept of it, and said when it fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from build import watch
from build.watch import Watch, failure
from core.errors import BuildFailed


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "build.log"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the time as a list of one, so that a test can set it."""
    now = [1000.0]
    monkeypatch.setattr(watch, "time", lambda: now[0])
    return now


def test_a_line_is_shown_behind_the_progress_and_the_elapsed_time(log: Path, clock: list[float]) -> None:
    shows = Watch(log, None)
    clock[0] += 5
    assert shows("  Compiling\n") == "5 s Compiling"
    clock[0] += 200
    assert shows("[12/345] Building a.o") == "[12/345] 3 min 25 s [12/345] Building a.o"
    assert shows("a warning") == "[12/345] 3 min 25 s a warning", "how far it is stays until the next step"


def test_with_a_build_before_the_expected_time_is_shown(log: Path, clock: list[float]) -> None:
    shows = Watch(log, 3900)
    clock[0] += 60
    assert shows("x") == "1 min of 1 h 5 min last time x"


def test_a_build_that_is_followed_later_has_its_true_age(log: Path, clock: list[float]) -> None:
    shows = Watch(log, None)
    clock[0] += 1
    assert shows("began at 400") == "10 min 1 s began at 400"


@pytest.mark.usefixtures("clock")
def test_a_machine_whose_clock_is_ahead_gives_no_negative_time(log: Path) -> None:
    assert Watch(log, None)("began at 5000") == "0 s began at 5000"


@pytest.mark.parametrize("line", ["began at", "began at last", "began at the beginning [1/2]"])
@pytest.mark.usefixtures("clock")
def test_a_line_of_the_builds_own_that_begins_so_is_no_time(log: Path, line: str) -> None:
    assert Watch(log, None)(line) == f"0 s {line}"


@pytest.mark.usefixtures("clock")
def test_only_the_first_such_line_is_the_runners(log: Path) -> None:
    shows = Watch(log, None)
    shows("began at 990")
    assert shows("began at 5") == "10 s began at 5"


def test_every_line_is_kept_and_a_new_build_begins_a_new_log(log: Path) -> None:
    first = Watch(log, None)
    for line in ("one", "  two ünd ", ""):
        first(line)
    assert log.read_text(encoding="utf-8") == "one\n  two ünd \n\n"
    Watch(log, None)("again")
    assert log.read_text(encoding="utf-8") == "again\n"


def test_of_a_failure_the_first_error_is_said(log: Path) -> None:
    lines = ["[1/2] x", "a.cpp:3:1: error: expected ';'", *["ninja: build stopped"] * 9]
    error = failure("build x", "gx10", "it ended with 1", lines, log)
    assert isinstance(error, BuildFailed)
    assert error.cause == "build x: it ended with 1"
    assert error.node == "gx10"
    assert error.evidence.startswith("a.cpp:3:1: error: expected ';'")
    assert str(log) in error.next_move


def test_a_failure_without_any_error_shows_the_last_lines(log: Path) -> None:
    error = failure("build x", "gx10", "it ended with 1", [f"line {number}" for number in range(9)], log)
    assert error.evidence.splitlines() == [f"line {number}" for number in range(4, 9)]
