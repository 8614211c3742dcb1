"""One node's hands: what is ordered runs and nothing else; each unit is started once an order."""

from __future__ import annotations

import getpass
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from serve.onnode import agent, memory, shm
from serve.onnode.agent import Agent, Unseen
from serve.onnode.decide import Order, Unit
from tests.unit.simulated_nodes import wanted

HEAD, VLLM = "ray-head", "vllm"
WANTED = replace(wanted("ray"), user=getpass.getuser())
SYSTEMCTL = r"""#!/bin/sh
here=$(dirname "$0")
case $1 in
    show)
        for word do
            case $word in
                *.service)
                    name=${word%.service}
                    printf 'Id=%s\n' "$word"
                    cat "$here/$name" 2>/dev/null || echo ActiveState=inactive
                    echo
                    ;;
            esac
        done
        ;;
    *) echo "$*" >> "$here/said" ;;
esac
"""
JOURNALCTL = r"""#!/bin/sh
echo "$2" >> "$(dirname "$0")/read"
echo "ValueError: no such model"
"""


class Machine:
    """A node whose systemd does nothing by itself: a test says how its units are."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, script in (("systemctl", SYSTEMCTL), ("journalctl", JOURNALCTL)):
            (folder / name).write_text(script)
            (folder / name).chmod(0o755)

    def unit(self, name: str, active: str, **properties: str) -> None:
        lines = {"ActiveState": active, **properties}
        (self.folder / name).write_text("".join(f"{key}={value}\n" for key, value in lines.items()))

    def said(self, name: str = "said") -> list[str]:
        """Return what was asked of systemd since the last look."""
        path = self.folder / name
        found = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return found


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for module, name in ((agent, "DROP_CACHES"), (shm, "FOLDER")):
        monkeypatch.setattr(module, name, tmp_path / "other" / name)
    (tmp_path / "other" / "FOLDER").mkdir(parents=True)
    monkeypatch.setattr(memory, "free", lambda: 0)
    return Machine(tmp_path)


def started(*names: str) -> list[str]:
    return [line for name in names for line in (f"reset-failed {name}.service", f"start --no-block {name}.service")]


@pytest.mark.processes
class TestObeying:
    def test_what_is_ordered_is_started_once(self, machine: Machine) -> None:
        node = Agent(WANTED, 0)
        for _ in range(3):
            node.obey(Order("g1", 7, (HEAD,)))
        assert machine.said() == started(HEAD)
        node.obey(Order("g1", 7, (HEAD, VLLM)))
        assert machine.said() == started(VLLM)

    def test_what_has_ended_is_not_started_again_by_the_same_order(self, machine: Machine) -> None:
        node = Agent(WANTED, 0)
        node.obey(Order("g1", 7, (HEAD,)))
        machine.said()
        machine.unit(HEAD, "failed")
        node.obey(Order("g1", 7, (HEAD,)))
        assert machine.said() == []
        node.obey(Order("g1", 8, (HEAD,)))
        assert machine.said() == started(HEAD)

    def test_what_is_not_ordered_is_killed_at_once(self, machine: Machine) -> None:
        machine.unit(HEAD, "active")
        machine.unit(VLLM, "activating")
        Agent(WANTED, 7, {HEAD, VLLM}).obey(Order("g1", 8))
        assert machine.said() == [
            line
            for name in (HEAD, VLLM)
            for line in (f"kill --signal=SIGKILL {name}.service", f"stop --no-block {name}.service")
        ]

    def test_what_is_down_is_left_alone(self, machine: Machine) -> None:
        machine.unit(HEAD, "failed")
        Agent(WANTED, 7).obey(Order("g1", 8))
        assert machine.said() == []

    def test_an_order_of_another_service_is_none_of_ours(self, machine: Machine) -> None:
        machine.unit(HEAD, "active")
        node = Agent(WANTED, 7, {HEAD})
        for order in (Order("g2", 8), Order("g2", 9, (HEAD, VLLM))):
            node.obey(order)
        assert machine.said() == []
        assert node.report(1.0).serial == 7

    def test_told_to_end_it_stops_the_api_first_and_waits(self, machine: Machine) -> None:
        Agent(WANTED, 7).end()
        assert machine.said() == [f"stop {VLLM}.service", f"stop {HEAD}.service"]


@pytest.mark.processes
class TestGoingOn:
    """A supervisor was killed, and the next one goes on."""

    def test_what_was_started_before_is_not_started_again(self, machine: Machine) -> None:
        machine.unit(HEAD, "active")
        Agent(WANTED, 7, {HEAD}).obey(Order("g1", 7, (HEAD,)))
        assert machine.said() == []

    def test_what_was_not_started_yet_is_started_when_its_turn_comes(self, machine: Machine) -> None:
        machine.unit(HEAD, "active")
        node = Agent(WANTED, 7, {HEAD})
        node.obey(Order("g1", 7, (HEAD, VLLM)))
        assert machine.said() == started(VLLM)

    def test_what_ended_meanwhile_is_reported_as_ended(self, machine: Machine) -> None:
        machine.unit(HEAD, "failed", Result="signal", ExecMainStatus="9", InvocationID="1a")
        found = Agent(WANTED, 7, {HEAD}).report(1.0)
        assert (found.serial, found.started) == (7, {HEAD})
        assert found.units[HEAD] == Unit("failed", "killed by SIGKILL")


@pytest.mark.processes
class TestReporting:
    def test_a_unit_that_never_ran_has_no_reason(self, machine: Machine) -> None:
        assert machine.folder.exists()
        assert Agent(WANTED, 0).report(1.0).units == {HEAD: Unit("inactive"), VLLM: Unit("inactive")}

    def test_the_journal_of_a_run_that_ended_is_read_once(self, machine: Machine) -> None:
        machine.unit(VLLM, "failed", Result="exit-code", ExecMainStatus="1", InvocationID="4d")
        node = Agent(WANTED, 7, {VLLM})
        found = [node.report(1.0).units[VLLM] for _ in range(3)]
        assert found == [Unit("failed", "ValueError: no such model")] * 3
        assert machine.said("read") == ["_SYSTEMD_INVOCATION_ID=4d"]

    @pytest.mark.parametrize("answer", ["exit 1", f"echo Id={HEAD}.service; echo ActiveState=active", "sleep 9"])
    def test_units_of_which_systemd_tells_nothing_have_not_ended(
        self, machine: Machine, answer: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(agent, "PATIENCE", 0.5)
        show = f"case $1 in show) {answer};; *) echo $* >> {machine.folder}/said;; esac"
        (machine.folder / "systemctl").write_text(f"#!/bin/sh\n{show}\n")
        node = Agent(WANTED, 7, {HEAD, VLLM})
        with pytest.raises(Unseen):
            node.report(1.0)
        node.kill()
        assert f"kill --signal=SIGKILL {VLLM}.service" in machine.said(), "what is to end is ended all the same"

    def test_a_journal_that_takes_long_does_not_hold_up_the_others(
        self, machine: Machine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(agent, "READING", 0.2)
        (machine.folder / "journalctl").write_text("#!/bin/sh\nexec sleep 9\n")
        machine.unit(VLLM, "failed", Result="exit-code", InvocationID="4d")
        assert Agent(WANTED, 7, {VLLM}).report(1.0).units[VLLM].why == "it left no line in the journal"

    def test_the_next_run_has_its_own_reason(self, machine: Machine) -> None:
        node = Agent(WANTED, 7, {VLLM})
        machine.unit(VLLM, "failed", Result="exit-code", InvocationID="4d")
        node.report(1.0)
        machine.unit(VLLM, "failed", Result="oom-kill", InvocationID="5e")
        assert node.report(1.0).units[VLLM].why == "killed by the kernel: out of memory"

    def test_a_page_cache_that_cannot_be_dropped_is_said_and_it_goes_on(
        self, machine: Machine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(agent, "DROP_CACHES", machine.folder / "none" / "drop_caches")
        node = Agent(WANTED, 0)
        node.obey(Order("g1", 7, (HEAD,)))
        assert node.report(1.0).notes == ("page cache not dropped, but of our own files: No such file or directory",)
        assert machine.said() == started(HEAD)

    @pytest.mark.parametrize(("free", "needed", "dropped"), [(6, 1, 0), (5, 1, 1), (6, 2, 1), (100, 0, 1)])
    def test_the_page_cache_is_left_where_more_than_enough_is_free(
        self, machine: Machine, monkeypatch: pytest.MonkeyPatch, free: int, needed: int, dropped: int
    ) -> None:
        drop = machine.folder / "drop_caches"
        monkeypatch.setattr(agent, "DROP_CACHES", drop)
        monkeypatch.setattr(memory, "free", lambda: free << 30)
        Agent(replace(WANTED, memory={WANTED.node: needed << 30}), 0).obey(Order("g1", 7, (HEAD,)))
        assert drop.exists() == dropped, "where nobody knows what is needed, it is dropped"

    def test_what_killed_ranks_left_is_removed_before_a_start_and_said(self, machine: Machine) -> None:
        (machine.folder / "other" / "FOLDER" / "psm_left").write_bytes(b"x")
        node = Agent(WANTED, 0)
        node.obey(Order("g1", 7, (HEAD,)))
        assert node.report(1.0).notes == ("removed 1 segments of shared memory that a killed rank left",)

    def test_the_supervisors_own_socket_is_not_passed_on(
        self, machine: Machine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("NOTIFY_SOCKET", "/run/systemd/notify")
        (machine.folder / "systemctl").write_text('#!/bin/sh\necho "ActiveState=${NOTIFY_SOCKET:-none}"\n')
        said: Callable[..., str] = agent._out
        assert said("systemctl", "show") == "ActiveState=none\n"
