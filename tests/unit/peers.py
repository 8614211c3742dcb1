"""How the owner's rsync on one node reaches another with the key between the nodes."""

from __future__ import annotations

from core.access import key_name
from core.config import Cluster, Node


def peer_ssh(cluster: Cluster, peer: Node) -> tuple[str, ...]:
    """Return the ssh command (without the address) with which a node reaches ``peer`` at its fabric address."""
    own = f"~/.ssh/{key_name(cluster)}"
    options = {
        "BatchMode": "yes",
        "StrictHostKeyChecking": "yes",
        "UserKnownHostsFile": f"{own}.known_hosts",
        "GlobalKnownHostsFile": "/dev/null",
        "IdentityFile": own,
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "ConnectTimeout": "10",
        "ServerAliveInterval": "5",
        "ServerAliveCountMax": "4",
    }
    return ("ssh", "-F", "none", f"-p{peer.ssh_port}", *(f"-o{key}={value}" for key, value in options.items()))
