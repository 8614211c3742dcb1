"""What keeps a node from taking a stack, each with its next move."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from core import parsers
from core.config import ROOT, Cluster, Stack, load_cluster, load_stack
from core.errors import UnfitNode
from core.facts import NodeFacts, load_captures
from core.findings import Finding, refuse_unfit
from deploy.doctor import examine
from tests.unit.samples import CAPTURES, TABLES, cpu, lab_facts, local, manifest, spark_captures
from wheels.manifest import Manifest

FINDINGS = json.loads((TABLES / "doctor_findings.json").read_text())


def changed(seen: NodeFacts, row: dict[str, Any]) -> NodeFacts:
    facts = {key: tuple(value) if isinstance(value, list) else value for key, value in row.get("facts", {}).items()}
    if "packages" in facts:
        facts["packages"] = frozenset(facts["packages"])
    if "addresses" in row:
        facts["addresses"] = parsers.interfaces(row["addresses"], {}, {})
    return replace(seen, **facts)


def found(
    facts: dict[str, NodeFacts],
    wheels: Manifest | None = None,
    cluster: Cluster | None = None,
    stack: Stack | None = None,
) -> list[Finding]:
    return list(examine(cluster or local(), stack or cpu(), facts, wheels))


@pytest.mark.parametrize("row", FINDINGS, ids=lambda row: row["title"])
def test_what_is_wrong_with_a_node_is_found_with_the_next_move(row: dict[str, Any]) -> None:
    facts = lab_facts()
    facts["lab-b"] = changed(facts["lab-b"], row)
    findings = [one for one in found(facts, manifest()) if "wheels in hand" not in one.cause]
    expected = [Finding("lab-b", row["finds"], row["next"])] if row["finds"] else []
    assert [(one.node, one.cause, one.next_move) for one in findings] == [
        (one.node, one.cause, one.next_move) for one in expected
    ]


def test_wheels_for_another_machine_are_found() -> None:
    facts = lab_facts(python=(3, 12))
    assert [one.cause for one in found(facts, manifest())] == [
        "it is x86_64-cp312, the wheels in hand are for x86_64-cp311"
    ] * 2
    assert found(facts, manifest())[0].next_move == "invoke build-wheels --cluster local"


def test_two_sparks_take_the_guides_stack() -> None:
    facts = spark_captures().parsed()
    assert found(facts, None, load_cluster("spark"), load_stack("guide")) == []


def test_a_spark_whose_driver_does_not_answer_is_found() -> None:
    facts = {name: replace(seen, gpus=()) for name, seen in spark_captures().parsed().items()}
    findings = found(facts, None, load_cluster("spark"), load_stack("guide"))
    assert [one.cause for one in findings] == ["nvidia-smi shows no GPU"] * 2


def test_room_is_asked_for_what_is_not_there_yet_only() -> None:
    wheels, facts = manifest(), lab_facts(disk_free=17_000_000)
    assert len(found(facts, wheels)) == 2
    pushed = {name: replace(seen, wheels={w.filename: w.size for w in wheels.wheels}) for name, seen in facts.items()}
    assert found(pushed, wheels) == [], "the environment alone has room"
    installed = {name: replace(seen, disk_free=10, releases={wheels.release: {}}) for name, seen in pushed.items()}
    assert found(installed, wheels) == []


def test_one_node_needs_no_fabric() -> None:
    cluster = local().model_copy(update={"nodes": local().nodes[:1]})
    facts = lab_facts()
    facts["lab-a"] = replace(facts["lab-a"], addresses=parsers.interfaces("host0 UP 198.18.34.100/24", {}, {}))
    assert found(facts, None, cluster) == []


def test_the_first_finding_is_the_error_and_the_others_its_evidence() -> None:
    def findings() -> Iterator[Finding]:
        yield Finding("lab-a", "no room", "free some")
        yield Finding("lab-b", "no cable", "plug it in")

    with pytest.raises(UnfitNode) as caught:
        refuse_unfit(findings())
    assert str(caught.value) == "lab-a: no room\n    also lab-b: no cable; next: plug it in\n  next: free some"


def test_without_a_finding_nothing_is_refused() -> None:
    refuse_unfit(iter(()))


def h200_facts() -> dict[str, NodeFacts]:
    return load_captures(CAPTURES / "h200-pair.json").parsed()


def test_what_a_machine_with_an_h200_says_is_read() -> None:
    for name, seen in h200_facts().items():
        assert [(gpu.name, gpu.capability, gpu.driver) for gpu in seen.gpus] == [("NVIDIA H200", "9.0", "580.159.04")]
        assert (seen.architecture, seen.python, seen.glibc, seen.cuda) == ("x86_64", (3, 12), (2, 39), "13.0"), name


def test_machines_with_an_h200_take_the_stack_for_them_and_not_the_one_for_sparks() -> None:
    pair = load_cluster(str(ROOT / "benchmarks" / "gpu" / "pair.toml"))
    assert found(h200_facts(), None, pair, load_stack("cuda-x86")) == []
    refused = {one.cause for one in found(h200_facts(), None, pair, load_stack("current"))}
    assert any("aarch64" in cause for cause in refused), refused
