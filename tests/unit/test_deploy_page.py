"""What the doctor says, and that its page in docs/ names what it checks."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from core.config import load_cluster, load_profile, load_stack
from core.errors import Doubtful, UnfitNode
from core.facts import Captures, NodeFacts
from core.findings import Finding, Severity
from deploy.checks.case import Case
from deploy.doctor import CHECKS, Diagnosis, diagnose
from deploy.page import as_data, case_of, exit_code, page
from tests.unit.samples import cpu, lab_facts, local, spark_captures, tiny

ROOT = Path(__file__).resolve().parents[2]


def case(facts: dict[str, NodeFacts] | None = None) -> Case:
    seen = facts or spark_captures().parsed()
    return case_of(load_cluster("spark"), load_stack("guide"), load_profile("qwen2.5-32b"), seen)


def found(*severities: Severity) -> tuple[Diagnosis, ...]:
    return tuple(Diagnosis("swap", Finding("gx10-beee", "it is so", "do this", "or else", one)) for one in severities)


@pytest.mark.parametrize(
    ("severities", "code", "verdict", "counts"),
    [
        ((), 0, "can serve this profile (", "0 problems, 0 warnings, 0 notes"),
        ((Severity.NOTE,), 0, "can serve this profile (", "0 problems, 0 warnings, 1 note"),
        ((Severity.WARNING, Severity.NOTE), Doubtful.exit_code, "with doubts (", "0 problems, 1 warning, 1 note"),
        ((Severity.PROBLEM, Severity.WARNING), UnfitNode.exit_code, "cannot serve", "1 problem, 1 warning, 0 notes"),
    ],
)
def test_the_worst_finding_is_the_verdict_and_the_exit_code(
    severities: tuple[Severity, ...], code: int, verdict: str, counts: str
) -> None:
    diagnoses = found(*severities)
    first, *_, last = page(case(), diagnoses).splitlines()
    assert exit_code(diagnoses) == code
    assert verdict in first
    assert last == f"{len(CHECKS)} checks: {counts}"


def test_a_finding_reads_as_cause_meaning_and_next_move() -> None:
    text = page(case(), found(Severity.WARNING))
    assert "\n\nwarning: gx10-beee: it is so\n  meaning: or else\n  next: do this\n\n" in text


def test_a_finding_that_is_the_same_on_two_nodes_is_said_once() -> None:
    (one,) = found(Severity.NOTE)
    other = replace(one, finding=replace(one.finding, node="gx10-c6fb"))
    text = page(case(), (one, other))
    assert text.count("it is so") == 1
    assert "note: gx10-beee, gx10-c6fb: it is so\n" in text
    assert text.endswith("2 notes"), "they are counted by node"


def test_the_page_says_what_the_memory_is_for() -> None:
    line = page(case(), ()).splitlines()[1]
    assert line == (
        "  gx10-beee: 115.1 GiB of 119.6 GiB available, 100.7 GiB needed (30.5 GiB of weights, 0.5 GiB of KV cache at "
        "least), 493,080 tokens of KV cache to be expected"
    )
    unknown = page(case_of(local(), cpu(), tiny(), lab_facts()), ()).splitlines()[1]
    assert unknown == "  lab-a: 4.4 GiB of 5.0 GiB available"


def test_programs_get_sizes_in_bytes_and_the_names_of_all_checks() -> None:
    data = as_data(case(), found(Severity.NOTE))
    assert data["checks"] == list(CHECKS)
    assert (data["serves"], data["worst"]) == (True, "note")
    assert data["memory"]["gx10-c6fb"]["weights"] == 2 * (32 * 487_605_248 + 778_567_680 + 5120)
    assert data["findings"] == [
        {
            "check": "swap",
            "severity": "note",
            "node": "gx10-beee",
            "finding": "it is so",
            "meaning": "or else",
            "next": "do this",
        }
    ]
    assert as_data(case(), ())["worst"] is None


def test_nodes_that_differ_have_no_common_wheels_and_are_judged_all_the_same() -> None:
    facts = spark_captures().parsed()
    facts["gx10-c6fb"] = replace(facts["gx10-c6fb"], python=(3, 13))
    assert case(facts).manifest is None


def test_a_node_whose_facts_cannot_be_read_is_named_and_the_page_is_of_the_others() -> None:
    nodes = {**spark_captures().nodes}
    nodes["gx10-c6fb"] = {**nodes["gx10-c6fb"], "cores": {"code": 0, "out": "many"}}
    facts, silent = Captures(nodes).parsed_each()
    seen = case_of(load_cluster("spark"), load_stack("guide"), load_profile("qwen2.5-32b"), facts, silent=silent)
    (one,) = [one for one in diagnose(seen) if one.check == "answers"]
    assert (one.finding.node, one.finding.severity) == ("gx10-c6fb", Severity.PROBLEM)
    assert "the fact 'cores' cannot be read" in page(seen, (one,))
    assert list(as_data(seen, (one,))["memory"]) == ["gx10-beee"]


def test_the_documentation_names_every_check_in_its_order() -> None:
    text = (ROOT / "docs" / "doctor.md").read_text()
    table = text.partition("## What is checked")[2].partition("##")[0]
    assert re.findall(r"^\| (?!check|---)([^|]+?) \|", table, re.MULTILINE) == list(CHECKS)


@pytest.mark.parametrize("severity", Severity)
def test_the_documentation_tells_the_exit_codes(severity: Severity) -> None:
    text = (ROOT / "docs" / "doctor.md").read_text()
    code = exit_code(found(severity))
    assert re.search(rf"^\| {severity.word} \| .* \| {code} \|$", text, re.MULTILINE)
