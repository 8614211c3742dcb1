"""The secrets of a lab, made on this host: SSH key, the machines' host keys, the sudo password and who prints it.

Host keys are made here and put into the machines, so known_hosts is right before a machine first answers.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from core.config import WORK, Address, Cluster
from core.errors import LabError
from core.process import run
from lab import machine
from lab.place import identity, inside, places


def ensure(cluster: Cluster) -> None:
    """Make what is missing; known_hosts is written anew, with the machines' management addresses."""
    _key(identity(cluster), f"sparkstack lab {cluster.name}")
    lines = []
    for place in places(cluster):
        place.folder.mkdir(parents=True, exist_ok=True)
        _key(place.host_key, place.node.name)
        public = Path(f"{place.host_key}.pub").read_text(encoding="utf-8")
        lines.append(known_host(place.node.management, place.node.ssh_port, public))
    write(cluster.known_hosts, "".join(lines), 0o644)
    if any(machine.asks_password(cluster, node) for node in cluster.nodes):
        _password(cluster)
    _hand_over([WORK, WORK / "clusters", cluster.state, *(path for path in cluster.state.iterdir() if path.is_file())])


def known_host(address: Address, port: int, public_key: str) -> str:
    """Return the known_hosts line of a machine: `address key`, or `[address]:port key` for another port than 22."""
    kind, key = public_key.split()[:2]
    where = str(address) if port == 22 else f"[{address}]:{port}"
    return f"{where} {kind} {key}\n"


def write(path: Path, text: str, mode: int) -> None:
    """Write a whole file or none; it never has a wider mode than ``mode``."""
    partial = path.with_name(f"{path.name}.partial")
    partial.unlink(missing_ok=True)
    partial.touch(mode=mode)
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _key(path: Path, comment: str) -> None:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)])


def _password(cluster: Cluster) -> None:
    if cluster.askpass is None:
        raise LabError(
            "lab.password_sudo needs askpass, the program that prints the password",
            next_move=f'set askpass = ".work/clusters/{cluster.name}/askpass"',
        )
    file = machine.password_file(cluster)
    if not file.exists():
        write(file, f"{secrets.token_urlsafe(18)}\n", 0o600)
    write(inside(cluster, cluster.askpass), f'#!/bin/sh\nexec cat "$(dirname "$0")/{file.name}"\n', 0o700)


def _hand_over(paths: Iterable[Path]) -> None:
    """Give the files to the user behind sudo, who then deploys to the machines without it."""
    user, group = os.environ.get("SUDO_UID"), os.environ.get("SUDO_GID")
    if user is None or group is None:
        return
    for path in paths:
        os.chown(path, int(user), int(group))
