"""The guard itself: a unit test that starts a process or opens a connection fails."""

from __future__ import annotations

import os
import socket
import subprocess

import pytest

from core.process import run

REFUSED = pytest.fail.Exception


def test_no_process_starts() -> None:
    for start in (lambda: run(["true"]), lambda: subprocess.Popen(["true"]), lambda: os.system("true")):
        with pytest.raises(REFUSED, match="must not start a process"):
            start()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
@pytest.mark.parametrize("how", ["connect", "connect_ex"])
def test_no_connection_opens(family: socket.AddressFamily, how: str) -> None:
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    with socket.socket(family) as sock, pytest.raises(REFUSED, match="must not open a connection"):
        getattr(sock, how)((host, 9))


@pytest.mark.processes
def test_with_the_marker_processes_start_and_only_this_host_is_reached() -> None:
    assert run(["true"]).code == 0
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()
    with socket.socket() as sock, pytest.raises(REFUSED, match="must not open a connection"):
        sock.connect(("198.18.34.100", 22))
