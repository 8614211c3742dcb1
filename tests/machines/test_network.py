"""The fabric of two machines gets addresses and MTU, and whatever goes wrong is taken back, by the nodes themselves."""

from __future__ import annotations

import base64
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

from core.config import ROOT, WORK
from core.process import run
from core.remote import Hosts
from lab import lifecycle, machine
from lab.place import bridge
from tests.machines.command_line import CommandLine, assert_interrupted, assert_refused
from tests.machines.harness import Lab, eventually

pytestmark = pytest.mark.machines

A, B = "test-a", "test-b"
OURS = "/etc/systemd/network/05-sparkstack-fabric.network"
OURS_OF_NETPLAN = "/etc/netplan/90-sparkstack-fabric.yaml"
THEIRS = "/etc/systemd/network/10-fabric.network"
GUARD = "/var/lib/sparkstack-network"
UNITS = "/etc/systemd/system/fabric-guard.service /etc/systemd/system/multi-user.target.wants/fabric-guard.service"
NETWORK = ("network", "--yes", "--interface=fab0")
SHORT = "--deadline=12"

TAKES_MANAGEMENT_DOWN = """\
[Match]
Name=host0

[Link]
ActivationPolicy=always-down
"""


def cable(lab: Lab, mtu: int) -> None:
    """Set what the cable between the machines carries: larger packets are lost in it."""
    for name in (A, B):
        run(["ip", "link", "set", lab.place(name).link("fabric"), "mtu", str(mtu)])
    run(["ip", "link", "set", bridge(lab.cluster, "fabric"), "mtu", str(mtu)])


def address(lab: Lab, name: str) -> list[tuple[str, int]]:
    """Return the fabric's IPv4 addresses and prefixes on a machine."""
    links = json.loads(lab.output(name, "ip -j -4 addr show fab0") or "[]")
    return [(info["local"], info["prefixlen"]) for link in links for info in link.get("addr_info", [])]


def mtu(lab: Lab, name: str) -> int:
    return int(lab.output(name, "cat /sys/class/net/fab0/mtu"))


def untouched(lab: Lab, name: str) -> bool:
    """Whether a machine has nothing of a change: no file, no guard that waits, no MTU."""
    left = lab.ssh(name, f"ls -d {OURS} {OURS_OF_NETPLAN} {GUARD}/pending.json {UNITS} 2>/dev/null").out
    timer = lab.ssh(name, "systemctl is-active fabric-guard-deadline.timer").out.strip()
    return left == "" and timer == "inactive" and mtu(lab, name) == 1500


def reachable(lab: Lab, name: str) -> bool:
    """Whether the machine's SSH server lets us in over the management network."""
    node = lab.cluster.node(name)
    try:
        with socket.create_connection((str(node.management), node.ssh_port), timeout=1):
            return True
    except OSError:
        return False


def put(lab: Lab, name: str, path: str, text: str) -> None:
    packed = base64.b64encode(text.encode()).decode()
    lab.as_root(name, f"echo {packed} | base64 -d > {path}")


def make_bare(lab: Lab, name: str) -> None:
    lab.as_root(name, f"rm -f {THEIRS} && networkctl reload && ip addr flush dev fab0 && ip link set fab0 mtu 1500 up")


def restore(lab: Lab, name: str) -> None:
    """Bring a machine back to what the lab makes, whatever a test has left."""
    lab.as_root(name, f"systemctl stop fabric-guard-deadline.timer 2>/dev/null; rm -rf {OURS} {GUARD} {UNITS}")
    made = machine.files(lab.cluster, lab.cluster.node(name), "", "")
    put(lab, name, THEIRS, made[THEIRS.removeprefix("/")].text)
    lab.as_root(name, "systemctl daemon-reload && networkctl reload && ip addr flush dev fab0")
    lab.as_root(name, "ip link set fab0 mtu 1500 up && networkctl reconfigure fab0")
    assert eventually(lambda: address(lab, name) != [], 10)


@pytest.fixture
def bare(lab: Lab) -> Iterator[Lab]:
    """Both machines have a fabric without addresses, over a cable for large packets; afterwards they are as before."""
    cable(lab, 9000)
    lab.each(lambda name: make_bare(lab, name))
    yield lab
    lab.up()
    cable(lab, 1500)
    lab.each(lambda name: restore(lab, name))
    lab.up()


@pytest.fixture
def with_netplan(bare: Lab) -> Iterator[Lab]:
    """The second machine has its distribution's netplan, which is taken away afterwards.

    Netplan tells udev to look again; these machines have none, and /sys is read-only in them: nothing takes its place.
    """
    packages = downloaded(bare, B)
    with Hosts(bare.cluster) as hosts:
        hosts[B].push(packages, PurePosixPath("/tmp/netplan"), bare.said.append)
    bare.as_root(B, "dpkg --install /tmp/netplan/*.deb")
    bare.as_root(B, "ln -s /bin/true /usr/bin/udevadm")
    yield bare
    bare.up()
    names = " ".join(run(["dpkg-deb", "--field", str(path), "Package"]).out.strip() for path in packages)
    bare.as_root(
        B, f"dpkg --purge {names} && rm -rf /usr/bin/udevadm /etc/netplan /run/systemd/network/*netplan* /tmp/netplan"
    )


def downloaded(lab: Lab, name: str) -> list[Path]:
    """Return netplan and what it needs, from this host's mirror: a machine has no way out."""
    place = WORK / "tests" / "netplan-of-machines"
    (place / "partial").mkdir(parents=True, exist_ok=True)
    (place / "status").write_text(lab.output(name, "cat /var/lib/dpkg/status"), encoding="utf-8")
    options = {"Dir::State::status": place / "status", "Dir::Cache::archives": place, "Debug::NoLocking": "1"}
    words = ["install", "--download-only", "--yes", "--no-install-recommends", "netplan.io"]
    run(["apt-get", *(f"-o{key}={value}" for key, value in options.items()), *words], timeout=300)
    return sorted(place.glob("*.deb"))


def test_a_fabric_without_addresses_gets_them_and_large_packets_pass_and_it_can_be_taken_back(
    bare: Lab, invoke: CommandLine
) -> None:
    assert_refused(invoke("network", "--yes"), 25, f"{A}: no ConnectX device", "fab0: up", f"--interface {A}=NAME")
    done = invoke.works(*NETWORK)
    assert "looked again: nothing left to do" in done.err
    for name, other in ((A, B), (B, A)):
        assert address(bare, name) == [(str(bare.cluster.node(name).fabric), 24)]
        assert mtu(bare, name) == 9000
        bare.output(name, f"ping -c 1 -W 2 -M do -s 8972 {bare.cluster.node(other).fabric}")
        assert bare.output(name, f"ls -d {GUARD}/pending.json {UNITS} 2>/dev/null || echo gone") == "gone"
    assert invoke.works("network").out == "nothing to do\n"
    assert_refused(invoke("network", "--mtu=2000"), 11, "no terminal", "--yes")
    invoke.works("network", "--mtu=2000", "--yes")
    assert [mtu(bare, name) for name in (A, B)] == [2000, 2000]
    invoke.works("network", "--revert", "--yes")
    for name in (A, B):
        assert (address(bare, name), untouched(bare, name)) == ([], True)
        assert bare.output(name, f"ls -d {GUARD} 2>/dev/null || echo gone") == "gone"
    assert invoke.works("network", "--revert").out == "nothing to do\n"


def test_a_cable_that_loses_large_packets_is_found_and_nothing_stays(bare: Lab, invoke: CommandLine) -> None:
    cable(bare, 1500)
    done = invoke(*NETWORK)
    assert_refused(done, 39, "packets of 9000 bytes do not come back", "restore the network as it was: done")
    for name in (A, B):
        assert (address(bare, name), untouched(bare, name)) == ([], True)


@pytest.mark.long
def test_ctrl_c_before_the_confirmation_takes_the_change_back_at_once(bare: Lab, invoke: CommandLine) -> None:
    cable(bare, 1500)
    with invoke.begin(*NETWORK) as started:
        started.says("check the fabric")
        started.interrupt()
        assert_interrupted(started.ended())
    assert untouched(bare, A)
    assert untouched(bare, B)


def test_without_their_controller_the_machines_take_the_change_back(bare: Lab, invoke: CommandLine) -> None:
    cable(bare, 1500)
    with invoke.begin(*NETWORK, SHORT) as started:
        started.says("check the fabric")
        started.kill()
    assert mtu(bare, A) == mtu(bare, B) == 9000
    assert_refused(invoke(*NETWORK), 37, "waits to be confirmed")
    for name in (A, B):
        assert eventually(lambda name=name: untouched(bare, name), 30), name
        assert address(bare, name) == []


def test_a_machine_that_is_cut_off_or_loses_its_power_meanwhile_has_its_old_network_again(
    bare: Lab, invoke: CommandLine
) -> None:
    cable(bare, 1500)
    with invoke.begin(*NETWORK) as started:
        started.says("check the fabric")
        assert bare.output(B, f"ls {GUARD}/pending.json {OURS}")
        lifecycle.kill(bare.cluster, B, bare.said.append)
        lifecycle.boot(bare.cluster, B, bare.said.append)
        done = started.ended(120)
    assert done.code in (20, 26, 39), str(done)
    assert untouched(bare, B)
    assert "it is taken back" in bare.as_root(B, "journalctl --boot --unit=fabric-guard.service --output=cat")
    assert eventually(lambda: untouched(bare, A), 30)


@pytest.mark.long
def test_a_machine_with_netplan_gets_its_file_and_has_the_old_state_after_a_power_loss(
    with_netplan: Lab, invoke: CommandLine
) -> None:
    lab = with_netplan
    invoke.works(*NETWORK)
    assert lab.output(B, f"stat -c %a {OURS_OF_NETPLAN}") == "600"
    assert (address(lab, B), mtu(lab, B)) == ([(str(lab.cluster.node(B).fabric), 24)], 9000)
    assert "Address=" in lab.as_root(B, "cat /run/systemd/network/10-netplan-fab0.network")
    assert invoke.works("network").out == "nothing to do\n"
    invoke.works("network", "--revert", "--yes")
    assert (address(lab, B), untouched(lab, B)) == ([], True)
    cable(lab, 1500)
    with invoke.begin(*NETWORK) as started:
        started.says("check the fabric")
        lifecycle.kill(lab.cluster, B, lab.said.append)
        lifecycle.boot(lab.cluster, B, lab.said.append)
        started.ended(120)
    assert untouched(lab, B)
    assert lab.output(B, "ls /run/systemd/network") == ""


@pytest.mark.long
def test_a_management_network_that_is_cut_after_the_change_comes_back_with_the_old_files(
    bare: Lab, invoke: CommandLine
) -> None:
    cable(bare, 1500)
    with invoke.begin(*NETWORK, SHORT) as started:
        started.says("check the fabric")
        lifecycle.cut(bare.cluster, B, bare.said.append, "management")
        done = started.ended(120)
    assert done.code in (20, 26, 39), str(done)
    assert eventually(lambda: untouched(bare, A), 30)
    lifecycle.heal(bare.cluster, B, bare.said.append, "management")
    assert eventually(lambda: untouched(bare, B), 30)


def test_a_change_that_takes_the_management_network_down_is_taken_back_in_time(bare: Lab) -> None:
    change = {
        "id": "broken",
        "how": "networkd",
        "files": {OURS: {"content": TAKES_MANAGEMENT_DOWN, "mode": 0o644}},
        "links": {"host0": {"mtu": 1500, "addresses": [], "up": False}},
        "source": "",
        "others": {},
        "mtu": 0,
        "by_hand": False,
        "final": False,
        "deadline": 10,
    }
    bare.as_root(A, f"install -d {GUARD}")
    put(bare, A, f"{GUARD}/guard.py", (ROOT / "deploy" / "network" / "guard.py").read_text(encoding="utf-8"))
    put(bare, A, f"{GUARD}/change.json", json.dumps(change))
    bare.as_root(A, f"python3 -I {GUARD}/guard.py arm")
    began = time.monotonic()
    bare.as_root(A, f"systemd-run --quiet --on-active=1 python3 -I {GUARD}/guard.py apply")
    assert eventually(lambda: not reachable(bare, A), 15), "the change did not take the management network down"
    assert eventually(lambda: reachable(bare, A), 30), "it never came back"
    assert 8 < time.monotonic() - began < 20
    assert eventually(lambda: untouched(bare, A), 10)
