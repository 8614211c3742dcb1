"""What runs, on one screen."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from core.facts import Captures
from core.process import Completed
from serve import status
from serve.status import as_data, look, table
from tests.unit.samples import lab_facts, local, service, serving, tiny
from tests.unit.test_serve_ray import BOTH

SERVED = serving(service())


class Head:
    """A head that answers Ray's question."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def run(self, argv: Any, **_: Any) -> Completed:
        self.asked.append(argv)
        return Completed(tuple(argv), 0, BOTH)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], Any]:
    def give(facts: dict[str, Any]) -> Any:
        class Parsed(Captures):
            def parsed(self) -> dict[str, Any]:
                return facts

        monkeypatch.setattr(status, "gather", lambda *_: Parsed({}))
        return look(local(), tiny(), {"lab-a": Head()})  # type: ignore[arg-type]

    return give


def test_a_service_shows_nodes_units_ray_and_token(seen: Callable[[Any], Any]) -> None:
    found = seen(SERVED)
    assert (found.cluster, found.api, found.token) == ("local", "http://198.18.34.100:8000/v1", True)
    head, worker = found.nodes
    assert (head.role, head.ray, head.release) == ("head", "alive", service().release)
    assert head.units == {"sparkstack-ray-head": "active", "sparkstack-vllm": "active"}
    assert (worker.role, worker.ray, worker.units) == ("worker", "alive", {"sparkstack-ray-worker": "active"})
    text = table(found)
    assert "http://198.18.34.100:8000/v1 (gives tokens)" in text
    assert "ray-head active, vllm active" in " ".join(text.split())


def test_without_ray_nobody_is_asked(seen: Callable[[Any], Any]) -> None:
    found = seen(lab_facts())
    assert [node.ray for node in found.nodes] == ["absent", "absent"]
    assert "(no token)" in table(found)
    assert table(found).count("none") >= 2


def test_json_holds_the_same(seen: Callable[[Any], Any]) -> None:
    data = json.loads(json.dumps(as_data(seen(SERVED))))
    assert data["nodes"][1]["units"] == {"sparkstack-ray-worker": "active"}
    assert data["token"] is True


def test_a_failed_unit_is_shown_as_such(seen: Callable[[Any], Any]) -> None:
    units = {name: replace(one, active="failed") for name, one in SERVED["lab-b"].units.items()}
    found = seen({**SERVED, "lab-b": replace(SERVED["lab-b"], units=units)})
    assert "ray-worker failed" in table(found)
