"""The fabric as it was measured: what is judged, what the page says; and the program's two ends on this host."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import process
from core.config import load_cluster, load_profile, load_stack
from core.errors import CommandFailed, NodeUnreachable, UnfitNode
from core.process import Completed
from deploy.care import linkend
from deploy.care.link import PROGRAM, measure
from deploy.checks.case import Case, Direction
from deploy.doctor import diagnose
from deploy.page import as_data, case_of, exit_code, page
from tests.unit.samples import spark_captures

HERE, THERE = "gx10-beee", "gx10-c6fb"
GOOD = Direction(HERE, THERE, large=38_000, small=35, largest=9000)


def case(*measured: Direction, silent: dict[str, NodeUnreachable] | None = None) -> Case:
    facts = spark_captures().parsed()
    known = {name: seen for name, seen in facts.items() if name not in (silent or {})}
    cluster, stack, profile = load_cluster("spark"), load_stack("guide"), load_profile("qwen2.5-32b")
    return case_of(cluster, stack, profile, known, silent=silent, measured=measured)


def found(one: Direction) -> list[tuple[str, str, str]]:
    return [
        (each.check, each.finding.severity.word, each.finding.cause)
        for each in diagnose(case(one))
        if each.check.startswith("measured")
    ]


@pytest.mark.parametrize(
    ("changes", "finds"),
    [
        ({}, []),
        ({"large": 16_000}, []),
        (
            {"large": 940.0},
            [("measured rate", "warning", f"to {THERE} 0.94 Gb/s were measured, 40 Gb/s are expected")],
        ),
        (
            {"small": 2500.0},
            [
                (
                    "measured messages",
                    "warning",
                    f"a message of 10 KiB to {THERE} takes 2.5 ms, on a cable it takes below 0.1",
                )
            ],
        ),
        (
            {"largest": 1500},
            [
                (
                    "measured packets",
                    "problem",
                    f"packets to {THERE} pass up to 1500 bytes, the MTU of enp1s0f0np0 is 9000",
                )
            ],
        ),
        (
            {"large": None, "error": "timed out"},
            [("measured way", "problem", f"the fabric to {THERE} could not be measured: timed out")],
        ),
        (
            {"largest": None},
            [("measured way", "problem", f"the fabric to {THERE} could not be measured: no packet came back")],
        ),
    ],
)
def test_a_measured_fault_is_found(changes: dict[str, float | str | None], finds: list[tuple[str, str, str]]) -> None:
    assert found(replace(GOOD, **changes)) == finds  # type: ignore[arg-type]


def test_the_page_and_the_data_hold_what_was_measured() -> None:
    seen = case(GOOD)
    assert (
        "\n  gx10-beee to gx10-c6fb: 38.00 Gb/s, 35 µs a message of 10 KiB, packets up to 9000 bytes\n"
        in page(seen, ()) + "\n"
    )
    assert as_data(seen, ())["links"][0]["large"] == 38_000


@pytest.mark.parametrize("down", [(HERE,), (THERE,), (HERE, THERE)])
def test_a_node_that_does_not_answer_is_a_problem_and_the_page_is_of_the_others(down: tuple[str, ...]) -> None:
    lost = NodeUnreachable("no SSH connection", node=down[0], next_move="check power")
    seen = case(silent=dict.fromkeys(down, lost))
    diagnoses = diagnose(seen)
    answers = [(one.finding.node, one.finding.cause) for one in diagnoses if one.check == "answers"]
    assert answers == [(name, "no SSH connection") for name in down]
    assert exit_code(diagnoses) == UnfitNode.exit_code
    assert "cannot serve" in page(seen, diagnoses)
    assert set(as_data(seen, diagnoses)["memory"]) == {HERE, THERE} - set(down)


@given(limit=st.integers(linkend.LEAST - 50, 9100), most=st.integers(linkend.LEAST, 9000))
def test_the_largest_packet_is_found_to_the_byte(limit: int, most: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linkend, "passes", lambda _source, _target, size: size <= limit)
        wanted = None if limit < linkend.LEAST else min(limit, most)
        assert linkend.largest("a", "b", most) == wanted


class Failing:
    """A node's host that notes what it does, and fails where it is told to."""

    def __init__(self, name: str, *, fails: str = "", says: str = '{"large_out": 38000}') -> None:
        self.name, self.fails, self.says = name, fails, says
        self.left: set[str] = set()
        self.packets = '{"largest": 1500}'
        self.closed = False

    def _do(self, what: str) -> None:
        if self.fails == what:
            raise CommandFailed(f"{what} went wrong", node=self.name, next_move="look")

    def write(self, path: PurePosixPath, content: str, *, mode: int) -> None:
        assert (len(content), mode) == (64, 0o600)
        self.left.add(str(path))
        self._do("write")

    def run(self, argv: tuple[str, ...], **_: Any) -> Completed:
        if argv[0] == "rm":
            self.left -= set(argv)
            self._do("rm")
            return Completed(argv, 0, "")
        what = "measure" if "measure" in argv else "packets"
        self._do(what)
        return Completed(argv, 0, self.says if what == "measure" else self.packets)

    def hold(self, _: tuple[str, ...]) -> Failing:
        self._do("hold")
        return self

    def line(self) -> str:
        self._do("line")
        return '{"port": 7}'

    def close(self) -> None:
        self.closed = True
        self._do("close")


def directions(here: Failing, there: Failing) -> tuple[Direction, ...]:
    return measure(load_cluster("spark"), {HERE: here, THERE: there}, spark_captures().parsed())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("where", "fails"),
    [
        *((HERE, fails) for fails in ("packets", "write", "measure", "rm")),
        *((THERE, fails) for fails in ("packets", "write", "hold", "line", "close", "rm")),
    ],
)
def test_a_measurement_that_fails_is_a_finding_and_leaves_no_secret_behind(where: str, fails: str) -> None:
    here, there = (Failing(name, fails=fails if name == where else "") for name in (HERE, THERE))
    got = directions(here, there)
    assert (here.left, there.left) == (set(), set())
    assert there.closed == (fails in {"line", "measure", "close", "rm"})
    assert [(one.sender, one.receiver) for one in got] == [(HERE, THERE), (THERE, HERE)]
    assert [one.error for one in got] == [f"{where}: {fails} went wrong"] * 2
    assert ("measured way", "problem", f"the fabric to {THERE} could not be measured: {got[0].error}") in found(got[0])


def test_a_node_that_may_send_no_packet_says_so_and_not_that_none_came_back() -> None:
    here = Failing(HERE)
    here.packets = '{"largest": null, "error": "ping: socktype: SOCK_RAW: Operation not permitted"}'
    (one, _) = directions(here, Failing(THERE))
    assert one.error == f"{HERE}: ping: socktype: SOCK_RAW: Operation not permitted"


@pytest.mark.processes
def test_why_ping_could_not_send_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "ping" in str(linkend.packets("127.0.0.1", "127.0.0.1", 1500)["error"])
    (tmp_path / "ping").write_text("#!/bin/sh\necho 'ping: socket: Operation not permitted' >&2\nexit 2\n")
    (tmp_path / "ping").chmod(0o755)
    told = linkend.packets("127.0.0.1", "127.0.0.1", 1500)
    assert told == {"largest": None, "error": "ping: socket: Operation not permitted"}


@pytest.mark.parametrize("says", ["", "[]", "5", "[" * 100_000, "no"])
def test_an_answer_that_is_none_is_an_error_in_words(says: str) -> None:
    (one, _) = directions(Failing(HERE, says=says), Failing(THERE))
    assert one.error == f"{HERE}: the measuring program answered something else than it should"
    assert one.largest == 1500


def test_numbers_that_are_none_and_words_that_move_the_cursor_do_not_reach_the_page() -> None:
    said = json.dumps({"large_out": "fast", "small_out": 5, "error": "a\nb\x1b"})
    (one, _) = directions(Failing(HERE, says=said), Failing(THERE))
    assert (one.large, one.small, one.error) == (None, 5, "a b ")


@contextmanager
def listening(tmp_path: Path, secret: str = "5e" * 32) -> Iterator[int]:
    """Run the listening end on loopback; gives its port."""
    kept = tmp_path / "there"
    kept.write_text(secret)
    end = process.Piped([sys.executable, "-I", str(PROGRAM), "listen", "127.0.0.1", str(kept), "20"])
    try:
        yield json.loads(end.line())["port"]
    finally:
        end.close()


@pytest.mark.processes
def test_the_two_ends_measure_and_leave_no_secret_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linkend, "SECONDS", 0.1)
    mine = tmp_path / "here"
    mine.write_text("5e" * 32)
    with listening(tmp_path) as port:
        got = linkend.measure("127.0.0.1", "127.0.0.1", port, str(mine))
    assert set(got) == {"small_out", "small_in", "large_out", "large_in"}
    assert all(isinstance(value, float) and value > 0 for value in got.values())
    assert not list(tmp_path.iterdir())


@pytest.mark.processes
def test_who_does_not_know_the_secret_is_dropped(tmp_path: Path) -> None:
    mine = tmp_path / "here"
    mine.write_text("00" * 32)
    with listening(tmp_path) as port:
        assert set(linkend.measure("127.0.0.1", "127.0.0.1", port, str(mine))) == {"error"}
        with socket.create_connection(("127.0.0.1", port), timeout=5) as stranger:
            stranger.sendall(b"x" * 64)
            assert stranger.recv(1) == b""


@pytest.mark.processes
def test_an_end_that_is_not_there_is_an_error_in_words(tmp_path: Path) -> None:
    mine = tmp_path / "here"
    mine.write_text("00")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    got = linkend.measure("127.0.0.1", "127.0.0.1", port, str(mine))
    assert "refused" in str(got["error"])
