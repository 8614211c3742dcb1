"""Unit tests cannot touch the world: no process starts, no connection opens, unless a test says `processes`."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable
from typing import Any, NoReturn

import hypothesis
import pytest

# another's load on this host is no bug of ours
hypothesis.settings.register_profile(
    "shared-host", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("shared-host")


def _refuse(what: str) -> Callable[..., NoReturn]:
    def refused(*args: Any, **_: Any) -> NoReturn:
        pytest.fail(f"a unit test must not {what}: {args[1:] or args}")

    return refused


@pytest.fixture(autouse=True)
def _no_processes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "processes" in request.keywords:
        return
    monkeypatch.setattr(subprocess.Popen, "__init__", _refuse("start a process"))
    monkeypatch.setattr(subprocess.Popen, "__del__", lambda _: None, raising=False)
    monkeypatch.setattr(os, "system", _refuse("start a process"))
    monkeypatch.setattr(os, "posix_spawn", _refuse("start a process"))


@pytest.fixture(autouse=True)
def _no_network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every connection; with the marker `processes`, every one that leaves this host."""
    loopback_too = "processes" in request.keywords
    for name in ("connect", "connect_ex"):
        real = getattr(socket.socket, name)

        def guarded(self: socket.socket, address: Any, real: Callable[..., Any] = real) -> Any:
            stays = self.family == socket.AF_UNIX or (loopback_too and address[0] in {"127.0.0.1", "::1"})
            return real(self, address) if stays else _refuse("open a connection")(self, address)

        monkeypatch.setattr(socket.socket, name, guarded)
