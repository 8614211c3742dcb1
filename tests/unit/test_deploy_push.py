"""Wheels to the nodes: what they have does not travel, and what does crosses the slow link once. Plans only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.config import Cluster, load_cluster
from core.facts import NodeFacts
from core.parsers import Interface
from core.plan import Talk, as_data, make_plan
from core.root import root_steps
from deploy.push import coming, lacking, push_steps, way_of
from deploy.sending import Errand
from tests.unit.samples import lab_facts, local, manifest, spark_captures, wheel

WHEELS = manifest(wheel("one", size=2_000_000), wheel("two"), wheel("uv"))
NAMES = [one.name for one in WHEELS.wheels]
A, B = "lab-a", "lab-b"
DONE = {WHEELS.release: {"stack": "cpu"}}


def has(*names: str, **more: Any) -> NodeFacts:
    """Return a node with these wheels in its store."""
    files = {one.sha256: one.size for one in WHEELS.wheels if one.name in names}
    return replace(lab_facts()[A], **{"store": files, "wheels": {}, **more})


def pair(one: NodeFacts, other: NodeFacts, *, fabric: int | None = 200_000, management: int | None = 1000) -> Any:
    """Return facts of both nodes, with links of so many Mb/s."""
    return {name: _linked(name, seen, fabric, management) for name, seen in ((A, one), (B, other))}


def _linked(name: str, seen: NodeFacts, fabric: int | None, management: int | None) -> NodeFacts:
    node = local().node(name)
    links = {
        "fab0": Interface("fab0", True, (node.fabric,), 1500, fabric),
        "host0": Interface("host0", True, (node.management,), 1500, management),
    }
    return replace(seen, name=name, addresses=links)


def forced(way: str) -> Cluster:
    return local().model_copy(update={"push": way})


def steps(facts: Mapping[str, NodeFacts], cluster: Cluster | None = None) -> dict[str, Talk]:
    found = list(push_steps(cluster or local(), facts, WHEELS, Path("/dist")))
    assert all(isinstance(step, Talk) for step in found)
    return {step.node: step for step in found if isinstance(step, Talk)}


def errand(step: Talk) -> Errand:
    found: Errand = step.talk.args[0]  # type: ignore[attr-defined]
    return found


class TestWhatTravels:
    def test_an_empty_node_needs_everything(self) -> None:
        assert [one.name for one in lacking(has(), WHEELS)] == NAMES
        assert coming(has(), WHEELS) == 2_002_000

    def test_what_is_in_the_store_or_there_by_name_does_not_travel(self) -> None:
        by_name = {one.filename: one.size for one in WHEELS.wheels if one.name == "two"}
        assert [one.name for one in lacking(has("one", wheels=by_name), WHEELS)] == ["uv"]

    def test_of_a_wheel_that_was_cut_off_the_rest_travels(self) -> None:
        one = WHEELS.wheels[0]
        cut = has("two", "uv", store={f".incoming/{one.sha256}": 1_500_000})
        assert coming(replace(cut, store={**cut.store, **has("two", "uv").store}), WHEELS) == 500_000

    def test_a_file_of_another_size_travels_again(self) -> None:
        short = has("two", "uv")
        facts = replace(short, store={**short.store, WHEELS.wheels[0].sha256: 12})
        assert [one.name for one in lacking(facts, WHEELS)] == ["one"]

    def test_an_older_capture_has_no_store(self) -> None:
        assert {**spark_captures().parsed()["gx10-beee"].store} == {}


class TestWay:
    def test_a_faster_fabric_carries_the_second_copy(self) -> None:
        way = way_of(local(), pair(has(), has()), WHEELS)
        assert way.source == local().head
        assert way.reason == "the fabric has 200 Gb/s, management 1 Gb/s"

    @pytest.mark.parametrize(
        ("fabric", "management", "source"),
        [(10_000, 10_000, None), (1000, 10_000, None), (None, 1000, None), (25_000, None, A)],
    )
    def test_a_fabric_that_is_not_known_to_be_faster_carries_none(
        self, fabric: int | None, management: int | None, source: str | None
    ) -> None:
        way = way_of(local(), pair(has(), has(), fabric=fabric, management=management), WHEELS)
        assert (way.source.name if way.source else None) == source
        assert "the fabric has" in way.reason

    def test_the_node_that_lacks_least_gives(self) -> None:
        way = way_of(local(), pair(has("two"), has("one")), WHEELS)
        assert way.source == local().node(B)

    @pytest.mark.parametrize("wish", ["auto", "relay"])
    def test_a_fabric_that_is_missing_is_never_used(self, wish: str) -> None:
        facts = pair(has(), has())
        facts[B] = replace(facts[B], addresses={"host0": facts[B].addresses["host0"]})
        way = way_of(forced(wish), facts, WHEELS)
        assert way.source is None
        assert way.reason == f"lab-b has no interface with its fabric address {local().node(B).fabric} that is up"

    def test_a_fabric_that_is_down_is_missing(self) -> None:
        facts = pair(has(), has())
        down = replace(facts[A].addresses["fab0"], up=False)
        facts[A] = replace(facts[A], addresses={**facts[A].addresses, "fab0": down})
        assert way_of(local(), facts, WHEELS).source is None

    def test_the_clusters_file_has_the_last_word(self) -> None:
        slow = pair(has(), has(), fabric=1000)
        assert way_of(forced("relay"), slow, WHEELS).reason == "push is relay in the cluster's file"
        assert way_of(forced("relay"), slow, WHEELS).source == local().head
        assert way_of(forced("direct"), pair(has(), has()), WHEELS).source is None

    def test_one_that_has_all_gives_and_nothing_crosses_management(self) -> None:
        found = steps(pair(has(*NAMES, releases=DONE), has()))
        assert found[A].title == "verify 3 wheels"
        assert found[A].size == 0
        assert found[B].title == "take 3 wheels, 2 MB"

    def test_where_only_one_lacks_wheels_and_has_the_most_it_gets_them_from_here(self) -> None:
        way = way_of(local(), pair(has("one"), has("two", "uv", releases=DONE)), WHEELS)
        assert way.source == local().head

    def test_a_secret_is_of_one_push_and_shown_nowhere(self) -> None:
        facts = pair(has(), has())
        one, other = (way_of(local(), facts, WHEELS) for _ in range(2))
        assert one.secret != other.secret
        assert len(one.secret) == 64
        plan = make_plan("push", [("push", steps(facts).values())])
        assert "secret" not in repr(plan)
        assert errand(steps(facts)[A]).request["offer"]["secret"] not in str(as_data(plan))


class TestSteps:
    def test_directly_every_node_is_sent_what_it_lacks(self) -> None:
        found = steps(pair(has("two"), has()), forced("direct"))
        assert {name: step.title for name, step in found.items()} == {
            A: "push 2 wheels, 2 MB",
            B: "push 3 wheels, 2 MB",
        }
        assert found[A].reason == "1 of 3 are there; push is direct in the cluster's file"
        assert [errand(step).main for step in found.values()] == ["receive", "receive"]
        assert "offer" not in errand(found[A]).request
        one = WHEELS.wheels[0]
        assert errand(found[A]).files[one.sha256] == (Path("/dist/one-1.0-py3-none-any.whl"), 2_000_000)

    def test_by_relay_one_is_sent_them_and_the_other_takes_them_from_it(self) -> None:
        found = steps(pair(has(), has()))
        link = {"address": str(local().head.fabric), "port": 29778}
        offer, taken = errand(found[A]).request["offer"], errand(found[B]).request["from"]
        assert offer == {**link, "secret": taken["secret"], "takers": [B]}
        assert (taken, errand(found[B]).main, errand(found[B]).files) == (
            {**link, "secret": offer["secret"]},
            "join",
            {},
        )
        assert "over management, and offer them to lab-b over the fabric into /opt/sparkstack/store" in found[A].shown
        assert f"from lab-a over the fabric, {local().head.fabric} port 29778" in found[B].shown
        assert errand(found[A]).request["wheels"] == errand(found[B]).request["wheels"]

    def test_what_is_there_is_verified_before_an_installation(self) -> None:
        found = steps(pair(has(*NAMES), has(*NAMES)))
        assert [step.title for step in found.values()] == ["verify 3 wheels"] * 2
        assert [errand(step).main for step in found.values()] == ["receive", "receive"]

    def test_where_all_is_installed_nothing_is_to_do_and_a_lost_wheel_comes_back(self) -> None:
        done = has(*NAMES, releases=DONE)
        assert steps(pair(done, done)) == {}
        assert steps(pair(done, has("one", "uv", releases=DONE)))[B].title == "take 1 wheels, 1 kB"

    def test_sizes_that_nobody_knows_yet_are_said_to_be_so(self) -> None:
        draft = manifest(wheel("one", size=0), wheel("uv", size=0))
        first, second = push_steps(local(), pair(has(), has()), draft, Path("/dist"))
        assert first.title == "push 2 wheels, sizes not known yet"
        assert second.title == "take 2 wheels, sizes not known yet"

    def test_two_sparks_get_one_copy_from_here(self) -> None:
        cluster, facts = load_cluster("spark"), spark_captures().parsed()
        found = {step.node: step for step in push_steps(cluster, facts, WHEELS, Path("/dist"))}
        assert found["gx10-beee"].title.startswith("push 3 wheels")
        assert found["gx10-c6fb"].title.startswith("take 3 wheels")
        assert "the fabric has 200 Gb/s" in found["gx10-c6fb"].reason


@pytest.mark.parametrize(
    ("owner", "reason"), [(None, "it does not exist"), ("root", "it belongs to root"), ("spark", None)]
)
def test_the_root_folder_is_made_once_and_that_takes_root(owner: str | None, reason: str | None) -> None:
    made = root_steps(local(), replace(lab_facts()["lab-a"], root_owner=owner))
    assert [(step.reason, step.privileged) for step in made] == ([(reason, True)] if reason else [])
