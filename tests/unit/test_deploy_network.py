"""Which interface is the fabric, what is written, and the plan: pure functions of facts of two Sparks."""

from __future__ import annotations

import ipaddress
import json
from dataclasses import replace
from typing import Any

import pytest

from core.config import Cluster, load_cluster
from core.errors import ConfigError, FactsError, InUse, NetworkReverted, UnfitNode, UsageError
from core.facts import NodeFacts
from core.parsers import Hca
from core.plan import Plan, Run, Write, as_text
from core.process import Completed
from core.wiring import NETPLAN, NETWORKD, NETWORKD_HALF, Wire, Wiring
from deploy.network.choice import choose, named
from deploy.network.files import netplan, networkd
from deploy.network.plan import Wanted, plan_network, plan_revert
from tests.unit.samples import TABLES, lab_facts, local, spark_captures, unit

CHOICES: list[dict[str, Any]] = json.loads((TABLES / "network_choice.json").read_text())
HEAD, OTHER = "gx10-beee", "gx10-c6fb"


def sparks() -> Cluster:
    return load_cluster("spark")


def wire(name: str, text: str, master: str | None = None) -> Wire:
    """Make a wire of words: state, MTU, addresses."""
    state, mtu, *addresses = text.split()
    return Wire(name, state == "up", int(mtu), tuple(map(ipaddress.ip_interface, addresses)), master)


def wiring(wires: dict[str, str], **changes: Any) -> Wiring:
    masters = changes.pop("master", {})
    found = {name: wire(name, text, masters.get(name)) for name, text in wires.items()}
    made = Wiring(found, frozenset({"enP7s7"}), frozenset({"NetworkManager"}), netplan=True)
    return replace(made, **changes)


def spark(name: str = HEAD, wires: dict[str, str] | None = None, **changes: Any) -> NodeFacts:
    """Return a Spark as it comes, with the cable in its first port; names of ConnectX ports are RDMA devices."""
    last = sparks().node(name)
    given = wires or {
        "enP7s7": f"up 1500 {last.management}/24",
        "enp1s0f0np0": "up 1500",
        "enP2p1s0f0np0": "up 1500",
        "enp1s0f1np1": "down 1500",
        "enP2p1s0f1np1": "down 1500",
    }
    made = wiring(given, **changes)
    hcas = tuple(Hca(one.replace("en", "roce", 1), one, up=True) for one in given if "np" in one)
    return replace(spark_captures().parsed()[name], wiring=made, hcas=hcas)


def new_pair(**changes: Any) -> dict[str, NodeFacts]:
    return {name: spark(name, **changes) for name in (HEAD, OTHER)}


@pytest.mark.parametrize("row", CHOICES, ids=lambda row: row["title"])
def test_the_interface_is_chosen_from_facts_or_refused(row: dict[str, Any]) -> None:
    cluster = sparks()
    seen = spark(wires=row["wires"], default=frozenset(row.get("default", ["enP7s7"])), master=row.get("master", {}))
    names = named(cluster, row.get("flags", []))[HEAD]
    if "refused" in row:
        with pytest.raises(UnfitNode) as caught:
            choose(cluster, cluster.head, seen, names)
        assert caught.value.node == HEAD
        assert row["refused"] in caught.value.cause
        assert row["move"] in caught.value.next_move
        return
    end = choose(cluster, cluster.head, seen, names)
    found = {"chosen": end.wire.name, "halves": [one.name for one in end.halves], "why": end.why}
    assert found == {key: row[key] for key in found}
    assert [one.name for one in end.left] == row.get("left", [])


def test_a_refusal_lists_what_there_is() -> None:
    row = next(row for row in CHOICES if row["title"].startswith("two ports have cables: "))
    with pytest.raises(UnfitNode) as caught:
        choose(sparks(), sparks().head, spark(wires=row["wires"]))
    lines = caught.value.evidence.splitlines()
    assert lines[0] == "enP7s7: up, MTU 1500, 192.168.34.100/24, default route"
    assert lines[1] == "enp1s0f0np0: up, MTU 1500, no address, rocep1s0f0np0"


def test_the_interface_that_the_clusters_file_names_is_taken_unless_the_command_names_another() -> None:
    fabric = sparks().fabric.model_copy(update={"interface": "enP2p1s0f0np0"})
    cluster = sparks().model_copy(update={"fabric": fabric})
    end = choose(cluster, cluster.head, spark())
    assert (end.wire.name, end.why) == ("enP2p1s0f0np0", "the cluster's file names it")
    assert choose(cluster, cluster.head, spark(), ["enp1s0f0np0"]).wire.name == "enp1s0f0np0"


def test_names_that_are_none_are_refused() -> None:
    assert named(sparks(), ["x", f"{HEAD}=y"]) == {HEAD: ("x", "y"), OTHER: ("x",)}
    with pytest.raises(UsageError, match="names no interface"):
        named(sparks(), ["a b"])
    with pytest.raises(ConfigError, match="did you mean gx10-beee"):
        named(sparks(), ["gx10-bee=eth0"])


def test_facts_that_were_saved_without_it_are_refused() -> None:
    with pytest.raises(FactsError, match="say nothing of its network"):
        plan_network(local(), lab_facts(), Wanted())


def test_the_file_for_netplan() -> None:
    (entry,) = netplan("enp1s0f0np0", ("enP2p1s0f0np0",), "172.16.100.1/24", 9000).values()
    assert entry["mode"] == 0o600
    assert entry["content"].splitlines()[1:] == [
        *("network:", "  version: 2", "  ethernets:"),
        *("    enp1s0f0np0:", "      dhcp4: false", "      dhcp6: false", "      accept-ra: false"),
        *("      link-local: []", "      optional: true", "      mtu: 9000", "      addresses: [172.16.100.1/24]"),
        *("    enP2p1s0f0np0:", "      dhcp4: false", "      dhcp6: false", "      accept-ra: false"),
        *("      link-local: []", "      optional: true", "      mtu: 9000"),
    ]


def test_the_files_for_networkd() -> None:
    files = networkd("a", ("b",), "172.16.100.1/24", 9000)
    assert list(files) == [str(NETWORKD), str(NETWORKD_HALF)]
    texts = [entry["content"] for entry in files.values()]
    assert [text.count("MTUBytes=9000\n") for text in texts] == [1, 1]
    assert ["Name=a\n" in texts[0], "Name=b\n" in texts[1]] == [True, True]
    assert ["Address=172.16.100.1/24\nDHCP=no\n" in text for text in texts] == [True, False]
    assert list(networkd("a", (), "172.16.100.1/24", 9000)) == [str(NETWORKD)]


def change_of(plan: Plan, node: str = HEAD) -> dict[str, Any]:
    """Return what the guard of a node is told."""
    (written,) = [
        step for step in plan.steps if isinstance(step, Write) and step.node == node and step.path.suffix == ".json"
    ]
    found: dict[str, Any] = json.loads(written.content)
    return found


def test_two_new_sparks_get_addresses_and_mtu_and_every_node_is_guarded_before_one_changes() -> None:
    plan = plan_network(sparks(), new_pair(), Wanted())
    assert [stage.title for stage in plan.stages] == [
        "arm the guard",
        "change the network",
        "check the fabric",
        "confirm",
    ]
    assert all(list(stage.by_node) == [HEAD, OTHER] for stage in plan.stages)
    assert [step.argv[-2:] for step in plan.stages[0].undo] == [
        ("/var/lib/sparkstack-network/guard.py", change_of(plan, name)["id"]) for name in (HEAD, OTHER)
    ]
    change = change_of(plan)
    assert change["links"] == {
        "enp1s0f0np0": {"mtu": 9000, "addresses": ["172.16.100.1/24"], "up": True},
        "enP2p1s0f0np0": {"mtu": 9000, "addresses": [], "up": True},
    }
    assert change["files"] == netplan("enp1s0f0np0", ("enP2p1s0f0np0",), "172.16.100.1/24", 9000)
    assert (change["source"], change["others"]) == ("172.16.100.1", {OTHER: "172.16.100.2"})
    assert "addresses: [172.16.100.2/24]" in as_text(plan)


def test_check_and_confirmation_go_over_new_connections_and_the_change_outlives_its_own() -> None:
    plan = plan_network(sparks(), new_pair(), Wanted())
    runs = {stage.title: [step for step in stage.steps if isinstance(step, Run)] for stage in plan.stages}
    assert all(step.fresh for name in ("check the fabric", "confirm") for step in runs[name])
    assert all(step.unit == "fabric-guard-apply" for step in runs["change the network"])
    assert all(step.privileged for step in plan.steps if isinstance(step, Run | Write))


def test_a_step_that_fails_says_what_the_guard_said() -> None:
    plan = plan_network(sparks(), new_pair(), Wanted())
    (step,) = [one for one in plan.stages[2].steps if one.node == HEAD]
    assert isinstance(step, Run)
    assert step.failure is not None
    error = step.failure(Completed(("x",), 1, "packets of 9000 bytes do not come back from b\n", ""))
    assert isinstance(error, NetworkReverted)
    assert (error.node, error.cause) == (HEAD, "packets of 9000 bytes do not come back from b")


READY = {"enP7s7": "up 1500 192.168.34.100/24", "enp1s0f0np0": "up 9000 172.16.100.1/24", "enP2p1s0f0np0": "up 9000"}


def confirmed(plan: Plan, *, final: bool = False) -> dict[str, Any]:
    """Return the guard's record of a change, as it is after the plan."""
    change = {**change_of(plan), "final": final}
    original = {"how": "netplan", "files": {str(NETPLAN): None}, "links": {"enp1s0f0np0": {"mtu": 1500}}}
    return {"change": change, "original": original, "written": {str(NETPLAN): [400, 1700000000]}}


def after(wires: dict[str, str] | None = None, *, final: bool = False, **changes: Any) -> dict[str, NodeFacts]:
    """Return the head as it is when it was changed, and the other node as the shipped facts have it."""
    record = confirmed(plan_network(sparks(), new_pair(), Wanted()), final=final)
    kept: dict[str, Any] = {"confirmed": record, "files": {str(NETPLAN): (400, 1700000000)}}
    seen = spark(wires=wires or READY, **{**kept, **changes})
    return {HEAD: seen, OTHER: spark_captures().parsed()[OTHER]}


def test_what_is_as_it_was_left_has_nothing_to_do() -> None:
    assert plan_network(sparks(), after(), Wanted()).empty
    assert plan_network(sparks(), spark_captures().parsed(), Wanted()).empty, "whoever configured it"


@pytest.mark.parametrize(
    ("changes", "wanted", "says"),
    [
        ({}, Wanted(mtu=4200), "the MTU of enp1s0f0np0 is 9000; the MTU of enP2p1s0f0np0 is 9000; our file"),
        ({"files": {}}, Wanted(), f"{NETPLAN} is gone, or was changed"),
        ({"files": {str(NETPLAN): (401, 1700000000)}}, Wanted(), f"{NETPLAN} is gone, or was changed"),
        ({"wires": {**READY, "enP2p1s0f0np0": "up 1500"}}, Wanted(), "the MTU of enP2p1s0f0np0 is 1500"),
        (
            {"wires": {**READY, "enp1s0f0np0": "up 9000 172.16.100.1/16"}},
            Wanted(),
            "it has 172.16.100.1/16, not 172.16.100.1/24",
        ),
        ({"wires": {**READY, "enp1s0f0np0": "up 9000"}}, Wanted(), "it has no address, not 172.16.100.1/24"),
        ({"confirmed": None, "wires": {**READY, "enp1s0f0np0": "up 1500 172.16.100.1/24"}}, Wanted(), "is 1500"),
    ],
)
def test_what_is_not_as_it_should_be_is_changed_again(changes: dict[str, Any], wanted: Wanted, says: str) -> None:
    plan = plan_network(sparks(), after(**changes), wanted)
    (step,) = [one for one in plan.stages[1].steps if one.node == HEAD]
    assert says in step.reason
    before = change_of(plan_network(sparks(), new_pair(), Wanted()))
    assert change_of(plan)["id"] != before["id"] or changes.get("confirmed", 1) is None


def test_an_mtu_that_is_larger_is_left_where_it_is_not_ours() -> None:
    large = {**READY, "enp1s0f0np0": "up 9216 172.16.100.1/24", "enP2p1s0f0np0": "up 9216"}
    assert plan_network(sparks(), after(large, confirmed=None), Wanted()).empty
    assert not plan_network(sparks(), after(large), Wanted()).empty


def test_a_half_with_an_address_of_its_own_is_named() -> None:
    wires = {**READY, "enp1s0f0np0": "up 1500 172.16.100.1/24", "enP2p1s0f0np0": "up 1500 10.0.0.1/24"}
    plan = plan_network(sparks(), after(wires, confirmed=None), Wanted())
    assert plan.notes[0] == f"{HEAD}: enP2p1s0f0np0 has an address of its own and is left as it is"
    assert list(change_of(plan)["links"]) == ["enp1s0f0np0"]


def test_back_to_what_was_there_before_us() -> None:
    plan = plan_revert(sparks(), after(), Wanted())
    change = change_of(plan)
    assert change["files"] == {str(NETPLAN): None}
    assert (change["links"], change["by_hand"], change["final"]) == ({"enp1s0f0np0": {"mtu": 1500}}, True, True)
    assert change["others"] == {}
    assert {step.node for step in plan.steps} == {HEAD}
    assert plan_revert(sparks(), after(final=True), Wanted()).empty
    assert plan_revert(sparks(), spark_captures().parsed(), Wanted()).empty


def test_files_of_an_earlier_manager_go() -> None:
    seen = after(netplan=False, managers=frozenset({"systemd-networkd"}))
    change = change_of(plan_network(sparks(), seen, Wanted()))
    assert change["how"] == "networkd"
    assert change["files"][str(NETPLAN)] is None
    assert {str(NETWORKD), str(NETWORKD_HALF)} < change["files"].keys()


@pytest.mark.parametrize(
    ("managers", "says"),
    [({"NetworkManager"}, "NetworkManager without netplan"), (set[str](), "neither netplan nor systemd-networkd")],
)
def test_a_node_that_neither_netplan_nor_networkd_configures_is_refused(managers: set[str], says: str) -> None:
    with pytest.raises(UnfitNode, match=says) as caught:
        plan_network(sparks(), new_pair(netplan=False, managers=frozenset(managers)), Wanted())
    assert "apt-get install netplan.io" in caught.value.next_move
    assert "nmcli con add type ethernet ifname NAME ip4 172.16.100.1/" in caught.value.next_move


def test_nothing_is_changed_under_a_service() -> None:
    pair = new_pair()
    pair[OTHER] = replace(pair[OTHER], units={"sparkstack-ray-worker": unit("sparkstack-ray-worker")})
    with pytest.raises(InUse, match="it serves") as caught:
        plan_network(sparks(), pair, Wanted())
    assert (caught.value.node, caught.value.next_move) == (OTHER, "invoke stop --cluster spark, then say it again")


@pytest.mark.parametrize("pending", [{"until": "2026-01-01T00:00:00Z"}, {}])
def test_a_change_that_waits_is_waited_for(pending: dict[str, str]) -> None:
    for planner in (plan_network, plan_revert):
        with pytest.raises(InUse, match="waits to be confirmed") as caught:
            planner(sparks(), new_pair(pending=pending), Wanted())
        assert pending.get("until", "?") in caught.value.cause


@pytest.mark.parametrize("wanted", [Wanted(mtu=1279), Wanted(mtu=9979), Wanted(deadline=9), Wanted(deadline=3601)])
def test_numbers_that_cannot_be_are_refused(wanted: Wanted) -> None:
    with pytest.raises(UsageError, match="cannot be"):
        plan_network(sparks(), new_pair(), wanted)


def test_a_single_node_has_no_fabric() -> None:
    alone = sparks().model_copy(update={"nodes": sparks().nodes[:1]})
    with pytest.raises(UsageError, match="no fabric"):
        plan_network(alone, new_pair(), Wanted())
