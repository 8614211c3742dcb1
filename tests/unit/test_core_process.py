"""The door for processes, with real ones."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from core import process
from core.errors import CommandFailed
from core.process import Completed, Piped, follow, run

pytestmark = pytest.mark.processes

PYTHON = [sys.executable, "-c"]


def is_alive(pid: int) -> bool:
    """Say whether the process runs; one that ended and was not collected does not."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(pid: int, seconds: float = 3) -> bool:
    until = time.monotonic() + seconds
    while is_alive(pid) and time.monotonic() < until:
        time.sleep(0.01)
    return not is_alive(pid)


def nothing(line: str) -> None:
    """Take a line."""


@pytest.mark.parametrize("door", [run, lambda argv, **more: follow(argv, nothing, **more)], ids=["run", "follow"])
class TestBothDoors:
    def test_success_is_code_0(self, door) -> None:
        assert door(["true"]).code == 0

    def test_failure_raises_and_says_the_code(self, door) -> None:
        with pytest.raises(CommandFailed, match="`false` ended with 1"):
            door(["false"])

    def test_failure_is_returned_when_asked(self, door) -> None:
        assert door(["false"], check=False).code == 1

    def test_failure_shows_the_last_lines(self, door) -> None:
        with pytest.raises(CommandFailed) as caught:
            door([*PYTHON, "print('first'); print('last'); raise SystemExit(3)"])
        assert caught.value.evidence == "first\nlast"

    def test_death_by_a_signal_is_named(self, door) -> None:
        with pytest.raises(CommandFailed, match="was ended by SIGKILL"):
            door([*PYTHON, "import os; os.kill(os.getpid(), 9)"])

    def test_a_missing_program_is_named(self, door) -> None:
        with pytest.raises(CommandFailed, match="no-such-program cannot be run") as caught:
            door(["no-such-program"])
        assert "install no-such-program" in caught.value.next_move

    def test_a_missing_folder_is_not_blamed_on_the_program(self, door, tmp_path: Path) -> None:
        with pytest.raises(CommandFailed, match=f"true cannot be run: {tmp_path}/none"):
            door(["true"], cwd=tmp_path / "none")

    def test_a_file_that_cannot_be_executed_is_named(self, door, tmp_path: Path) -> None:
        (tmp_path / "data").write_text("no program")
        with pytest.raises(CommandFailed, match=r"cannot be run.*Permission denied"):
            door([str(tmp_path / "data")])

    def test_time_runs_out(self, door) -> None:
        start = time.monotonic()
        with pytest.raises(CommandFailed, match=r"`sleep 60` did not end within 0\.2 s"):
            door(["sleep", "60"], timeout=0.2)
        assert time.monotonic() - start < 10

    def test_environment_is_added_to_ours(self, door, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OURS", "1")
        done = door([*PYTHON, "import os; print(os.environ['OURS'], os.environ['MORE'])"], env={"MORE": "2"})
        assert done.out == "1 2\n"

    def test_the_folder_is_the_one_asked_for(self, door, tmp_path: Path) -> None:
        assert door(["pwd"], cwd=tmp_path).out.strip() == str(tmp_path)

    def test_bytes_that_are_no_text_are_replaced(self, door) -> None:
        assert door([*PYTHON, r"import sys; sys.stdout.buffer.write(b'a\xff\n')"]).out == "a\ufffd\n"

    def test_a_word_with_shell_signs_stays_a_word(self, door) -> None:
        assert door(["printf", "%s", "$HOME; `true` *"]).out == "$HOME; `true` *"


def test_run_feeds_stdin_and_keeps_stderr_apart() -> None:
    done = run([*PYTHON, "import sys; print(input()); print('aside', file=sys.stderr)"], stdin="word\n")
    assert (done.out, done.err) == ("word\n", "aside\n")


def test_run_without_stdin_gives_none() -> None:
    assert run(["cat"], timeout=10).out == ""


def test_follow_hands_on_each_line_as_it_comes() -> None:
    seen: list[tuple[str, float]] = []
    code = "import time; print('one', flush=True); time.sleep(1); print('two')"
    follow([*PYTHON, code], lambda line: seen.append((line, time.monotonic())))
    assert [line for line, _ in seen] == ["one", "two"]
    assert seen[1][1] - seen[0][1] > 0.5


def test_follow_merges_stderr_and_writes_command_and_lines_to_the_log(tmp_path: Path) -> None:
    log = tmp_path / "new" / "command.log"
    code = "import sys; print('out', flush=True); print('err', file=sys.stderr)"
    done = follow([sys.executable, "-c", code], nothing, log=log)
    assert done.out == "out\nerr\n"
    assert log.read_text().endswith("out\nerr\n")
    assert log.read_text().startswith(f"$ {sys.executable} -c '")


def test_follow_adds_to_a_log_and_names_it_when_it_fails(tmp_path: Path) -> None:
    log = tmp_path / "log"
    follow(["echo", "kept"], nothing, log=log)
    with pytest.raises(CommandFailed) as caught:
        follow(["false"], nothing, log=log)
    assert log.read_text() == "$ echo kept\nkept\n$ false\n"
    assert str(log) in caught.value.next_move


def test_follow_shows_a_line_in_the_log_before_the_process_ends(tmp_path: Path) -> None:
    log = tmp_path / "log"
    follow(["echo", "now"], lambda _: pytest.fail("late") if "now" not in log.read_text() else None, log=log)


CHILDREN = """
import subprocess, sys, time
child = subprocess.Popen(["sleep", "60"])
print(child.pid, flush=True)
time.sleep(60)
"""


def test_an_exception_ends_the_whole_group() -> None:
    pids: list[int] = []

    def stop(line: str) -> None:
        pids.append(int(line))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        follow([*PYTHON, CHILDREN], stop)
    assert gone(pids[0])


def test_time_running_out_ends_the_whole_group() -> None:
    pids: list[int] = []
    with pytest.raises(CommandFailed, match="did not end within"):
        follow([*PYTHON, CHILDREN], lambda line: pids.append(int(line)), timeout=5)
    assert gone(pids[0])


def test_what_outlives_its_parent_is_ended_too_when_we_fail() -> None:
    orphan = "import subprocess; print(subprocess.Popen(['sleep', '60']).pid)"
    pids: list[int] = []

    def stop(line: str) -> None:
        pids.append(int(line))
        time.sleep(0.2)  # the parent is gone by now
        raise RuntimeError

    with pytest.raises(RuntimeError):
        follow([*PYTHON, orphan], stop)
    assert gone(pids[0])


def test_follow_has_a_session_of_its_own_unless_sudo_may_ask() -> None:
    session = [*PYTHON, "import os; print(os.getsid(0))"]
    assert int(follow(session, nothing).out) != os.getsid(0)
    assert int(follow(session, nothing, own_session=False).out) == os.getsid(0)


def test_a_tail_is_the_last_lines_of_both_streams() -> None:
    assert Completed(("x",), 1, "a\nb\n", "c\n").tail(2) == "b\nc"


def test_a_process_beside_us_is_written_to_and_read_from_and_ends_with_its_stdin() -> None:
    beside = Piped(["cat"])
    assert beside.beat()
    assert beside.line() == "\n"
    beside.close()


def test_a_process_beside_us_that_has_ended_says_so() -> None:
    beside = Piped(["true"])
    assert beside.line() == ""
    deadline = time.monotonic() + 5
    while beside.beat():
        assert time.monotonic() < deadline
    beside.close()


def test_a_process_beside_us_that_stays_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "GRACE", 0.2)
    beside = Piped(["sleep", "60"])
    began = time.monotonic()
    beside.close()
    assert time.monotonic() - began < 5


@pytest.mark.processes
def test_a_host_that_allows_no_larger_pipe_converses_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(process.fcntl, "fcntl", refuse)
    heard: list[str] = []

    def talk(conversation: process.Conversation) -> None:
        conversation.send(b"hello\n")
        heard.append(conversation.line())

    assert process.converse(["cat"], talk).code == 0
    assert heard == ["hello\n"]
