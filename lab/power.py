"""One machine's power switch: start its supervisor, wait until it answers, stop it in order or at once."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from core.config import ROOT
from core.errors import LabError
from core.process import Completed, run
from lab import cgroup, disk, host, network
from lab.place import Place, identity

START_SECONDS = 60
BOOT_SECONDS = 90
STOP_SECONDS = 30


def start(place: Place) -> None:
    """Start the supervisor; what an earlier one left behind is cleared first."""
    _sweep(place)
    disk.wait_free(place)
    run(start_command(place, systemd=host.runs_systemd()), cwd=ROOT)
    _wait(lambda: place.running() is not None or not _supervised(place), START_SECONDS)
    if not place.alive:
        raise LabError(
            "its supervisor did not start", next_move=f"read {place.log}", node=place.node.name, evidence=_log(place)
        )


def _supervised(place: Place) -> bool:
    """Say whether there is a supervisor, also while it still starts: a unit does so on its own time."""
    if not host.runs_systemd():
        return place.alive
    return run(["systemctl", "is-active", "--quiet", place.unit], check=False).code == 0


def start_command(place: Place, *, systemd: bool) -> list[str]:
    """Return the command that starts the supervisor: as a unit where systemd runs, else as a detached process."""
    supervisor = [
        *("unshare", "--mount", "--propagation", "private", sys.executable, "-m", "lab.supervisor"),
        *(str(place.cluster.state / "cluster.json"), place.node.name),
    ]
    if not systemd:
        return [*supervisor, "--detach"]
    # the memory limit is on a group inside the unit: the supervisor's own memory is not the machine's
    properties = {
        "Delegate": "yes",
        "KillMode": "mixed",
        "TasksMax": "infinity",
        "TimeoutStopSec": str(STOP_SECONDS),
        "StandardOutput": f"append:{place.log}",
        "StandardError": f"append:{place.log}",
    }
    flags = [word for key, value in properties.items() for word in ("-p", f"{key}={value}")]
    unit = ["systemd-run", "--quiet", "--collect", f"--unit={place.unit}", f"--working-directory={ROOT}"]
    return [*unit, *flags, *supervisor]


def wait_ready(place: Place, report: Callable[[str], None]) -> None:
    """Wait until the machine answers over SSH and has finished booting."""
    started = time.monotonic()
    while True:
        answer = ssh(place, "systemctl", "is-system-running", "--wait")
        if answer.out.strip() in ("running", "degraded"):
            break
        if not place.alive or time.monotonic() - started > BOOT_SECONDS:
            raise _not_ready(place, answer)
        time.sleep(0.2)
    if answer.out.strip() == "degraded":
        _judge_failed_units(place, report)
    report(f"{place.node.name}: answers at {place.node.management} ({time.monotonic() - started:.0f} s)")


def stop(place: Place, report: Callable[[str], None]) -> None:
    """Power the machine off in order; when it does not end in time, kill it."""
    found = place.running()
    if place.alive and found:
        _signal(found["supervisor"], signal.SIGTERM)
        if not _wait(lambda: not place.alive, STOP_SECONDS):
            report(f"{place.node.name}: did not power off within {STOP_SECONDS} s, killing it")
    kill(place)


def kill(place: Place) -> None:
    """Kill supervisor and machine at once; return when disk and links are free again."""
    if place.alive:
        _wait(lambda: place.running() is not None, START_SECONDS)
    found = place.running()
    if place.alive and found:
        _signal(found["supervisor"], signal.SIGKILL)
    _sweep(place)
    disk.wait_free(place)
    network.clear(place)


def orphaned(place: Place) -> bool:
    """Say whether processes of the machine live on without their supervisor."""
    found = place.running()
    return bool(not place.alive and found and cgroup.processes(Path(group) for group in found["groups"]))


def ssh(place: Place, *command: str, timeout: float = 60) -> Completed:
    """Run a command in the machine over SSH, as the cluster's user; the exit code is not checked."""
    options = {
        "BatchMode": "yes",
        "ConnectTimeout": "3",
        "IdentitiesOnly": "yes",
        "StrictHostKeyChecking": "yes",
        "UserKnownHostsFile": f'"{place.cluster.known_hosts}"',
        "GlobalKnownHostsFile": "/dev/null",
    }
    flags = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    where = ["-p", str(place.node.ssh_port), "-l", place.cluster.user, str(place.node.management)]
    return run(
        ["ssh", "-F", "none", "-i", str(identity(place.cluster)), *flags, *where, *command],
        check=False,
        timeout=timeout,
    )


def _judge_failed_units(place: Place, report: Callable[[str], None]) -> None:
    """Refuse a machine without its firewall; only name other units that failed in it."""
    lines = ssh(place, "systemctl", "list-units", "--failed", "--plain", "--no-legend", "--no-pager").out.splitlines()
    failed = [line.split()[0] for line in lines if line.strip()]
    if "nftables.service" in failed:
        why = "read `journalctl -u nftables` in it; does this host's kernel have nf_tables?"
        raise LabError("the machine came up without its firewall", next_move=why, node=place.node.name)
    if failed:
        report(f"{place.node.name}: some units failed in it: {', '.join(failed)}")


def _not_ready(place: Place, answer: Completed) -> LabError:
    what = "does not answer over SSH" if place.alive else "ended while booting"
    return LabError(
        f"the machine {what}",
        next_move=f"read {place.console} and {place.log}",
        node=place.node.name,
        evidence=f"{_log(place)}\n{answer.tail(5)}",
    )


def _log(place: Place) -> str:
    lines = place.log.read_text(encoding="utf-8").splitlines() if place.log.exists() else []
    return "\n".join(lines[-8:])


def _sweep(place: Place) -> None:
    """Kill what a supervisor left running, and forget it."""
    found = place.running()
    if found:
        groups = [Path(group) for group in found["groups"]]
        cgroup.kill(groups)
        cgroup.remove(groups)
    place.write_running(None)


def _signal(process: int, number: signal.Signals) -> None:
    try:
        os.kill(process, number)
    except ProcessLookupError:
        return


def _wait(done: Callable[[], bool], seconds: float) -> bool:
    """Return True as soon as ``done`` says so, False when it has not within ``seconds``."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
