"""The files of ours that give an interface its address and MTU: netplan's, or those of systemd-networkd. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.wiring import NETPLAN, NETWORKD, NETWORKD_HALF

BY = "# Written by sparkstack: invoke network. It is taken away by invoke network --revert.\n"

NETWORKD_TEXT = """\
[Match]
Name={names}

[Link]
MTUBytes={mtu}
RequiredForOnline=no

[Network]
{address}DHCP=no
LinkLocalAddressing=no
IPv6AcceptRA=no
"""
NETPLAN_ENTRY = """\
    {name}:
      dhcp4: false
      dhcp6: false
      accept-ra: false
      link-local: []
      optional: true
      mtu: {mtu}
"""


def netplan(name: str, halves: tuple[str, ...], address: str, mtu: int) -> dict[str, Any]:
    """Return netplan's file by its path; as it names no renderer, that of the machine's other files holds."""
    entries = [NETPLAN_ENTRY.format(name=name, mtu=mtu) + f"      addresses: [{address}]\n"]
    entries += [NETPLAN_ENTRY.format(name=half, mtu=mtu) for half in halves]
    text = BY + "network:\n  version: 2\n  ethernets:\n" + "".join(entries)
    # netplan warns of files that others may read
    return {str(NETPLAN): {"content": text, "mode": 0o600}}


def networkd(name: str, halves: tuple[str, ...], address: str, mtu: int) -> dict[str, Any]:
    """Return networkd's files by path: one for the interface, one for the other half of its port."""
    texts = {NETWORKD: NETWORKD_TEXT.format(names=name, mtu=mtu, address=f"Address={address}\n")}
    if halves:
        texts[NETWORKD_HALF] = NETWORKD_TEXT.format(names=" ".join(halves), mtu=mtu, address="")
    return {str(path): {"content": BY + text, "mode": 0o644} for path, text in texts.items()}


WRITERS: Mapping[str, Any] = {"netplan": netplan, "networkd": networkd}
"""By what configures the network."""
