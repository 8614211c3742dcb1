"""Every check of the doctor on a healthy pair of Sparks, and on the same pair with one fault in what its probe said."""

from __future__ import annotations

import contextlib
import copy
import json
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.config import CONFIG, load_cluster, load_profile, load_stack
from core.errors import FactsError
from core.facts import NodeFacts, parse
from core.findings import Severity
from deploy.checks import gpu
from deploy.checks.case import Case
from deploy.doctor import CHECKS, Diagnosis, diagnose, worst
from deploy.page import as_data, case_of, page
from tests.unit.samples import TABLES, capture, cpu, lab_facts, local, manifest, spark_captures, tiny

ROWS: list[dict[str, Any]] = json.loads((TABLES / "doctor_checks.json").read_text())
QWEN = json.loads((CONFIG / "models" / "Qwen2.5-32B-Instruct.json").read_text())
SECOND = {"gx10-beee": "c0a8:640a", "gx10-c6fb": "c0a8:640e"}


def healthy() -> dict[str, dict[str, Any]]:
    """Return the shipped captures with an address on the second half (as in `show_gids`), an empty cache, linger."""
    nodes = copy.deepcopy({name: dict(facts) for name, facts in spark_captures().nodes.items()})
    for name, facts in nodes.items():
        address = f"0000:0000:0000:0000:0000:ffff:{SECOND[name]}\n"
        port = "/sys/class/infiniband/roceP2p1s0f0/ports/1"
        facts["gids"]["files"] |= {f"{port}/gids/3": address, f"{port}/gid_attrs/types/3": "RoCE v2\n"}
        facts["lingers"] = {"code": 0, "out": "/var/lib/systemd/linger/gx10\n"}
        memory = facts["meminfo"]["files"]
        memory["/proc/meminfo"] = memory["/proc/meminfo"].replace(
            "MemFree:        89867196", "MemFree:       110000000"
        )
    return nodes


def changed(raw: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """Return one fact with a fault in it."""
    if "capture" in change:
        return {"code": 0, "out": capture(change["capture"])}
    if "file" in change:
        path, content = change["file"]
        return {"code": 0, "files": {**raw["files"], path: content}}
    if "out" in change or "add" in change:
        return {"code": 0, "out": change.get("out", raw["out"]) + change.get("add", "")}
    text = json.dumps(raw)
    for old, new in change["replace"]:
        assert old in text, f"{old!r} is not in the fact"
        text = text.replace(old, new)
    found: dict[str, Any] = json.loads(text)
    return found


def sparks(row: dict[str, Any]) -> dict[str, NodeFacts]:
    nodes = healthy()
    for name in nodes if row["node"] == "both" else [row["node"]]:
        for fact, change in row["change"].items():
            nodes[name][fact] = changed(nodes[name][fact], change)
    return {name: parse(name, facts) for name, facts in nodes.items()}


def case(facts: dict[str, NodeFacts], profile: str = "qwen2.5-32b", **changes: Any) -> Case:
    return case_of(load_cluster("spark"), load_stack("guide"), load_profile(profile).model_copy(update=changes), facts)


def shown(found: tuple[Diagnosis, ...]) -> list[tuple[str, ...]]:
    return [
        (one.check, one.finding.severity.word, one.finding.node, one.finding.cause, one.finding.next_move)
        for one in found
    ]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["title"])
def test_a_fault_is_found_with_its_severity_and_next_move(row: dict[str, Any]) -> None:
    found = [line for line in shown(diagnose(case(sparks(row)))) if line[0] in row.get("only", CHECKS)]
    nodes = ["gx10-beee", "gx10-c6fb"] if row["node"] == "both" else [row["node"]]
    expected = [(check, severity, node, *rest) for check, severity, *rest in row["finds"] for node in nodes]
    assert found == expected


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["title"])
def test_every_finding_says_what_it_means(row: dict[str, Any]) -> None:
    for one in diagnose(case(sparks(row))):
        assert one.finding.meaning
        assert not one.finding.meaning.endswith(".")


WHOLE = healthy()["gx10-c6fb"]
LINES = sorted({line for fact in WHOLE.values() for line in str(fact.get("out", "")).splitlines()})


@given(
    fact=st.sampled_from(sorted(WHOLE)),
    text=st.one_of(st.text(), st.lists(st.sampled_from(LINES)).map("\n".join), st.text("0123456789.:,/ -\nMiB")),
)
def test_a_fact_with_any_text_in_it_is_refused_or_judged(fact: str, text: str) -> None:
    raw = WHOLE[fact]
    answer = {"files": dict.fromkeys(raw["files"], text)} if "files" in raw else {"out": text}
    nodes = {**healthy(), "gx10-c6fb": {**WHOLE, fact: answer}}
    with contextlib.suppress(FactsError):
        facts = {name: parse(name, capture) for name, capture in nodes.items()}
        found = diagnose(case(facts))
        assert page(case(facts), found)
        assert json.dumps(as_data(case(facts), found))


MEASURED = ("way", "rate", "messages", "packets")


def test_every_check_finds_something_in_these_tables() -> None:
    tried = {line[0] for row in ROWS for line in row["finds"]}
    apart = {"wheels", "ranks", "GID index", "answers", *(f"measured {what}" for what in MEASURED)}
    assert tried | apart == set(CHECKS)


def test_indices_of_addresses_that_differ_are_worth_a_note() -> None:
    nodes = healthy()
    port = "/sys/class/infiniband/rocep1s0f0/ports/1"
    files = nodes["gx10-c6fb"]["gids"]["files"]
    files[f"{port}/gids/5"] = files.pop(f"{port}/gids/3")
    files[f"{port}/gid_attrs/types/5"] = "RoCE v2\n"
    found = diagnose(case({name: parse(name, facts) for name, facts in nodes.items()}))
    assert [(one.check, one.finding.severity, one.finding.cause) for one in found] == [
        (
            "GID index",
            Severity.NOTE,
            "the RoCE v2 addresses have different indices: gx10-beee rocep1s0f0 3, gx10-c6fb rocep1s0f0 5",
        )
    ]


def test_nodes_with_different_commits_of_one_model_are_told_whatever_the_hub_calls_them() -> None:
    nodes = healthy()
    about = {"format": 1, "repository": "Qwen/Qwen2.5-32B-Instruct", "hub": "modelscope", "files": []}
    for name, commit in (("gx10-beee", "a" * 40), ("gx10-c6fb", "b" * 40)):
        path = "/home/gx10/models/Qwen2.5-32B-Instruct/sparkstack-model.json"
        nodes[name]["models"] = {"code": 0, "files": {path: json.dumps({**about, "commit": commit})}}
    found = diagnose(case({name: parse(name, facts) for name, facts in nodes.items()}))
    assert [(one.check, one.finding.severity, one.finding.node, one.finding.cause) for one in found] == [
        (
            "model",
            Severity.PROBLEM,
            "gx10-c6fb",
            (
                "its model is Qwen/Qwen2.5-32B-Instruct at bbbbbbbbbbbb, "
                "another node's Qwen/Qwen2.5-32B-Instruct at aaaaaaaaaaaa"
            ),
        )
    ]


def test_a_model_that_is_there_is_not_arriving_while_another_commit_does() -> None:
    row = next(row for row in ROWS if row["title"] == "a model that still arrives")
    there = {"model": {"out": "model.safetensors 5\n"}}
    found = diagnose(case(sparks({**row, "change": {**row["change"], **there}})))
    assert [one for one in found if one.check == "model"] == []


def test_a_rank_of_ours_that_its_unit_still_holds_is_named_on_the_gpu() -> None:
    row = next(row for row in ROWS if row["title"] == "a rank of ours lives on")
    ours = {"pid": 577729, "start": 9, "user": 1000, "unit": "sparkstack-ray-worker.service", "command": "ray::Worker"}
    line = json.dumps({**ours, "ports": [], "top": 577729, "loose": True, "starter": "1 systemd"})
    found = diagnose(case(sparks({**row, "change": {**row["change"], "ours": {"out": line}}})))
    assert [line[:2] for line in shown(found)] == [tuple(line[:2]) for line in row["finds"]]


@pytest.mark.parametrize("files", [{}, {"model": {"out": "model.safetensors 65527752704\n"}}])
def test_a_model_of_a_kind_that_is_not_counted_has_nothing_to_be_done(files: dict[str, Any]) -> None:
    config = {"file": ["/m/config.json", json.dumps({**QWEN, "num_experts": 8})]}
    found = diagnose(case(sparks({"node": "both", "change": {"model_config": config, **files}})))
    assert [(one.check, one.finding.next_move) for one in found] == [
        ("model known", "nothing is to do: models of this kind are not counted (docs/doctor.md)")
    ] * 2


def test_a_gpu_with_memory_of_its_own_makes_no_finding_of_memory() -> None:
    change = {"gpus": {"replace": [["GB10, 12.1", "H100 80GB HBM3, 9.0"]]}}
    memory = {"meminfo": {"replace": [["MemAvailable:  120663372", "MemAvailable:    9000000"]]}}
    found = diagnose(case(sparks({"node": "both", "change": {**change, **memory}})))
    assert {one.check for one in found} == {"GPU"}


def test_a_worker_that_was_started_anew_is_missed_by_its_service() -> None:
    row = next(row for row in ROWS if row["title"] == "our service runs")
    found = diagnose(case(sparks({**row, "node": "gx10-beee"})))
    assert [(one.check, one.finding.node, one.finding.cause) for one in found] == [
        ("half a service", "gx10-c6fb", "no unit of the service runs there, sparkstack-vllm on gx10-beee does")
    ]


@pytest.mark.parametrize(
    ("stages", "severity", "says"),
    [(1, "note", "a node stays idle"), (3, "problem", "Ray would wait for a GPU that does not come")],
)
def test_ranks_and_nodes_are_compared(stages: int, severity: str, says: str) -> None:
    found = diagnose(case(sparks(ROWS[0]), pipeline_parallel=stages))
    assert [(one.finding.severity.word, one.finding.meaning) for one in found if one.check == "ranks"] == [
        (severity, says)
    ]


@pytest.mark.parametrize(
    ("codes", "capability", "runs"),
    [
        (("121",), "12.1", True),
        (("120",), "12.1", True),
        (("121",), "12.0", False),
        (("90", "120f"), "12.1", True),
        (("121a",), "12.1", True),
        (("120a",), "12.1", False),
        (("100", "90"), "12.1", False),
        (("90",), "9.0", True),
        ((), "9.0", True),
        (("121",), "[N/A]", True),
    ],
)
def test_code_runs_on_its_capability_and_later_ones_of_the_major(
    codes: tuple[str, ...],
    capability: str,
    runs: bool,  # noqa: FBT001
) -> None:
    facts = {
        name: replace(seen, gpus=(replace(seen.gpus[0], capability=capability),))
        for name, seen in sparks(ROWS[0]).items()
    }
    stack = load_stack("guide").model_copy(update={"architectures": codes})
    assert (list(gpu.capability(replace(case(facts), stack=stack))) == []) is runs


def test_a_model_that_nobody_knows_is_a_note() -> None:
    found = diagnose(case(sparks(ROWS[0]), model="some-model"))
    assert [one.check for one in found] == ["model known"] * 2
    assert "some-model needs of the memory is not known: it is not on the node" in found[0].finding.cause


def test_wheels_for_another_machine_are_found_with_their_meaning() -> None:
    facts = lab_facts(python=(3, 12), model_files={"model.safetensors": 1}, listening=())
    found = diagnose(Case(local(), cpu(), tiny(), facts, manifest()))
    assert {(one.check, one.finding.meaning) for one in found} == {
        ("wheels", "invoke deploy cannot bring the release there")
    }


@pytest.mark.parametrize(
    ("name", "severity"),
    [
        ("vllm-error.free-memory-less-than-desired.gb10.txt", Severity.PROBLEM),
        ("vllm-log.free-memory-success.two-sparks.txt", Severity.WARNING),
    ],
)
def test_what_vllm_said_on_sparks_is_foretold(name: str, severity: Severity) -> None:
    """The second one started, and left 4.5 GiB of the node for all else."""
    text = capture(name).replace("\n", " ")
    free, total = re.findall(r"\(([\d.]+)/([\d.]+) GiB\)", text)[0]
    share = re.findall(r"utilization (?:is )?\((0\.\d+),", text)[0]
    size = {"memory_available": int(float(free) * 2**30), "memory_total": int(float(total) * 2**30)}
    facts = {name: replace(seen, **size) for name, seen in sparks(ROWS[0]).items()}
    found = diagnose(case(facts, flags=("--gpu-memory-utilization", share, "--max-model-len", "4096")))
    assert {one.finding.severity for one in found if one.check == "memory"} == {severity}


def test_local_machines_are_well() -> None:
    facts = lab_facts(model_files={"model.safetensors": 1_713_656}, listening=())
    assert diagnose(Case(local(), cpu(), tiny(), facts)) == ()


def test_local_machines_are_too_small_for_the_guides_model() -> None:
    found = diagnose(case_of(local(), cpu(), load_profile("qwen2.5-32b"), lab_facts(listening=())))
    assert [(one.check, one.finding.node, one.finding.cause) for one in found] == [
        ("model fits", node, "the profile qwen2.5-32b needs 33.0 GiB, the machine has 5.0 GiB")
        for node in ("lab-a", "lab-b")
    ]


def test_one_node_has_no_fabric_to_be_checked() -> None:
    alone = load_cluster("spark")
    alone = alone.model_copy(update={"nodes": alone.nodes[:1]})
    facts = sparks({"node": "gx10-beee", "change": {"addresses": {"out": "enP7s7 UP 192.168.34.100/24\n"}}})
    profile = load_profile("qwen2.5-32b").model_copy(update={"pipeline_parallel": 1})
    assert diagnose(case_of(alone, load_stack("guide"), profile, facts)) == ()


def test_the_worst_comes_first() -> None:
    row = next(row for row in ROWS if row["title"] == "another system")
    found = diagnose(case(sparks(row)))
    assert [one.finding.severity for one in found] == [Severity.WARNING, Severity.NOTE, Severity.NOTE]
    assert worst(found) == Severity.WARNING
    assert worst(()) is None
