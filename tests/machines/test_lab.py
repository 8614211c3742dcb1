"""The machines behave as real ones: power, cables, disks, memory, firewall, passwords."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from core.errors import LabError, LockHeld
from core.process import run
from lab import cgroup, disk, lifecycle, network, place, power
from tests.machines.harness import Lab

pytestmark = pytest.mark.machines

A, B = "test-a", "test-b"
MEMORY = "cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes"


def eventually(done: Callable[[], bool], seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def opens(address: object, port: int) -> bool:
    try:
        socket.create_connection((str(address), port), timeout=5).close()
    except OSError:
        return False
    return True


def opens_from(lab: Lab, name: str, address: object, port: int) -> bool:
    code = f"import socket; socket.create_connection(('{address}', {port}), timeout=5)"
    return lab.ssh(name, f'python3 -c "{code}"').code == 0


def pings(lab: Lab, name: str, address: object) -> bool:
    return lab.ssh(name, f"ping -c 1 -W 1 {address}").code == 0


@contextmanager
def http_server(lab: Lab, name: str, port: int) -> Iterator[None]:
    start = f"setsid python3 -m http.server {port} >/dev/null 2>&1 </dev/null & echo $!"
    process = lab.output(name, start)
    try:
        assert eventually(lambda: opens_from(lab, name, "127.0.0.1", port), 10)
        yield
    finally:
        lab.output(name, f"kill {process}")


def reboot(lab: Lab, name: str) -> None:
    before = lab.status(name).since
    time.sleep(1.1)  # `since` has whole seconds
    lab.ssh(name, "sudo systemctl reboot")
    assert eventually(lambda: lab.status(name).since not in (before, None)), "it did not start again"
    power.wait_ready(lab.place(name), lab.said.append)


def test_both_machines_run_systemd_and_have_their_names(lab: Lab) -> None:
    for name in (A, B):
        assert lab.output(name, "systemctl is-system-running") == "running"
        assert lab.output(name, "hostname") == name


def test_a_second_up_does_nothing_within_seconds(lab: Lab) -> None:
    before = lifecycle.status(lab.cluster)
    lab.said.clear()
    started = time.monotonic()
    lab.up()
    assert time.monotonic() - started < 10
    assert [(s.pid, s.since) for s in before] == [(s.pid, s.since) for s in lifecycle.status(lab.cluster)]
    assert f"{A}: runs already" in lab.said
    assert not [line for line in lab.said if "making" in line or "booting" in line]


def test_each_machine_has_a_disk_of_its_own_with_the_configured_size(lab: Lab) -> None:
    assert lab.cluster.lab is not None
    for name in (A, B):
        size = int(lab.output(name, "df --block-size=1 --output=size /opt | tail -1"))
        assert 0.9 * lab.cluster.lab.disk < size <= lab.cluster.lab.disk
    free = "df --block-size=1 --output=avail / | tail -1"
    before = int(lab.output(B, free))
    lab.output(A, "head -c 200M /dev/urandom > /tmp/big && sync /tmp/big")
    assert abs(int(lab.output(B, free)) - before) < 50 * 1024**2
    assert lab.status(A).disk_used > 200 * 1024**2
    lab.output(A, "rm /tmp/big")


def test_a_full_disk_is_full_for_one_machine_only(lab: Lab) -> None:
    filled = lab.ssh(A, "fallocate -l 100G /var/tmp/full")
    assert filled.code != 0
    assert "No space left" in filled.err
    assert lab.ssh(B, "head -c 1M /dev/zero > /var/tmp/small").code == 0
    lab.output(A, "rm /var/tmp/full")


def test_an_ordinary_process_reads_the_memory_limit(lab: Lab) -> None:
    assert lab.cluster.lab is not None
    for name in (A, B):
        assert int(lab.output(name, MEMORY)) == lab.cluster.lab.memory


def test_a_process_that_wants_more_memory_than_the_limit_is_killed(lab: Lab) -> None:
    assert lab.cluster.lab is not None
    greedy = lab.ssh(A, f'python3 -c "x = bytearray({lab.cluster.lab.memory} + 1024**3)"')
    assert greedy.code in (137, 255)
    assert lab.output(A, "echo alive") == "alive"


def test_management_lets_in_ssh_and_the_api_only_and_the_fabric_is_open(lab: Lab) -> None:
    node, api = lab.cluster.node(A), lab.cluster.api.port
    with http_server(lab, A, 9999), http_server(lab, A, api):
        assert not opens(node.management, 9999)
        assert not opens_from(lab, B, node.management, 9999)
        assert opens_from(lab, B, node.fabric, 9999)
        assert opens(node.management, api)


def test_what_the_firewall_refuses_fails_at_once(lab: Lab) -> None:
    started = time.monotonic()
    assert not opens(lab.cluster.node(A).management, 9999)
    assert time.monotonic() - started < 4, "it waited for an answer"


def test_a_cut_cable_is_seen_and_heals(lab: Lab) -> None:
    assert pings(lab, B, lab.cluster.node(A).fabric)
    lifecycle.cut(lab.cluster, A, lab.said.append)
    assert not lab.status(A).fabric_link
    assert not pings(lab, B, lab.cluster.node(A).fabric)
    assert lab.output(A, "cat /sys/class/net/fab0/carrier") == "0"
    lifecycle.heal(lab.cluster, A, lab.said.append)
    assert eventually(lambda: pings(lab, B, lab.cluster.node(A).fabric), 15)


def test_a_machine_without_management_is_not_reached_and_up_connects_it_again(lab: Lab) -> None:
    lifecycle.cut(lab.cluster, B, lab.said.append, "management")
    assert not opens(lab.cluster.node(B).management, 22)
    lab.up()
    assert lab.output(B, "echo back") == "back"


def test_a_reboot_comes_back_with_both_links(lab: Lab) -> None:
    lab.output(A, "echo kept > ~/kept")
    reboot(lab, A)
    assert lab.status(A).fabric_link
    assert lab.output(A, "cat ~/kept") == "kept"
    assert eventually(lambda: pings(lab, A, lab.cluster.node(B).fabric), 15)


def test_a_cut_cable_stays_cut_over_a_reboot(lab: Lab) -> None:
    lifecycle.cut(lab.cluster, A, lab.said.append)
    reboot(lab, A)
    assert not lab.status(A).fabric_link
    assert not pings(lab, A, lab.cluster.node(B).fabric)


def test_a_machine_that_was_killed_stays_dead_until_boot(lab: Lab) -> None:
    lab.output(B, "echo synced > ~/synced && sync ~/synced")
    lifecycle.kill(lab.cluster, B, lab.said.append)
    time.sleep(2)
    assert not lab.status(B).running
    assert not opens(lab.cluster.node(B).management, 22)
    lifecycle.boot(lab.cluster, B, lab.said.append)
    assert lab.output(B, "cat ~/synced") == "synced"
    assert lab.status(B).fabric_link


def test_a_machine_that_powers_itself_off_stays_off_until_up(lab: Lab) -> None:
    lab.ssh(A, "sudo systemctl poweroff")
    assert eventually(lambda: not lab.status(A).running)
    lab.up()
    assert f"{A}: booting" in lab.said
    assert lab.status(A).running


def test_sudo_asks_for_the_password_where_the_configuration_says_so(lab: Lab) -> None:
    assert lab.cluster.askpass is not None
    assert lab.ssh(A, "sudo -n true").code == 0
    refused = lab.ssh(B, "sudo -n true")
    assert refused.code != 0
    assert "password is required" in refused.err
    password = run([str(place.inside(lab.cluster, lab.cluster.askpass))]).out.strip()
    assert lab.output(B, f"echo {password} | sudo -S -p '' id -un") == "root"
    assert lab.ssh(B, "echo wrong | sudo -k -S -p '' id -un").code != 0


def test_root_and_passwords_do_not_log_in(lab: Lab) -> None:
    settings = lab.output(A, "sudo sshd -T").splitlines()
    assert "permitrootlogin no" in settings
    assert "passwordauthentication no" in settings
    assert "kbdinteractiveauthentication no" in settings


def test_a_dead_supervisor_is_cleared_away_and_the_machine_started_again(lab: Lab) -> None:
    pid = lab.status(A).pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: not lab.status(A).running, 5)
    lab.up()
    assert lab.output(A, "echo back") == "back"
    assert lab.status(A).pid != pid


def test_a_lost_bridge_is_made_again(lab: Lab) -> None:
    run(["ip", "link", "delete", place.bridge(lab.cluster, "fabric")])
    lab.up()
    assert eventually(lambda: pings(lab, A, lab.cluster.node(B).fabric), 15)


def test_the_host_never_sends_fabric_traffic_anywhere(lab: Lab) -> None:
    answer = run(["ip", "route", "get", str(lab.cluster.node(A).fabric)], check=False)
    assert answer.code != 0
    assert "No route to host" in answer.err


def test_down_leaves_only_disks_and_unreachable_routes(lab: Lab) -> None:
    groups = [Path(group) for name in (A, B) for group in (lab.place(name).running() or {"groups": []})["groups"]]
    assert groups
    lifecycle.down(lab.cluster, lab.said.append)
    for name in (A, B):
        assert not lab.status(name).running
        assert not disk.loops(lab.place(name))
        assert not network.exists(lab.place(name).link("fabric"))
        assert run(["ip", "route", "get", str(lab.cluster.node(name).management)], check=False).code != 0
    assert not [group for group in groups if group.exists()]
    assert not cgroup.processes(groups)
    assert not network.exists(place.bridge(lab.cluster, "management"))
    assert str(lab.cluster.state) not in Path("/proc/mounts").read_text(encoding="utf-8")
    lab.said.clear()
    lifecycle.down(lab.cluster, lab.said.append)
    assert lab.said == []


def test_what_a_machine_wrote_outlasts_down_and_its_host_key_stays(lab: Lab) -> None:
    lab.output(A, "echo kept > ~/kept-over-down")
    known = lab.cluster.known_hosts.read_text(encoding="utf-8")
    lifecycle.down(lab.cluster, lab.said.append)
    lab.up()
    assert lab.output(A, "cat ~/kept-over-down") == "kept"
    assert lab.cluster.known_hosts.read_text(encoding="utf-8") == known


def test_purge_leaves_nothing_and_says_what_it_removed(lab: Lab) -> None:
    removed = lifecycle.purge(lab.cluster, lab.said.append)
    assert f"machine {A}" in removed
    assert f"disk of {B}" in removed
    assert f"unreachable route {lab.cluster.fabric.subnet}" in removed
    assert not lab.cluster.state.exists()
    assert not network.fenced(lab.cluster, "management")
    assert lifecycle.purge(lab.cluster, lab.said.append) == []


def test_a_subnet_in_use_is_refused_with_the_name_of_its_user(lab: Lab) -> None:
    other = lab.cluster.model_copy(update={"name": "lab-clash"})
    with pytest.raises(LabError, match=f"is in use on this host: interface {place.bridge(lab.cluster, 'management')}"):
        lifecycle.up(other, lab.said.append)
    assert not other.state.exists()


def test_two_commands_on_one_lab_do_not_meet(lab: Lab) -> None:
    with place.hold(lab.cluster.state / "lab.lock") as ours:
        assert ours
        with pytest.raises(LockHeld):
            lifecycle.up(lab.cluster, lab.said.append)
