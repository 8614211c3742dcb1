"""What else lives on a node: processes of ours with what they hold, who listens, containers, what logind removes.

Only `invoke doctor`, `facts` and `report` ask it, in the same round trip as all else. Pure parsers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.parsers import record, shown
from core.reader import Reader

FIRST_USER = 1000
"""User ids below belong to system users, whom logind leaves alone (a constant of systemd's build, 999 on Debian)."""

# Runs on the node as the SSH user. A process is ours when its unit is one of ours, or when its program, or a library in
# it, lies below the suite's folder: that its command line names the folder proves nothing (an editor's does too).
# "loose" is one whose parents, as far as they are ours, go back to the machine itself: whoever started it is gone.
_OURS = r"""
import glob, json, os, re, sys
root = sys.argv[1] + "/"
def read(pid, name):
    try:
        with open(f"/proc/{pid}/{name}", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
def link(pid, name):
    try:
        return os.readlink(f"/proc/{pid}/{name}")
    except OSError:
        return ""
def unit(pid):
    names = re.findall(r"/([^/\n]+\.(?:service|scope))", read(pid, "cgroup"))
    return names[-1] if names else "-"
def is_ours(pid):
    if unit(pid).startswith("sparkstack-"):
        return True
    if read(pid, "cmdline").split("\0")[0].startswith(root) or link(pid, "exe").startswith(root):
        return True
    return re.search(r"(?m)^\S+ ..x\S* .*\s" + re.escape(root), read(pid, "maps")) is not None
inodes = {}
for name in ("tcp", "tcp6"):
    for line in read("self", f"net/{name}").splitlines()[1:]:
        words = line.split()
        if words[3] == "0A":
            inodes[words[9]] = int(words[1].rpartition(":")[2], 16)
def ports(pid):
    links = (link(pid, "fd/" + os.path.basename(fd)) for fd in glob.glob(f"/proc/{pid}/fd/*"))
    found = {one[8:-1] for one in links if one.startswith("socket:[")}
    return sorted({inodes[inode] for inode in found & inodes.keys()})
mine = {os.getpid(), os.getppid()}
pids = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
ours = {pid for pid in pids if pid not in mine and read(pid, "cmdline") and is_ours(pid)}
stats = {pid: read(pid, "stat").rpartition(")")[2].split() for pid in ours}
def top(pid):
    while int(stats[pid][1]) in ours and stats[int(stats[pid][1])]:
        pid = int(stats[pid][1])
    return pid
for pid in sorted(ours):
    try:
        owner = os.stat(f"/proc/{pid}").st_uid
    except OSError:
        continue
    if not stats[pid]:
        continue
    first = top(pid)
    parent = int(stats[first][1])
    starter = read(parent, "comm").strip()
    print(json.dumps({
        "pid": pid, "start": int(stats[pid][19]), "user": owner, "unit": unit(pid),
        "command": read(pid, "cmdline").replace("\0", " ").strip()[:200], "ports": ports(pid), "top": first,
        "loose": parent <= 1 or starter == "systemd", "starter": f"{parent} {starter}",
    }))
"""

# docker would be started by the question where it waits at its socket: only one that runs already is asked
_CONTAINERS = (
    "systemctl is-active --quiet docker && ids=$(timeout 3 docker ps -aq --no-trunc) && "
    'found=$([ -z "$ids" ] || timeout 3 docker inspect --format \'{"name": {{json .Name}}, '
    '"image": {{json .Config.Image}}, "running": {{json .State.Running}}, '
    '"restart": {{json .HostConfig.RestartPolicy.Name}}, "runtime": {{json .HostConfig.Runtime}}, '
    '"devices": {{json .HostConfig.DeviceRequests}}}\' $ids) && printf "answered\\n%s\\n" "$found"'
)


@dataclass(frozen=True)
class OurProcess:
    """A process of ours; ``start`` in clock ticks since boot: with the number it is this process and no later one.

    ``loose`` is one whose starter is gone; ``starter`` is who holds it otherwise. ``top`` leads its family.
    """

    pid: int
    start: int
    uid: int
    unit: str
    command: str
    ports: tuple[int, ...]
    top: int
    loose: bool
    starter: str


@dataclass(frozen=True)
class Socket:
    """Who listens at a TCP port: process and name where it is of our own user, the unit always; "-" for none."""

    port: int
    pid: int | None
    name: str
    uid: int
    unit: str


@dataclass(frozen=True)
class Container:
    """A container that docker knows; ``restart`` is its policy, ``gpu`` whether it asked for one."""

    name: str
    image: str
    running: bool
    restart: str
    gpu: bool


@dataclass(frozen=True)
class Surroundings:
    """What else lives on a node. None or nothing: it was not asked, or cannot be seen."""

    ours: tuple[OurProcess, ...] = ()
    sockets: tuple[Socket, ...] = ()
    containers: tuple[Container, ...] | None = None
    """None where docker does not run, or does not answer the SSH user."""
    docker: str = ""
    """Whether docker starts with the machine, as `systemctl is-enabled` says it; empty where there is none."""
    uid: int | None = None
    """The number of the user whom our services run as."""
    lingers: bool | None = None
    """Whether that user counts as logged in always."""
    removes_ipc: bool | None = None
    """Whether logind removes the shared memory and semaphores of a user who has logged out."""


def request(root: Path, user: str) -> dict[str, Any]:
    """Return what the probe is asked for Surroundings: commands and files by fact. Pure."""
    logind = ("org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager", "RemoveIPC")
    return {
        "commands": {
            **ours_request(root),
            "sockets": ["ss", "-Hltnpe"],
            "containers": ["sh", "-c", _CONTAINERS],
            "docker": ["systemctl", "is-enabled", "docker.service"],
            "uid": ["id", "-u", user],
            "removes_ipc": ["busctl", "get-property", *logind],
            "lingers": ["find", "/var/lib/systemd/linger", "-name", user],
        },
        "files": {},
    }


def ours_request(root: Path) -> dict[str, list[str]]:
    """Return the command that names the processes of ours, by its fact. Pure."""
    return {"ours": ["python3", "-I", "-c", _OURS, str(root)]}


def surroundings(reader: Reader) -> Surroundings:
    """Read a capture. Raises FactsError naming the fact that cannot be read."""
    return Surroundings(
        ours=reader.out("ours", our_processes),
        sockets=reader.out("sockets", sockets),
        containers=reader.out("containers", containers),
        docker=reader.out("docker", str.strip),
        uid=reader.out("uid", lambda text: int(text) if text.strip() else None),
        lingers=reader.asked("lingers", lambda text: bool(text.strip())),
        removes_ipc=reader.out("removes_ipc", removes_ipc),
    )


def our_processes(text: str) -> tuple[OurProcess, ...]:
    """Parse the JSON lines of the script above."""
    return tuple(_our_process(record(line)) for line in text.splitlines() if line.strip())


def _our_process(row: Mapping[str, Any]) -> OurProcess:
    return OurProcess(
        pid=int(row["pid"]),
        start=int(row["start"]),
        uid=int(row["user"]),
        unit=shown(str(row["unit"])),
        command=shown(str(row["command"])),
        ports=tuple(int(port) for port in row["ports"]),
        top=int(row["top"]),
        loose=bool(row["loose"]),
        starter=shown(str(row["starter"])),
    )


def sockets(text: str) -> tuple[Socket, ...]:
    """Parse `ss -Hltnpe`: the fourth column is ADDRESS:PORT; then users:(("name",pid=N,...)), uid:N, cgroup:PATH."""
    rows = ((line.split(), line) for line in text.splitlines())
    return tuple(_socket(words[3], line) for words, line in rows if len(words) > 3 and _port(words[3]) is not None)


def _port(address: str) -> int | None:
    port = address.rpartition(":")[2]
    return int(port) if port.isascii() and port.isdecimal() else None


def _socket(address: str, line: str) -> Socket:
    user = re.search(r'users:\(\("([^"]*)",pid=(\d+)', line)
    uid, group = re.search(r"\buid:(\d+)", line), re.search(r"\bcgroup:(\S+)", line)
    units = [part for part in (group[1].split("/") if group else ()) if part.endswith((".service", ".scope"))]
    return Socket(
        port=_port(address) or 0,
        pid=int(user[2]) if user else None,
        name=shown(user[1]) if user else "",
        uid=int(uid[1]) if uid else 0,  # it leaves out root's
        unit=shown(units[-1]) if units else "-",
    )


def containers(text: str) -> tuple[Container, ...] | None:
    """Parse "answered", then the JSON lines that `docker inspect` is asked for above; None without that word."""
    word, *lines = text.splitlines() or [""]
    return tuple(_container(record(line)) for line in lines if line.strip()) if word == "answered" else None


def _container(row: Mapping[str, Any]) -> Container:
    devices = json.dumps(row["devices"]).lower()
    return Container(
        name=str(row["name"]).removeprefix("/"),
        image=str(row["image"]),
        running=bool(row["running"]),
        restart=str(row["restart"] or "no"),
        gpu=row["runtime"] == "nvidia" or '"gpu"' in devices or "nvidia.com/gpu" in devices,
    )


def removes_ipc(text: str) -> bool | None:
    """Parse `busctl get-property ... RemoveIPC`: "b true"."""
    match = re.fullmatch(r"b (true|false)", text.strip())
    return match[1] == "true" if match else None
