"""What else lives on a node: the script that names processes of ours, and the parsers of what the others say."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import process
from core.config import load_cluster
from core.question import Question, probe_request
from core.surroundings import Container, OurProcess, Socket, containers, our_processes, removes_ipc, request, sockets

SCOPE = "/user.slice/user-1000.slice/session-5082.scope"
SS = f"""LISTEN 0      128      0.0.0.0:22   0.0.0.0:* ino:2120364 sk:112 cgroup:/system.slice/ssh.service <->
LISTEN 0      5      127.0.0.1:6379 0.0.0.0:* users:(("python3",pid=434,fd=3)) uid:1000 ino:2 sk:11a0 cgroup:{SCOPE} <->
LISTEN 0      128         [::]:22      [::]:* ino:2120366 sk:113 cgroup:/system.slice/ssh.service v6only:1 <->
LISTEN 0      128            *:80         *:* ino:7 sk:114 <->
"""


def test_who_listens_is_read_with_its_unit_and_as_far_as_it_may_be_known_its_process() -> None:
    assert sockets(SS) == (
        Socket(22, None, "", 0, "ssh.service"),
        Socket(6379, 434, "python3", 1000, "session-5082.scope"),
        Socket(22, None, "", 0, "ssh.service"),
        Socket(80, None, "", 0, "-"),
    )


def test_what_a_process_calls_itself_is_shown_on_one_line() -> None:
    row = {"pid": 7, "start": 1, "user": 1, "unit": "a\x1bb.service", "ports": [], "top": 7, "loose": False}
    (found,) = our_processes(json.dumps({**row, "command": "x\nstop 9\x1b[A", "starter": "1 a\rb"}))
    assert (found.command, found.starter, found.unit) == ("x stop 9 [A", "1 a b", "a b.service")
    (one, *_) = sockets('LISTEN 0 5 *:6379 *:* users:(("a\x1b[2Jb",pid=4,fd=3)) uid:1 cgroup:/x\x07.service <->\n')
    assert (one.name, one.unit) == ("a [2Jb", "x .service")


BOX = {"id": "ab", "name": "/web", "image": "x:1", "running": True, "restart": "always", "runtime": "runc"}
GPU = [{"Driver": "", "Count": -1, "Capabilities": [["gpu"]]}]


@pytest.mark.parametrize(
    ("more", "gpu"),
    [
        ({"devices": None}, False),
        ({"devices": GPU}, True),
        ({"devices": [{"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=all"]}]}, True),
        ({"devices": None, "runtime": "nvidia"}, True),
    ],
)
def test_a_container_that_has_the_gpu_is_told_apart(more: dict[str, object], gpu: bool) -> None:  # noqa: FBT001
    text = f"answered\n{json.dumps({**BOX, **more})}\n"
    assert containers(text) == (Container("web", "x:1", running=True, restart="always", gpu=gpu),)


def test_docker_without_containers_is_another_thing_than_docker_that_does_not_answer() -> None:
    assert containers("answered\n") == ()
    assert containers("") is None


def test_processes_of_ours_can_be_asked_without_all_the_rest() -> None:
    cluster = load_cluster("local")
    plain, ours, whole = (
        probe_request(cluster, cluster.head, question)["commands"]
        for question in (Question(), Question(ours=True), Question(whole=True))
    )
    assert {name: argv for name, argv in ours.items() if name not in plain} == {"ours": whole["ours"]}
    assert whole["ours"] == request(cluster.root, cluster.user)["commands"]["ours"]


@pytest.mark.parametrize(("text", "says"), [("b true\n", True), ("b false\n", False), ("", None), ("s x", None)])
def test_what_logind_removes_is_read(text: str, says: bool | None) -> None:  # noqa: FBT001
    assert removes_ipc(text) is says


@given(st.one_of(st.text(), st.lists(st.sampled_from(SS.splitlines())).map("\n".join), st.text("LISTEN 0123:*\n")))
def test_any_text_is_read_or_refused(text: str) -> None:
    assert isinstance(sockets(text), tuple)
    with contextlib.suppress(ValueError, KeyError, TypeError):
        assert isinstance(our_processes(text), tuple)
    with contextlib.suppress(ValueError, KeyError, TypeError):
        containers(text)


def seen(root: Path) -> dict[int, OurProcess]:
    """Ask this host as a node is asked."""
    argv = request(root, "nobody")["commands"]["ours"]
    return {one.pid: one for one in our_processes(process.run([sys.executable, *argv[1:]]).out)}


@contextmanager
def running(*argv: str) -> Iterator[int]:
    """Run a program that says its number first and ends with its stdin."""
    beside = process.Piped(argv)
    try:
        yield int(beside.line())
    finally:
        beside.close()


WAIT = "import os, sys; print(os.getpid(), flush=True); sys.stdin.read()"


@pytest.mark.processes
def test_a_process_is_ours_by_its_program_and_not_because_its_command_line_names_the_folder(tmp_path: Path) -> None:
    program = tmp_path / "raylet"
    shutil.copy(Path(sys.executable).resolve(), program)
    home = f"PYTHONHOME={sys.base_prefix}"
    listen = f"import socket; s = socket.create_server(('127.0.0.1', 0)); {WAIT}"
    with (
        running("env", home, str(program), "-c", listen) as ours,
        running(sys.executable, "-c", WAIT, str(program)) as other,
    ):
        found = seen(tmp_path)
        assert other not in found
        one = found[ours]
        assert len(one.ports) == 1
        with socket.create_connection(("127.0.0.1", one.ports[0])):
            pass
        assert not one.loose, "this test holds it"
        assert one.command.startswith(str(program))
        assert one.start == int(Path(f"/proc/{ours}/stat").read_text().rpartition(")")[2].split()[19])
