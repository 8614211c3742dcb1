"""What can be done with the local machines of a cluster: up, down, purge, look, and the accidents that tests need.

`up` makes whatever is missing and repairs what is half there; when nothing is missing it does nothing. `down` leaves
only the machines' disks and keys, and the routes that keep test traffic on this host. Both can be run again at any
time.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from core.config import ROOT, Address, Cluster, Lab
from core.errors import LabError, LockHeld
from core.process import Completed, run
from lab import base as roots
from lab import cgroup, disk, host, machine, network
from lab.place import Kind, Place, hold, identity, inside, networks, places

Report = Callable[[str], None]

BOOT_SECONDS = 90
STOP_SECONDS = 30


@dataclass(frozen=True)
class MachineStatus:
    """How a machine is; sizes in bytes."""

    name: str
    running: bool
    """Its supervisor lives: it runs, boots or reboots."""
    management: Address
    fabric: Address
    management_link: bool
    fabric_link: bool
    pid: int | None
    """Process of the supervisor."""
    disk_used: int
    """What the disk takes on this host."""
    memory_limit: int
    since: datetime | None
    """When it was switched on or last rebooted."""


def up(cluster: Cluster, report: Report) -> None:
    """Make the machines run and answer over SSH; return when all do.

    Raises LabError with the node and its log when one does not, LockHeld when another command works on this lab.
    """
    lab = _lab(cluster)
    host.require()
    base = roots.ensure(report)
    with _locked(cluster):
        _write_keys(cluster)
        _note_changes(cluster, report)
        for place in places(cluster):
            disk.ensure(place, lab.disk, base, report)
        if network.up(cluster):
            report(f"networks {', '.join(str(getattr(cluster, kind).subnet) for kind in networks(cluster))} are there")
        _each(places(cluster), lambda place: _make_run(place, report))


def down(cluster: Cluster, report: Report) -> None:
    """Power the machines off and remove everything but their disks, keys and logs; the subnets stay unreachable."""
    _lab(cluster)
    _require_root()
    with _locked(cluster):
        _down(cluster, report)


def purge(cluster: Cluster, report: Report, *, base: bool = False) -> list[str]:
    """Remove the lab as if it had never been, its unreachable routes too; with ``base`` the shared root as well.

    Returns what was removed, in words.
    """
    _lab(cluster)
    _require_root()
    with _locked(cluster):
        removed = _down(cluster, report)
        removed += [f"disk of {place.node.name}" for place in places(cluster) if place.disk.exists()]
        removed += network.unfence(cluster)
        shutil.rmtree(cluster.state)
    removed.append(f"state {cluster.state.relative_to(ROOT)}")
    return removed + (roots.remove() if base else [])


def status(cluster: Cluster) -> tuple[MachineStatus, ...]:
    """Look at every machine; nothing is changed."""
    lab = _lab(cluster)
    return tuple(_status(place, lab) for place in places(cluster))


def cut(cluster: Cluster, node_name: str, report: Report, network_name: Kind = "fabric") -> None:
    """Pull a machine's cable; it stays pulled over reboots, until `heal` or `up`."""
    place = _place(cluster, node_name)
    network.cut(place, _known(cluster, network_name))
    report(f"{node_name}: {network_name} is cut")


def heal(cluster: Cluster, node_name: str, report: Report, network_name: Kind = "fabric") -> None:
    """Put a machine's cable back."""
    place = _place(cluster, node_name)
    network.heal(place, _known(cluster, network_name))
    report(f"{node_name}: {network_name} is connected")


def kill(cluster: Cluster, node_name: str, report: Report) -> None:
    """Power loss: every process of the machine is killed at once; it stays off until `boot` or `up`."""
    place = _place(cluster, node_name)
    _kill(place)
    report(f"{node_name}: killed")


def boot(cluster: Cluster, node_name: str, report: Report) -> None:
    """Switch a machine on and wait until it answers; cut links stay cut."""
    place = _place(cluster, node_name)
    host.require()
    disk.base_of(place)
    with _locked(cluster):
        if not place.alive:
            _start(place, report)
        _wait_ready(place, report)


def ssh(place: Place, *command: str, timeout: float = 60) -> Completed:
    """Run a command in the machine over SSH, as the cluster's user; the exit code is not checked."""
    cluster, node = place.cluster, place.node
    options = {
        "BatchMode": "yes",
        "ConnectTimeout": "3",
        "IdentitiesOnly": "yes",
        "IdentityFile": str(identity(cluster)),
        "StrictHostKeyChecking": "yes",
        "UserKnownHostsFile": str(cluster.known_hosts),
        "GlobalKnownHostsFile": "/dev/null",
    }
    flags = [word for key, value in options.items() for word in ("-o", f'{key}="{value}"')]
    destination = ["-p", str(node.ssh_port), "-l", cluster.user, str(node.management)]
    return run(["ssh", "-F", "none", *flags, *destination, *command], check=False, timeout=timeout)


def known_host(node_address: Address, port: int, public_key: str) -> str:
    """Return the known_hosts line of a machine: `address key`, or `[address]:port key` for another port than 22."""
    kind, key = public_key.split()[:2]
    where = str(node_address) if port == 22 else f"[{node_address}]:{port}"
    return f"{where} {kind} {key}\n"


def _lab(cluster: Cluster) -> Lab:
    if cluster.lab is None:
        raise LabError(
            f"cluster {cluster.name} is of real machines", next_move="use a cluster with a [lab] table, as `local`"
        )
    if cluster.user == "root":
        raise LabError(
            "root cannot log into local machines", next_move=f'set another user in the file of "{cluster.name}"'
        )
    return cluster.lab


def _require_root() -> None:
    if os.geteuid() != 0:
        raise LabError("local machines need root", next_move="run as root or with sudo")


def _place(cluster: Cluster, node_name: str) -> Place:
    _lab(cluster)
    _require_root()
    return Place(cluster, cluster.node(node_name))


def _known(cluster: Cluster, kind: Kind) -> Kind:
    if kind not in networks(cluster):
        raise LabError(
            f"cluster {cluster.name} has no network {kind!r}", next_move=f"use one of {', '.join(networks(cluster))}"
        )
    return kind


@contextmanager
def _locked(cluster: Cluster) -> Iterator[None]:
    cluster.state.mkdir(parents=True, exist_ok=True)
    with hold(cluster.state / "lab.lock") as ours:
        if not ours:
            raise LockHeld(f"another command works on the machines of {cluster.name}", next_move="wait for it to end")
        yield


def _each(all_places: tuple[Place, ...], work: Callable[[Place], object]) -> None:
    """Do the work on all machines at once; when several fail, the first one's error is raised after all have ended."""
    with ThreadPoolExecutor(max_workers=len(all_places)) as pool:
        futures = [pool.submit(work, place) for place in all_places]
    for future in futures:
        future.result()


# --- state files -----------------------------------------------------------------------------------------------------


def _write_keys(cluster: Cluster) -> None:
    """Make what is missing of: SSH key, machines' host keys and known_hosts, sudo password and askpass."""
    _key(identity(cluster), f"sparkstack lab {cluster.name}")
    lines = []
    for place in places(cluster):
        place.folder.mkdir(parents=True, exist_ok=True)
        _key(place.host_key, place.node.name)
        public = Path(f"{place.host_key}.pub").read_text(encoding="utf-8")
        lines.append(known_host(place.node.management, place.node.ssh_port, public))
    _write(cluster.known_hosts, "".join(lines), 0o644)
    if any(machine.asks_password(cluster, node) for node in cluster.nodes):
        _write_password(cluster)


def _key(path: Path, comment: str) -> None:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)])


def _write_password(cluster: Cluster) -> None:
    if cluster.askpass is None:
        raise LabError(
            "lab.password_sudo needs askpass, the program that prints the password",
            next_move=f'set askpass = ".work/clusters/{cluster.name}/askpass"',
        )
    file = machine.password_file(cluster)
    if not file.exists():
        _write(file, f"{secrets.token_urlsafe(18)}\n", 0o600)
    _write(inside(cluster, cluster.askpass), f'#!/bin/sh\nexec cat "$(dirname "$0")/{file.name}"\n', 0o700)


def _write(path: Path, text: str, mode: int) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.unlink(missing_ok=True)
    partial.touch(mode=mode)
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _note_changes(cluster: Cluster, report: Report) -> None:
    """Hand the cluster to the supervisors; say so when machines still run with an earlier configuration."""
    path = cluster.state / "cluster.json"
    text = cluster.model_dump_json(indent=2)
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    if path.exists() and any(place.alive for place in places(cluster)):
        report("the configuration has changed: machines that run take it up at their next start (lab.down, lab.up)")
    _write(path, text, 0o644)


# --- one machine -----------------------------------------------------------------------------------------------------


def _make_run(place: Place, report: Report) -> None:
    if place.alive:
        healed = [kind for kind in networks(place.cluster) if network.heal(place, kind)]
        report(f"{place.node.name}: runs already{''.join(f', {kind} healed' for kind in healed)}")
    else:
        for kind in networks(place.cluster):
            place.cut(kind).unlink(missing_ok=True)
        _start(place, report)
    _wait_ready(place, report)


def _start(place: Place, report: Report) -> None:
    """Start the supervisor; what an earlier one left behind is cleared first."""
    _sweep(place)
    disk.wait_free(place)
    report(f"{place.node.name}: booting")
    run(_start_command(place, systemd=host.runs_systemd()), cwd=ROOT)


def _start_command(place: Place, *, systemd: bool) -> list[str]:
    """Return the command that starts the supervisor: as a unit where systemd runs, else as a detached process."""
    supervisor = [
        *("unshare", "--mount", "--propagation", "private", sys.executable, "-m", "lab.supervisor"),
        *(str(place.cluster.state / "cluster.json"), place.node.name),
    ]
    if not systemd:
        return [*supervisor, "--detach"]
    # the limit is on a group inside the unit, so that the supervisor's own memory is not the machine's
    properties = {
        "Delegate": "yes",
        "KillMode": "mixed",
        "TimeoutStopSec": str(STOP_SECONDS),
        "StandardOutput": f"append:{place.log}",
        "StandardError": f"append:{place.log}",
    }
    flags = [word for key, value in properties.items() for word in ("-p", f"{key}={value}")]
    return [
        "systemd-run",
        "--quiet",
        "--collect",
        f"--unit={place.unit}",
        f"--working-directory={ROOT}",
        *flags,
        *supervisor,
    ]


def _wait_ready(place: Place, report: Report) -> None:
    """Wait until the machine answers over SSH and has finished booting."""
    started = time.monotonic()
    while True:
        answer = ssh(place, "systemctl is-system-running --wait")
        if answer.out.strip() in ("running", "degraded"):
            break
        if not place.alive or time.monotonic() - started > BOOT_SECONDS:
            raise _not_ready(place, answer)
        time.sleep(0.2)
    if answer.out.strip() == "degraded":
        _judge_failed_units(place, report)
    report(f"{place.node.name}: answers at {place.node.management} ({time.monotonic() - started:.0f} s)")


def _judge_failed_units(place: Place, report: Report) -> None:
    """Refuse a machine without its firewall; only name other units that failed in it."""
    lines = ssh(place, "systemctl list-units --failed --plain --no-legend --no-pager").out.splitlines()
    failed = [line.split()[0] for line in lines if line.strip()]
    if "nftables.service" in failed:
        why = "read `journalctl -u nftables` in it; does this host's kernel have nf_tables?"
        raise LabError("the machine came up without its firewall", next_move=why, node=place.node.name)
    if failed:
        report(f"{place.node.name}: some units failed in it: {', '.join(failed)}")


def _not_ready(place: Place, answer: Completed) -> LabError:
    log = place.log.read_text(encoding="utf-8").splitlines()[-8:] if place.log.exists() else []
    what = "does not answer over SSH" if place.alive else "ended while booting"
    return LabError(
        f"the machine {what}",
        next_move=f"read {place.console} and {place.log}",
        node=place.node.name,
        evidence="\n".join([*log, answer.tail(5)]),
    )


def _down(cluster: Cluster, report: Report) -> list[str]:
    removed: list[str] = []
    for place in places(cluster):
        if place.alive or _orphans(place):
            removed.append(f"machine {place.node.name}")
    _each(places(cluster), lambda place: _stop(place, report))
    removed += network.down(cluster)
    for what in removed:
        report(f"removed: {what}")
    return removed


def _stop(place: Place, report: Report) -> None:
    """Power the machine off in order; when it does not end in time, kill it."""
    found = place.running()
    if place.alive and found:
        _signal(found["supervisor"], signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while place.alive and time.monotonic() < deadline:
            time.sleep(0.1)
        if place.alive:
            report(f"{place.node.name}: did not power off within {STOP_SECONDS} s, killing it")
    _kill(place)
    for kind in networks(place.cluster):
        place.cut(kind).unlink(missing_ok=True)


def _kill(place: Place) -> None:
    found = place.running()
    if place.alive and found:
        _signal(found["supervisor"], signal.SIGKILL)
    _sweep(place)
    disk.wait_free(place)
    network.clear(place)


def _sweep(place: Place) -> None:
    """Kill what an earlier supervisor left running, and forget it."""
    found = place.running()
    if found:
        groups = [Path(group) for group in found["groups"]]
        cgroup.kill(groups)
        cgroup.remove(groups)
    place.write_running(None)


def _orphans(place: Place) -> bool:
    found = place.running()
    return bool(found and cgroup.processes(Path(group) for group in found["groups"]))


def _signal(process: int, number: signal.Signals) -> None:
    try:
        os.kill(process, number)
    except ProcessLookupError:
        return


def _status(place: Place, lab: Lab) -> MachineStatus:
    found = place.running() if place.alive else None
    return MachineStatus(
        name=place.node.name,
        running=place.alive,
        management=place.node.management,
        fabric=place.node.fabric,
        management_link=network.linked(place, "management"),
        fabric_link="fabric" in networks(place.cluster) and network.linked(place, "fabric"),
        pid=found["supervisor"] if found else None,
        disk_used=disk.used(place),
        memory_limit=lab.memory,
        since=datetime.fromisoformat(found["since"]) if found else None,
    )


__all__ = ["MachineStatus", "boot", "cut", "down", "heal", "kill", "purge", "ssh", "status", "up"]
