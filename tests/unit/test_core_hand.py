"""Who does what, and since when."""

from __future__ import annotations

import getpass
import re

import pytest

from core.hand import NOBODY, Hand


def test_a_hand_is_a_user_at_a_host_and_a_time_in_utc() -> None:
    hand = Hand.mine()
    assert re.fullmatch(r".+@.+", hand.by)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", hand.at)
    assert (NOBODY.by, NOBODY.at) == ("?", "?")


def test_a_user_without_a_name_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("no such user")

    monkeypatch.setattr(getpass, "getuser", nameless)
    assert re.match(r"user \d+@", Hand.mine().by)
