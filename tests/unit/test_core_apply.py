"""Applying a plan, with real processes: order, barriers, the first error, the journal, Ctrl-C."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from rich.console import Console

from core.apply import Context, Journal, apply
from core.config import ROOT
from core.errors import ComesFirst, CommandFailed, Interrupted, LockHeld, NotServing, SparkstackError
from core.host import SudoPassword
from core.local import LocalHost
from core.plan import Call, Job, Later, Plan, Poll, Pull, Push, Run, Step, Write, make_plan
from core.process import Completed
from core.screen import Screen

pytestmark = pytest.mark.processes


class Here(dict[str, LocalHost]):
    """Nodes that are all this host."""

    def __init__(self, *names: str) -> None:
        super().__init__({name: LocalHost(name, SudoPassword(None)) for name in names})

    def close(self) -> None:
        """Nothing is open."""


def context(folder: Path, *names: str) -> Context:
    screen = Screen(Console(file=io.StringIO(), width=200))
    return Context(Here(*(names or ("a", "b"))), screen, Journal("test", folder / "journal"))  # type: ignore[arg-type]


def call(node: str, title: str, action: Callable[[], object]) -> Call:
    return Call(node=node, title=title, reason="", shown="", action=lambda _: action() and None)


def run(node: str, *argv: str, **more: Any) -> Run:
    return Run(**{"node": node, "title": argv[0], "reason": "", "argv": argv, **more})


def plan(*stages: list[Step]) -> Plan:
    return make_plan("test", [(f"stage {number}", steps) for number, steps in enumerate(stages, 1)])


def poll(accept: Callable[[Completed], bool], **more: Any) -> Poll:
    def late(done: Completed) -> SparkstackError:
        return NotServing(f"late: {done.out.strip()}", next_move="wait")

    common = {"node": "a", "title": "wait", "reason": "", "argv": ("date", "+%N"), "failure": late}
    return Poll(**{**common, "accept": accept, "timeout": 10, "interval": 0.01, **more})


def journal(seen: Context) -> list[dict[str, Any]]:
    return [json.loads(line) for line in seen.journal.path.read_text().splitlines()]


class Closing(LocalHost):
    """This host, that notes when its connection is closed."""

    def __init__(self, folder: Path) -> None:
        super().__init__("a", SudoPassword(None))
        self._note = folder / "note"

    def close(self) -> None:
        """Note it."""
        with self._note.open("a") as file:
            file.write("closed\n")


def test_a_step_that_wants_a_fresh_connection_closes_the_old_one_before_it_runs(tmp_path: Path) -> None:
    seen = context(tmp_path)
    seen.hosts["a"] = Closing(tmp_path)  # type: ignore[index]
    note = ("sh", "-c", 'echo "$1" >> "$0"/note', str(tmp_path))
    apply(plan([run("a", *note, "old"), run("a", *note, "new", fresh=True)]), seen)
    assert (tmp_path / "note").read_text().split() == ["old", "closed", "new"]


def test_the_steps_of_a_node_run_in_order(tmp_path: Path) -> None:
    done: list[str] = []
    apply(plan([call("a", name, lambda name=name: done.append(name)) for name in "1234"]), context(tmp_path))
    assert done == ["1", "2", "3", "4"]


def test_a_note_of_our_own_step_stays_on_the_screen_and_another_line_does_not(tmp_path: Path) -> None:
    seen = context(tmp_path)
    said = Call(
        node="a", title="check", reason="", shown="", action=lambda report: (report("note: kept"), report("gone"))
    )
    apply(plan([said, run("a", "echo", "note: of a compiler")]), seen)
    text = seen.screen.console.file.getvalue()  # type: ignore[attr-defined]
    assert "a: check: kept\n" in text
    assert "gone" not in text
    assert "of a compiler" not in text


def test_a_long_step_says_what_it_goes_by_and_shows_what_its_watch_makes_of_a_line(tmp_path: Path) -> None:
    seen, watched = context(tmp_path), []
    job = Job(
        node="a",
        title="build",
        reason="4 jobs; log: x",
        argv=("echo", "[1/2] one"),
        timeout=10,
        watch=lambda line: watched.append(line) or line,
        failure=lambda how, _: NotServing(how, next_move=""),
    )
    apply(plan([job]), seen)
    assert watched == ["[1/2] one"]
    assert "a: build: 4 jobs; log: x\n" in seen.screen.console.file.getvalue()  # type: ignore[attr-defined]


def test_nodes_work_at_once_and_the_next_stage_waits_for_all_of_them(tmp_path: Path) -> None:
    done: list[str] = []

    def slowly() -> None:
        until = time.monotonic() + 5
        while "b" not in done and time.monotonic() < until:  # if b waited for us, this would take all the time
            time.sleep(0.01)
        time.sleep(0.1)
        done.append("a")

    second = [call(node, node, lambda node=node: done.append(f"{node} again")) for node in "ab"]
    apply(plan([call("a", "slow", slowly), call("b", "fast", lambda: done.append("b"))], second), context(tmp_path))
    assert done[:2] == ["b", "a"]
    assert set(done[2:]) == {"a again", "b again"}


def test_the_first_error_stops_its_node_and_other_nodes_before_their_next_step(tmp_path: Path) -> None:
    done: list[str] = []
    marks = {name: tmp_path / name for name in ("failed", "later")}

    def when_failed() -> None:
        while not marks["failed"].exists():
            time.sleep(0.01)
        time.sleep(1.5)
        done.append("b finished its step")

    steps: list[Step] = [
        run("a", "sh", "-c", f"touch {marks['failed']}; exit 3"),
        run("a", "touch", str(marks["later"])),
        call("b", "slow", when_failed),
        call("b", "next", lambda: done.append("b went on")),
    ]
    with pytest.raises(CommandFailed, match=r"ended with 3"):
        apply(plan(steps, [call("a", "second stage", lambda: done.append("second"))]), context(tmp_path))
    assert done == ["b finished its step"]
    assert not marks["later"].exists()


def test_errors_of_several_nodes_are_all_named(tmp_path: Path) -> None:
    seen = context(tmp_path, "a", "b", "c")
    slow = [run(node, "sh", "-c", f"sleep 1.5; echo gone on {node}; exit 7") for node in "abc"]
    with pytest.raises(CommandFailed) as caught:
        apply(plan(slow), seen)
    assert caught.value.node == "a"
    assert caught.value.evidence.startswith("gone on a\nalso:\nb: ")
    assert "gone on b" in str(caught.value)
    assert "gone on c" in str(caught.value)


def test_an_error_has_the_steps_title_and_hint(tmp_path: Path) -> None:
    step = run("a", "false", title="build x", hint="read the log")
    with pytest.raises(CommandFailed) as caught:
        apply(plan([step]), context(tmp_path))
    assert caught.value.cause == "build x: `false` ended with 1"
    assert caught.value.next_move == "read the log"


def test_an_error_that_is_none_of_ours_is_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        apply(plan([call("a", "bug", lambda: 1 / 0)]), context(tmp_path))


def test_the_journal_has_a_line_a_step_and_all_output_beside_it(tmp_path: Path) -> None:
    seen = context(tmp_path)
    with pytest.raises(CommandFailed):
        apply(plan([run("a", "echo", "hello", title="greet")], [run("b", "sh", "-c", "echo bad; exit 1")]), seen)
    first, second = journal(seen)
    assert {key: first[key] for key in ("stage", "node", "title", "command", "outcome")} == {
        "stage": "stage 1",
        "node": "a",
        "title": "greet",
        "command": "echo hello",
        "outcome": "ok",
    }
    assert first["seconds"] >= 0
    assert "ended with 1" in second["outcome"]
    assert seen.journal.output.read_text() == "a: hello\nb: bad\n"


def test_a_plan_with_a_step_that_cannot_run_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    seen = context(tmp_path)
    later = Later(node="b", title="extract x", reason="", command="invoke x")
    with pytest.raises(ComesFirst) as caught:
        apply(plan([run("a", "touch", str(tmp_path / "done"))], [later]), seen)
    assert caught.value.cause == ("1 steps of this plan cannot be run, the first: extract x (comes first: invoke x)")
    assert caught.value.node == "b"
    assert not (tmp_path / "done").exists()
    assert not seen.journal.path.exists()


def test_a_file_is_written_with_its_mode_and_replaces_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    write = Write(node="a", title="w", reason="", path=PurePosixPath(target), content="new ü\n", mode=0o640)
    apply(plan([write]), context(tmp_path))
    assert target.read_text() == "new ü\n"
    assert target.stat().st_mode & 0o777 == 0o640
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["file"]


def test_files_are_pushed_and_folders_pulled(tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "x.whl").write_text("x")
    (tmp_path / "to").mkdir()
    source = (tmp_path / "from" / "x.whl",)
    push = Push(node="a", title="p", reason="", sources=source, destination=PurePosixPath(tmp_path / "to"), size=1)
    pull = Pull(node="a", title="p", reason="", source=PurePosixPath(tmp_path / "to"), destination=tmp_path / "back")
    apply(plan([push, pull]), context(tmp_path))
    assert (tmp_path / "back" / "x.whl").read_text() == "x"


def test_a_wait_ends_when_its_answer_is_accepted(tmp_path: Path) -> None:
    answers: list[str] = []

    def third(done: Completed) -> bool:
        answers.append(done.out)
        return len(answers) == 3

    apply(plan([poll(third)]), context(tmp_path))
    assert len(set(answers)) == 3, "it ran anew each time"


def test_a_wait_that_takes_too_long_fails_with_the_last_answer(tmp_path: Path) -> None:
    with pytest.raises(NotServing, match=r"late: \d+"):
        apply(plan([poll(lambda _: False, timeout=0.1)]), context(tmp_path))


def test_a_wait_ends_early_when_its_answer_says_that_waiting_is_no_use(tmp_path: Path) -> None:
    def refuse(_: Completed) -> bool:
        raise NotServing("the unit failed", next_move="logs")

    began = time.monotonic()
    with pytest.raises(NotServing, match="the unit failed"):
        apply(plan([poll(refuse, timeout=60)]), context(tmp_path))
    assert time.monotonic() - began < 5


def test_a_command_that_fails_does_not_end_a_wait(tmp_path: Path) -> None:
    codes: list[int] = []
    wait = poll(lambda done: codes.append(done.code) or len(codes) == 2, argv=("false",))
    apply(plan([wait]), context(tmp_path))
    assert codes == [1, 1]


INTERRUPTED = """
import signal, sys
from pathlib import Path
from invoke.exceptions import Exit
import core.command
from core.command import command
from core.apply import apply
from tests.unit.test_core_apply import call, context, plan, poll, run

core.command.WORK = folder = Path(sys.argv[1])
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where these tests run in a shell's background

@command
def waits():
    steps = [
        run("a", "sh", "-c", f"echo $$ > {folder}/pid; exec sleep 300"),
        call("a", "next", lambda: (folder / "went-on").touch()),
        poll(lambda _: False, node="b", timeout=300, interval=300),
    ]
    apply(plan(steps, [call("b", "second", lambda: (folder / "went-on").touch())]), context(folder))

try:
    waits()
except Exit as error:
    print(error.message, flush=True)
    sys.exit(error.code)
"""


def test_ctrl_c_ends_children_and_waits_and_exits_with_130(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        pid = _number(tmp_path / "pid")
        time.sleep(0.3)
        began = time.monotonic()
        child.send_signal(signal.SIGINT)
        out, _ = child.communicate(timeout=30)
    finally:
        child.kill()
    assert time.monotonic() - began < 8
    assert child.returncode == Interrupted.exit_code == 130
    assert out.startswith("error: interrupted during: stage 1\n  next: the same command goes on from here")
    assert not Path(f"/proc/{pid}").exists()
    assert not (tmp_path / "went-on").exists()


def _number(path: Path, seconds: float = 20) -> int:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if path.exists() and (text := path.read_text().strip()):
            return int(text)
        time.sleep(0.05)
    raise AssertionError(f"{path} was not written")


def undone(*stages: tuple[str, list[Step]], undo: Mapping[str, Sequence[Step]]) -> Plan:
    return make_plan("test", stages, undo=undo)


def test_a_stage_is_undone_on_all_its_nodes_when_a_later_one_fails_and_the_error_says_so(tmp_path: Path) -> None:
    seen = context(tmp_path)
    back = [run(node, "touch", str(tmp_path / f"back-{node}"), title="switch back") for node in "ab"]
    later = run("b", "touch", str(tmp_path / "never"), title="undo later")
    stages = [
        ("switch", [run("a", "true"), run("b", "true")]),
        ("check", [run("b", "false")]),
        ("note", [run("a", "true")]),
    ]
    with pytest.raises(CommandFailed) as caught:
        apply(undone(*stages, undo={"switch": back, "note": [later]}), seen)
    assert caught.value.evidence == "a: switch back: done\nb: switch back: done"
    assert sorted(path.name for path in tmp_path.glob("back-*")) == ["back-a", "back-b"]
    assert not (tmp_path / "never").exists()
    assert [entry["stage"] for entry in journal(seen)][-2:] == ["undo: switch", "undo: switch"]


def test_a_node_that_cannot_be_undone_is_named_and_the_others_are_undone(tmp_path: Path) -> None:
    back = [run("a", "false", title="switch back"), run("b", "touch", str(tmp_path / "back"), title="switch back")]
    with pytest.raises(CommandFailed) as caught:
        apply(undone(("switch", [run("b", "false")]), undo={"switch": back}), context(tmp_path))
    assert "a: it could not switch back: `false` ended with 1\nb: switch back: done" in caught.value.evidence
    assert (tmp_path / "back").exists()


def test_a_stage_is_undone_by_any_step_and_what_it_prints_is_kept(tmp_path: Path) -> None:
    seen, path = context(tmp_path), tmp_path / "note"
    new, old = (
        Write(node="a", title=f"write {text}", reason="", path=PurePosixPath(path), content=text)
        for text in ("new", "old")
    )
    with pytest.raises(CommandFailed) as caught:
        apply(undone(("note", [new]), ("end", [run("a", "false")]), undo={"note": [old, run("a", "echo", "so")]}), seen)
    assert caught.value.evidence == "a: write old: done\na: echo: done"
    assert path.read_text() == "old"
    assert seen.journal.output.read_text() == "a: so\n"


def test_a_plan_that_ends_well_undoes_nothing(tmp_path: Path) -> None:
    back = [run("a", "touch", str(tmp_path / "back"))]
    apply(undone(("switch", [run("a", "true")]), undo={"switch": back}), context(tmp_path))
    assert not (tmp_path / "back").exists()


def test_a_guard_that_forbids_to_go_on_ends_the_plan_before_the_next_stage_and_undoes_it(tmp_path: Path) -> None:
    done: list[str] = []

    def guard() -> None:
        if done:
            raise LockHeld("the lock is lost", next_move="run it again")

    guarded = replace(context(tmp_path), guard=guard)
    stages = [("switch", [call("a", "one", lambda: done.append("one"))]), ("two", [call("a", "two", done.clear)])]
    undo = {title: [run("a", "touch", str(tmp_path / name))] for title, name in (("switch", "back"), ("two", "never"))}
    with pytest.raises(LockHeld):
        apply(undone(*stages, undo=undo), guarded)
    assert done == ["one"]
    assert not (tmp_path / "never").exists(), "what was not begun may be somebody else's by now"
    assert (tmp_path / "back").exists()


def test_what_is_written_is_never_readable_by_others_on_its_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def look(_: object, temporary: str, *__: object, **___: object) -> None:
        seen.append(Path(temporary).stat().st_mode & 0o777)
        Path(temporary).unlink()

    monkeypatch.setattr("core.local.install", look)
    LocalHost("a", SudoPassword(None)).write(PurePosixPath(tmp_path / "x"), "secret", mode=0o600)
    assert seen == [0o600]


def test_a_file_has_the_mode_that_was_asked_for(tmp_path: Path) -> None:
    for mode in (0o600, 0o644):
        path = tmp_path / f"{mode:o}"
        LocalHost("a", SudoPassword(None)).write(PurePosixPath(path), "text", mode=mode)
        assert (path.stat().st_mode & 0o777, path.read_text()) == (mode, "text")
