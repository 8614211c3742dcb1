"""A measurement: the plan, the load with its key, what is counted and what is refused, samples."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.errors import ConfigError, NotServing
from core.plan import Call, Job, Plan, Run, as_text
from core.process import Piped, run
from serve.bench import client, sampler
from serve.bench.client import Heard, Load, engine_url, load_argv, load_job
from serve.bench.fingerprint import fingerprint, node_print
from serve.bench.measure import Measurement, plan_bench
from serve.bench.running import question, require_room, require_serving
from serve.bench.suite import load_suite
from serve.files import WANTED
from tests.unit.samples import capture, lab_facts, local, service, serving, spark_captures, unit

QUICK = load_suite("quick")
SINGLE, CROWD = QUICK.tests
SERVED = service()
SECRET = "5ec2e7" * 8


def measurement(kept: list[Any] | None = None) -> Measurement:
    clock = iter(range(1000))
    return Measurement(1000, lambda: float(next(clock)), (kept if kept is not None else []).append)


def plan(**changes: Any) -> Plan:
    facts = {name: replace(seen, **changes) for name, seen in serving(SERVED).items()}
    return plan_bench(SERVED, QUICK, facts, measurement())


def jobs(made: Plan) -> list[Job]:
    return [step for step in made.steps if isinstance(step, Job)]


class TestPlan:
    def test_every_test_is_warmed_and_then_measured_in_rounds(self):
        assert [stage.title for stage in plan().stages] == [
            "warm up: one stream",
            "warm up: sixteen at once",
            "one stream, 1 of 2",
            "sixteen at once, 1 of 2",
            "one stream, 2 of 2",
            "sixteen at once, 2 of 2",
        ]

    def test_no_run_has_the_prompts_of_another(self):
        seeds = [step.argv[step.argv.index("--seed") + 1] for step in jobs(plan())]
        assert len(set(seeds)) == len(seeds) == 6

    def test_what_an_earlier_command_left_is_ended_first(self):
        left = plan(units={client.UNIT: unit(client.UNIT)})
        assert left.stages[0].title == "end what was left"
        (step,) = left.stages[0].steps
        assert isinstance(step, Run)
        assert client.UNIT in step.argv

    def test_the_key_is_in_no_command_and_its_file_is(self):
        text = as_text(plan())
        assert "LoadCredential=api-key:/etc/sparkstack/credentials/api-key" in text
        assert "OPENAI_API_KEY" not in " ".join(word for word in jobs(plan())[0].argv if "\n" not in word)

    def test_the_load_is_sent_to_vllm_itself(self):
        facts = serving(SERVED)["lab-a"]
        assert engine_url(local(), facts) == "http://198.18.34.100:8000"
        tls = {**facts.files, str(WANTED): json.dumps({"api": {"tls": True, "url": "https://x"}})}
        assert engine_url(local(), replace(facts, files=tls)) == "http://127.0.0.1:8000"

    def test_rate_and_concurrency_are_the_tests(self):
        low = load_suite("guide").tests[1]
        words = load_argv(SERVED, Load(low, 1, "http://x"))
        assert words[words.index("--request-rate") + 1] == "2"
        assert "--max-concurrency" not in words
        words = load_argv(SERVED, Load(SINGLE, 1, "http://x"))
        assert words[words.index("--request-rate") + 1] == "inf"
        assert words[words.index("--max-concurrency") + 1] == "1"


class TestRuns:
    def steps(self, made: Plan) -> tuple[Call, Job, Call]:
        first, load, last = made.stages[2].steps
        assert isinstance(first, Call)
        assert isinstance(load, Job)
        assert isinstance(last, Call)
        return first, load, last

    def figures(self, **changes: Any) -> str:
        data = {**json.loads(capture("vllm-bench.cpu.single.json")), "completed": 2, **changes}
        return client.RESULT + json.dumps(data)

    def test_what_came_is_kept_after_each_run(self):
        kept: list[Any] = []
        first, load, last = self.steps(plan_bench(SERVED, QUICK, serving(SERVED), measurement(kept)))
        first.action(print)
        assert load.watch("Starting main benchmark run...") == "Starting main benchmark run..."
        assert load.watch(self.figures()) == "done"
        last.action(print)
        ((measured,),) = kept
        assert (measured.test, measured.began, measured.ended) == ("single", 0.0, 1.0)
        assert measured.figures.completed == 2

    @pytest.mark.parametrize("changes", [{"failed": 1}, {"completed": 1}])
    def test_a_run_with_lost_requests_is_not_counted(self, changes: dict[str, int]):
        kept: list[Any] = []
        _, load, last = self.steps(plan_bench(SERVED, QUICK, serving(SERVED), measurement(kept)))
        load.watch(self.figures(**changes))
        with pytest.raises(NotServing, match="of 2 requests of the test single were answered"):
            last.action(print)
        assert kept == []

    def test_a_run_without_figures_shows_what_the_benchmark_said(self):
        _, load, last = self.steps(plan())
        load.watch("ValueError: Initial test run failed - Error: Unauthorized")
        with pytest.raises(NotServing) as refused:
            last.action(print)
        assert "Unauthorized" in refused.value.evidence
        error = load.failure("it ended with 1", ["ValueError: Unauthorized"])
        assert isinstance(error, NotServing)
        assert "Unauthorized" in error.evidence


FAKE = """\
#!{python}
import json, os, pathlib, sys
words = sys.argv[1:]
folder = pathlib.Path(words[words.index("--result-dir") + 1])
(folder / words[words.index("--result-filename") + 1]).write_text(json.dumps(
    {{"key": os.environ.get("OPENAI_API_KEY"), "argv": words, "folder": os.environ.get("CREDENTIALS_DIRECTORY")}}))
print("text of the benchmark")
sys.exit({code})
"""


@pytest.mark.processes
class TestClient:
    """The script of the unit itself, with another program in the place of vLLM."""

    def heard(self, folder: Path, key: str | None, code: int = 0) -> tuple[int, Heard]:
        program = folder / "vllm"
        program.write_text(FAKE.format(python=sys.executable, code=code))
        program.chmod(0o755)
        job = load_job(SERVED, Load(SINGLE, 1, "http://x"), heard := Heard(), "title")
        argv = [sys.executable, *job.argv[1:4], str(program), *job.argv[5:]]
        if key is not None:
            (folder / "api-key").write_text(key + "\n")
        done = run(argv, env={"CREDENTIALS_DIRECTORY": str(folder)} if key is not None else {}, check=False)
        for line in done.out.splitlines():
            heard.line(line)
        return done.code, heard

    def test_the_key_goes_by_environment_alone(self, tmp_path: Path):
        code, heard = self.heard(tmp_path, SECRET)
        told = json.loads(heard.figures)
        assert (code, told["key"], told["folder"]) == (0, SECRET, None)
        assert SECRET not in " ".join(told["argv"])
        assert heard.lines == ["text of the benchmark"]

    @pytest.mark.parametrize("key", ["-", None])
    def test_without_a_key_none_is_sent(self, tmp_path: Path, key: str | None):
        assert json.loads(self.heard(tmp_path, key)[1].figures)["key"] is None

    def test_its_end_is_the_benchmarks(self, tmp_path: Path):
        assert self.heard(tmp_path, None, code=3)[0] == 3


class TestServing:
    def test_what_does_not_run_is_not_measured(self):
        with pytest.raises(NotServing, match="vLLM does not run"):
            require_serving(SERVED, lab_facts())
        require_serving(SERVED, serving(SERVED))

    @pytest.mark.parametrize("said", ["other", {"name": "other"}])
    def test_another_profile_is_not_measured(self, said: object):
        facts = serving(SERVED)
        text = json.dumps({"profile": said})
        facts["lab-a"] = replace(facts["lab-a"], files={str(WANTED): text})
        with pytest.raises(NotServing, match="it serves the profile other, not tiny"):
            require_serving(SERVED, facts)

    def test_the_guides_suite_is_too_long_for_the_tiny_model(self):
        with pytest.raises(ConfigError, match="the profile serves up to 512"):
            require_room(SERVED, load_suite("guide"))
        require_room(SERVED, QUICK)

    def test_the_models_shape_is_asked_for(self):
        assert question(SERVED.profile).whole


class TestFingerprint:
    def test_it_names_nodes_driver_stack_profile_and_commit(self):
        from core.config import load_cluster, load_profile, load_stack

        cluster = load_cluster("spark")
        served = service(cluster, load_stack("guide"), load_profile("qwen2.5-32b"))
        facts = spark_captures().parsed()
        rates = {"gx10-beee": {"memory": {"read": {"median": 200.0}}, "devices": {"found": []}}}
        made = fingerprint(served, facts, rates, commit="abc")
        assert made.gpu == "NVIDIA GB10"
        assert made.nodes[0].gpus[0].driver.startswith("580.")
        assert (made.commit, made.stack, made.executor, made.shape["num_hidden_layers"]) == ("abc", "guide", "ray", 64)
        assert made.nodes[0].memory_rate == 200.0

    def test_a_gpus_rate_goes_before_the_machines(self):
        seen = spark_captures().parsed()["gx10-beee"]
        rates = {"memory": {"read": {"median": 90.0}}, "devices": {"found": [{"copy": {"median": 230.5}}]}}
        assert node_print(seen, rates).rate == 230.5
        assert node_print(seen, {}).rate is None


class TestSampler:
    def test_a_line_that_is_cut_off_is_passed_over(self):
        assert sampler.parse('{"memory_used": 1', 1.0) is None
        assert sampler.parse('{"memory_used": 1, "memory_available": 2, "other": 3}', 1.0) is None

    @pytest.mark.processes
    def test_it_prints_samples_until_its_stdin_ends(self):
        held = Piped([sys.executable, *sampler.sampler_argv("lo", interval=0.05)[1:]])
        found = [sampler.parse(held.line(), 1.0), sampler.parse(held.line(), 2.0)]
        held.close()
        for sample in found:
            assert sample is not None
            assert sample.memory_available > 0
            assert 0 < sample.memory_used < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
            assert sample.sent is not None
            assert sample.kv_cache is None
