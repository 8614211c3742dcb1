"""A real SSH server on this host's loopback: host keys of several kinds, public keys that it lets in, one command."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import paramiko


@dataclass
class SshServer:
    """What it shows, whom it lets in, and what it saw."""

    port: int
    keys: Sequence[paramiko.PKey]
    allowed: set[bytes] = field(default_factory=set)
    """Public keys, as blobs."""
    offered: list[bytes] = field(default_factory=list)
    """Public keys that somebody offered."""
    users: set[str] = field(default_factory=set)


class _Session(paramiko.ServerInterface):
    def __init__(self, server: SshServer) -> None:
        self._server = server

    def get_allowed_auths(self, username: str) -> str:
        self._server.users.add(username)
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        self._server.users.add(username)
        self._server.offered.append(key.asbytes())
        return paramiko.AUTH_SUCCESSFUL if key.asbytes() in self._server.allowed else paramiko.AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:  # noqa: ARG002 - paramiko's
        return paramiko.OPEN_SUCCEEDED if kind == "session" else paramiko.OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        threading.Timer(0.2, _answer, (channel, command)).start()  # paramiko says yes only when this has returned
        return True


def _answer(channel: paramiko.Channel, command: bytes) -> None:
    """Say what was run; `never` says nothing and does not end."""
    if command == b"never":
        return
    channel.sendall(b"ran " + command + b"\n")
    channel.send_exit_status(0)
    channel.close()


@contextmanager
def ssh_server(*keys: paramiko.PKey) -> Iterator[SshServer]:
    """Serve at a free port of 127.0.0.1 until the block ends."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = SshServer(listener.getsockname()[1], keys)
    transports: list[paramiko.Transport] = []
    thread = threading.Thread(target=_serve, args=(listener, server, transports), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
        for transport in transports:
            transport.close()
            transport.join()


def _serve(listener: socket.socket, server: SshServer, transports: list[paramiko.Transport]) -> None:
    while True:
        try:
            line, _ = listener.accept()
        except OSError:  # it is closed
            return
        transport = paramiko.Transport(line)
        for key in server.keys:
            transport.add_server_key(key)
        transports.append(transport)
        transport.start_server(event=threading.Event(), server=_Session(server))
