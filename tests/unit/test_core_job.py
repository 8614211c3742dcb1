"""Long work: its lines as they come, how it ended in words, and a unit that is followed."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from threading import Event
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import job
from core.errors import BuildFailed, FactsError, Interrupted
from core.host import SudoPassword
from core.job import _how_it_ended, _Log, follow_job
from core.local import LocalHost
from core.plan import Job
from core.process import Completed
from tests.unit.samples import TABLES

ENDS = json.loads((TABLES / "unit_ends.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", ENDS, ids=[str(case["state"].get("Result", "unknown")) for case in ENDS])
def test_how_a_unit_ended_is_said_in_words(case: dict[str, Any]) -> None:
    assert _how_it_ended(case["state"]) == case["says"]


@given(content=st.binary(), cuts=st.lists(st.integers(0, 200)))
def test_lines_are_the_same_however_the_log_arrives(content: bytes, cuts: list[int]) -> None:
    log = _Log()
    places = sorted({0, len(content), *(cut for cut in cuts if cut < len(content))})
    lines = [line for begin, end in pairwise(places) for line in log.take(content[begin:end])]
    whole = content.split(b"\n")
    assert lines == [line.decode(errors="replace") for line in whole[:-1]]
    assert log.rest == whole[-1]
    assert log.offset == len(content)


def test_a_letter_that_is_cut_in_two_is_put_together() -> None:
    log, text = _Log(), "größer\nweiter".encode()
    assert [log.take(text[:4]), log.take(text[4:])] == [[], ["größer"]]


def step(*argv: str, **changes: Any) -> Job:
    def failure(how: str, lines: Sequence[str]) -> Exception:
        return BuildFailed(how, next_move="try again", evidence="\n".join(lines))

    settings: dict[str, Any] = {"unit": None, "timeout": 60, "watch": lambda line: line, **changes}
    return Job(node="gx10", title="the build", reason="", argv=argv, failure=failure, hint="stop it", **settings)


@pytest.fixture
def here() -> LocalHost:
    return LocalHost("gx10", SudoPassword(None))


@pytest.mark.processes
def test_a_child_process_that_fails_gives_its_code_and_all_its_lines(here: LocalHost) -> None:
    seen: list[str] = []
    with pytest.raises(BuildFailed, match="it ended with 3") as caught:
        follow_job(step("sh", "-c", "echo one; echo two >&2; exit 3"), here, seen.append, Event())
    assert seen == ["one", "two"]
    assert caught.value.evidence == "one\ntwo"


@pytest.mark.processes
def test_a_child_process_that_is_killed_is_told_as_such(here: LocalHost) -> None:
    with pytest.raises(BuildFailed, match="it was ended by signal 9"):
        follow_job(step("sh", "-c", "kill -KILL $$"), here, lambda _: None, Event())


@pytest.mark.processes
def test_a_child_process_that_ends_well_says_nothing(here: LocalHost) -> None:
    follow_job(step("true"), here, lambda _: None, Event())


@dataclass
class Node:
    """A node that answers each look with the next of its states; the log's text comes with it."""

    answers: list[tuple[str, dict[str, str]]]
    name: str = "gx10"
    ran: list[tuple[str, ...]] = field(default_factory=list)

    def run(self, argv: Sequence[str], **_: Any) -> Completed:
        self.ran.append(tuple(argv))
        if argv[0] != "python3":
            return Completed(tuple(argv), 0, "")
        text, state = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        out = json.dumps({"new": base64.b64encode(text.encode()).decode(), "state": state})
        return Completed(tuple(argv), 0, out)

    @property
    def started(self) -> bool:
        """Whether a unit was started."""
        return any("systemd-run" in argv for argv in self.ran)


ACTIVE = {"ActiveState": "active", "Result": "success", "ExecMainStatus": "0"}
WELL = {**ACTIVE, "ActiveState": "inactive"}


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "INTERVAL", 0)


def followed(node: Node, lines: Callable[[str], None] = lambda _: None, **changes: Any) -> None:
    interrupted = changes.pop("interrupted", Event())
    follow_job(step("make", unit="x", **changes), node, lines, interrupted)  # type: ignore[arg-type]


def test_a_unit_that_runs_is_followed_from_its_first_line_and_not_started_again() -> None:
    node, seen = Node([("", ACTIVE), ("one\ntw", ACTIVE), ("o\n", ACTIVE), ("", WELL)]), []
    followed(node, seen.append)
    assert seen == ["one", "two"]
    assert not node.started


def test_a_unit_that_is_not_there_is_started() -> None:
    node = Node([("", {"ActiveState": "inactive"}), ("", ACTIVE), ("", WELL)])
    followed(node)
    assert node.started


def test_what_a_unit_wrote_last_is_read_before_its_end_counts() -> None:
    node, seen = Node([("", ACTIVE), ("error: no\n", {"ActiveState": "failed", **FAILED}), ("", FAILED)]), []
    with pytest.raises(BuildFailed, match="it ended with 1") as caught:
        followed(node, seen.append)
    assert seen == ["error: no"]
    assert caught.value.evidence == "error: no"


FAILED = {"Result": "exit-code", "ExecMainStatus": "1"}


def test_a_last_line_without_an_end_is_not_lost() -> None:
    node, seen = Node([("", ACTIVE), ("it broke", FAILED), ("", FAILED)]), []
    with pytest.raises(BuildFailed):
        followed(node, seen.append)
    assert seen == ["it broke"]


def test_ctrl_c_leaves_the_unit_running_and_says_how_to_end_it() -> None:
    interrupted = Event()
    interrupted.set()
    node = Node([("", ACTIVE)])
    with pytest.raises(Interrupted, match="the build goes on without us as the unit x") as caught:
        followed(node, interrupted=interrupted)
    assert "stop it" in caught.value.next_move
    assert not any("stop" in argv for argv in node.ran)


def test_a_unit_that_takes_too_long_is_told_and_left_alone() -> None:
    with pytest.raises(BuildFailed, match="it did not end within 0 s and still runs"):
        followed(Node([("", ACTIVE)]), timeout=0)


def test_an_answer_that_cannot_be_read_is_told() -> None:
    node = Node([("", ACTIVE)])
    node.run = lambda argv, **_: Completed(tuple(argv), 0, "Traceback")  # type: ignore[method-assign]
    with pytest.raises(FactsError, match="the state of x cannot be read"):
        followed(node)
