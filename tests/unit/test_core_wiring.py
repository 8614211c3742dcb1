"""What a node's network is, out of what iproute2, systemd and stat print."""

from __future__ import annotations

import ipaddress
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import wiring
from core.facts import parse
from core.question import Question, probe_request
from core.wiring import NETPLAN, Wire
from tests.unit.samples import lab_captures, local, spark_captures

HEAD = "gx10-beee"
KEYS = ["ifname", "flags", "mtu", "addr_info", "local", "prefixlen", "dev", "master", "family"]

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


def test_the_shipped_sparks_have_their_fabric_on_the_first_port() -> None:
    seen = parse(HEAD, spark_captures().nodes[HEAD]).wiring
    assert seen is not None
    assert seen.wires["enp1s0f0np0"] == Wire("enp1s0f0np0", True, 9000, (ipaddress.ip_interface("172.16.100.1/24"),))
    assert seen.wires["lo"].loopback
    assert [name for name, one in seen.wires.items() if one.up] == ["lo", "enP7s7", "enp1s0f0np0", "enP2p1s0f0np0"]
    assert (seen.default, seen.managers, seen.netplan) == ({"enP7s7"}, {"NetworkManager"}, True)
    assert (seen.pending, seen.confirmed, seen.files) == (None, None, {})


def test_facts_of_before_this_was_asked_have_no_wiring() -> None:
    assert all(seen.wiring is None for seen in lab_captures().parsed().values())


@pytest.mark.parametrize(("asked", "there"), [({}, False), ({"wiring": True}, True), ({"whole": True}, False)])
def test_it_is_asked_only_by_who_needs_it(asked: dict[str, bool], there: object) -> None:
    request = probe_request(local(), local().head, Question(**asked))
    asked_for = {*request["commands"], *request["files"]}
    wanted = {*wiring.request()["commands"], *wiring.request()["files"]}
    assert (wanted <= asked_for, wanted & asked_for == set()) == (bool(there), not there)


def test_an_interface_with_addresses_that_it_gave_itself_has_none_that_was_given() -> None:
    info = [
        {"family": "inet", "local": "169.254.7.1", "prefixlen": 16},
        {"family": "inet6", "local": "fe80::1", "prefixlen": 64},
        {"family": "inet6", "local": "fd00:1::1", "prefixlen": 64},
        {"index": 7},
    ]
    text = json.dumps([{"ifname": "x", "flags": ["UP"], "mtu": 1500, "master": "br0", "addr_info": info}, {}])
    (found,) = wiring.wires(text).values()
    assert list(map(str, found.given)) == ["fd00:1::1/64"]
    assert (len(found.addresses), found.up, found.master, found.loopback) == (3, False, "br0", False)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{}", "no list of objects"),
        ("[1]", "no list of objects"),
        ("x", "Expecting value"),
        ('[{"ifname": "x"}]', "an MTU is a whole number"),
        ('[{"ifname": "x", "mtu": 1, "flags": 1}]', "flags and addr_info are lists"),
        ('[{"ifname": "x", "mtu": 1, "addr_info": [{"local": "x", "prefixlen": 1}]}]', "does not appear to be"),
        ("[" * 100_000, "nested without end"),
    ],
)
def test_what_is_no_list_of_interfaces_is_refused(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        wiring.wires(text)


@given(JSON)
def test_any_json_is_interfaces_or_refused(data: Any) -> None:
    for parser in (wiring.wires, wiring.route_devices):
        try:
            parser(json.dumps(data))
        except (ValueError, KeyError):
            continue


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    assert wiring.managers(text) <= set(wiring.MANAGERS)
    for parser in (wiring.wires, wiring.route_devices, wiring.file_states):
        try:
            parser(text)
        except (ValueError, KeyError):
            continue


@given(st.lists(st.sampled_from(["active", "inactive", "failed", "activating"]), min_size=2, max_size=2))
def test_managers_stand_in_the_order_of_the_question(states: list[str]) -> None:
    found = wiring.managers("\n".join(states))
    assert found == {name for name, state in zip(wiring.MANAGERS, states, strict=True) if state == "active"}


@given(st.dictionaries(st.sampled_from(["/a", "/a b", str(NETPLAN)]), st.tuples(st.integers(0), st.integers(0))))
def test_files_are_known_by_size_and_time(states: dict[str, tuple[int, int]]) -> None:
    text = "".join(f"{path} {size} {changed}\n" for path, (size, changed) in states.items())
    assert wiring.file_states(text) == states


def test_records_of_the_guard_are_read_and_a_damaged_one_is_empty() -> None:
    folder = wiring.GUARD
    files = {f"{folder}/pending.json": "{", f"{folder}/confirmed.json": '{"written": {}}'}
    facts = {**spark_captures().nodes[HEAD], "network_guard": {"code": 0, "files": files}}
    seen = parse(HEAD, facts).wiring
    assert seen is not None
    assert (seen.pending, seen.confirmed) == ({}, {"written": {}})
