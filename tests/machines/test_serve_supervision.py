"""What may happen to those who look after the service, and what its owner may change, while it goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial

import pytest

from lab.demo import QUESTION
from lab.model import expected_answer
from tests.machines.clients import Traffic, let_in_for_nothing, not_answered
from tests.machines.command_line import CommandLine, assert_interrupted, assert_refused
from tests.machines.harness import Lab, eventually
from tests.machines.serving import (
    ANY,
    NODES,
    OVERHEAD,
    A,
    B,
    Service,
    active,
    executed,
    footprint,
    main_process,
    nothing_left_behind,
    processes,
    profile,
    served,
    state,
)

pytestmark = pytest.mark.machines

SUPERVISOR = "sparkstack-supervisor"
SILENCE = 14
"""Seconds: a little longer than a node may be silent."""


def another_runs(lab: Lab, name: str, before: str) -> bool:
    """Say whether another supervisor than ``before`` runs on a machine."""
    return main_process(lab, name, SUPERVISOR) not in (before, "0")


def test_supervisors_that_are_killed_cost_nothing(lab: Lab, serving_with: Callable[[str], Service]) -> None:
    service = serving_with(ANY)
    since, engine = service.since(), service.engine()
    with Traffic(service.door, clients=2) as traffic:
        for name in NODES:
            old = main_process(lab, name, SUPERVISOR)
            # it is started again after a second: until then the doors stay closed
            lab.as_root(name, f"kill -KILL {old}; sleep 0.3; nft list table inet sparkstack_serve")
            assert eventually(partial(another_runs, lab, name, old), 15)
            time.sleep(SILENCE)
            assert (service.since(), service.engine()) == (since, engine), f"after the one on {name} was killed"
    assert not_answered(traffic) == []
    assert state(lab, B)["phase"] == "obeying"


def test_a_systemd_that_starts_itself_anew_costs_nothing(lab: Lab, serving_with: Callable[[str], Service]) -> None:
    """As an update of systemd has it do: meanwhile nobody can say how the units are."""
    service = serving_with(ANY)
    since, engine = service.since(), service.engine()
    with Traffic(service.door, clients=2) as traffic:
        for name in NODES:
            lab.as_root(name, "for time in 1 2 3; do systemctl daemon-reexec; done")
        time.sleep(SILENCE)
    assert not_answered(traffic) == []
    assert (service.since(), service.engine()) == (since, engine)


def test_what_runs_and_no_boot_would_start_is_enabled_and_nothing_stops(
    lab: Lab, serving_with: Callable[[str], Service]
) -> None:
    """A stop was cut off between its two steps."""
    service = serving_with(ANY)
    service.invoke.works("serve", service.flag)  # a test before may have deployed another release since
    since, engine = service.since(), service.engine()
    lab.as_root(B, f"systemctl disable --quiet {SUPERVISOR}")
    done = service.invoke.works("serve", service.flag)
    assert f"{B}: enable {SUPERVISOR}" in done.err
    assert lab.output(B, f"systemctl is-enabled {SUPERVISOR}") == "enabled"
    assert (service.since(), service.engine()) == (since, engine)


@pytest.mark.long
def test_a_stop_whose_controller_is_gone_turns_nobody_away_for_long(
    lab: Lab, serving_with: Callable[[str], Service]
) -> None:
    service = serving_with(ANY)
    since = service.since()
    with Traffic(service.door, clients=2, tokens=400), Traffic(service.door, clients=1) as short:
        with service.invoke.begin("stop", "--drain=600") as started:
            started.reaches(lambda: any(one.why.startswith("503") for one in short.asked), "nobody was turned away")
            started.process.kill()
            gone = time.time()
            started.ended()
        assert eventually(lambda: short.answer_since(gone) is not None, 60)
    assert service.since() == since
    assert state(lab)["phase"] == "serving"


WRONG_PROFILES = (
    pytest.param(
        ('"--max-num-seqs", "4"', '"--max-num-sequences", "4"'),
        *(10, ("--max-num-sequences", "nothing that served was stopped")),
        id="a flag that vLLM does not know",
    ),
    pytest.param(
        ('"--max-num-seqs", "4"', '"--api-key", "secret"'),
        *(10, ("--api-key", "key.rotate")),
        id="a flag that is not the profile's to give",
    ),
    pytest.param(
        ('model = "sparkstack-tiny"', 'model = "nowhere"'),
        *(25, ("nowhere",)),
        id="a model that is not there",
    ),
)


@pytest.mark.parametrize(("change", "code", "says"), WRONG_PROFILES)
def test_a_wrong_profile_is_refused_before_anything_stops(
    lab: Lab, serving_with: Callable[[str], Service], change: tuple[str, str], code: int, says: tuple[str, ...]
) -> None:
    service = serving_with(ANY)
    since, engine = service.since(), service.engine()
    with Traffic(service.door, clients=2) as traffic:
        done = service.invoke("serve", profile("tiny-wrong", executed(service.executor), change))
    assert_refused(done, code, *says)
    assert not_answered(traffic) == []
    assert (service.since(), service.engine()) == (since, engine)
    assert served(lab) == service.executor


@pytest.mark.timeout(600)
def test_a_profile_that_does_not_come_up_brings_back_what_served(
    lab: Lab, serving_with: Callable[[str], Service]
) -> None:
    service = serving_with(ANY)
    since, made = service.since(), lab.output(A, "cat /etc/sparkstack/service.json")
    change = ('"--max-model-len", "512"', '"--max-model-len", "100000"')
    with Traffic(service.door, clients=2) as traffic:
        done = service.invoke("serve", profile("tiny-too-long", executed(service.executor), change))
        assert_refused(done, 40, "given up", "max_model_len", f"{A}: stop what did not come up: done")
        service.waits_until_back(since, service.bare + OVERHEAD)
        assert eventually(lambda: traffic.answer_since(service.since()) is not None, 20)
    assert let_in_for_nothing(traffic) == []
    assert lab.output(A, "cat /etc/sparkstack/service.json") == made
    assert served(lab) == service.executor


@pytest.mark.timeout(600)
def test_a_controller_that_goes_away_while_the_service_starts_changes_nothing(
    lab: Lab, serving_with: Callable[[str], Service], invoke: CommandLine
) -> None:
    """First by Ctrl-C, then killed at once with all that it had begun here: the nodes go on by themselves."""
    service = serving_with(ANY)
    since, engine = service.since(), service.engine()
    with invoke.begin("restart", service.flag) as started:
        started.says("first token")
        time.sleep(1)
        started.interrupt()
        assert_interrupted(started.ended())
    assert state(lab)["phase"] != "serving"
    with invoke.begin("serve", service.flag) as started:
        started.says("first token")
        assert "start the supervisors" not in "".join(started.err), "it waits for what starts already"
    service.waits_until_back(since, service.bare + OVERHEAD)
    after = service.engine()
    assert after.keys() == engine.keys()
    assert [unit for unit, process in after.items() if process in (engine[unit], "0")] == [], "restart starts anew"
    release = lab.output(A, "basename $(readlink /opt/sparkstack/current)")
    assert [line for line in processes(lab, A) if "bin/vllm serve" in line and f"/{release}/" in line]
    assert invoke.works("chat", QUESTION).out == f"{expected_answer(QUESTION)}\n"
    assert invoke.works("serve", service.flag).out == "nothing to do\n"


@pytest.mark.timeout(600)
def test_stop_lets_what_runs_end_turns_new_ones_away_and_leaves_nothing(
    lab: Lab, serving_with: Callable[[str], Service], invoke: CommandLine
) -> None:
    service = serving_with(ANY)
    before = {name: footprint(lab, name) for name in NODES}
    with Traffic(service.door, clients=2, tokens=400) as long, Traffic(service.door, clients=1) as short:
        done = invoke.works("stop", "--drain=60", "--all")
    turned_away = [one for one in short.asked if one.why.startswith("503, Retry-After 30:")]
    assert turned_away, short.asked[-5:]
    first = turned_away[0].begun
    assert [one for one in long.asked if one.begun < first < (one.ended or 0.0)], "no long answer was under way"
    assert let_in_for_nothing(long) == []
    assert let_in_for_nothing(short) == []
    assert "no process of ours is left on test-a, test-b" in done.out
    assert [processes(lab, name) for name in NODES] == [[], []]
    assert [active(lab, name) for name in NODES] == [set(), set()]
    assert [lab.output(name, "systemctl --failed --plain --no-legend") for name in NODES] == ["", ""]
    assert [name for name in NODES if "sparkstack_serve" in lab.as_root(name, "nft list tables")] == []
    nothing_left_behind(lab, before)
    again = invoke.works("stop")
    assert again.out.splitlines() == ["nothing to do", "no process of ours is left on test-a, test-b"]
    assert_refused(invoke("chat", QUESTION), 40, f"{A}: ", "invoke serve")
    stopped = json.loads(invoke.works("status", "--json").out)
    assert (stopped["wanted"], stopped["serving"]) == (False, False)
