"""Which subnets are free, and what interfaces are called."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.config import Cluster, load_cluster
from core.errors import LabError
from lab import network, place
from lab.keys import known_host
from lab.network import Used, check_free, host_address, parse_addresses, parse_routes

LOCAL = load_cluster("local")
MARK = place.mark(LOCAL)
NAMES = st.from_regex(r"\A[a-z0-9][a-z0-9.-]{0,62}\Z")


def address(interface: str, local: str, prefix: int = 24) -> dict[str, Any]:
    return {"ifname": interface, "addr_info": [{"family": "inet", "local": local, "prefixlen": prefix}]}


def renamed(**changes: Any) -> Cluster:
    return LOCAL.model_copy(update=changes)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[dict[str, Any]]]:
    """What `ip` says of a host, to be filled by the test."""
    answers: dict[str, list[dict[str, Any]]] = {"address": [], "route": []}
    monkeypatch.setattr(network, "_ip", answers.__getitem__)
    return answers


def test_the_networks_of_other_interfaces_are_found_and_ours_are_not() -> None:
    data = [address("eth0", "10.0.0.7", 8), address(f"{MARK}m", "198.18.34.1"), {"ifname": "down"}, {}]
    assert parse_addresses(data, MARK) == (Used(ipaddress.IPv4Network("10.0.0.0/8"), "interface eth0"),)


def test_default_routes_and_fences_are_in_nobodys_way() -> None:
    data = [
        {"type": "unicast", "dst": "default", "dev": "eth0"},
        {"type": "unicast", "dst": "0.0.0.0/1", "dev": "tun0"},
        {"type": "unreachable", "dst": "198.18.34.0/24", "dev": "lo"},
        {"type": "unicast", "dst": "198.18.34.0/24", "dev": f"{MARK}m"},
        {"type": "blackhole", "dst": "198.18.0.0/15"},
        {"type": "unicast", "dst": "203.0.113.9", "dev": "eth0"},
    ]
    assert [str(used.subnet) for used in parse_routes(data, MARK)] == ["198.18.0.0/15", "203.0.113.9/32"]


def test_a_free_host_is_accepted(host: dict[str, list[dict[str, Any]]]) -> None:
    host["address"] = [address("eth0", "192.0.2.2")]
    host["route"] = [{"type": "unicast", "dst": "default", "dev": "eth0"}]
    check_free(LOCAL)


@pytest.mark.parametrize(
    ("what", "entry", "words"),
    [
        ("address", address("eth1", "198.18.100.9"), r"fabric.subnet 198.18.100.0/24 .* interface eth1"),
        ("route", {"type": "unicast", "dst": "198.18.0.0/15", "dev": "tun0"}, r"management.subnet .* route to 198.18"),
    ],
)
def test_a_subnet_in_use_is_refused_with_its_user(
    host: dict[str, list[dict[str, Any]]], what: str, entry: dict[str, Any], words: str
) -> None:
    host[what] = [entry]
    with pytest.raises(LabError, match=words):
        check_free(LOCAL)


@given(NAMES)
def test_interface_names_are_short_enough_for_the_kernel(name: str) -> None:
    cluster = renamed(name=name)
    where = place.places(cluster)[-1]
    for interface in (place.bridge(cluster, "management"), where.link("fabric")):
        assert len(interface) <= 15
        assert interface.startswith("spk")


def test_two_clusters_never_share_an_interface_name() -> None:
    other = renamed(name="lab-tests")
    assert place.bridge(other, "fabric") != place.bridge(LOCAL, "fabric")


@given(NAMES)
def test_a_machines_name_here_is_a_hostname(name: str) -> None:
    node = LOCAL.head.model_copy(update={"name": name})
    found = place.Place(renamed(nodes=(node,)), node).mark
    assert len(found) <= 63
    assert found[-1].isalnum()


def test_the_host_takes_the_first_address_that_no_machine_has() -> None:
    assert str(host_address(LOCAL)) == "198.18.34.1"
    first = LOCAL.head.model_copy(update={"management": ipaddress.IPv4Address("198.18.34.1")})
    assert str(host_address(renamed(nodes=(first, *LOCAL.workers)))) == "198.18.34.2"


def test_a_single_machine_may_do_without_a_fabric() -> None:
    assert place.networks(LOCAL) == ("management", "fabric")
    assert place.networks(renamed(fabric=LOCAL.management)) == ("management",)


def test_known_hosts_has_the_port_only_when_it_is_another_one() -> None:
    node = LOCAL.head.management
    assert known_host(node, 22, "ssh-ed25519 AAAA lab-a\n") == "198.18.34.100 ssh-ed25519 AAAA\n"
    assert known_host(node, 2222, "ssh-ed25519 AAAA lab-a\n") == "[198.18.34.100]:2222 ssh-ed25519 AAAA\n"
