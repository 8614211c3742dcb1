"""Ray's own list of its nodes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.config import Address
from core.errors import NotServing
from core.process import Completed
from serve.ray import RayNode, alive, complete, incomplete, missing, nodes_argv, parse
from tests.unit.samples import capture, local


def rows(*nodes: tuple[str, bool, float]) -> str:
    """Return what the question prints: address, alive, GPUs of each node."""
    data = [{"address": a, "alive": up, "resources": {"CPU": 2.0, **({"GPU": g} if g else {})}} for a, up, g in nodes]
    return json.dumps(data) + "\n"


BOTH = rows(("198.18.100.1", True, 1.0), ("198.18.100.2", True, 1.0))
NOTICES = capture("ray-error.compiled-dag-crash.two-sparks.txt") + capture(
    "ray-warning.tp-bigger-than-node.two-sparks.txt"
)


@pytest.mark.parametrize("text", [BOTH, NOTICES + BOTH, BOTH + NOTICES], ids=["alone", "after notices", "before them"])
def test_nodes_are_read_whatever_ray_prints_around_them(text: str) -> None:
    assert parse(text) == (RayNode("198.18.100.1", True, 1.0), RayNode("198.18.100.2", True, 1.0))


@pytest.mark.parametrize("text", ["", NOTICES, "[]", "[2026-11-23 08:43:46,669 E 12 12] gcs is gone\n"])
def test_no_list_is_no_nodes(text: str) -> None:
    assert parse(text) == ()


def test_a_node_without_a_gpu_has_none() -> None:
    assert parse(rows(("198.18.100.1", True, 0)))[0].gpus == 0


@pytest.mark.parametrize(
    ("text", "absent"),
    [
        (BOTH, []),
        (rows(("198.18.100.1", True, 1), ("198.18.100.2", False, 1)), ["lab-b"]),
        (rows(("198.18.100.1", True, 1), ("198.18.34.101", True, 1)), ["lab-b"]),
        (rows(("198.18.100.2", False, 1), ("198.18.100.1", True, 1), ("198.18.100.2", True, 1)), []),
        ("", ["lab-a", "lab-b"]),
    ],
    ids=["both", "dead", "on the management network", "dead once and back", "no answer"],
)
def test_a_node_is_there_when_it_lives_at_its_fabric_address(text: str, absent: list[str]) -> None:
    assert missing(local(), parse(text)) == absent
    assert complete(local(), Completed((), 0, text)) == (not absent)


def test_a_node_without_its_gpu_is_not_complete() -> None:
    text = rows(("198.18.100.1", True, 1), ("198.18.100.2", True, 0))
    assert not complete(local(), Completed((), 0, text))
    assert "a GPU is missing" in incomplete(local(), Completed((), 0, text)).cause


def test_the_error_names_the_missing_node_and_shows_what_ray_said() -> None:
    error = incomplete(local(), Completed((), 1, "", "ConnectionError: ray is not there\n"))
    assert isinstance(error, NotServing)
    assert (error.node, error.cause) == ("lab-a", "Ray has 0 of 2 nodes; lab-a, lab-b is missing")
    assert error.evidence == "ConnectionError: ray is not there"


def test_life_is_judged_by_address() -> None:
    assert alive((RayNode("198.18.100.1", True, 1),), Address("198.18.100.1"))
    assert not alive((), Address("198.18.100.1"))


def test_the_question_runs_in_the_release_and_cannot_hang() -> None:
    argv = nodes_argv(local(), "r1")
    assert argv[argv.index("timeout") + 1] == "60"
    assert "/opt/sparkstack/releases/r1/venv/bin/python" in argv
    compile(argv[argv.index("-c") + 1], "question", "exec")


@given(st.lists(st.one_of(st.text(), st.just(BOTH.strip()), st.text().map(lambda text: "[" + text))).map("\n".join))
def test_any_other_text_is_no_list(text: str) -> None:
    if "[{" not in text:
        assert parse(text) == ()
