"""Gates, each on the sheet of a wheel that is wrong in one thing, and all of them over a small set."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest

from core.errors import WheelRefused
from tests.unit.samples import SPARK, TABLES
from tests.unit.test_wheels_fatbin import parsed
from wheels.gates import GATES, SEVERITY, Candidate, Case, Origin, candidate, judged, some
from wheels.requirements import Conflict, Wish
from wheels.sheet import FORM, Library, Sheet

CASES: list[dict[str, Any]] = json.loads((TABLES / "gates.json").read_text(encoding="utf-8"))
ORIGINS: tuple[Origin, ...] = get_args(Origin)
FILE = "x-1.0-cp312-cp312-manylinux_2_28_aarch64.whl"
SHEET: dict[str, Any] = {
    "form": FORM,
    "sha256": "0" * 64,
    "size": 1000,
    "unpacked": 2000,
    "files": 5,
    "info": "x-1.0.dist-info",
    "name": "x",
    "version": "1.0",
    "requires_python": ">=3.9",
    "requires": (),
    "licence": {"expression": "MIT"},
    "wheel_version": "1.0",
    "generator": "test",
    "problems": (),
    "libraries": (),
}


def library(row: dict[str, Any]) -> Library:
    code = tuple(parsed(text) for text in row.get("code", ()))
    return Library.model_validate({"machine": "aarch64", "code_size": 9999, **row, "code": code})


def sheet(file: str = FILE, **changes: Any) -> Sheet:
    """Return the sheet of a wheel in which all is well but for the changes."""
    tags = [str(tag) for tag in candidate(file, "index", Sheet.model_validate({**SHEET, "tags": ()})).tags]
    return Sheet.model_validate({**SHEET, "tags": tags, **changes})


def case_of(row: dict[str, Any], origin: Origin) -> Case:
    file = row.get("file", FILE)
    libraries = tuple(library(one) for one in row.get("libraries", ()))
    read = sheet(file, libraries=libraries, **row.get("sheet", {}))
    of, specifier, found = row.get("conflict", ("", "", ""))
    return Case(
        Candidate(file, origin, read),
        SPARK,
        tuple(row.get("capabilities", ("12.1",))),
        row.get("torch", "2.9.0"),
        frozenset({"_ZN3c105ErrorC2Ev", "aoti_torch_empty"}),
        (Conflict(Wish("x", of, specifier), found),) if of else (),
    )


@pytest.mark.parametrize("row", CASES, ids=[row["title"] for row in CASES])
def test_a_gate_says_what_is_wrong_and_how_bad_it_is_by_who_made_the_wheel(row: dict[str, Any]):
    for origin, letter in zip(ORIGINS, row.get("severity", "---"), strict=True):
        found = list(judged(case_of(row, origin)))
        assert [one.gate for one in found] == ([row["gate"]] if row["gate"] else []), found
        for verdict in found:
            assert row["says"] in verdict.cause
            assert row.get("next", "") in verdict.next_move
            assert verdict.severity == {"R": "refused", "W": "warning"}[letter], origin


def test_every_gate_has_cases_that_it_stops():
    assert {row["gate"] for row in CASES} == {None, *(gate.name for gate in GATES)}


def test_the_order_of_the_letters_in_the_table_is_that_of_the_origins():
    assert ORIGINS == ("source", "image", "index")
    assert all(set(severity) == set(ORIGINS) for severity in SEVERITY.values())


def test_what_lets_a_program_fail_is_refused_whoever_made_it_and_a_note_never():
    assert set(SEVERITY["fails"].values()) == {"refused"}
    assert set(SEVERITY["note"].values()) == {"warning"}


def test_several_problems_are_all_told():
    row = {"libraries": [{"name": "x/_C.so", "code": ["sm_90a"], "rpath": ["/build"]}], "sheet": {"licence": {}}}
    assert [one.gate for one in judged(case_of(row, "source"))] == ["gpu", "rpath", "licence"]


def test_a_verdict_names_wheel_and_gate():
    (verdict,) = judged(case_of({"sheet": {"licence": {}}}, "index"))
    assert str(verdict) == f"{FILE} says nothing of its licence (gate licence)"


def test_a_name_that_is_no_wheels_is_refused():
    with pytest.raises(WheelRefused, match=r"x\.whl"):
        candidate("x.whl", "index", sheet())


def test_long_lists_are_shortened():
    assert some(["a", "b", "c"]) == "a, b, c"
    assert some(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
