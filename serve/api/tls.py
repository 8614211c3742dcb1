"""HTTPS before the API: Debian's Caddy as a unit on the head, which alone reaches vLLM on the head's loopback. Pure."""

from __future__ import annotations

from pathlib import PurePosixPath

from core.config import Cluster
from core.errors import UnfitNode
from core.facts import Facts
from core.units import PROXY
from serve.templates import render

PACKAGE = "caddy"
CADDYFILE = PurePosixPath("/etc/sparkstack/Caddyfile")
UNIT = PurePosixPath(f"/etc/systemd/system/{PROXY}.service")
ROOT_CERTIFICATE = PurePosixPath(f"/run/{PROXY}/root.crt")
"""What clients trust when the proxy has an authority of its own; there while the proxy runs."""

_STATE = PurePosixPath(f"/var/lib/{PROXY}")
_AUTHORITY = _STATE / "pki" / "authorities" / "local" / "root.crt"


def proxy_files(cluster: Cluster, marker: str) -> dict[PurePosixPath, str]:
    """Return path and content of what the proxy needs on the head; nothing without TLS."""
    if cluster.api.tls is None:
        return {}
    internal = cluster.api.tls == "internal"
    unit = render(
        UNIT.name, marker=marker, cluster=cluster, internal=internal, authority=_AUTHORITY, root=ROOT_CERTIFICATE
    )
    return {CADDYFILE: caddyfile(cluster, marker, _STATE), UNIT: unit}


def caddyfile(cluster: Cluster, marker: str, state: PurePosixPath) -> str:
    """Return the proxy's configuration; ``state`` is where it keeps its authority."""
    return render(
        CADDYFILE.name,
        marker=marker,
        state=state,
        internal=cluster.api.tls == "internal",
        host=cluster.api_host,
        name=cluster.head.name,
        engine=cluster.engine_host,
        port=cluster.api.port,
    )


def require_proxy(cluster: Cluster, facts: Facts) -> None:
    """Raise UnfitNode when TLS is wanted and the head has no Caddy. The question has to name PACKAGE.

    The package's own unit is masked first: it would listen on port 80 of every interface.
    """
    if cluster.api.tls is None or PACKAGE in facts[cluster.head.name].packages:
        return
    raise UnfitNode(
        f"TLS for the API needs the Debian package {PACKAGE}",
        node=cluster.head.name,
        next_move=f"on the node: sudo systemctl mask {PACKAGE}; sudo apt-get install --no-install-recommends {PACKAGE}",
    )
