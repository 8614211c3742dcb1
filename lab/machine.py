"""What makes a bare root a machine of the cluster: name, networks, firewall, SSH, the user and what sudo asks.

All of it is a pure list of files, written into the machine's root before each boot, so that a changed configuration
reaches a machine at its next start.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from core.config import Cluster, Node
from core.process import run
from lab.place import Place, identity, networks

FIREWALL = """\
#!/usr/sbin/nft -f
# Management lets in SSH, the API and ICMP, nothing else; the fabric is open. What comes by the wrong network is
# rejected, as firewalld does: it fails at once ("No route to host") instead of after minutes.
flush ruleset
table inet sparkstack {{
    chain input {{
        type filter hook input priority filter; policy accept;
        iifname != "host0" accept
        ct state established,related accept
        meta l4proto {{ icmp, ipv6-icmp }} accept
        tcp dport {{ {ports} }} accept
        reject with icmpx type admin-prohibited
    }}
}}
"""
NETWORK = """\
[Match]
Name={interface}

[Network]
Address={address}/{prefix}
LinkLocalAddressing=no
IPv6AcceptRA=no
"""
SSHD = """\
Port {port}
PermitRootLogin no
PasswordAuthentication no
KbdInteractiveAuthentication no
HostKey /etc/ssh/ssh_host_ed25519_key
"""
GROUPS = "adm,systemd-journal"
"""Of the user, as Ubuntu's first user has them: logs can be read without sudo."""
INTERFACES = {"management": "host0", "fabric": "fab0"}
"""What the links are called inside a machine."""


@dataclass(frozen=True)
class Entry:
    """A file of the machine: its text and its mode."""

    text: str
    mode: int = 0o644


def machine_id(public_host_key: str) -> str:
    """Return a machine id that stays as long as the host key does."""
    return uuid.uuid5(uuid.NAMESPACE_OID, public_host_key).hex


def files(cluster: Cluster, node: Node, host_key: str, public_host_key: str) -> dict[str, Entry]:
    """Return every file of the machine's configuration by its path in the root."""
    ports = ", ".join(str(port) for port in sorted({node.ssh_port, cluster.api.port}))
    rule = "ALL" if asks_password(cluster, node) else "NOPASSWD: ALL"
    return {
        "etc/hostname": Entry(f"{node.name}\n"),
        "etc/hosts": Entry(f"127.0.0.1 localhost\n127.0.1.1 {node.name}\n::1 localhost ip6-localhost\n"),
        "etc/machine-id": Entry(f"{machine_id(public_host_key)}\n", 0o444),
        "etc/resolv.conf": Entry("# this machine has no way out\n"),
        "etc/default/locale": Entry("LANG=C.UTF-8\n"),
        "etc/nftables.conf": Entry(FIREWALL.format(ports=ports), 0o755),
        "etc/ssh/sshd_config.d/10-sparkstack.conf": Entry(SSHD.format(port=node.ssh_port)),
        "etc/ssh/ssh_host_ed25519_key": Entry(host_key, 0o600),
        "etc/ssh/ssh_host_ed25519_key.pub": Entry(public_host_key),
        "etc/sudoers.d/sparkstack": Entry(f"{cluster.user} ALL=(ALL:ALL) {rule}\n", 0o440),
        **{
            f"etc/systemd/network/10-{kind}.network": Entry(_network(cluster, node, kind)) for kind in networks(cluster)
        },
    }


def asks_password(cluster: Cluster, node: Node) -> bool:
    """Say whether sudo asks for a password on this machine."""
    return cluster.lab is not None and node.name in cluster.lab.password_sudo


def password_file(cluster: Cluster) -> Path:
    """Return the file that holds the sudo password of this lab's machines."""
    return cluster.state / "sudo-password"


def configure(place: Place, root: Path) -> None:
    """Write the machine's configuration into its mounted root; its user is made when it is not there."""
    key = place.host_key.read_text(encoding="utf-8")
    public = place.host_key.with_suffix(".pub").read_text(encoding="utf-8")
    _write(root, files(place.cluster, place.node, key, public))
    _make_user(root, place.cluster, place.node)


def _network(cluster: Cluster, node: Node, kind: str) -> str:
    prefix = getattr(cluster, kind).subnet.prefixlen
    return NETWORK.format(interface=INTERFACES[kind], address=getattr(node, kind), prefix=prefix)


def _write(root: Path, entries: Mapping[str, Entry]) -> None:
    for name, entry in entries.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # a link that the machine made could point out of its root
        path.touch(mode=entry.mode, exist_ok=False)
        path.write_text(entry.text, encoding="utf-8")
        path.chmod(entry.mode)


def _make_user(root: Path, cluster: Cluster, node: Node) -> None:
    chroot = ["chroot", str(root)]
    if run([*chroot, "id", "--user", cluster.user], check=False).code != 0:
        run([*chroot, "useradd", "--create-home", "--shell", "/bin/bash", cluster.user])
    run([*chroot, "usermod", "--append", "--groups", GROUPS, "--password", "*", cluster.user])
    if asks_password(cluster, node):
        password = password_file(cluster).read_text(encoding="utf-8").strip()
        run([*chroot, "chpasswd"], stdin=f"{cluster.user}:{password}\n")
    public = Path(f"{identity(cluster)}.pub").read_text(encoding="utf-8")
    home = f"/home/{cluster.user}/.ssh"
    run([*chroot, "install", "-d", "-m", "700", "-o", cluster.user, "-g", cluster.user, home])
    run([*chroot, "tee", f"{home}/authorized_keys"], stdin=public)
    run([*chroot, "chown", f"{cluster.user}:{cluster.user}", f"{home}/authorized_keys"])
