"""The journals of all nodes as one stream."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.process import Completed
from serve.logs import follow, journal_argv, merged, parse
from tests.unit.samples import local

NOON = 1_795_435_200_000_000  # 2026-11-23 12:00:00 UTC, in microseconds


def entry(message: Any, after: float = 0, unit: str = "sparkstack-vllm.service", **more: Any) -> str:
    moment = str(NOON + int(after * 1e6))
    return json.dumps({"__REALTIME_TIMESTAMP": moment, "_SYSTEMD_UNIT": unit, "MESSAGE": message, **more}) + "\n"


def texts(text: str) -> list[str]:
    return [shown for _, shown in parse("lab-a", text)]


def test_an_entry_reads_as_time_node_unit_and_message() -> None:
    assert list(parse("lab-a", entry("ready", after=1.5))) == [(NOON + 1_500_000, "12:00:01.500 lab-a vllm: ready")]


def test_what_systemd_says_of_a_unit_is_the_units() -> None:
    text = entry("Started", unit="", UNIT="sparkstack-ray-head.service")
    assert texts(text) == ["12:00:00.000 lab-a ray-head: Started"]


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ([226, 156, 147, 27, 255], "✓\x1b\ufffd"),
        (["one", "two"], "one\ntwo"),
        ([[65, 66], "two"], "AB\ntwo"),
        (None, ""),
        ("a\u2028b", "a\u2028b"),
    ],
    ids=["bytes that are no UTF-8", "a field twice", "both", "too long for the journal", "a strange line separator"],
)
def test_every_form_of_a_message_is_read(message: Any, shown: str) -> None:
    assert texts(entry(message)) == [f"12:00:00.000 lab-a vllm: {shown}"]


def test_what_is_no_entry_is_passed_over() -> None:
    assert texts("-- No entries --\n" + entry("x") + "\n") == ["12:00:00.000 lab-a vllm: x"]


@given(st.lists(st.text()))
def test_any_messages_are_read_in_their_order(messages: list[str]) -> None:
    text = "".join(entry(message, after=n) for n, message in enumerate(messages))
    assert [shown.partition(" vllm: ")[2] for shown in texts(text)] == messages


def test_units_are_named_one_by_one() -> None:
    argv = journal_argv(50, follow=False)
    assert {"--unit=sparkstack-ray-head", "--unit=sparkstack-ray-worker", "--unit=sparkstack-vllm", "50"} <= set(argv)
    assert journal_argv(50, follow=True) == (*argv, "-f")


class Node:
    """A node whose journal is a text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.asked: dict[str, Any] = {}

    def run(self, argv: Any, **options: Any) -> Completed:
        self.asked = options
        for line in self.text.splitlines():
            if options.get("on_line"):
                options["on_line"](line)
        return Completed(tuple(argv), 0, self.text)


NODES = {
    "lab-a": Node(entry("first", 0) + entry("third", 2)),
    "lab-b": Node(entry("second", 1, "sparkstack-ray-worker.service") + entry("fourth", 3)),
}


def test_the_nodes_lines_are_merged_by_time() -> None:
    found = merged(local(), NODES, 100)  # type: ignore[arg-type]
    assert [line.partition(": ")[2] for line in found] == ["first", "second", "third", "fourth"]
    assert found[1] == "12:00:01.000 lab-b ray-worker: second"
    assert NODES["lab-a"].asked["privileged"], "journals of system units are root's"


def test_following_hands_on_every_line() -> None:
    lines: list[str] = []
    follow(local(), NODES, 100, lines.append)  # type: ignore[arg-type]
    assert sorted(line.partition(": ")[2] for line in lines) == ["first", "fourth", "second", "third"]
