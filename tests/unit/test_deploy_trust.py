"""Host keys: enrolled by an explicit command, and a changed one only when that is said."""

from __future__ import annotations

import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from invoke.program import Program

import tasks
from core import command, config
from core.config import Cluster, Node, load_cluster
from core.errors import HostKeyRefused, LockHeld, NodeUnreachable, UsageError
from core.lock import locked
from core.sshroute import Route, known_name
from deploy.access import trust
from deploy.access.trust import HostKey, enrol, examine

KEY = "AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"
FINGERPRINT = "SHA256:+DiY3wvvV6TuJJhbpZisF/zLDA0zPMSvHdkr4UvCOqU"
OTHER = KEY.replace("OMqq", "OMqr")

A, B, DOOR = "198.18.34.100", "198.18.34.101", "198.18.34.9"


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    for module in (config, command):
        monkeypatch.setattr(module, "WORK", tmp_path)
    return load_cluster("local")


@pytest.fixture
def shows(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, str]]:
    """Give the keys that each server shows, the best first."""
    keys: dict[str, dict[str, str]] = {}

    def shown(_: Cluster, node: Node, way: Route, kinds: tuple[str, ...] = ()) -> tuple[str, str] | None:
        if way.known_as not in keys:
            raise NodeUnreachable("no SSH server answers", node=node.name, next_move="look")
        return next((one for one in keys[way.known_as].items() if not kinds or one[0] in kinds), None)

    monkeypatch.setattr(trust, "shown_key", shown)
    return keys


def way(host: str, port: int = 22) -> Route:
    return Route(host, port, "spark", (), False, None, None, (), known_name(host, port))


def seen(cluster: Cluster, host: str = A, port: int = 22) -> HostKey:
    return examine(cluster, cluster.head, way(host, port))


def test_a_key_reads_as_ssh_keygen_shows_it(cluster: Cluster, shows: dict[str, dict[str, str]]) -> None:
    shows[A] = {"ssh-ed25519": KEY}
    key = seen(cluster)
    assert (key.fingerprint, key.known, key.changed) == (FINGERPRINT, False, False)
    assert (key.title, replace(key, jump=True).title) == (A, f"jump host {A}")


def test_an_enrolled_key_is_known_and_others_stay(cluster: Cluster, shows: dict[str, dict[str, str]]) -> None:
    shows |= {A: {"ssh-ed25519": KEY}, B: {"ssh-ed25519": OTHER}}
    for host in (A, B):
        enrol(cluster, seen(cluster, host), replace=False)
    assert [seen(cluster, host).known for host in (A, B)] == [True, True]
    assert cluster.known_hosts.read_text() == (f"{A} ssh-ed25519 {KEY}\n{B} ssh-ed25519 {OTHER}\n")
    assert [path.name for path in cluster.state.iterdir()] == ["known_hosts"]


def test_a_changed_key_is_refused_until_that_is_said(cluster: Cluster, shows: dict[str, dict[str, str]]) -> None:
    shows[A] = {"ssh-ed25519": KEY}
    enrol(cluster, seen(cluster), replace=False)
    shows[A] = {"ssh-ed25519": OTHER}
    key = seen(cluster)
    assert (key.known, key.changed) == (False, True)
    with pytest.raises(HostKeyRefused, match="another key is enrolled") as caught:
        enrol(cluster, key, replace=False)
    assert caught.value.node == "lab-a"
    assert KEY in cluster.known_hosts.read_text()
    enrol(cluster, key, replace=True)
    assert seen(cluster).known
    assert KEY not in cluster.known_hosts.read_text()


def test_a_key_that_another_command_enrolled_meanwhile_is_not_replaced_in_silence(
    cluster: Cluster, shows: dict[str, dict[str, str]]
) -> None:
    shows[A] = {"ssh-ed25519": KEY}
    looked = seen(cluster)
    enrol(cluster, replace(looked, key=OTHER), replace=False)
    with pytest.raises(HostKeyRefused, match="another key is enrolled"):
        enrol(cluster, looked, replace=False)
    assert cluster.known_hosts.read_text() == f"{A} ssh-ed25519 {OTHER}\n"


def test_another_port_has_a_key_of_its_own(cluster: Cluster, shows: dict[str, dict[str, str]]) -> None:
    shows |= {A: {"ssh-ed25519": KEY}, f"[{A}]:2222": {"ssh-rsa": OTHER}}
    for port in (22, 2222):
        enrol(cluster, seen(cluster, A, port), replace=False)
    assert cluster.known_hosts.read_text().splitlines()[1] == f"[{A}]:2222 ssh-rsa {OTHER}"


def test_a_key_of_a_kind_that_is_enrolled_counts_before_a_better_one(
    cluster: Cluster, shows: dict[str, dict[str, str]]
) -> None:
    shows[A] = {"ssh-ed25519": KEY, "ssh-rsa": OTHER}
    enrol(cluster, HostKey(cluster.head, A, "ssh-rsa", OTHER, {}), replace=False)
    assert seen(cluster).known
    shows[A] = {"ssh-ed25519": KEY}
    assert seen(cluster).changed, "another machine may have a key of another kind"


def test_lines_of_others_and_marks_stay_as_they_are(cluster: Cluster, shows: dict[str, dict[str, str]]) -> None:
    shows[A] = {"ssh-ed25519": KEY}
    cluster.state.mkdir(parents=True)
    others = f"# mine\n@cert-authority *.example ssh-ed25519 {OTHER}\n|1|salt|hash ssh-ed25519 {OTHER}\n"
    cluster.known_hosts.write_text(f"{others}{B},{A} ssh-ed25519 {OTHER} note\n")
    assert seen(cluster).changed
    enrol(cluster, seen(cluster), replace=True)
    assert cluster.known_hosts.read_text() == f"{others}{B} ssh-ed25519 {OTHER} note\n{A} ssh-ed25519 {KEY}\n"


class TestCommand:
    """`invoke trust` with a jump host before both nodes."""

    @pytest.fixture(autouse=True)
    def _behind_a_door(
        self, cluster: Cluster, shows: dict[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shows |= {A: {"ssh-ed25519": KEY}, B: {"ssh-ed25519": OTHER}, DOOR: {"ssh-ed25519": OTHER}}
        monkeypatch.setattr(trust, "route", lambda _, node: way(str(node.management)))
        monkeypatch.setattr(trust, "hops", lambda *_: iter([way(DOOR)]))
        assert not cluster.known_hosts.exists()

    def invoke(self, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
        code = 0
        try:
            Program(namespace=tasks.ns, name="invoke").run(["invoke", "trust", "--cluster", "local", *words])
        except SystemExit as end:
            code = int(end.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    def test_jump_hosts_come_first_and_once(self, cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
        code, out, _ = self.invoke(capsys, "--yes")
        assert code == 0
        assert out.splitlines()[0].startswith(f"lab-a: jump host {DOOR} shows SHA256:")
        assert out.count(f"jump host {DOOR}") == 1
        names = [line.split()[0] for line in cluster.known_hosts.read_text().splitlines()]
        assert names == [DOOR, A, B]
        assert self.invoke(capsys)[1].count("is enrolled already") == 3

    def test_a_dry_run_ends_at_a_jump_host_that_is_not_enrolled(
        self, cluster: Cluster, capsys: pytest.CaptureFixture[str]
    ) -> None:
        code, out, _ = self.invoke(capsys, "--dry-run")
        assert code == 0
        assert out.count("can be seen once that is enrolled") == 2
        assert B not in out
        assert not cluster.known_hosts.exists()

    def test_without_a_terminal_nothing_is_enrolled(
        self, cluster: Cluster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "stdin", StringIO("y\n"))
        code, _, err = self.invoke(capsys)
        assert code == UsageError.exit_code
        assert "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub" in err
        assert not cluster.known_hosts.exists()

    def test_nothing_is_enrolled_beside_another_command_and_the_keys_are_shown_all_the_same(
        self, cluster: Cluster, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with locked(cluster, "invoke trust"):
            code, out, err = self.invoke(capsys, "--yes")
            assert code == LockHeld.exit_code
            assert f"jump host {DOOR} shows" in out
            assert "works on the cluster local" in err
            assert not cluster.known_hosts.exists()
            assert self.invoke(capsys, "--dry-run")[0] == 0
        assert self.invoke(capsys, "--yes")[0] == 0

    @pytest.mark.parametrize("words", [("--undo",), ("--nodes", "--yes"), ("--nodes", "--node", "lab-a")])
    def test_flags_that_do_not_go_together_are_refused(
        self, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.invoke(capsys, *words)[0] == UsageError.exit_code
