"""The nodes of a cluster together, each over SSH or here."""

from __future__ import annotations

from collections.abc import Iterator

from core.config import Cluster
from core.host import CONTROLLER, Host, SudoPassword
from core.local import LocalHost
from core.sshhost import SshHost


class Hosts:
    """The nodes of a cluster as hosts; a context manager that closes them."""

    def __init__(self, cluster: Cluster) -> None:
        password = SudoPassword(cluster.askpass)
        self._controller = LocalHost(CONTROLLER, password)
        self._hosts: dict[str, Host] = {
            node.name: LocalHost(node.name, password) if node.local else SshHost(cluster, node, password)
            for node in cluster.nodes
        }

    def __getitem__(self, name: str) -> Host:
        """Return a node's host, or this one by the name `controller`."""
        return self._controller if name == CONTROLLER else self._hosts[name]

    def __iter__(self) -> Iterator[Host]:
        return iter(self._hosts.values())

    def __enter__(self) -> Hosts:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection; commands under way on other threads fail."""
        for host in self._hosts.values():
            host.close()
