"""Measuring what is served: vLLM's own benchmark on the head, kept, compared, reported; and a short search."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from core.config import Profile, load_model
from serve.bench.record import load, save
from tests.machines.command_line import CommandLine, assert_refused
from tests.machines.harness import Lab
from tests.machines.serving import NODES, RAY, A, Service

pytestmark = pytest.mark.machines


@pytest.fixture
def serving(serving_with: Callable[[str], Service]) -> CommandLine:
    """The command line, with Ray's service up."""
    return serving_with(RAY).invoke


def test_a_benchmark_is_measured_kept_and_reported(lab: Lab, serving: CommandLine, tmp_path: Path) -> None:
    lab.as_root(A, "systemd-run --unit=sparkstack-bench --quiet sleep 600")
    done = serving.works("bench", "--suite=quick", f"--output={tmp_path}/one.json", "--json", timeout=900)
    assert "stop sparkstack-bench" in done.err, "what an earlier command left is ended first"
    said = json.loads(done.out)
    assert {row["test"] for row in said["figures"]} == {"single", "crowd"}
    assert {row["runs"] for row in said["figures"]} == {2}
    record = load(tmp_path / "one.json")
    assert [(run.test, run.figures.completed) for run in record.runs] == [("single", 2), ("crowd", 16)] * 2
    assert record.startup.kv_tokens
    assert set(record.samples) == set(NODES)
    for node in NODES:
        assert all(0 < sample.memory_available < 6 * 2**30 for sample in record.samples[node]), "of the machine's own"
        assert any(sample.sent for sample in record.samples[node])
    assert any(sample.kv_cache is not None for sample in record.samples[A])
    assert record.fingerprint.nodes[0].memory_rate
    assert record.fingerprint.lock
    assert "<svg" in (tmp_path / "one.html").read_text()


def test_the_key_is_in_no_log_and_no_argument(lab: Lab, serving: CommandLine, tmp_path: Path) -> None:
    key = lab.as_root(A, "cat /etc/sparkstack/credentials/api-key").strip()
    assert re.fullmatch("[0-9a-f]{64}", key)
    with serving.begin("bench", "--suite=quick", "--no-probe", f"--output={tmp_path}/one.json") as started:
        started.says("sixteen at once, 1 of 2", seconds=300)
        seen = ""

        def runs() -> bool:
            nonlocal seen
            seen = lab.as_root(A, "systemctl show sparkstack-bench -p ExecStart -p Environment; ps -eww -o args=")
            return "vllm bench serve" in seen

        started.reaches(runs, "it never ran")
        ended = started.ended(seconds=300)
    assert ended.code == 0
    log = lab.as_root(A, "cat /run/sparkstack-bench.log; journalctl -u sparkstack-bench --no-pager")
    assert key not in seen + log + ended.out + ended.err


@pytest.mark.long  # that a comparison fails is a unit test's as well (test_serve_bench_figures.py)
def test_a_slower_measurement_fails_a_comparison(serving: CommandLine, tmp_path: Path) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    serving.works("bench", "--suite=quick", "--no-probe", f"--output={first}", timeout=900)
    made = load(first)
    slow = [
        run.figures.model_copy(update={"output_throughput": run.figures.output_throughput / 4}) for run in made.runs
    ]
    runs = tuple(run.model_copy(update={"figures": own}) for run, own in zip(made.runs, slow, strict=True))
    save(made.model_copy(update={"runs": runs}), second)
    bare = CommandLine(serving.checkout, "")
    assert bare("bench.compare", str(first), str(first)).code == 0
    assert_refused(bare("bench.compare", str(first), str(second)), 42, "2 figures are worse by more than 5%")


def test_a_profile_that_is_not_served_is_not_measured(serving: CommandLine) -> None:
    assert_refused(serving("bench", "--suite=quick", "--profile=qwen2.5-32b"), 40, "it serves the profile tiny")


def test_a_suite_that_is_too_long_for_the_model_is_refused(serving: CommandLine) -> None:
    assert_refused(serving("bench"), 10, "the profile serves up to 512")


@pytest.mark.parametrize("minutes", [1, pytest.param(8, marks=pytest.mark.long)])
def test_a_search_serves_measures_and_stops_and_writes_profiles(
    lab: Lab, serving: CommandLine, tmp_path: Path, minutes: int
) -> None:
    words = ("--suite=quick", f"--minutes={minutes}", f"--output={tmp_path}/tuned", "--json")
    said = json.loads(serving.works("tune", *words, timeout=1500).out)
    assert said["tried"]
    assert [one for one in said["tried"] if one["error"]] == []
    profiles = sorted((tmp_path / "tuned").glob("tiny.*.toml"))
    assert [path.name for path in profiles] == [f"tiny.{goal}.toml" for goal in ("context", "latency", "throughput")]
    for path in profiles:
        assert load_model(Profile, path).model == "sparkstack-tiny"
        assert path.read_text().startswith("# The best for ")
    assert lab.ssh(A, "systemctl is-active sparkstack-vllm").out.strip() == "inactive"
