"""The journals of all nodes as one stream, and the real error in front of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import CommandFailed, ConfigError, NodeUnreachable, UsageError
from core.process import Completed
from serve.view import logs
from serve.view.logs import Wanted, as_text, fault, follow, heading, journal_argv, latest, merged, parse
from tests.unit.samples import TABLES, capture, local

NOON = 1_795_435_200_000_000  # 2026-11-23 12:00:00 UTC, in microseconds
ERRORS = json.loads((TABLES / "ready_errors.json").read_text())
NAMELESS = {"ray-log.worker-died.two-sparks.txt"}
"""Logs that name no error: of these the last line would be taken."""
RUNS = json.loads((TABLES / "log_errors.json").read_text())


def entry(message: Any, after: float = 0, unit: str = "sparkstack-vllm.service", **more: Any) -> str:
    moment = str(NOON + int(after * 1e6))
    return json.dumps({"__REALTIME_TIMESTAMP": moment, "_SYSTEMD_UNIT": unit, "MESSAGE": message, **more}) + "\n"


def texts(text: str) -> list[str]:
    return [as_text(found) for found in parse("lab-a", text)]


def test_an_entry_reads_as_time_node_unit_and_message() -> None:
    (found,) = parse("lab-a", entry("ready", after=1.5))
    assert (found.moment, as_text(found)) == (NOON + 1_500_000, "12:00:01.500 lab-a vllm: ready")


def test_what_systemd_says_of_a_unit_is_the_units() -> None:
    text = entry("Started", unit="", UNIT="sparkstack-ray-head.service")
    assert texts(text) == ["12:00:00.000 lab-a ray-head: Started"]


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ([226, 156, 147, 27, 255], "✓ \ufffd"),
        (["one", "two"], "one\n    two"),
        ([[65, 66], "two"], "AB\n    two"),
        ([1.5, 300], "1.5\n    300"),
        (None, ""),
        ("a\u2028b\x1b[2Jc\rd", "a b [2Jc d"),
    ],
    ids=[
        "bytes that are no UTF-8",
        "a field twice",
        "both",
        "no bytes",
        "too long for the journal",
        "terminal controls",
    ],
)
def test_every_form_of_a_message_is_read_and_none_moves_the_terminal(message: Any, shown: str) -> None:
    assert texts(entry(message)) == [f"12:00:00.000 lab-a vllm: {shown}"]


@pytest.mark.parametrize(
    "line",
    ["-- No entries --", "{half", '{"MESSAGE": "no time"}', '{"__REALTIME_TIMESTAMP": "9e99"}', "[1]", "{" * 10**5],
)
def test_what_is_no_entry_is_passed_over(line: str) -> None:
    assert texts(f"{line}\n" + entry("x") + "\n") == ["12:00:00.000 lab-a vllm: x"]


@given(st.lists(st.text(st.characters(exclude_categories=["C", "Z"]))))
def test_any_messages_are_read_in_their_order(messages: list[str]) -> None:
    text = "".join(entry(message, after=n) for n, message in enumerate(messages))
    assert [shown.partition(" vllm: ")[2] for shown in texts(text)] == messages


@given(st.text())
def test_any_message_is_shown_without_signs_that_move_the_cursor(message: str) -> None:
    (shown,) = texts(entry(message))
    assert all(sign.isprintable() for sign in shown.replace("\n    ", ""))


def units(argv: tuple[str, ...]) -> set[str]:
    return {word.removeprefix("--unit=sparkstack-") for word in argv if word.startswith("--unit=")}


KNOWN = {"supervisor", "ray-head", "ray-worker", "vllm", "rank", "proxy", "prometheus", "node-exporter"}


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        ((), {*KNOWN, "*", "none"}),
        (("vllm",), {"vllm", "none"}),
        (("sparkstack-vllm", "rank"), {"vllm", "rank", "none"}),
        (("ray-*",), {"ray-head", "ray-worker", "ray-*", "none"}),
        (("install",), {"install", "none"}),
    ],
    ids=["all", "one", "two", "a pattern", "another"],
)
def test_a_pattern_stands_beside_names_so_that_it_may_fit_nothing(said: tuple[str, ...], asked: set[str]) -> None:
    assert units(journal_argv(Wanted(units=said))) == asked


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (Wanted(), {"-n", "1000"}),
        (Wanted(lines=50), {"-n", "1000"}),
        (Wanted(lines=5000), {"-n", "5000"}),
        (Wanted(since="-2h"), {"--since=-2h"}),
        (Wanted(since="-2h", lines=5000), {"--since=-2h", "-n", "5000"}),
    ],
)
def test_more_is_read_than_is_shown_because_the_cause_stands_above(wanted: Wanted, words: set[str]) -> None:
    assert words <= set(journal_argv(wanted))
    assert ("-n" in journal_argv(wanted)) == ("-n" in words)


def test_following_goes_on_where_reading_ended() -> None:
    assert journal_argv(Wanted(since="-2h"), follow=True, after="s=1")[-3:] == ("-f", "--no-tail", "--after-cursor=s=1")
    assert journal_argv(Wanted(since="-2h"), follow=True)[-3:] == ("-f", "--no-tail", "--since=-2h")


class Node:
    """A node whose journal is a text."""

    def __init__(self, text: str, error: Exception | None = None) -> None:
        self.text = text
        self.error = error
        self.asked: list[Any] = []

    def run(self, argv: Any, **options: Any) -> Completed:
        self.asked += [argv, options]
        if self.error is not None:
            raise self.error
        for line in self.text.splitlines():
            if options.get("on_line"):
                options["on_line"](line)
        return Completed(tuple(argv), 0, self.text)


GONE = NodeUnreachable("no SSH connection", node="lab-b", next_move="check")


def nodes() -> Any:
    return {
        "lab-a": Node(entry("first", 0) + entry("third", 2, __CURSOR="s=a")),
        "lab-b": Node(entry("second", 1, "sparkstack-ray-worker.service") + entry("fourth", 3)),
    }


def messages(entries: Any) -> list[str]:
    return [one.message for one in entries]


def test_the_nodes_entries_are_merged_by_time() -> None:
    hosts = nodes()
    found = merged(local(), hosts, Wanted())
    assert messages(found.entries) == ["first", "second", "third", "fourth"]
    assert as_text(found.entries[1]) == "12:00:01.000 lab-b ray-worker: second"
    assert hosts["lab-a"].asked[1]["privileged"], "journals of system units are root's"
    assert found.silent == {}


def test_a_silent_node_is_named_and_the_other_is_shown() -> None:
    found = merged(local(), {**nodes(), "lab-b": Node("", GONE)}, Wanted())  # type: ignore[arg-type]
    assert messages(found.entries) == ["first", "third"]
    assert found.silent == {"lab-b": GONE}


def test_one_node_can_be_asked_alone() -> None:
    hosts = nodes()
    assert messages(merged(local(), hosts, Wanted(nodes=("lab-b",))).entries) == ["second", "fourth"]
    assert hosts["lab-a"].asked == []
    with pytest.raises(ConfigError, match="no node 'lab-c'"):
        merged(local(), hosts, Wanted(nodes=("lab-c",)))


def test_a_time_that_journalctl_cannot_read_is_refused() -> None:
    wrong = CommandFailed("ended with 1", node="lab-a", next_move="x", evidence="Failed to parse timestamp: soon")
    with pytest.raises(UsageError, match="--since 'soon'"):
        merged(local(), {**nodes(), "lab-a": Node("", wrong)}, Wanted(since="soon"))  # type: ignore[arg-type]


def test_the_last_entries_of_each_node_are_shown() -> None:
    entries = merged(local(), nodes(), Wanted()).entries
    assert messages(latest(entries, 1)) == ["third", "fourth"]
    assert messages(latest(entries, 0)) == []
    assert latest(entries, None) == list(entries)


def test_following_hands_on_every_entry_after_those_that_were_seen() -> None:
    hosts, found = nodes(), []
    seen = merged(local(), hosts, Wanted())
    assert follow(local(), hosts, Wanted(), seen, found.append) == {}
    assert sorted(messages(found)) == ["first", "fourth", "second", "third"]
    assert "--after-cursor=s=a" in hosts["lab-a"].asked[2]


def test_a_node_that_goes_silent_is_named_and_the_others_are_followed() -> None:
    hosts, found = nodes(), []
    seen = merged(local(), hosts, Wanted())
    hosts["lab-b"].error = GONE
    assert follow(local(), hosts, Wanted(), seen, found.append) == {"lab-b": GONE}
    assert sorted(messages(found)) == ["(no answer from here on: no SSH connection)", "first", "third"]


def test_a_node_that_was_silent_is_not_followed() -> None:
    hosts: Any = {**nodes(), "lab-b": Node("", GONE)}
    seen = merged(local(), hosts, Wanted())
    hosts["lab-b"].asked.clear()
    assert follow(local(), hosts, Wanted(), seen, lambda _: None) == {}
    assert hosts["lab-b"].asked == []


def entries_of(rows: list[list[str]]) -> list[logs.Entry]:
    """Make entries of rows: node, unit, run, message; a second apart."""
    return [
        logs.Entry(NOON + n * 1_000_000, node, f"sparkstack-{unit}", message, run)
        for n, (node, unit, run, message) in enumerate(rows)
    ]


@pytest.mark.parametrize("row", RUNS, ids=lambda row: row["name"])
def test_the_error_is_that_of_the_last_run_that_has_one(row: dict[str, Any]) -> None:
    found = fault(entries_of(row["entries"]))
    assert (found and [found.node, found.unit.removeprefix("sparkstack-"), found.line, found.over]) == row["error"]


@pytest.mark.parametrize("row", ERRORS, ids=lambda row: row["log"])
def test_every_known_error_is_found_line_by_line(row: dict[str, str]) -> None:
    lines = capture(row["log"]).splitlines()
    found = fault(entries_of([["lab-a", "vllm", "1", line] for line in lines]))
    assert (found.line if found else "none").startswith("none" if row["log"] in NAMELESS else row["says"])


def test_the_heading_names_node_unit_time_and_error() -> None:
    rows = [["lab-b", "rank", "1", "start"], ["lab-b", "rank", "1", "ERROR ValueError: no \x1b[2J"]]
    found = fault(entries_of(rows))
    assert found is not None
    assert heading(found) == (
        "the model server's error, on lab-b in rank at 2026-11-23 12:00:01 UTC:\n    ValueError: no  [2J\n"
    )


@given(st.lists(st.tuples(*[st.sampled_from("ab")] * 3, st.text())))
def test_any_entries_have_an_error_or_none(rows: list[tuple[str, ...]]) -> None:
    found = fault(entries_of([[node, "vllm", run, message] for node, _, run, message in rows]))
    assert found is None or found.line
