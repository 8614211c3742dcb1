"""Readiness is what the head's supervisor says, while it is fresh; without it, the cause."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import NotServing
from core.facts import NodeFacts
from core.process import Completed, run
from serve.ready import FRESH, fresh, generation_of, look_argv, serves, serving, state_of, too_slow
from tests.unit.samples import NOW, lab_facts

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)
)


def answer(age: float = 0.5, **state: Any) -> Completed:
    said = {"generation": "g1", "phase": "serving", "reason": "a token came through every rank", **state}
    return Completed((), 0, json.dumps({"state": said, "age": age}) + f"\n{said['phase']}\n")


def seen(age: float = 1.0, **state: Any) -> NodeFacts:
    said = {"at": NOW - age, "generation": "g1", "phase": "serving", **state}
    return replace(lab_facts()["lab-a"], state=said, moment=NOW)


def test_a_service_that_serves_is_ready() -> None:
    assert serves(answer(), "g1")


@pytest.mark.parametrize("phase", ["waiting", "stopping", "resting", "starting"])
def test_any_other_phase_is_waited_for(phase: str) -> None:
    assert not serves(answer(phase=phase), "g1")


def test_another_service_is_not_this_one_whatever_it_says() -> None:
    assert not serves(answer(generation="g0"), "g1")
    assert not serves(answer(generation="g0", phase="given-up"), "g1")


def test_a_supervisor_that_has_not_written_lately_says_nothing() -> None:
    assert not serves(answer(age=FRESH), "g1")
    assert not serves(answer(age=FRESH, phase="given-up"), "g1")


def test_a_service_that_was_given_up_ends_the_wait_with_its_last_failures() -> None:
    failures = [{"at": n, "reason": f"failure {n}"} for n in range(7)]
    with pytest.raises(NotServing) as caught:
        serves(answer(phase="given-up", reason="given up after 2 failures in a row: x", failures=failures), "g1")
    assert caught.value.cause == "given up after 2 failures in a row: x"
    assert caught.value.evidence.splitlines() == [f"failure {n}" for n in range(2, 7)]
    assert "invoke logs" in caught.value.next_move


def test_what_a_node_says_is_shown_on_one_line() -> None:
    with pytest.raises(NotServing) as caught:
        serves(answer(phase="given-up", reason="a\nerror: b\x1b[2J"), "g1")
    assert caught.value.cause == "a error: b [2J"
    assert "\n" not in too_slow(answer(phase="starting", reason="a\nb")).cause


def test_time_that_ran_out_names_phase_and_reason() -> None:
    slow = too_slow(answer(phase="waiting", reason="lab-b has not reported"))
    assert slow.cause == "no token came in time (waiting: lab-b has not reported)"
    assert too_slow(Completed((), 0, "")).cause == "no token came in time (no supervisor answers)"


@given(st.text() | JSON.map(json.dumps))
def test_an_answer_that_is_none_of_ours_is_no_readiness(text: str) -> None:
    done = Completed((), 0, text)
    assert not serves(done, "g1")
    assert state_of(done) == {}
    assert too_slow(done)


@pytest.mark.parametrize("age", [0, 9.9, -9.9])
def test_facts_that_are_fresh_say_that_it_serves(age: float) -> None:
    assert serving(seen(age), "g1")


@pytest.mark.parametrize("age", [10, -10, 3600])
def test_facts_that_are_old_or_of_another_clock_say_nothing(age: float) -> None:
    assert not serving(seen(age), "g1")
    assert fresh(seen(age)) == {}


def test_a_node_that_was_never_asked_says_nothing() -> None:
    assert fresh(lab_facts()["lab-a"]) == {}


def test_a_generation_is_read_out_of_what_is_wanted() -> None:
    assert generation_of('{"generation": "g1"}') == "g1"
    assert [generation_of(text) for text in ("", "[]", "{")] == ["", "", ""]


@pytest.mark.processes
def test_the_look_as_it_runs_on_a_head_without_a_supervisor() -> None:
    done = run(look_argv())
    assert done.out.splitlines()[-1].startswith("no supervisor has spoken yet")
    assert not serves(done, "g1")
