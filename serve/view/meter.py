"""What a node's network has moved, and which sockets are ours; runs there with its own Python, as root.

Prints JSON: {"at": seconds, "counters": {path: text}, "rdma": {device: [interface]}, "addresses": what `ip -j address`
says, "sockets": what `ss -Htnp` says, "units": {process: unit}}.
"""

from __future__ import annotations

import glob
import json
import os
import re
import subprocess
import time
from pathlib import Path

COUNTERS = (
    "/sys/class/net/*/statistics/[rt]x_bytes",
    "/sys/class/infiniband/*/ports/*/counters/port_xmit_data",
    "/sys/class/infiniband/*/ports/*/counters/port_rcv_data",
)
HALVES = "/sys/class/infiniband/*/device/net/*"


def read(path: str) -> str:
    """Return a file's text; nothing where it cannot be read: a process may end meanwhile."""
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def said(*argv: str) -> str:
    """Return what a command prints."""
    environment = {**os.environ, "LC_ALL": "C", "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"}
    return subprocess.run(argv, env=environment, capture_output=True, text=True, errors="replace", check=False).stdout


def unit(process: str) -> str:
    """Return the systemd unit that a process is of; nothing where it is of none."""
    names = re.findall(r"/([^/\n]+\.(?:service|scope))", read(f"/proc/{process}/cgroup"))
    return str(names[-1]) if names else ""


def main() -> None:
    """Print all of it, the counters last: they are compared with those of another reading."""
    sockets, addresses = said("ss", "-Htnp"), said("ip", "-j", "address")
    rdma: dict[str, list[str]] = {}
    for path in sorted(glob.glob(HALVES)):  # noqa: PTH207 - from the root, with two stars
        rdma.setdefault(path.split("/")[4], []).append(path.split("/")[7])
    units = {process: unit(process) for process in sorted(set(re.findall(r"pid=(\d+)", sockets)))}
    paths = sorted(path for pattern in COUNTERS for path in glob.glob(pattern))  # noqa: PTH207
    found = {"addresses": addresses, "sockets": sockets, "units": units, "rdma": rdma}
    counters = {path: read(path) for path in paths}
    print(json.dumps({"at": time.monotonic(), "counters": counters, **found}))


if __name__ == "__main__":
    main()
