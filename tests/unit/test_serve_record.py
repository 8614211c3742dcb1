"""What a supervisor writes down: the next one goes on with it, and others can read it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.onnode import clock, record
from serve.onnode.decide import Failure, Phase, Seen, State, Unit
from tests.unit.simulated_nodes import A, B, wanted

WANTED = wanted("ray")
NOW = 1_000_000.0
SERVING = State(
    Phase.SERVING,
    since=NOW - 60,
    reason="a token came through every rank",
    attempt=3,
    serial=1_000_007,
    stage=2,
    not_before=NOW - 90,
    served=NOW - 60,
    row=(Failure(NOW - 100, "lab-b: ray-worker ended: killed by SIGKILL"),),
    failures=(Failure(NOW - 900, 'lab-a: "quoted" \\ and\nmore'), Failure(NOW - 100, "x")),
)
SEEN = {
    A: Seen(
        NOW - 0.1, "g1", 1_000_007, {"ray-head": Unit("active"), "vllm": Unit("active")}, 8 << 30, frozenset({"vllm"})
    ),
    B: Seen(
        NOW - 1.26, "g1", 1_000_007, {"ray-worker": Unit("failed", "x")}, 7 << 30, notes=("page cache not dropped",)
    ),
}
STATES = st.builds(
    State,
    phase=st.sampled_from(Phase),
    since=st.floats(0, 2e9),
    reason=st.text(),
    attempt=st.integers(0),
    serial=st.integers(0),
    stage=st.integers(0, 2),
    not_before=st.floats(0, 2e9),
    served=st.none() | st.floats(0, 2e9),
    row=st.lists(st.builds(Failure, st.floats(0, 2e9), st.text()), max_size=3).map(tuple),
    failures=st.lists(st.builds(Failure, st.floats(0, 2e9), st.text()), max_size=3).map(tuple),
    over=st.booleans(),
)


def written(state: State = SERVING) -> str:
    return json.dumps(record.head(state, WANTED, SEEN, NOW))


class TestGoingOn:
    @given(STATES)
    def test_a_head_that_is_started_anew_knows_all_that_the_one_before_knew(self, state: State) -> None:
        assert record.state(written(state), "g1") == state

    def test_a_time_of_day_that_has_jumped_makes_no_wait_longer_and_no_start_late(self) -> None:
        for jump, after in ((3600.2, 3600), (0.2, 0)):
            was = {**json.loads(written()), "clock": clock.BEGAN + jump}
            found = record.state(json.dumps(was), "g1")
            assert found is not None
            assert (found.since, found.not_before) == (SERVING.since - after, SERVING.not_before - after)

    def test_what_has_served_is_known_after_a_boot_and_nothing_else_is(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(record, "SERVED", tmp_path / "served.json")
        assert record.served("g1") is None
        record.serve("g1", NOW)
        assert (record.served("g1"), record.served("g2")) == (NOW, None)
        for damaged in ("", "[]", "{}", '{"generation": "g1", "at": "x"}'):
            (tmp_path / "served.json").write_text(damaged)
            assert record.served("g1") is None

    def test_a_state_of_another_service_or_of_a_worker_is_none(self) -> None:
        assert record.state(written(), "g2") is None
        worker = record.worker(WANTED, SEEN[B], "", NOW, NOW)
        assert record.state(json.dumps(worker), "g1") is None

    @given(st.text() | st.sampled_from(["", "{", "null", "[]", "5", '{"generation": "g1"}', written()[:-9]]))
    def test_a_damaged_file_is_none_and_no_order(self, text: str) -> None:
        assert record.state(text, "g1") is None
        assert record.order(text, "g1") == (0, frozenset())

    @pytest.mark.parametrize(
        "data", [record.head(SERVING, WANTED, SEEN, NOW), record.worker(WANTED, SEEN[A], "", NOW, NOW)]
    )
    def test_a_node_knows_its_order_and_what_it_has_started_by_it(self, data: dict[str, Any]) -> None:
        assert record.order(json.dumps(data), "g1") == (1_000_007, frozenset({"vllm"}))
        assert record.order(json.dumps(data), "g2") == (0, frozenset())

    def test_what_was_started_by_the_order_before_was_not_by_this_one(self) -> None:
        later = replace(SERVING, phase=Phase.STOPPING, serial=SERVING.serial + 1)
        assert record.order(written(later), "g1") == (1_000_008, frozenset())


class TestForOthers:
    def test_the_head_tells_of_the_whole_service(self) -> None:
        found = record.head(SERVING, WANTED, SEEN, NOW)
        assert (found["phase"], found["role"], found["generation"]) == ("serving", "head", "g1")
        assert found["serving_since"] == NOW - 60
        assert found["nodes"][B] == {
            "seen": 1.3,
            "units": {"ray-worker": "failed"},
            "memory_available": 7 << 30,
            "notes": ["page cache not dropped"],
        }

    def test_a_node_that_never_reported_is_there_without_an_age(self) -> None:
        found = record.head(SERVING, WANTED, {A: SEEN[A]}, NOW)
        assert found["nodes"][B] == {"seen": None, "units": {}, "memory_available": None, "notes": []}

    @pytest.mark.parametrize("phase", [phase for phase in Phase if phase is not Phase.SERVING])
    def test_nothing_serves_since_any_time_but_in_that_phase(self, phase: Phase) -> None:
        assert record.head(replace(SERVING, phase=phase), WANTED, SEEN, NOW)["serving_since"] is None

    @pytest.mark.parametrize(("alone", "phase"), [("", "obeying"), ("no word from lab-a: it hung up", "alone")])
    def test_a_worker_tells_of_itself_and_why_it_is_alone(self, alone: str, phase: str) -> None:
        found = record.worker(WANTED, SEEN[B], alone, NOW, NOW - 5)
        assert (found["phase"], found["reason"], found["role"], found["since"]) == (phase, alone, "worker", NOW - 5)


LINE = re.compile(r'[a-zA-Z_:][\w:]*(\{[a-z]+="[^"\\\n]*"(,[a-z]+="[^"\\\n]*")*\})? -?\d+(\.\d+)?')


class TestMetrics:
    def lines(self, data: dict[str, Any]) -> list[str]:
        text = record.metrics(data)
        assert text.endswith("\n")
        return text.splitlines()

    @pytest.mark.parametrize(
        "data", [record.head(SERVING, WANTED, SEEN, NOW), record.worker(WANTED, SEEN[B], "", NOW, NOW)]
    )
    def test_each_line_is_a_sample_or_the_type_of_those_that_follow_it(self, data: dict[str, Any]) -> None:
        types: list[str] = []
        for line in self.lines(data):
            if line.startswith("# TYPE "):
                types.append(line.split()[2])
            else:
                assert LINE.fullmatch(line), line
                assert re.split(r"[{ ]", line)[0] == types[-1]
        assert len(set(types)) == len(types), "a name has one type line, and its samples stand together"

    def test_one_phase_is_1_and_all_others_0(self) -> None:
        found = [
            line for line in self.lines(record.head(SERVING, WANTED, SEEN, NOW)) if line.startswith("sparkstack_phase")
        ]
        assert [line for line in found if line.endswith(" 1")] == ['sparkstack_phase{phase="serving"} 1']
        assert len(found) == len(Phase)

    def test_units_are_up_or_not_and_memory_is_in_bytes(self) -> None:
        found = self.lines(record.head(SERVING, WANTED, SEEN, NOW))
        assert 'sparkstack_unit_up{node="lab-a",unit="vllm"} 1' in found
        assert 'sparkstack_unit_up{node="lab-b",unit="ray-worker"} 0' in found
        assert f'sparkstack_memory_available_bytes{{node="lab-b"}} {7 << 30}' in found

    def test_a_node_that_never_reported_has_no_samples(self) -> None:
        assert not [line for line in self.lines(record.head(SERVING, WANTED, {A: SEEN[A]}, NOW)) if "lab-b" in line]


class TestWriting:
    def test_a_file_is_replaced_in_one_piece_and_all_may_read_it(self, tmp_path: Path) -> None:
        path = tmp_path / "run" / "state.json"
        record.write(path, "one")
        with path.open() as reading:
            record.write(path, "two")
            assert reading.read() == "one", "who reads has the whole of the file before"
        assert path.read_text() == "two"
        assert oct(path.stat().st_mode & 0o777) == "0o644"
        assert [one.name for one in path.parent.iterdir()] == ["state.json"]
