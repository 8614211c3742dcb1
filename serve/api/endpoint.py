"""Where the API answers, with which key, and what vouches for it: read from the head, where serving has left it."""

from __future__ import annotations

import json
import ssl
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from core.config import Cluster
from core.errors import NotConverged, NotServing, UsageError
from core.host import Host
from serve.api.keys import API_KEY, FINGERPRINTS, fingerprint, fingerprints, no_key, path_of
from serve.api.tls import ROOT_CERTIFICATE

SERVICE = PurePosixPath("/etc/sparkstack/service.json")


@dataclass(frozen=True)
class Endpoint:
    """An API as a client needs it."""

    node: str
    url: str
    key: str = field(repr=False)
    root: str = field(default="", repr=False)
    """Certificate (PEM) of the authority that the proxy made for itself; without it the system's ones count."""

    def verification(self) -> ssl.SSLContext:
        """Return what the certificate of the API is checked against; there is no way around it."""
        return ssl.create_default_context(cadata=self.root or None)


def find(cluster: Cluster, head: Host, key: str = "") -> Endpoint:
    """Return where the service's API is; without ``key`` with the one that the head has.

    Raises UsageError when it listens on the head's loopback only, NotServing when there is no key yet.
    """
    _require_way(cluster)
    url = _url(head) or cluster.api_url
    root = _text(head, ROOT_CERTIFICATE) if url.startswith("https:") else ""
    return Endpoint(cluster.head.name, url, key.strip() or read_key(cluster, head), root)


def read_key(cluster: Cluster, head: Host) -> str:
    """Return the API key out of its file, as root.

    Raises NotServing when there is none yet, NotConverged when it is not the one that is let in.
    """
    known = fingerprints(_text(head, FINGERPRINTS)).get(API_KEY)
    if known is None:
        raise no_key(cluster)
    key = head.run(("cat", str(path_of(API_KEY))), privileged=True).out.strip()
    if fingerprint(key) != known:
        raise NotConverged(
            "the API key in its file is not the one that is let in: a change of it was cut off",
            node=head.name,
            next_move=f"invoke key.rotate --cluster {cluster.flag}",
        )
    return key


def _require_way(cluster: Cluster) -> None:
    """Whatever else listens on this host's own loopback would be given the key."""
    if cluster.api.listen == "loopback" and not cluster.head.local:
        port = cluster.api.port
        raise UsageError(
            "the API listens on the head's own loopback only",
            node=cluster.head.name,
            next_move=f"open a tunnel: ssh -L {port}:127.0.0.1:{port} {cluster.user}@{cluster.head.management}",
        )


def _url(head: Host) -> str:
    """Return the URL that was served last, which `invoke serve --tls` may have changed; empty where none was."""
    text = _text(head, SERVICE)
    try:
        return str(json.loads(text)["api"]["url"]) if text else ""
    except (ValueError, LookupError, TypeError) as error:
        raise NotServing(f"{SERVICE} cannot be read", node=head.name, next_move="invoke serve writes it") from error


def _text(head: Host, path: PurePosixPath) -> str:
    done = head.run(("cat", str(path)), check=False)
    return done.out if done.code == 0 else ""
