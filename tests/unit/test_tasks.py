"""What the commands are called, and the plans for two Sparks that anyone can read without having them."""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from invoke.program import Program
from invoke.tasks import Task

import build.tasks
import deploy.tasks
import tasks
from core import apply, command, config
from core.errors import BuildFailed, Doubtful, InUse, NotServing, UnfitNode, UsageError
from core.plan import Call, make_plan
from tests.unit.samples import LAB_PAIR, SPARK_PAIR, spark_captures
from wheels import manifest

COMMANDS = {
    *(
        "build-wheels",
        "deploy",
        "serve",
        "restart",
        "stop",
        "status",
        "logs",
        "chat",
        "publish",
        "facts",
        "trust",
        "doctor",
        "report",
        "probe",
        "demo",
        "rollback",
        "releases",
        "remove",
        "network",
        "monitor",
        "tune",
    ),
    *(f"key.{name}" for name in ("show", "rotate")),
    *(f"bench.{name}" for name in ("measure", "compare", "report")),
    *(f"build.{name}" for name in ("lock", "bundle", "unbundle", "stop")),
    *(f"wheels.{name}" for name in ("extract", "inspect", "sign", "verify")),
    *(f"model.{name}" for name in ("fetch", "list", "verify", "remove")),
    *(f"lab.{name}" for name in ("up", "down", "status", "cut", "heal", "kill", "boot", "model", "clean")),
}
PLANNING = [
    *("build-wheels", "build.bundle", "deploy", "serve", "restart", "stop", "lab.model"),
    *("rollback", "releases", "remove", "model.fetch", "model.remove", "network", "key.rotate", "monitor"),
]
"""Commands that plan from facts of the nodes."""
LOOKING = {
    *("facts", "report", "status", "logs", "chat", "probe", "lab.status", "build.unbundle"),
    *("wheels.inspect", "wheels.verify", "model.list", "model.verify", "key.show"),
    *("bench.compare", "bench.report"),
}
"""Commands that change nothing, or only what is fetched anyway."""

HELP = {name: dict(tasks.ns[name].help) for name in tasks.ns.task_names}
"""Taken now: invoke uses it up when it parses."""

Result = tuple[int, str, str]
Invoke = Callable[..., Result]


def task(name: str) -> Task[Any]:
    found: Task[Any] = tasks.ns[name]
    return found


def parameters(name: str) -> set[str]:
    return {flag.strip("_").replace("_", "-") for flag in inspect.signature(task(name).body).parameters if flag != "_"}


@pytest.fixture
def invoke(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Run a command line in this process, where no process starts and no connection opens."""
    monkeypatch.delenv("SPARKSTACK_CLUSTER", raising=False)
    for module in (config, command):
        monkeypatch.setattr(module, "WORK", tmp_path / "work")
    monkeypatch.setattr(manifest, "DIST", tmp_path / "dist")
    monkeypatch.setattr(command, "Journal", lambda name: apply.Journal(name, tmp_path / "journal"))

    def run(*words: str) -> Result:
        code = 0
        try:
            Program(namespace=tasks.ns, name="invoke").run(["invoke", *words])
        except SystemExit as end:
            code = int(end.code or 0)
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


def test_the_list_names_every_command(invoke: Invoke) -> None:
    code, out, _ = invoke("--list")
    listed = {line.split()[0] for line in out.splitlines() if line.startswith("  ") and not line.startswith("    ")}
    assert code == 0
    assert listed == COMMANDS == set(tasks.ns.task_names)


@pytest.mark.parametrize(
    ("words", "loaded"),
    [
        (["deploy", "--dry-run"], {"deploy"}),
        (["stop", "serve", "--cluster", "x"], {"stop", "serve"}),
        (["model.list", "--json"], {"model.list"}),
        (["bench", "--dry-run"], {"bench.measure"}),
        (["bench.compare", "a", "b"], {"bench.compare"}),
        *((words, COMMANDS) for words in ([], ["--list"], ["deploy", "-l"], ["--help", "deploy"], ["deplyo", "serve"])),
    ],
)
def test_a_command_line_loads_the_tasks_that_it_names_or_all(words: list[str], loaded: set[str]) -> None:
    assert set(tasks.asked(words)) == loaded
    assert set(tasks.collection(tasks.asked(words)).task_names) == loaded


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_command_says_what_it_does_and_each_flag_too(name: str) -> None:
    doc = inspect.getdoc(task(name)) or ""
    assert doc.splitlines()[0].endswith(".")
    assert set(HELP[name]) == parameters(name)
    assert all(text and not text.endswith(".") for text in HELP[name].values())


@pytest.mark.parametrize("name", PLANNING)
def test_a_planning_command_shows_its_plan_from_the_nodes_or_from_a_file_for_people_or_programs(name: str) -> None:
    assert {"dry-run", "json", "facts", "cluster"} <= parameters(name)


@pytest.mark.parametrize("name", sorted(COMMANDS - LOOKING))
def test_what_changes_something_can_say_so_first(name: str) -> None:
    assert "dry-run" in parameters(name)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_flags_that_mean_the_same_read_the_same(name: str) -> None:
    texts = {
        "json": {"answer as JSON", "the raw answers, for programs"},
        "facts": {
            "plan from a saved file, without touching a node",
            "judge a saved look (invoke facts --save), without touching a node",
        },
    }
    for flag, allowed in texts.items():
        assert HELP[name].get(flag, next(iter(allowed))) in allowed


PAIR = ("--facts", str(SPARK_PAIR))
SPARK_PLANS = {
    "build-wheels": ("build-wheels", "--stack", "guide", "--on", "gx10-beee", *PAIR),
    "deploy": ("deploy", "--cluster", "spark", *PAIR),
    "serve": ("serve", "--cluster", "spark", "--profile", "qwen2.5-32b", *PAIR),
    "stop": ("stop", "--cluster", "spark", *PAIR),
    "restart": ("restart", "--cluster", "spark", *PAIR),
    "monitor": ("monitor", "--cluster", "spark", *PAIR),
    "model.fetch": ("model.fetch", "Qwen/Qwen2.5-32B-Instruct", "--cluster", "spark", *PAIR),
    "model.remove": ("model.remove", "Qwen/Qwen2.5-32B-Instruct", "--cluster", "spark", *PAIR),
}


class TestTwoSparks:
    """In these tests a connection or a process would fail the test: see conftest.py."""

    @pytest.mark.parametrize("name", SPARK_PLANS)
    def test_a_plan_takes_seconds_and_changes_nothing(self, name: str, invoke: Invoke, tmp_path: Path) -> None:
        began = time.process_time()
        code, out, err = invoke(*SPARK_PLANS[name])
        assert time.process_time() - began < 3
        assert (code, err) == (0, "")
        assert out
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("name", SPARK_PLANS)
    def test_json_is_json(self, name: str, invoke: Invoke) -> None:
        code, out, _ = invoke(*SPARK_PLANS[name], "--json")
        assert code == 0
        assert set(json.loads(out)) == {"title", "notes", "stages"}

    def test_wheels_that_are_not_there_read_as_not_built(self, invoke: Invoke) -> None:
        _, out, _ = invoke(*SPARK_PLANS["deploy"])
        lines = [line for line in out.splitlines() if "sha256: not built" in line]
        for component in ("torch", "triton", "vllm", "flash-attn"):
            assert any(component in line for line in lines), component

    def test_the_index_part_is_fetched_for_the_sparks_python_and_glibc(self, invoke: Invoke) -> None:
        _, out, _ = invoke(*SPARK_PLANS["build-wheels"])
        assert "wheels for aarch64, Python 3.12, glibc 2.39 — by hash" in out
        assert "--platform=manylinux_2_39_aarch64" in out

    def test_the_plan_to_serve_is_that_of_the_guide_on_the_fabric(self, invoke: Invoke) -> None:
        _, out, _ = invoke(*SPARK_PLANS["serve"])
        lines = {line.strip(" |\\") for line in out.splitlines()}
        assert {
            "VLLM_HOST_IP=172.16.100.1",
            "VLLM_HOST_IP=172.16.100.2",
            "RAY_ADDRESS=172.16.100.1:6379",
            "NCCL_SOCKET_IFNAME=enp1s0f0np0",
            "NCCL_IB_HCA=rocep1s0f0,roceP2p1s0f0",
            "VLLM_USE_RAY_COMPILED_DAG_CHANNEL_TYPE=shm",
            "--pipeline-parallel-size 2",
            "--gpu-memory-utilization 0.80",
            "--max-model-len 4096",
            "--enforce-eager",
        } <= lines
        assert "--node-ip-address=172.16.100.1" in out
        assert "--node-ip-address=172.16.100.2" in out
        assert out.count("note: unlike the guide, ") > 10
        assert "import os" not in out, "the code that goes to the nodes is read in the repository"
        assert "[comes first: invoke model.fetch Qwen/Qwen2.5-32B-Instruct --cluster spark" in out
        assert "[comes first: invoke deploy --cluster spark]" in out

    def test_the_doctor_says_on_a_page_whether_they_can_serve(self, invoke: Invoke) -> None:
        code, out, err = invoke("doctor", "--cluster", "spark", *PAIR)
        assert (code, err) == (Doubtful.exit_code, "")
        assert out.startswith("gx10-beee, gx10-c6fb can serve this profile, with doubts (qwen2.5-32b, stack guide)\n")
        assert out.count("\n  meaning: ") == out.count("\n  next: ") == 3
        assert out.endswith(" checks: 0 problems, 6 warnings, 0 notes\n")

    def test_the_doctor_says_the_same_to_programs(self, invoke: Invoke) -> None:
        code, out, _ = invoke("doctor", "--cluster", "spark", *PAIR, "--json")
        said = json.loads(out)
        assert code == Doubtful.exit_code
        assert (said["serves"], said["worst"]) == (True, "warning")
        assert {"check", "severity", "node", "finding", "meaning", "next"} == set(said["findings"][0])

    def test_a_stopped_service_has_nothing_to_stop(self, invoke: Invoke) -> None:
        assert invoke(*SPARK_PLANS["stop"]) == (0, "nothing to do\n", "")

    def test_nothing_was_deployed_so_there_is_nothing_to_remove_or_to_collect(self, invoke: Invoke) -> None:
        assert invoke("remove", "--cluster", "spark", *PAIR) == (0, "nothing to do\n", "")
        assert invoke("releases", "--cluster", "spark", "--collect", *PAIR) == (0, "nothing to do\n", "")

    def test_the_inventory_of_fresh_machines_is_empty(self, invoke: Invoke) -> None:
        code, out, _ = invoke("releases", "--cluster", "spark", "--json", *PAIR)
        assert (code, json.loads(out)["releases"], json.loads(out)["same"]) == (0, [], True)

    def test_deploying_wheels_that_are_not_there_is_an_error(
        self, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(command, "gather", lambda *_: spark_captures())
        monkeypatch.setattr(command, "held", lambda *_, **__: nullcontext(lambda: None))
        code, _, err = invoke("deploy", "--cluster", "spark")
        assert code == BuildFailed.exit_code
        assert "no wheels of guide for aarch64-cp312: there are none" in err
        assert "next: invoke build-wheels --stack guide" in err


def test_a_flag_may_be_said_twice(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    urls: list[dict[str, str]] = []
    monkeypatch.setattr(build.tasks, "index_part", lambda *given, **_: urls.append(given[2]))
    monkeypatch.setattr(build.tasks, "plan_wheels", lambda *_: make_plan("t", []))
    words = ("--index", "torch=https://a.example/x=1", "--index", "Torch_Vision=https://b.example")
    assert invoke("build-wheels", "--stack", "guide", *words, *PAIR)[0] == 0
    assert urls == [{"torch": "https://a.example/x=1", "torch-vision": "https://b.example"}]


def test_the_cpu_stack_has_no_notes_on_the_guide(invoke: Invoke) -> None:
    code, out, _ = invoke("serve", "--cluster", "local", "--facts", str(LAB_PAIR))
    assert code == 0
    assert "VLLM_HOST_IP=198.18.100.2" in out
    assert "unlike the guide" not in out


LAB = ("--cluster", "local", "--facts", str(LAB_PAIR))
LAB_RELEASE = "cpu-x86_64-cp311-c8ffbb91f3"


def test_machines_that_serve_are_not_removed_unless_told(invoke: Invoke) -> None:
    code, _, err = invoke("remove", *LAB)
    assert code == InUse.exit_code
    assert "error: lab-a: it still runs sparkstack-ray-head" in err
    code, out, _ = invoke("remove", "--stop", *LAB)
    assert code == 0
    assert "lab-a: stop sparkstack-ray-head" in out
    assert "lab-b: remove /opt/sparkstack" in out


def test_a_rollback_to_the_release_in_use_notes_what_was_not_noted(invoke: Invoke) -> None:
    code, out, _ = invoke("rollback", "--to", LAB_RELEASE, *LAB)
    assert code == 0
    assert [line for line in out.splitlines() if line[:1].isdigit()] == [
        "1. check what is in use",
        "2. note what is in use",
    ]


def test_what_a_removal_leaves_is_named_after_the_work(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = make_plan(
        "t", [("stage", [Call(node="controller", title="x", reason="r", shown="", action=int)])], ["thesis stays"]
    )
    monkeypatch.setattr(deploy.tasks, "converge", lambda *_, **__: made)
    assert invoke("remove", "--yes", "--cluster", "local") == (0, "note: thesis stays\n", "")
    assert invoke("remove", "--yes", "--dry-run", "--cluster", "local") == (0, "", "")
    assert not list(tmp_path.iterdir())


def test_a_rollback_without_a_release_before_is_refused(invoke: Invoke) -> None:
    code, _, err = invoke("rollback", *LAB)
    assert code == UnfitNode.exit_code
    assert f"no release before {LAB_RELEASE} is on every node" in err


def test_the_doctor_refuses_machines_that_cannot_serve(invoke: Invoke) -> None:
    code, out, err = invoke("doctor", "--cluster", "local", "--facts", str(LAB_PAIR), "--profile", "qwen2.5-32b")
    assert (code, err) == (UnfitNode.exit_code, "")
    assert out.startswith("lab-a, lab-b cannot serve this profile")


def test_facts_of_another_cluster_are_refused(invoke: Invoke) -> None:
    code, _, err = invoke("deploy", "--cluster", "local", *PAIR)
    assert code == 10
    assert "the facts hold gx10-beee, gx10-c6fb, not lab-a, lab-b" in err


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("deploy", "--cluster", "local", "--stack", "guide", *PAIR), UsageError.exit_code, "does not agree"),
        (("build-wheels", "--stack", "gide", *PAIR), 10, "did you mean guide?"),
        (("build-wheels", "--on", "gx10-beee", "--toolkit", *PAIR), UsageError.exit_code, "leave one of them out"),
        (("build-wheels", "--verify", "--development", *PAIR), UsageError.exit_code, "leave one of them out"),
        (("build-wheels", "--only", "tritno", *PAIR), UsageError.exit_code, "did you mean triton?"),
        (("build-wheels", "--stack", "guide", "--on", "gx10-bee", *PAIR), 10, "did you mean gx10-beee?"),
        (("build-wheels", "--stack", "guide", "--index", "torch", *PAIR), UsageError.exit_code, "has no URL"),
        (("build-wheels", "--stack", "guide", "--index", "x=http://y", *PAIR), UsageError.exit_code, "default index"),
        (("serve", "--cluster", "spark", "--profile", "qwen", *PAIR), 10, "config/profiles/qwen.toml does not exist"),
        (("deploy", "--cluster", "spark", "--facts", "none.json"), 10, "none.json cannot be read"),
        (("releases", "--collect", "--keep", "1", *PAIR), UsageError.exit_code, "--keep 1 cannot be"),
        (("releases", "--keep", "3", *PAIR), UsageError.exit_code, "say --collect"),
        (("key.rotate", "--cluster", "spark", *PAIR), NotServing.exit_code, "there is no API key yet"),
        (("rollback", "--to", "guide", *PAIR), UsageError.exit_code, "no node has a complete release guide"),
    ],
)
def test_flags_that_are_wrong_are_refused_with_a_hint(
    words: tuple[str, ...], code: int, says: str, invoke: Invoke
) -> None:
    got, _, err = invoke(*words)
    assert got == code
    assert says in err
