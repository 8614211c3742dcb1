"""The doctor on two machines: well, and with one fault each."""

from __future__ import annotations

import json
import os
import re
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from core.config import ROOT
from core.errors import UnfitNode, UsageError
from core.remote import Hosts
from lab import lifecycle
from tests.machines.checkout import Checkout
from tests.machines.command_line import CommandLine, Ended, assert_refused
from tests.machines.harness import Lab, eventually

pytestmark = pytest.mark.machines

A, B = "test-a", "test-b"


@pytest.fixture(autouse=True, scope="module")
def nothing_serves(lab_session: Lab) -> None:
    lab_session.up()
    CommandLine(ROOT, lab_session.cluster.flag).works("stop")


def asked(invoke: CommandLine) -> tuple[Ended, dict[str, Any]]:
    done = invoke("doctor", "--json")
    data: dict[str, Any] = json.loads(done.out)
    return done, data


def problems(data: dict[str, Any]) -> set[tuple[str, str]]:
    return {(one["check"], one["node"]) for one in data["findings"] if one["severity"] == "problem"}


def test_machines_that_are_well_can_serve(invoke: CommandLine) -> None:
    runs = [asked(invoke) for _ in range(3)]
    done, data = runs[-1]
    assert data["serves"], str(done)
    assert problems(data) == set()
    assert statistics.median(run.seconds for run, _ in runs) < 6, [run.seconds for run, _ in runs]


def test_a_doctor_changes_nothing(lab: Lab, invoke: CommandLine) -> None:
    for name in (A, B):
        lab.output(name, "touch /tmp/mark")
    invoke("doctor")
    for name in (A, B):
        assert lab.output(name, "find /opt /etc /home -newer /tmp/mark 2>/dev/null; rm /tmp/mark") == ""


def test_a_cable_that_is_out_is_found_on_both_ends(lab: Lab, invoke: CommandLine) -> None:
    lifecycle.cut(lab.cluster, A, lab.said.append)
    try:
        done, data = asked(invoke)
    finally:
        lifecycle.heal(lab.cluster, A, lab.said.append)
    assert done.code == UnfitNode.exit_code
    assert ("reachability", B) in problems(data)
    assert ("fabric address", A) in problems(data)
    assert eventually(lambda: problems(asked(invoke)[1]) == set(), 15)


def test_ends_of_different_mtu_are_found(lab: Lab, invoke: CommandLine) -> None:
    lab.as_root(B, "ip link set fab0 mtu 1400")
    try:
        found = problems(asked(invoke)[1])
    finally:
        lab.as_root(B, "ip link set fab0 mtu 1500")
    assert found == {("MTU", B)}


@contextmanager
def running(lab: Lab, name: str, command: str) -> Iterator[None]:
    """Run something on a machine beside the test; it is ended by its own number."""
    pid = lab.output(name, f"nohup {command} >/dev/null 2>&1 & echo $!")
    try:
        yield
    finally:
        lab.output(name, f"kill {pid}")


def test_a_port_of_ray_that_is_taken_is_found(lab: Lab, invoke: CommandLine) -> None:
    with running(lab, B, "python3 -m http.server 6379"):
        assert eventually(lambda: problems(asked(invoke)[1]) == {("ports", B)}, 10)


def test_a_ray_that_is_not_ours_is_named_and_left_alone(lab: Lab, invoke: CommandLine) -> None:
    with running(lab, B, "python3 -c 'import time; time.sleep(600)' /x/raylet"):
        _, data = asked(invoke)
        (found,) = [one for one in data["findings"] if one["check"] == "other Ray or vLLM"]
        assert f"of user {lab.cluster.user} looks like Ray or vLLM" in found["finding"]
        assert lab.output(B, "pgrep -c -f /x/[r]aylet") == "1"


LEFT = "/opt/left-behind"
"""A root of its own, so that nothing else of ours is in the way."""
FAKETIME = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))


@pytest.fixture
def elsewhere(lab: Lab, checkout: Checkout) -> Iterator[CommandLine]:
    """The same machines with another folder for releases, in which a program of ours lies."""
    for name in (A, B):
        lab.as_root(name, f"install -d -o {lab.cluster.user} {LEFT} && install /usr/bin/python3 {LEFT}/raylet")
    yield checkout.variant("elsewhere", ('user = "', f'root = "{LEFT}"\nuser = "'))
    for name in (A, B):
        lab.as_root(name, f"rm -r {LEFT}")


def started(lab: Lab, name: str, command: str) -> str:
    """Start something that outlives whoever started it; return its number."""
    return lab.output(name, f"nohup {command} >/dev/null 2>&1 & echo $!")


def lives(lab: Lab, name: str, pid: str) -> bool:
    return lab.ssh(name, f"kill -0 {pid}").code == 0


def test_what_is_left_of_ours_is_ended_and_what_is_of_somebody_else_is_named(lab: Lab, elsewhere: CommandLine) -> None:
    ours = started(lab, B, f"{LEFT}/raylet -m http.server 6379")
    with running(lab, B, "python3 -m http.server 6380"):
        assert eventually(lambda: {one for one, _ in problems(asked(elsewhere)[1])} == {"left behind", "ports"}, 10)
        assert_refused(elsewhere("doctor", "--fix"), UsageError.exit_code, "no terminal to ask on")
        plan = elsewhere.works("doctor", "--fix", "--dry-run").out
        assert f"end process {ours}" in plan
        assert "holds port 6379" in plan
        assert lives(lab, B, ours)
        done = elsewhere("doctor", "--fix", "--yes")
        assert not lives(lab, B, ours)
        assert done.code == UnfitNode.exit_code, str(done)
        assert f"python3 of user {lab.cluster.user}, in session-" in done.out
        assert "listens at port 6380" in done.out
        assert "left behind" not in done.out
        assert lab.output(B, "pgrep -c -f http.server.6380") == "1"
    assert elsewhere.works("doctor", "--fix", "--dry-run").out == "nothing to do\n"


def test_a_process_of_ours_in_somebodys_hand_is_named_and_left_alone(lab: Lab, elsewhere: CommandLine) -> None:
    shell = started(lab, B, f"sh -c '{LEFT}/raylet -m http.server 6379; true'")
    try:
        assert eventually(lambda: ("ports", B) in problems(asked(elsewhere)[1]), 10)
        said = elsewhere("doctor", "--fix", "--yes")
        assert "was started by hand, by process" in said.out, str(said)
        assert lives(lab, B, shell)
    finally:
        lab.output(B, f"pkill -P {shell}")


CONTROL = """Package: sparkstack-tiny
Version: 1
Architecture: all
Maintainer: nobody <nobody@example.org>
Description: nothing
"""
REPOSITORY = """
mkdir -p /tmp/tiny/DEBIAN && cp "$1" /tmp/tiny/DEBIAN/control && cd /srv/tiny
dpkg-deb --build --root-owner-group /tmp/tiny tiny.deb
sum=$(sha256sum tiny.deb | cut -c1-64)
{ cat "$1"; echo "Filename: ./tiny.deb"; echo "Size: $(stat -c %s tiny.deb)"; echo "SHA256: $sum"; } > Packages
"""
SOURCES = PurePosixPath("/etc/apt/sources.list")


@contextmanager
def local_packages(lab: Lab) -> Iterator[None]:
    """Let apt on the machines know a folder of their own only: they have no way out."""
    with Hosts(lab.cluster) as hosts:
        kept = {host.name: host.run(("cat", str(SOURCES))).out for host in hosts}
        for host in hosts:
            host.run(("install", "-D", "/dev/null", "/srv/tiny/Packages"), privileged=True)
            host.write(SOURCES, "deb [trusted=yes] file:/srv/tiny ./\n", privileged=True)
        try:
            yield
        finally:
            for host in hosts:
                host.run(("dpkg", "--purge", "sparkstack-tiny"), privileged=True, check=False)
                host.write(SOURCES, kept[host.name], privileged=True)
                host.run(("rm", "-r", "/srv/tiny", "/tmp/tiny", "/tmp/control"), privileged=True)


def offer_tiny(lab: Lab) -> None:
    """Make a package on the machines, and the list that apt reads."""
    with Hosts(lab.cluster) as hosts:
        for host in hosts:
            host.write(PurePosixPath("/tmp/control"), CONTROL)
            host.run(("sh", "-ec", REPOSITORY, "sh", "/tmp/control"), privileged=True)


def test_a_missing_debian_package_is_installed_or_apt_s_refusal_shown(lab: Lab, checkout: Checkout) -> None:
    stack = checkout.folder / "config" / "stacks" / "cpu.toml"
    kept = stack.read_text()
    stack.write_text(kept.replace('packages = ["', 'packages = ["sparkstack-tiny", "', 1))
    variant = checkout.variant("packages")
    try:
        with local_packages(lab):
            refused = variant("doctor", "--fix", "--yes")
            assert_refused(refused, UnfitNode.exit_code, "E: Unable to locate package sparkstack-tiny", "sources.list")
            offer_tiny(lab)
            plan = variant.works("doctor", "--fix", "--dry-run").out
            assert "--no-remove sparkstack-tiny" in plan
            assert "env DEBIAN_FRONTEND=noninteractive" in plan
            variant("doctor", "--fix", "--yes")
            for name in (A, B):
                assert "install ok installed" in lab.output(name, "dpkg -s sparkstack-tiny")
            assert variant.works("doctor", "--fix", "--dry-run").out == "nothing to do\n"
    finally:
        stack.write_text(kept)


def measured(invoke: CommandLine) -> tuple[Ended, dict[str, Any]]:
    done = invoke("doctor", "--link", "--json")
    data: dict[str, Any] = json.loads(done.out)
    return done, data


def test_the_link_is_measured_in_both_directions_in_seconds(lab: Lab, invoke: CommandLine) -> None:
    done, data = measured(invoke)
    assert [(one["sender"], one["receiver"]) for one in data["links"]] == [(A, B), (B, A)]
    for one in data["links"]:
        assert one["large"] > 500, one
        assert 0 < one["small"] < 5000, one
        assert (one["largest"], one["error"]) == (1500, "")
    assert done.seconds < 15
    for name in (A, B):
        assert lab.output(name, "ls /tmp | grep -c sparkstack; pgrep -c -f [l]inkend; true").split() == ["0", "0"]


def test_packets_that_vanish_and_a_slow_link_are_measured(lab: Lab, invoke: CommandLine) -> None:
    lab.as_root(
        B, "ip link set fab0 mtu 1400 && /sbin/tc qdisc add dev fab0 root tbf rate 100mbit burst 64kb latency 20ms"
    )
    try:
        _, data = measured(invoke)
    finally:
        lab.as_root(B, "/sbin/tc qdisc del dev fab0 root; ip link set fab0 mtu 1500")
    found = {(one["check"], one["node"]): one["finding"] for one in data["findings"]}
    passed = re.match(rf"packets to {B} pass up to (\d+) bytes, the MTU of fab0 is 1500", found["measured packets", A])
    assert passed is not None
    assert 1400 <= int(passed[1]) <= 1404, "a veth takes a VLAN's tag more than its MTU"
    assert "0.09 Gb/s were measured, 10 Gb/s are expected" in found["measured rate", B].replace("0.10", "0.09")
    assert ("MTU", B) in problems(data)


def test_a_closed_way_over_the_fabric_is_named(lab: Lab, invoke: CommandLine) -> None:
    lab.as_root(
        B,
        'nft add table inet closed && nft add chain inet closed in "{ type filter hook input priority 0; }" '
        "&& nft add rule inet closed in iifname fab0 tcp flags syn drop",
    )
    try:
        done, data = measured(invoke)
    finally:
        lab.as_root(B, "nft delete table inet closed")
    assert ("measured way", A) in problems(data)
    assert done.seconds < 20


def test_the_page_of_the_nodes_that_answer_names_the_one_that_does_not(lab: Lab, invoke: CommandLine) -> None:
    lifecycle.kill(lab.cluster, A, lab.said.append)
    done, data = asked(invoke)
    lab.up()
    assert done.code == UnfitNode.exit_code, str(done)
    assert ("answers", A) in problems(data)
    assert list(data["memory"]) == [B]
    assert data["silent"] == [A]


WRAPPER = """#!/bin/sh
exec env LD_PRELOAD=/tmp/libfaketime.so.1 FAKETIME=+1h /usr/bin/python3 "$@"
"""


@pytest.mark.skipif(not FAKETIME and os.environ.get("CI") != "true", reason="no libfaketime on this host")
def test_a_clock_that_is_wrong_is_found(lab: Lab, invoke: CommandLine) -> None:
    """Only the probe lives in another time: another python3 is found before the real one."""
    python = PurePosixPath("/usr/local/bin/python3")
    with Hosts(lab.cluster) as hosts:
        hosts[B].push(FAKETIME[:1], PurePosixPath("/tmp"), lambda _: None)
        hosts[B].write(python, WRAPPER, mode=0o755, privileged=True)
        try:
            _, data = asked(invoke)
        finally:
            hosts[B].run(("rm", str(python), "/tmp/libfaketime.so.1"), privileged=True)
    (found,) = [one for one in data["findings"] if one["check"] == "clocks"]
    assert found["node"] == B
    assert found["finding"] in {f"its clock is {seconds} s ahead" for seconds in range(3597, 3604)}


def test_shared_memory_that_logind_would_remove_is_found(lab: Lab, invoke: CommandLine) -> None:
    def warned() -> set[str]:
        return {one["node"] for one in asked(invoke)[1]["findings"] if one["check"] == "shared memory"}

    user = lab.cluster.user
    for name in (A, B):
        lab.as_root(name, f"loginctl disable-linger {user}")
    assert warned() == {A, B}
    lab.as_root(B, f"loginctl enable-linger {user}")
    assert warned() == {A}
    assert f"let {user} linger" in invoke.works("doctor", "--fix", "--dry-run").out
    invoke("doctor", "--fix", "--yes")
    assert warned() == set()
