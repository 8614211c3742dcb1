"""Connections to a real SSH server: only to a key that was enrolled, with the user's keys, and nothing is asked."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from threading import Thread

import paramiko
import pytest

from core import config, connection, process
from core.config import Cluster, load_cluster
from core.connection import connect, shown_key
from core.errors import AuthenticationRefused, HostKeyRefused, NodeUnreachable, SparkstackError
from core.host import SudoPassword
from core.process import run
from core.sshhost import SshHost
from core.sshroute import route
from tests.unit.sshserver import SshServer, ssh_server

pytestmark = pytest.mark.processes

RELAY = """
import os, pathlib, socket, sys, threading
pathlib.Path(sys.argv[0] + ".pid").write_text(str(os.getpid()))
line = socket.create_connection((sys.argv[1], int(sys.argv[2])))
def up():
    while data := sys.stdin.buffer.read1():
        line.sendall(data)
threading.Thread(target=up, daemon=True).start()
while data := line.recv(65536):
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
"""


@pytest.fixture(scope="module")
def host_key() -> paramiko.PKey:
    return paramiko.RSAKey.generate(2048)


@pytest.fixture
def server(host_key: paramiko.PKey) -> Iterator[SshServer]:
    with ssh_server(host_key) as running:
        yield running


@pytest.fixture
def cluster(server: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """Have one node: the server; its key is enrolled, and the user has no key and no agent."""
    monkeypatch.setattr(config, "WORK", tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    shipped = load_cluster("spark")
    node = shipped.head.model_copy(update={"management": IPv4Address("127.0.0.1"), "ssh_port": server.port})
    made = shipped.model_copy(update={"nodes": (node,)})
    enrol(made, server.keys[0])
    (tmp_path / ".ssh").mkdir()
    return made


def configure(text: str) -> None:
    (Path.home() / ".ssh" / "config").write_text(text, encoding="utf-8")


def enrol(cluster: Cluster, *keys: paramiko.PKey) -> None:
    cluster.state.mkdir(parents=True, exist_ok=True)
    name = f"[127.0.0.1]:{cluster.head.ssh_port}"
    lines = (f"{name} {key.get_name()} {key.get_base64()}\n" for key in keys)
    cluster.known_hosts.write_text("".join(lines), encoding="utf-8")


def make_key(name: str, passphrase: str = "") -> Path:
    """Make a key of the user's; return the private part."""
    path = Path.home() / ".ssh" / name
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-f", str(path)])
    return path


def blob(path: Path) -> bytes:
    public = paramiko.pkey.PublicBlob.from_file(str(path.with_name(f"{path.name}.pub")))
    return bytes(public.key_blob)


def says(cluster: Cluster, word: str = "hello") -> str:
    host = SshHost(cluster, cluster.head, SudoPassword(None))
    with closing(host):
        return host.run(["echo", word]).out


def refused(cluster: Cluster) -> SparkstackError:
    with pytest.raises(SparkstackError) as caught:
        says(cluster)
    assert caught.value.node == cluster.head.name
    return caught.value


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Start an agent of our own and return what adds keys to it; each has the passphrase `secret` or none."""
    place = tmp_path / "agent"
    started = run(["ssh-agent", "-a", str(place)])
    pid = started.out.split("SSH_AGENT_PID=")[1].split(";")[0]
    answers = tmp_path / "answers"
    answers.write_text("#!/bin/sh\necho secret\n", encoding="utf-8")
    answers.chmod(0o755)
    for name, value in {"SSH_ASKPASS": str(answers), "SSH_ASKPASS_REQUIRE": "force"}.items():
        monkeypatch.setenv(name, value)

    def add(*keys: Path) -> str:
        run(["ssh-add", "-q", *map(str, keys)], env={"SSH_AUTH_SOCK": str(place)})
        return str(place)

    yield add
    run(["ssh-agent", "-k"], env={"SSH_AGENT_PID": pid, "SSH_AUTH_SOCK": str(place)})


def test_a_command_is_run_with_a_default_key(cluster: Cluster, server: SshServer) -> None:
    server.allowed.add(blob(make_key("id_ed25519")))
    assert says(cluster) == "ran echo hello\n"
    assert server.users == {"gx10"}


def test_an_unknown_host_key_is_refused_before_a_key_is_offered(cluster: Cluster, server: SshServer) -> None:
    make_key("id_ed25519")
    cluster.known_hosts.unlink()
    error = refused(cluster)
    assert isinstance(error, HostKeyRefused)
    assert "invoke trust --cluster spark --node gx10-beee" in error.next_move
    assert server.offered == []


def test_the_user_s_own_known_hosts_do_not_count(cluster: Cluster) -> None:
    cluster.known_hosts.rename(Path.home() / ".ssh" / "known_hosts")
    configure("Host *\n StrictHostKeyChecking no\n")
    assert isinstance(refused(cluster), HostKeyRefused)


def test_a_changed_host_key_is_refused(cluster: Cluster, server: SshServer) -> None:
    make_key("id_ed25519")
    enrol(cluster, paramiko.RSAKey.generate(2048))
    error = refused(cluster)
    assert isinstance(error, HostKeyRefused)
    assert "CHANGED" in error.cause
    assert server.offered == []


def test_one_of_several_enrolled_keys_is_enough(cluster: Cluster, server: SshServer) -> None:
    server.allowed.add(blob(make_key("id_ed25519")))
    enrol(cluster, server.keys[0], paramiko.ECDSAKey.generate())
    assert "hello" in says(cluster)


def test_without_any_key_it_is_refused_with_the_next_move(cluster: Cluster) -> None:
    error = refused(cluster)
    assert isinstance(error, AuthenticationRefused)
    assert "ssh-copy-id gx10@127.0.0.1" in error.next_move


def test_an_encrypted_key_without_an_agent_is_named_and_nothing_is_asked(cluster: Cluster) -> None:
    path = make_key("id_ed25519", "secret")
    error = refused(cluster)
    assert isinstance(error, AuthenticationRefused)
    assert f"{path} is encrypted and in no agent" in error.cause
    assert error.next_move == f"ssh-add {path}"


@pytest.mark.parametrize("named", [False, True])
def test_an_encrypted_key_in_an_agent_works(
    named: bool,  # noqa: FBT001
    cluster: Cluster,
    server: SshServer,
    agent: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = make_key("encrypted", "secret")
    server.allowed.add(blob(path))
    monkeypatch.setenv("SSH_AUTH_SOCK", agent(path))
    assert "hello" in says(cluster.model_copy(update={"identity": path}) if named else cluster)


def test_an_agent_named_in_the_configuration_works_and_other_keys_of_it_stay_unused(
    cluster: Cluster, server: SshServer, agent: Callable[..., str]
) -> None:
    mine, other = make_key("mine"), make_key("other")
    server.allowed.add(blob(mine))
    configure(f"IdentityAgent {agent(other, mine)}\nIdentityFile ~/.ssh/mine\nIdentitiesOnly yes\n")
    assert "hello" in says(cluster)
    assert set(server.offered) == {blob(mine)}


def test_an_agent_that_is_gone_is_noted(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", "/nowhere/agent")
    assert "the SSH agent at /nowhere/agent does not answer" in refused(cluster).evidence


def test_a_file_that_is_no_key_is_noted(cluster: Cluster) -> None:
    (Path.home() / ".ssh" / "id_ed25519").write_text("nothing\n", encoding="utf-8")
    assert "id_ed25519 cannot be used" in refused(cluster).evidence


def test_a_proxy_command_is_the_way_and_ends_with_the_connection(
    cluster: Cluster, server: SshServer, tmp_path: Path
) -> None:
    server.allowed.add(blob(make_key("id_ed25519")))
    relay = tmp_path / "relay.py"
    relay.write_text(RELAY, encoding="utf-8")
    configure(f"Host *\n ProxyCommand {sys.executable} {relay} %h %p\n")
    assert "hello" in says(cluster)
    assert run(["pgrep", "-f", str(relay)], check=False).code == 1


def test_a_node_that_falls_silent_behind_a_proxy_is_given_up(
    cluster: Cluster, server: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.allowed.add(blob(make_key("id_ed25519")))
    relay = tmp_path / "relay.py"
    relay.write_text(RELAY, encoding="utf-8")
    configure(f"Host *\n ProxyCommand {sys.executable} {relay} %h %p\n")
    monkeypatch.setattr(process, "GRACE", 0.2)
    impatient = cluster.model_copy(update={"silence": 4})
    with closing(SshHost(impatient, cluster.head, SudoPassword(None))) as host:
        host.run(["echo", "hello"])
        began = time.monotonic()
        os.kill(int(Path(f"{relay}.pid").read_text(encoding="ascii")), signal.SIGSTOP)
        with pytest.raises(NodeUnreachable):
            host.run(["never"])
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    ("script", "error", "words"),
    [
        ("echo Host key verification failed. >&2", HostKeyRefused, "jump host is not known"),
        ("echo WARNING: IT HAS CHANGED! Host key verification failed. >&2", HostKeyRefused, "has CHANGED"),
        ("echo 'me@door: Permission denied (publickey).' >&2", AuthenticationRefused, "does not accept our keys"),
        ("echo 'no route to door' >&2", NodeUnreachable, "no way to 127.0.0.1"),
        ("false", NodeUnreachable, "no SSH connection"),
    ],
)
def test_what_is_refused_on_the_way_is_told(
    script: str, error: type[SparkstackError], words: str, cluster: Cluster
) -> None:
    make_key("id_ed25519")
    configure(f"Host *\n ProxyCommand {script}\n")
    told = refused(cluster)
    assert isinstance(told, error)
    assert words in told.cause


def test_a_server_shows_its_key_to_everybody(cluster: Cluster, server: SshServer) -> None:
    way = route(cluster, cluster.head)
    key = server.keys[0]
    assert shown_key(cluster, cluster.head, way) == ("ssh-rsa", key.get_base64())
    assert shown_key(cluster, cluster.head, way, ("ssh-rsa",)) == ("ssh-rsa", key.get_base64())
    assert shown_key(cluster, cluster.head, way, ("ssh-ed25519",)) is None
    assert shown_key(cluster, cluster.head, way, ("sk-ssh-ed25519@openssh.com",)) is None
    assert server.users == set(), "nobody logged in"


def test_of_several_keys_the_one_that_is_enrolled_is_shown(cluster: Cluster, host_key: paramiko.PKey) -> None:
    path = make_key("host")
    ours = paramiko.PKey.from_path(path)
    with ssh_server(host_key, ours) as both:
        way = replace(route(cluster, cluster.head), port=both.port)
        assert shown_key(cluster, cluster.head, way) == ("ssh-ed25519", ours.get_base64())
        assert shown_key(cluster, cluster.head, way, ("ssh-rsa",)) == ("ssh-rsa", host_key.get_base64())


def test_a_port_where_nobody_answers_is_named(cluster: Cluster) -> None:
    with pytest.raises(NodeUnreachable, match=r"no SSH server answers on 127\.0\.0\.1 port 1") as caught:
        shown_key(cluster, cluster.head, replace(route(cluster, cluster.head), port=1))
    assert caught.value.node == cluster.head.name


def hang_up(listener: socket.socket) -> None:
    line, _ = listener.accept()
    line.close()


@pytest.mark.parametrize(
    ("silent", "words"), [(True, "says nothing for 1 s"), (False, "closes the connection at once")]
)
def test_a_port_that_somebody_else_answers_is_named(
    silent: bool,  # noqa: FBT001
    words: str,
    cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "BANNER_TIMEOUT", 1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        way = replace(route(cluster, cluster.head), port=listener.getsockname()[1])
        if not silent:
            Thread(target=hang_up, args=(listener,)).start()
        with pytest.raises(NodeUnreachable, match=f"no SSH server: what accepts .* port {way.port} {words}"):
            connect(cluster, cluster.head, way)


def test_a_local_machine_that_was_never_made_is_not_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever answers at its address until `lab.up` fences it off is somebody else."""
    monkeypatch.setattr(config, "WORK", tmp_path)
    local = load_cluster("local")
    for ask in (connect, shown_key):
        with pytest.raises(NodeUnreachable, match="never been made") as caught:
            ask(local, local.head, route(local, local.head))
        assert caught.value.next_move == "invoke lab.up --cluster local"


def test_a_connection_is_not_forwarded_an_agent(cluster: Cluster, server: SshServer) -> None:
    server.allowed.add(blob(make_key("id_ed25519")))
    configure("Host *\n ForwardAgent yes\n")
    with connect(cluster, cluster.head, route(cluster, cluster.head)) as made:
        assert not made.forward_agent


def test_a_second_connection_that_fails_is_a_lost_one_and_no_full_disk(cluster: Cluster, server: SshServer) -> None:
    server.allowed.add(blob(make_key("id_ed25519")))
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        closed = nobody.getsockname()[1]
    with closing(SshHost(cluster, cluster.head, SudoPassword(None))) as host:
        host.run(["echo", "hello"])
        vars(host)["_way"] = replace(host._way, port=closed)
        with pytest.raises(NodeUnreachable, match=f"no SSH connection to 127.0.0.1 port {closed}"):
            host.hold(["a program"])


@pytest.mark.parametrize("content", [b"\xff\xfe not text", b"", b"ssh-ed25519 !!!"])
def test_a_public_part_that_cannot_be_read_is_none_and_the_key_is_tried(
    cluster: Cluster, server: SshServer, content: bytes
) -> None:
    key = make_key("id_ed25519")
    server.allowed.add(blob(key))
    key.with_name("id_ed25519.pub").write_bytes(content)
    assert says(cluster) == "ran echo hello\n"
