"""Host keys: enrolled by an explicit command, and a changed one only when that is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from core import config, remote
from core.config import Cluster, load_cluster
from core.errors import HostKeyRefused, NodeUnreachable
from core.process import Completed
from deploy import trust
from deploy.trust import enrol, examine

KEY = "AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"
FINGERPRINT = "SHA256:+DiY3wvvV6TuJJhbpZisF/zLDA0zPMSvHdkr4UvCOqU"
OTHER = KEY.replace("OMqq", "OMqr")


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setattr(config, "WORK", tmp_path)
    return load_cluster("local")


@pytest.fixture
def shows(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Give the key that each address shows when it is scanned."""
    keys: dict[str, str] = {}

    def run(argv: list[str], **_: Any) -> Completed:
        assert argv[0] == "ssh-keyscan"
        address = argv[-1]
        key = keys.get(address)
        lines = f"# {address}:22 SSH-2.0-OpenSSH_9.6\n{address} ssh-ed25519 {key}\n" if key else ""
        return Completed(tuple(argv), 0 if key else 1, lines)

    monkeypatch.setattr(remote.process, "run", run)
    return keys


def test_a_key_reads_as_ssh_keygen_shows_it(cluster: Cluster, shows: dict[str, str]) -> None:
    shows["198.18.34.100"] = KEY
    key = examine(cluster, cluster.head)
    assert (key.fingerprint, key.known, key.changed) == (FINGERPRINT, False, False)


def test_an_enrolled_key_is_known_and_others_stay(cluster: Cluster, shows: dict[str, str]) -> None:
    shows |= {"198.18.34.100": KEY, "198.18.34.101": OTHER}
    for node in cluster.nodes:
        enrol(cluster, examine(cluster, node), replace=False)
    assert [examine(cluster, node).known for node in cluster.nodes] == [True, True]
    assert cluster.known_hosts.read_text() == (f"198.18.34.100 ssh-ed25519 {KEY}\n198.18.34.101 ssh-ed25519 {OTHER}\n")
    assert [path.name for path in cluster.state.iterdir()] == ["known_hosts"]


def test_a_changed_key_is_refused_until_that_is_said(cluster: Cluster, shows: dict[str, str]) -> None:
    shows["198.18.34.100"] = KEY
    enrol(cluster, examine(cluster, cluster.head), replace=False)
    shows["198.18.34.100"] = OTHER
    key = examine(cluster, cluster.head)
    assert (key.known, key.changed) == (False, True)
    with pytest.raises(HostKeyRefused, match="another key is enrolled") as caught:
        enrol(cluster, key, replace=False)
    assert caught.value.node == "lab-a"
    assert KEY in cluster.known_hosts.read_text()
    enrol(cluster, key, replace=True)
    assert examine(cluster, cluster.head).known
    assert KEY not in cluster.known_hosts.read_text()


def test_another_port_has_a_key_of_its_own(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = iter([f"198.18.34.100 ssh-ed25519 {KEY}", f"[198.18.34.100]:2222 ssh-ed25519 {OTHER} comment"])
    monkeypatch.setattr(trust, "scan_host_key", lambda *_: next(lines))
    for _ in range(2):
        enrol(cluster, examine(cluster, cluster.head), replace=False)
    assert cluster.known_hosts.read_text().splitlines()[1] == f"[198.18.34.100]:2222 ssh-ed25519 {OTHER}"


@pytest.mark.usefixtures("shows")
def test_an_address_where_nobody_answers_is_named(cluster: Cluster) -> None:
    with pytest.raises(NodeUnreachable, match=r"no SSH server answers on 198\.18\.34\.100 port 22") as caught:
        examine(cluster, cluster.head)
    assert caught.value.node == "lab-a"
