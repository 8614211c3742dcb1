"""Why a unit ended: systemd's result in words, or the line of its log that names the cause."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.onnode.reasons import LONGEST, active, how, real_error, shows
from tests.unit.samples import TABLES, capture

ERRORS = json.loads((TABLES / "ready_errors.json").read_text())
SHOWN = """\
Result=success
ExecMainCode=0
ExecMainStatus=0
Id=sparkstack-ray-head.service
ActiveState=active
InvocationID=0123abc

Result=signal
ExecMainCode=2
ExecMainStatus=9
Id=sparkstack-vllm.service
ActiveState=failed
Job=417
InvocationID=4567def
"""


@pytest.mark.parametrize("row", ERRORS, ids=lambda row: row["log"])
def test_the_error_of_a_log_is_its_first_that_names_a_cause(row: dict[str, str]) -> None:
    quiet = capture("vllm-log.kv-cache.gb10.txt")
    assert real_error(capture(row["log"])).startswith(row["says"])
    assert real_error(quiet + capture(row["log"])).startswith(row["says"])


def test_errors_that_point_elsewhere_come_last() -> None:
    pointing = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"
    taken = "OSError: [Errno 98] Address already in use"
    assert real_error(pointing) == pointing
    assert real_error(f"{pointing}\n{taken}") == taken
    assert real_error(f"vllm: error while loading shared libraries: libnuma.so.1\n{pointing}").startswith("vllm: error")


def test_a_log_without_an_error_gives_its_last_line() -> None:
    assert real_error("one\ntwo\n\n") == "two"
    assert real_error("") == "it left no line in the journal"


@given(st.text())
def test_any_log_gives_one_short_line_or_says_that_there_is_none(log: str) -> None:
    found = real_error(log)
    assert found
    assert len(found) <= LONGEST


def test_units_are_told_apart_by_their_name() -> None:
    found = shows(SHOWN)
    assert list(found) == ["sparkstack-ray-head", "sparkstack-vllm"]
    assert found["sparkstack-vllm"]["InvocationID"] == "4567def"


def test_what_is_no_answer_of_systemctl_has_no_units() -> None:
    assert [shows(text) for text in ("", "\n\n", "Failed to connect to bus\n", "Id=\n")] == [{}] * 4


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    assert all(isinstance(show, dict) for show in shows(text).values())


@pytest.mark.parametrize(
    ("show", "state"),
    [
        ({"ActiveState": "active"}, "active"),
        ({"ActiveState": "active", "Job": "17"}, "active"),
        ({"ActiveState": "inactive", "Job": "17"}, "activating"),
        ({"ActiveState": "failed", "Job": "17"}, "activating"),
        ({"ActiveState": "failed", "Job": "0"}, "failed"),
        ({"ActiveState": "failed", "Job": ""}, "failed"),
        ({}, "inactive"),
    ],
)
def test_a_start_that_is_asked_for_and_has_not_begun_is_on_its_way(show: dict[str, str], state: str) -> None:
    assert active(show) == state


@pytest.mark.parametrize(
    ("result", "status", "says"),
    [
        ("signal", "9", "killed by SIGKILL"),
        ("core-dump", "11", "killed by SIGSEGV"),
        ("signal", "99", "killed by signal 99"),
        ("watchdog", "9", "no token came within its time (watchdog)"),
        ("oom-kill", "9", "killed by the kernel: out of memory"),
        ("timeout", "15", "it was not ready in time"),
        ("success", "0", "it ended by itself"),
        ("exit-code", "1", ""),
        ("resources", "0", ""),
        ("", "0", ""),
    ],
)
def test_the_end_of_a_unit_is_said_in_words_unless_its_log_has_to_say_it(result: str, status: str, says: str) -> None:
    assert how({"Result": result, "ExecMainStatus": status}) == says
