"""What runs, on one screen, and what the command ends with."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from invoke.context import Context
from invoke.exceptions import Exit
from rich.console import Console

from core import command
from core.errors import NodeUnreachable, SparkstackError, UsageError
from core.facts import NodeFacts
from core.parsers import Process
from serve.view import tasks
from serve.view.screen import as_text, screen
from serve.view.status import SERVICE, STALE, Status, as_data, judge, kinds, trouble
from serve.view.traffic import Answer, Proof
from serve.view.watch import Looking, stream, watch
from tests.unit.samples import TABLES, lab_facts, local, unit

ROWS = json.loads((TABLES / "status.json").read_text())
NOW = 1_795_435_200.0  # 2026-11-23 12:00:00 UTC
HEAD, WORKER = (node.name for node in local().nodes)
GONE = NodeUnreachable("no SSH connection to 198.18.34.101 port 22", node=WORKER, next_move="check power")
UNITS = {
    HEAD: ("sparkstack-supervisor", "sparkstack-ray-head", "sparkstack-vllm"),
    WORKER: ("sparkstack-supervisor", "sparkstack-ray-worker"),
}
PROCESSES = {
    HEAD: ("/x/raylet/raylet --a", "/x/gcs/gcs_server --b", "VLLM::EngineCore", "VLLM::Worker_PP0"),
    WORKER: ("/x/raylet/raylet --a", "ray::RayWorkerProc.run"),
}


def state(**changes: Any) -> dict[str, Any]:
    return {
        "at": NOW - 1,
        "role": "head",
        "generation": "g1",
        "phase": "serving",
        "since": NOW - 300,
        "attempt": 3,
        "reason": "a token came through every rank",
        "failures": [{"at": NOW - 400, "reason": f"{WORKER}: sparkstack-ray-worker ended: killed by SIGKILL"}],
        "nodes": {
            HEAD: {"seen": 0.2, "units": {}, "notes": ["page cache not dropped: read-only file system"]},
            WORKER: {"seen": 0.9, "units": {}, "notes": []},
        },
        **changes,
    }


def live(**changes: Any) -> dict[str, Any]:
    numbers = {"running": 2, "waiting": 1, "tokens_per_second": 34.51, "kv_cache": 0.127, "last_token": NOW - 3}
    return {"at": NOW - 0.5, "ready": True, "draining": False, "error": "", **numbers, **changes}


def service_file(generation: str = "g1", url: str = "https://198.18.34.100:8000/v1") -> dict[str, str]:
    return {SERVICE: json.dumps({"generation": generation, "api": {"url": url}})}


def seen(**changes: Any) -> dict[str, NodeFacts]:
    """Return facts of two machines that serve; ``changes`` are of the head."""
    nodes = {
        name: replace(
            found,
            moment=NOW,
            current="cpu-x86_64-cp311-c8ffbb91f3",
            units={one: replace(unit(one), enabled=one.endswith("supervisor")) for one in UNITS[name]},
            processes=tuple(Process(n, "spark", command) for n, command in enumerate(PROCESSES[name])),
        )
        for name, found in lab_facts().items()
    }
    head = {"state": state(), "live": live(), "files": service_file(), **changes}
    return {**nodes, HEAD: replace(nodes[HEAD], **head)}


def units_of(**states: str) -> dict[str, Any]:
    """Return the head's units with some in another state."""
    return {one: replace(unit(one, states.get(one.rpartition("-")[2], "active")), enabled=True) for one in UNITS[HEAD]}


def page(status: Status) -> str:
    return as_text(screen(status))


def test_a_service_that_serves_is_shown_whole() -> None:
    status = judge(local(), seen(), {})
    assert (status.serving, status.wanted, status.doubts) == (True, True, ())
    head, worker = status.nodes
    assert (head.role, head.ray, head.processes) == ("head", "up", {"rank": 1, "engine": 1, "raylet": 1, "GCS": 1})
    assert (worker.role, worker.ray, worker.processes) == ("worker", "up", {"rank": 1, "raylet": 1})
    assert [round(node.report or 0, 1) for node in status.nodes] == [1.2, 1.9]
    text = page(status)
    assert text.startswith("local at https://198.18.34.100:8000/v1\n")
    assert "serving since 11:55:00 UTC (5 min ago), start 3: a token came through every rank\n" in text
    assert f"last restart: 11:53:20 UTC (6 min ago): {WORKER}: sparkstack-ray-worker ended: killed by SIGKILL" in text
    assert "requests: 2 running, 1 waiting, 34.5 tokens/s, KV cache 13 %, last token 3 s ago\n" in text
    assert f"note: {HEAD}: page cache not dropped: read-only file system\n" in text
    assert len(text.splitlines()) <= 20
    assert trouble(local(), status, {}) is None


def changed(row: dict[str, Any]) -> dict[str, NodeFacts]:
    """Return the facts that a row of the table tells of; its times are seconds ago."""
    facts: dict[str, Any] = {}
    if "state" in row:
        changes = {key: NOW - value if key in ("at", "since") else value for key, value in row["state"].items()}
        facts["state"] = state(**changes) if row["state"] else {}
    if "live" in row:
        facts["live"] = live(**{k: NOW - v if k == "at" else v for k, v in row["live"].items()}) if row["live"] else {}
    if "units" in row:
        facts["units"] = units_of(**row["units"])
    if "generation" in row:
        facts["files"] = service_file(row["generation"])
    return seen(**facts)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_nothing_but_the_truth_is_shown(row: dict[str, Any]) -> None:
    status = judge(local(), changed(row), {})
    error = trouble(local(), status, {})
    assert (status.service.phase, error.exit_code if error else 0) == (row["phase"], row["code"])
    text = " ".join(page(status).split())
    assert [part for part in row["says"] if part not in text] == []
    assert [part for part in row.get("silent_on", []) if part in text] == []


def test_the_edge_of_staleness_is_ten_seconds_of_the_nodes_own_clock() -> None:
    phases = [judge(local(), seen(state=state(at=NOW - age)), {}).service.phase for age in (STALE, STALE + 0.1)]
    assert phases == ["serving", "unknown"]


def test_a_node_without_a_clock_has_no_fresh_state() -> None:
    facts = seen()
    status = judge(local(), {**facts, HEAD: replace(facts[HEAD], moment=0.0)}, {})
    assert status.service.phase == "unknown"


def test_a_service_that_was_stopped_is_no_error() -> None:
    facts = {name: replace(found, units={}, processes=(), state={}) for name, found in seen().items()}
    status = judge(local(), facts, {})
    assert (status.wanted, status.service.phase) == (False, "stopped")
    assert trouble(local(), status, {}) is None
    assert "stopped: no supervisor is enabled, nothing is wanted" in page(status)
    assert "requests" not in page(status)


def test_what_runs_though_nobody_wants_it_is_said() -> None:
    facts = {name: replace(found, units={}, state={}) for name, found in seen().items()}
    assert judge(local(), facts, {}).doubts == (
        f"{HEAD}: 4 processes of ours run, and nobody wants them to",
        f"{WORKER}: 2 processes of ours run, and nobody wants them to",
    )


def test_a_node_that_does_not_answer_is_shown_with_its_error_and_ends_the_command() -> None:
    facts = seen()
    status = judge(local(), {HEAD: facts[HEAD]}, {WORKER: GONE})
    text = " ".join(page(status).split())
    assert f"no answer: {WORKER}: no SSH connection to 198.18.34.101 port 22 (20)" in text
    assert "serving since" in text
    assert trouble(local(), status, {WORKER: GONE}) is GONE


def test_without_its_head_nothing_is_known_of_the_service() -> None:
    status = judge(local(), {WORKER: seen()[WORKER]}, {HEAD: GONE})
    assert (status.service.phase, status.serving, status.wanted) == ("unknown", False, True)
    assert "unknown: the head does not answer" in page(status)
    assert status.nodes[1].report is None


def test_without_any_node_the_errors_are_the_screen() -> None:
    silent: dict[str, SparkstackError] = {HEAD: GONE, WORKER: GONE}
    assert page(judge(local(), {}, silent)).count("no answer: ") == 2


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        ("python3 -m serve.onnode.engine 300 -- /opt/sparkstack/r/bin/vllm serve /m", "starter"),
        ("/opt/r/bin/python3.11 -P -m serve.onnode.raynodes 198.18.100.1:6379 300 198.18.100.2", "starter"),
        ("/opt/r/bin/python /opt/r/bin/vllm serve /m --port 8000", "API server"),
        ("/opt/r/bin/python /opt/r/bin/vllm serve /m --node-rank 1 --headless", "headless"),
        ("VLLM::EngineCore", "engine"),
        ("VLLM::Worker_PP1", "rank"),
        ("ray::RayWorkerProc.run", "rank"),
        ("ray::IDLE", "Ray"),
        ("/opt/r/ray/core/src/ray/raylet/raylet --node_ip_address=198.18.100.1", "raylet"),
        ("/opt/r/ray/core/src/ray/gcs/gcs_server --log_dir=/tmp", "GCS"),
        ("/opt/r/bin/python /opt/r/bin/ray start --head", "Ray"),
        ("/opt/sparkstack/x", "other"),
    ],
)
def test_a_process_has_a_kind(command: str, kind: str) -> None:
    assert kinds((Process(1, "spark", command),)) == {kind: 1}


@pytest.mark.parametrize(
    ("commands", "ray"),
    [(("ray::IDLE",), "no raylet and no GCS"), (("/x/raylet/raylet -a",), "no GCS"), ((), "no raylet")],
)
def test_a_ray_unit_without_its_processes_is_not_up(commands: tuple[str, ...], ray: str) -> None:
    processes = tuple(Process(1, "spark", command) for command in commands)
    assert judge(local(), seen(processes=processes), {}).nodes[0].ray.startswith(ray)


def test_without_ray_it_is_not_spoken_of() -> None:
    facts = {name: replace(found, units={"sparkstack-supervisor": unit("x")}) for name, found in seen().items()}
    assert [node.ray for node in judge(local(), facts, {}).nodes] == ["", ""]


def test_what_a_node_says_cannot_mark_up_or_move_the_screen() -> None:
    hostile = "\x1b[2J[red]x[/red]\r\nfine" + "y" * 5000
    status = judge(local(), seen(state=state(reason=hostile, failures=[{"at": 1, "reason": hostile}])), {})
    text = page(status)
    assert "\x1b" not in text
    assert "[red]x[/red] fine" in " ".join(text.split())
    assert len(text) < 3000


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*state(), HEAD, "seen"]), inner),
    max_leaves=12,
)


@given(
    st.dictionaries(st.sampled_from(list(state())), anything), st.dictionaries(st.sampled_from(list(live())), anything)
)
def test_any_state_makes_a_screen(changed_state: dict[str, Any], changed_live: dict[str, Any]) -> None:
    status = judge(local(), seen(state=state(**changed_state), live=live(**changed_live)), {})
    assert page(status)
    trouble(local(), status, {})
    json.dumps(as_data(status))


def test_json_holds_the_same() -> None:
    data = json.loads(json.dumps(as_data(judge(local(), seen(), {}))))
    assert data["serving"] is True
    assert data["nodes"][1]["units"] == {"sparkstack-supervisor": "active", "sparkstack-ray-worker": "active"}
    assert data["service"]["failures"][0]["at"] == NOW - 400
    assert data["requests"]["running"] == 2


def looking(statuses: list[Status]) -> tuple[Looking, list[str]]:
    """Return what looks at these one after the other and is interrupted then."""
    rest, ended = iter(statuses), []

    def pauses() -> Iterator[None]:
        yield from [None] * (len(statuses) - 1)
        raise KeyboardInterrupt

    pause = pauses()
    return Looking(lambda: next(rest), lambda: ended.append("ended"), lambda _: next(pause)), ended


SERVES, WAITS = judge(local(), seen(), {}), judge(local(), seen(state=state(phase="waiting", reason="x")), {})
LATER = judge(local(), seen(live=live(running=7), state=state(at=NOW - 2)), {})


def test_without_a_terminal_there_is_one_screen_a_change() -> None:
    said: list[str] = []
    look, ended = looking([SERVES, LATER, WAITS, WAITS, SERVES])
    watch(look, said.append, Console(file=io.StringIO()))
    assert [text.splitlines()[1].split()[0] for text in said] == ["serving", "waiting", "serving"]
    assert ended == ["ended"]


def test_on_a_terminal_screens_are_drawn_over_each_other_and_the_last_one_stays() -> None:
    sheet = io.StringIO()
    look, _ = looking([SERVES, WAITS])
    watch(look, lambda _: None, Console(file=sheet, force_terminal=True, width=100, height=40))
    text = sheet.getvalue()
    assert "\x1b[2J" not in text.partition("\x1b[?1049h")[2].partition("waiting")[0].partition("serving")[2]
    page_left = text.partition("\x1b[?1049l")[2]
    assert "waiting" in page_left
    assert "serving since" not in page_left


def test_a_program_is_told_every_look_as_a_line() -> None:
    said: list[str] = []
    look, _ = looking([SERVES, LATER])
    stream(look, said.append)
    assert [json.loads(line)["requests"]["running"] for line in said] == [2, 7]
    assert look.last is LATER


class NoHosts:
    """The nodes of a cluster that nobody asks."""

    def __init__(self, _: Any) -> None: ...

    def __enter__(self) -> NoHosts:
        return self

    def __exit__(self, *_: object) -> None: ...

    def close(self) -> None: ...


SILENT: dict[str, SparkstackError] = {WORKER: GONE}
ENDS = {
    "serving": (SERVES, {}, 0),
    "waiting": (WAITS, {}, 40),
    "silent": (judge(local(), {HEAD: seen()[HEAD]}, SILENT), SILENT, 20),
}


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Run the task for what was seen; return the code that it ends with."""
    monkeypatch.setattr(command, "WORK", tmp_path)
    monkeypatch.setattr(tasks, "Hosts", NoHosts)

    def run(name: str, **flags: bool) -> int:
        monkeypatch.setattr(tasks, "look", lambda *_: ENDS[name][:2])
        try:
            tasks.status.body(Context(), cluster="local", **flags)
        except Exit as end:
            return int(end.code)
        return 0

    return run


@pytest.mark.parametrize("name", ENDS)
def test_the_screen_comes_first_and_the_code_last(
    name: str, ends: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert ends(name) == ENDS[name][2]
    assert capsys.readouterr().out == page(ENDS[name][0])
    assert ends(name, json=True) == ENDS[name][2]
    assert json.loads(capsys.readouterr().out)["serving"] is ENDS[name][0].serving


def proven(*, good: bool) -> Proof:
    return Proof(good, "it was on the fabric" if good else "it was not", Answer(32, 1, ""), (), {}, (), ())


@pytest.mark.parametrize("code", [0, 29])
def test_a_probe_is_told_below_the_screen(
    code: int,
    ends: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    proof = proven(good=code == 0)
    monkeypatch.setattr(tasks, "prove", lambda *_: proof)
    assert ends("serving", probe=True) == code
    assert capsys.readouterr().out.startswith(page(SERVES) + "probe: 32 tokens in 1.0 s\n" + proof.verdict)
    assert ends("serving", probe=True, json=True) == code
    assert json.loads(capsys.readouterr().out)["probe"]["good"] is proof.good


@pytest.mark.parametrize("name", ["waiting", "silent"])
def test_nothing_is_probed_that_does_not_serve_whole(
    name: str, ends: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert ends(name, probe=True) == ENDS[name][2]
    assert "no probe: it takes a service that serves, and every node\n" in capsys.readouterr().out


def test_a_probe_is_one_request(ends: Callable[..., int]) -> None:
    assert ends("serving", probe=True, watch=True) == UsageError.exit_code
