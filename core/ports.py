"""The two halves of a QSFP port: one cable, two PCIe functions, two interfaces, two RDMA devices."""

from __future__ import annotations

import re


def same_port(one: str, other: str) -> bool:
    """Whether two interfaces are halves of one QSFP port: a port shows as enp1s0f0np0 and enP2p1s0f0np0.

    What differs is the PCI domain; bus and slot are those of the card (systemd.net-naming-scheme(7)).
    """
    ends = [re.search(r"(?:p\d+)?s\d+f\d+np\d+$", name) for name in (one, other)]
    return one == other or (ends[0] is not None and ends[1] is not None and ends[0][0] == ends[1][0])
