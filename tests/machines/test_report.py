"""A report of two machines, of which one is down: what is in it, and that no planted secret is."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from core.remote import Hosts
from lab import lifecycle
from tests.machines.command_line import CommandLine, Ended
from tests.machines.harness import Lab

pytestmark = pytest.mark.machines

A, B = "test-a", "test-b"
ENVIRONMENT = PurePosixPath("/etc/sparkstack/planted.env")
PLANTED = {"HF_TOKEN": "planted value one", "MY_API_KEY": "planted-two", "WANDB_API_KEY": "planted-three"}
"""Where they are: two in a file of the node, one in this shell only; the journal has all of them without a name."""


@pytest.fixture
def planted(lab: Lab) -> None:
    text = "".join(f"{key}={PLANTED[key]}\n" for key in ("HF_TOKEN", "MY_API_KEY"))
    with Hosts(lab.cluster) as hosts:
        hosts[A].run(("mkdir", "-p", str(ENVIRONMENT.parent)), privileged=True)
        hosts[A].write(ENVIRONMENT, text, mode=0o644, privileged=True)
        said = f"logged in with {' and '.join(PLANTED.values())}"
        unit = ("systemd-run", "--unit=sparkstack-install", "--collect", "--wait", "--quiet")
        hosts[A].run((*unit, "echo", said), privileged=True)


def members(path: str) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        found = {one.name: archive.extractfile(one) for one in archive.getmembers()}
        return {name: file.read() for name, file in found.items() if file is not None}


def made(invoke: CommandLine, *words: str) -> tuple[Ended, dict[str, Any], dict[str, bytes]]:
    done = invoke("report", "--json", *words, environment={"WANDB_API_KEY": PLANTED["WANDB_API_KEY"]})
    assert done.code == 0, str(done)
    listing: dict[str, Any] = json.loads(done.out)
    return done, listing, members(listing["path"])


@pytest.mark.usefixtures("planted")
def test_a_report_of_which_one_node_is_down_holds_no_secret(lab: Lab, invoke: CommandLine, tmp_path: Path) -> None:
    lifecycle.kill(lab.cluster, B, lab.said.append)
    try:
        _, listing, files = made(invoke, f"--to={tmp_path / 'plain.tar.gz'}")
        _, _, private = made(invoke, f"--to={tmp_path / 'private.tar.gz'}", "--private")
    finally:
        with Hosts(lab.cluster) as hosts:
            hosts[A].run(("rm", str(ENVIRONMENT)), privileged=True)
    folder = "sparkstack-report"
    assert {f"{folder}/{one['path']}" for one in listing["files"]} == set(files)
    assert "no SSH connection" in files[f"{folder}/nodes/{B}/unreachable.txt"].decode()
    assert (
        "logged in with (taken-out) and (taken-out) and (taken-out)"
        in files[f"{folder}/nodes/{A}/journal.txt"].decode()
    )
    assert f"{A}, {B} cannot serve this profile" in files[f"{folder}/doctor.txt"].decode()
    assert str(ENVIRONMENT) in files[f"{folder}/facts.json"].decode()
    node = lab.cluster.node(A)
    for word in PLANTED.values():
        assert not [name for name, text in {**files, **private}.items() if word.encode() in text], word
    for word in (A, B, str(node.management), str(node.fabric), lab.cluster.name):
        assert not [name for name, text in private.items() if word.encode() in text or word in name], word
    assert (tmp_path / "plain.tar.gz").stat().st_mode & 0o077 == 0
