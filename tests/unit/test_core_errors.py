"""Errors: one exit code each, one way to read, and the README tells the truth about them."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from core import errors
from core.errors import CommandFailed, SparkstackError

ROOT = Path(__file__).resolve().parents[2]
FAMILY = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, SparkstackError) and value is not SparkstackError
]


def test_each_error_has_an_exit_code_of_its_own() -> None:
    codes = [error.exit_code for error in FAMILY]
    assert len(set(codes)) == len(codes)
    assert not set(codes) & {0, SparkstackError.exit_code, 2}, "0 is success, 1 anything else, 2 a wrong command line"


@pytest.mark.parametrize("error", FAMILY, ids=lambda error: error.__name__)
def test_exit_codes_fit_a_shell_and_leave_signals_alone(error: type[SparkstackError]) -> None:
    assert 3 <= error.exit_code < 128 or error.exit_code == 130


def test_the_readme_lists_every_error_with_its_code_and_its_sentence() -> None:
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \| (.+?) \|$", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    classes = [(str(e.exit_code), e.__name__, (inspect.getdoc(e) or "").splitlines()[0]) for e in FAMILY]
    assert rows == sorted(classes, key=lambda row: int(row[0])), "README.md, table of exit codes"


def test_an_error_names_node_cause_evidence_and_next_move() -> None:
    error = CommandFailed("no space left", next_move="free 3 GiB", node="lab-a", evidence="df: 0\n/: full\n")
    assert str(error) == "lab-a: no space left\n    df: 0\n    /: full\n  next: free 3 GiB"


def test_an_error_without_node_and_evidence_is_two_lines() -> None:
    assert str(CommandFailed("broken", next_move="mend it")) == "broken\n  next: mend it"
