"""Before the service is stopped by its owner: no new request, and those that run may end."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from core.facts import NodeFacts
from core.plan import Run
from core.process import Completed, run
from core.units import VLLM
from serve.drain import SIGN, steps, undo
from serve.onnode.guard import draining
from tests.unit.samples import lab_facts, local, service, serving, unit


def facts(active: str) -> dict[str, NodeFacts]:
    found = serving(service())
    return {**found, "lab-a": replace(found["lab-a"], units={**found["lab-a"].units, VLLM: unit(VLLM, active)})}


def test_the_sign_comes_first_then_the_wait_both_on_the_head() -> None:
    sign, wait = steps(local(), serving(service()), 60)
    assert isinstance(sign, Run)
    assert isinstance(wait, Run)
    assert (sign.node, wait.node) == ("lab-a", "lab-a")
    assert (sign.argv, sign.privileged) == (("touch", SIGN), True)
    assert wait.privileged, "it keeps the sign fresh"
    assert wait.timeout is not None
    assert wait.timeout > 60


@pytest.mark.parametrize("active", ["inactive", "failed"])
def test_where_vllm_does_not_run_nobody_is_waited_for(active: str) -> None:
    assert list(steps(local(), facts(active), 60)) == []
    assert undo(local(), facts(active)) == ()
    assert list(steps(local(), lab_facts(), 60)) == []


@pytest.mark.parametrize("patience", [0, -1])
def test_without_patience_nobody_is_waited_for(patience: float) -> None:
    assert list(steps(local(), serving(service()), patience)) == []


def test_requests_are_let_in_again_where_the_stop_fails() -> None:
    (step,) = undo(local(), serving(service()))
    assert isinstance(step, Run)
    assert (step.node, step.argv, step.privileged) == ("lab-a", ("rm", "-f", SIGN), True)


def waited(live: Path, patience: float) -> Completed:
    _, wait = steps(local(), serving(service()), patience)
    assert isinstance(wait, Run)
    script, given, sign = wait.argv[4:]
    assert sign == SIGN
    own = live.with_name("drain")
    own.touch()
    os.utime(own, (0, 0))
    argv = [script.replace("/run/sparkstack-vllm/live.json", str(live)), given, str(own)]
    done = run([sys.executable, *wait.argv[1:4], *argv])
    assert draining(own), "it was kept fresh"
    return done


def live(path: Path, *, in_flight: int, draining: bool = True, age: float = 0) -> Path:
    path.write_text(json.dumps({"at": time.time() - age, "in_flight": in_flight, "draining": draining}))
    return path


@pytest.mark.processes
class TestWait:
    def test_it_is_over_when_nothing_runs_any_more(self, tmp_path: Path) -> None:
        assert waited(live(tmp_path / "live.json", in_flight=0), 30).out == ""

    def test_requests_that_do_not_end_are_waited_for_as_long_as_was_said(self, tmp_path: Path) -> None:
        done = waited(live(tmp_path / "live.json", in_flight=3), 0.2)
        assert done.out.splitlines() == ["3 requests still run", "3 requests still ran after 0.2 s, and were ended"]

    def test_a_count_from_before_the_sign_does_not_count(self, tmp_path: Path) -> None:
        """Requests that came in between would be cut off."""
        done = waited(live(tmp_path / "live.json", in_flight=0, draining=False), 0.2)
        assert "were ended" in done.out

    @pytest.mark.parametrize("text", [None, "", "{", "{}"])
    def test_where_nobody_counts_nobody_is_waited_for(self, text: str | None, tmp_path: Path) -> None:
        if text is not None:
            (tmp_path / "live.json").write_text(text)
        assert waited(tmp_path / "live.json", 30).out == ""

    def test_a_watch_that_has_stopped_counting_is_not_waited_for(self, tmp_path: Path) -> None:
        assert waited(live(tmp_path / "live.json", in_flight=5, age=11), 30).out == ""
