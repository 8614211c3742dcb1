"""Two halves of one QSFP port, and what only looks like it."""

from __future__ import annotations

import pytest

from core.ports import same_port


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("enp1s0f0np0", "enp1s0f0np0", True),
        ("enp1s0f0np0", "enP2p1s0f0np0", True),
        ("enP2p1s0f1np1", "enp1s0f1np1", True),
        ("enp1s0f0np0", "enp1s0f1np1", False),
        ("enp1s0f0np0", "enp129s0f0np0", False),
        ("enp1s0f0np0", "enp11s0f0np0", False),
        ("ens1f0np0", "ens1f0np0", True),
        ("enP7s7", "enp1s0f0np0", False),
        ("fab0", "fab0", True),
        ("fab0", "fab1", False),
    ],
)
def test_halves_are_of_one_card_one_slot_and_one_port(one: str, other: str, *, same: bool) -> None:
    assert same_port(one, other) is same_port(other, one) is same
