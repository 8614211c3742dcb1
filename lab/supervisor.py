"""The process that runs one machine: mounts its disk, boots it, boots it again when it reboots, ends with it.

`python -m lab.supervisor CLUSTER.json NODE [--detach]`, started by lab.lifecycle in a mount namespace of its own.
What ends the machine: power-off inside or SIGTERM to this process (both orderly), SIGKILL to everything (power loss).
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import TextIO

from core.config import Cluster
from core.errors import LabError
from core.process import follow, run
from lab import cgroup, disk, machine, network
from lab.place import Place, hold, networks

REBOOT = 133
"""Exit code of `systemd-nspawn --keep-unit` when the machine reboots (EXIT_FORCE_RESTART)."""
ENTER = """\
echo $$ >"$1"; shift
while [ "$1" != -- ]; do echo $$ >"$1/cgroup.procs" || exit 1; shift; done
shift; exec "$@"
"""
"""Writes its process id down, enters the control groups named by its arguments, becomes the command after `--`."""


def boot_command(place: Place, root: Path, groups: Sequence[Path]) -> tuple[str, ...]:
    """Return the command that boots the machine inside its control groups."""
    links = (f"--network-veth-extra={place.link(kind)}:{machine.INTERFACES[kind]}" for kind in networks(place.cluster))
    return (
        *("sh", "-c", ENTER, "enter", str(place.pid), *(str(group) for group in groups), "--"),
        *("systemd-nspawn", "--quiet", f"--directory={root}", "--boot", "--register=no", "--keep-unit"),
        *(f"--machine={place.mark}", f"--hostname={place.node.name}", "--settings=no", "--link-journal=no"),
        *("--resolv-conf=off", "--timezone=off", "--console=read-only", *links),
    )


class Supervisor:
    """One machine's life from power-on to power-off."""

    def __init__(self, place: Place, limit: int, *, delegated: bool) -> None:
        self.place = place
        self.limit = limit
        self.delegated = delegated
        self.stopping = False

    def live(self) -> None:
        """Run the machine until it is powered off."""
        signal.signal(signal.SIGTERM, self._stop)
        if " /run tmpfs " not in Path("/proc/self/mounts").read_text(encoding="utf-8"):
            run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"])  # nspawn refuses a /run that is on disk
        groups = self._groups()
        root = disk.mount(self.place)
        while not self.stopping:
            code = self._boot(root, groups)
            if code not in (0, REBOOT):
                raise LabError(f"systemd-nspawn ended with {code}", next_move=f"read {self.place.console}")
            if code == 0:
                break
        disk.unmount(self.place)
        cgroup.remove(groups)
        self.place.write_running(None)

    def _groups(self) -> tuple[Path, ...]:
        membership = cgroup.parse_membership(Path("/proc/self/cgroup").read_text(encoding="utf-8"))
        groups = cgroup.folders(cgroup.hierarchies(), membership, self.place.mark, delegated=self.delegated)
        if self.delegated:
            cgroup.leave_for_keeper(groups)
        return groups

    def _boot(self, root: Path, groups: tuple[Path, ...]) -> int:
        network.clear(self.place)
        cgroup.make(groups, self.limit)
        machine.configure(self.place, root)
        self.place.write_running(
            {
                "supervisor": os.getpid(),
                "since": datetime.now(UTC).isoformat(timespec="seconds"),
                "groups": [str(group) for group in groups],
            }
        )
        threading.Thread(target=self._attend, args=(groups,), daemon=True).start()
        with self.place.console.open("a", encoding="utf-8", buffering=1) as console:
            # /tmp on the machine's own disk, not on a tmpfs of the host's memory
            done = follow(
                boot_command(self.place, root, groups),
                lambda line: _write_line(console, line),
                check=False,
                env={"SYSTEMD_NSPAWN_TMPFS_TMP": "0"},
            )
        return done.code

    def _attend(self, groups: tuple[Path, ...]) -> None:
        """Plug the links in as they appear; show the memory limit to the machine.

        Anyone in it reads the limit at /sys/fs/cgroup/memory.max (v2: its top group is our `payload`), or at
        /sys/fs/cgroup/memory/memory.limit_in_bytes (v1).
        """
        for kind in networks(self.place.cluster):
            network.attach(self.place, kind)
        for group in groups:
            if (group / "payload").is_dir():
                cgroup.set_limit(group / "payload", self.limit)

    def _stop(self, _signal: int, _frame: FrameType | None) -> None:
        """Ask the machine to power off: on SIGTERM systemd-nspawn tells its systemd to, and ends with 0."""
        self.stopping = True
        if self.place.pid.exists():
            os.kill(int(self.place.pid.read_text(encoding="ascii")), signal.SIGTERM)


def _write_line(console: TextIO, line: str) -> None:
    console.write(line.rstrip("\r") + "\n")


def detach(log: Path) -> None:
    """Go on as a process of a session of its own, with its output in ``log``; the process that was called ends."""
    if os.fork():
        os._exit(0)
    os.setsid()
    with log.open("a", encoding="utf-8") as file, Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def main(arguments: Sequence[str]) -> int:
    """Run the machine that the arguments name; 75 when another supervisor has it."""
    parser = argparse.ArgumentParser(prog="lab.supervisor")
    parser.add_argument("cluster", type=Path)
    parser.add_argument("node")
    parser.add_argument("--detach", action="store_true")
    given = parser.parse_args(arguments)
    cluster = Cluster.model_validate_json(given.cluster.read_text(encoding="utf-8"))
    place = Place(cluster, cluster.node(given.node))
    with hold(place.lock) as ours:
        if not ours:
            return 75
        if given.detach:
            detach(place.log)
        assert cluster.lab is not None
        place.pid.unlink(missing_ok=True)
        Supervisor(place, cluster.lab.memory, delegated=not given.detach).live()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
