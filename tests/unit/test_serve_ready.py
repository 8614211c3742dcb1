"""Readiness is a token; without one, the cause."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from core.token import ask_argv
from hypothesis import given
from hypothesis import strategies as st

from core.errors import NotServing
from core.process import Completed, run
from serve.ready import Readiness, has_token, no_token, parse, real_error
from tests.unit.loopback import answering
from tests.unit.samples import TABLES, capture

ERRORS = json.loads((TABLES / "ready_errors.json").read_text())
UNITS = {"sparkstack-vllm": "active", "sparkstack-ray-head": "active"}


def answer(tokens: int = 0, error: str = "", units: dict[str, str] | None = None, log: str = "") -> Completed:
    data = {"tokens": tokens, "error": error, "units": units or UNITS, "log": log}
    return Completed((), 0, json.dumps(data) + "\n")


def test_a_token_is_readiness() -> None:
    assert has_token(answer(1))
    assert not has_token(answer(0))


def test_an_answer_without_a_token_is_none_even_with_code_200() -> None:
    error = no_token(answer(0))
    assert error.cause.startswith("no token came in time (the API answers without tokens; sparkstack-vllm active")


def test_a_failed_unit_ends_the_wait_at_once_with_its_error() -> None:
    log = "INFO starting\nValueError: no such model\nRuntimeError: Engine core failed. See root cause above."
    with pytest.raises(NotServing, match=r"^sparkstack-vllm failed: ValueError: no such model") as caught:
        has_token(answer(error="refused", units={**UNITS, "sparkstack-vllm": "failed"}, log=log))
    assert "invoke logs" in caught.value.next_move


def test_time_that_ran_out_names_what_was_answered_and_the_units() -> None:
    error = no_token(answer(error="HTTP 503: loading", units={"sparkstack-vllm": "activating"}))
    assert error.cause == "no token came in time (HTTP 503: loading; sparkstack-vllm activating)"


@pytest.mark.parametrize("row", ERRORS, ids=lambda row: row["log"])
def test_the_error_of_a_log_is_its_first_that_names_a_cause(row: dict[str, str]) -> None:
    quiet = capture("vllm-log.kv-cache.gb10.txt")
    assert real_error(capture(row["log"])).startswith(row["says"])
    assert real_error(quiet + capture(row["log"])).startswith(row["says"])


def test_errors_that_point_elsewhere_come_last() -> None:
    pointing = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"
    assert real_error(pointing) == pointing
    assert (
        real_error(f"{pointing}\nOSError: [Errno 98] Address already in use")
        == "OSError: [Errno 98] Address already in use"
    )
    assert real_error(f"vllm: error while loading shared libraries: libnuma.so.1\n{pointing}").startswith("vllm: error")


def test_a_log_without_an_error_gives_its_last_line() -> None:
    assert real_error("one\ntwo\n\n") == "two"
    assert real_error("") == "it left no line in the journal"


@given(st.text())
def test_any_log_gives_one_line_or_says_that_there_is_none(log: str) -> None:
    assert real_error(log)


@given(st.one_of(st.text(), st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps)))
def test_an_answer_that_is_none_of_ours_is_no_token(text: str) -> None:
    found = parse(text)
    assert (found.tokens, found.failed) == (0, [])
    assert found.error


@pytest.mark.parametrize(
    "data",
    [{"tokens": "x"}, {"tokens": 1, "error": "", "units": [1], "log": ""}, {"tokens": 1, "error": "", "units": 5}],
)
def test_fields_of_another_type_are_no_token(data: dict[str, Any]) -> None:
    assert parse(json.dumps(data)) == Readiness(0, json.dumps(data), {}, "")


@pytest.mark.processes
@pytest.mark.parametrize(
    ("code", "text", "tokens", "error"),
    [
        (200, '{"usage": {"completion_tokens": 1}}', 1, ""),
        (200, '{"usage": {"completion_tokens": 0}}', 0, ""),
        (200, "{}", 0, "'usage'"),
        (200, "no json", 0, "Expecting value: line 1 column 1 (char 0)"),
        (500, "engine dead", 0, "HTTP 500: engine dead"),
    ],
)
def test_the_question_as_it_runs_on_the_head(code: int, text: str, tokens: int, error: str) -> None:
    with answering(text, code) as api:
        found = parse(run(ask_argv(api.url, "tiny"), env={"no_proxy": "*"}).out)
    assert found == Readiness(tokens, error, {}, "")
    ((path, body),) = api.asked
    assert path == "/v1/chat/completions"
    assert (body["model"], body["max_tokens"]) == ("tiny", 1)


SYSTEMCTL = """#!/bin/sh
case "$*" in
  "is-active up") echo active ;;
  "is-active down") echo failed; exit 3 ;;
  "show down --property=InvocationID --value") echo 0123abc ;;
  *) exit 1 ;;
esac
"""
JOURNALCTL = """#!/bin/sh
[ "$1" = _SYSTEMD_INVOCATION_ID=0123abc ] && echo "ValueError: of the last run"
"""


@pytest.mark.processes
def test_the_log_of_a_failed_unit_is_that_of_its_last_run(tmp_path: Path) -> None:
    for name, script in (("systemctl", SYSTEMCTL), ("journalctl", JOURNALCTL)):
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    argv = ask_argv("http://127.0.0.1:9/v1", "tiny", ("up", "down"))
    done = run(argv, env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "no_proxy": "*"})
    found = parse(done.out)
    assert found.units == {"up": "active", "down": "failed"}
    assert found.log == "ValueError: of the last run\n"
    assert "refused" in found.error
