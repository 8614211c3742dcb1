"""Suites, the figures that vLLM saves, and measurements as they are kept and compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ConfigError, FactsError, Slower, UsageError
from serve.bench import compare, published
from serve.bench.figures import METRICS, parse
from serve.bench.record import Spread, differences, load, save
from serve.bench.startup import parse as parse_log
from serve.bench.suite import FOLDER, load_suite
from tests.unit.benchsamples import cpu_figures, record, sparks
from tests.unit.samples import capture


class TestSuite:
    @pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda path: path.stem)
    def test_every_suite_loads(self, path: Path):
        assert load_suite(path.stem).description

    def test_the_guides_tests_are_the_guides(self):
        suite = load_suite("guide")
        shapes = [(test.prompts, test.rate, test.input, test.output) for test in suite.tests if test.published]
        assert shapes == [(30, 2, 512, 256), (50, None, 256, 128), (100, None, 512, 512)]

    def test_the_guides_own_figures_fit_each_other(self):
        """Its total throughput is its output throughput times the lengths, which shows that none was misread."""
        for test in load_suite("guide").tests:
            if test.published:
                times = (test.input + test.output) / test.output
                assert test.published.total_throughput == pytest.approx(
                    test.published.output_throughput * times, rel=1e-3
                )

    def test_a_misspelt_suite_is_named_with_the_nearest(self):
        with pytest.raises(ConfigError, match="did you mean guide"):
            load_suite("giude")

    def test_a_file_may_be_named(self, tmp_path: Path):
        path = tmp_path / "own.toml"
        path.write_text((FOLDER / "quick.toml").read_text())
        assert load_suite(str(path)).name == "own"

    def test_two_tests_of_one_name_are_refused(self, tmp_path: Path):
        path = tmp_path / "own.toml"
        path.write_text((FOLDER / "quick.toml").read_text().replace('"crowd"', '"single"'))
        with pytest.raises(ConfigError) as refused:
            load_suite(str(path))
        assert "two tests have the same name" in refused.value.evidence

    def test_sequences_that_the_model_does_not_serve_are_refused(self):
        with pytest.raises(ConfigError, match="the test single has sequences of 640 tokens"):
            load_suite("guide").require_room(512)
        load_suite("guide").require_room(1024)
        load_suite("guide").require_room(None)


class TestFigures:
    def test_what_vllm_saved_is_read(self):
        found = cpu_figures()
        assert (found.completed, found.failed) == (20, 0)
        assert found.output_throughput == pytest.approx(617.056, abs=0.001)
        assert found.peak_throughput == 615.0
        assert found.tpot_p99 == pytest.approx(6.5976, abs=0.001)
        assert all(getattr(found, metric.name) is not None for metric in METRICS)

    def test_the_requests_under_way_are_those_of_the_latencies(self):
        raw = json.loads(capture("vllm-bench.cpu.all.json"))
        assert cpu_figures().in_flight == pytest.approx(sum(raw["latencies"]) / raw["duration"], rel=0.01)

    def test_one_at_a_time_is_one_under_way(self):
        assert cpu_figures("single").in_flight == pytest.approx(1, abs=0.05)

    def test_a_run_without_an_answer_has_no_times(self):
        raw = {**json.loads(capture("vllm-bench.cpu.all.json")), "completed": 0, "mean_ttft_ms": float("nan")}
        found = parse(json.dumps(raw), "lab-a")
        assert (found.ttft_mean, found.in_flight) == (None, 0)

    def test_an_older_vllm_saves_less(self):
        raw = json.loads(capture("vllm-bench.cpu.all.json"))
        for name in ("max_output_tokens_per_s", "max_concurrent_requests", "failed"):
            del raw[name]
        assert parse(json.dumps(raw), "lab-a").peak_throughput is None

    @given(st.text())
    def test_anything_else_is_refused(self, text: str):
        with pytest.raises(FactsError):
            parse(text, "lab-a")


class TestStartup:
    def test_the_cache_of_a_cpu(self):
        found = parse_log(capture("vllm-log.start.cpu.txt"))
        assert (found.kv_tokens, found.loaded, found.seconds) == (65_536, (), 1.77)

    def test_the_cache_and_the_weights_of_a_gb10(self):
        found = parse_log(capture("vllm-log.kv-cache.gb10.txt"))
        assert (found.kv_tokens, found.loaded, found.kv_memory) == (519_920, (17.17,), (65.25,))

    def test_each_rank_counts_once(self):
        line = "(RayWorkerWrapper pid={0}, ip=172.16.100.{1}) INFO Model loading took 30.5{1} GiB and 12.3 seconds\n"
        log = line.format(100, 1) + line.format(200, 2) + line.format(100, 1)
        assert parse_log(log).loaded == (30.51, 30.52)

    @given(st.text())
    def test_a_log_of_anything_tells_nothing_and_breaks_nothing(self, text: str):
        parse_log(text)


class TestRecord:
    def test_what_is_kept_is_read_again(self, tmp_path: Path):
        made = record()
        assert load(save(made, tmp_path / "a" / "one.json")) == made

    def test_another_file_is_refused(self, tmp_path: Path):
        path = tmp_path / "one.json"
        path.write_text("{}")
        with pytest.raises(ConfigError, match=r"one\.json is no result of invoke bench"):
            load(path)
        with pytest.raises(ConfigError, match="cannot be read"):
            load(tmp_path / "none.json")

    def test_a_spread_is_the_median_and_the_ends(self):
        assert Spread.of([3.0, None, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0, 3)
        assert Spread.of([None]) is None
        assert Spread(2.0, 1.0, 3.0, 3).share == 1.0

    def test_what_differs_is_named(self):
        other = sparks(executor="mp", flags=("--gpu-memory-utilization", "0.80"), rate=240.0)
        assert differences(sparks(), other) == {
            "executor": ("ray", "mp"),
            "flags": (
                "--enforce-eager --gpu-memory-utilization 0.80 --max-model-len 4096",
                "--gpu-memory-utilization 0.80",
            ),
        }


class TestCompare:
    @pytest.mark.parametrize(
        ("factor", "jitter", "verdict"),
        [(1.0, 0.01, "same"), (1.2, 0.01, "better"), (0.8, 0.01, "worse"), (0.96, 0.001, "same"), (0.9, 0.2, "same")],
    )
    def test_a_verdict_needs_more_than_the_tolerance_and_more_than_the_spread(self, factor, jitter, verdict):
        found = compare.ratios(record(jitter=jitter), record(factor, jitter))
        assert {one.verdict() for one in found} == {verdict}

    def test_more_time_is_worse(self):
        (one,) = [r for r in compare.ratios(record(), record(0.8)) if r.metric.name == "ttft_mean" and r.test == "long"]
        assert one.value == pytest.approx(1.25)
        assert one.low < one.value < one.high

    def test_what_has_become_worse_is_an_error_of_its_own(self):
        found = compare.ratios(record(), record(0.8))
        with pytest.raises(Slower, match="12 figures are worse by more than 5%") as refused:
            compare.refuse_worse(found)
        assert "long: output throughput × 0.800" in refused.value.evidence
        compare.refuse_worse(found, tolerance=0.3)
        compare.refuse_worse(compare.ratios(record(), record(1.3)))

    def test_measurements_of_other_tests_are_refused(self):
        quick = record().model_copy(update={"suite": load_suite("quick")})
        with pytest.raises(UsageError, match="no test in common"):
            compare.ratios(record(), quick)

    def test_people_see_ratios_and_what_differs(self):
        second = record(1.2, fingerprint=sparks(executor="mp"))
        text = compare.as_text(record(), second, compare.ratios(record(), second))
        assert "executor: ray → mp" in text
        assert "1.200" in text
        assert "better" in text

    def test_programs_get_the_same(self):
        found = compare.ratios(record(), record(0.8))
        data = compare.as_data(record(), record(0.8), found)
        assert json.loads(json.dumps(data)) == data
        assert "long.output_throughput" in data["worse"]


class TestPublished:
    def test_the_guides_figures_stand_beside_those_of_sparks(self):
        found = published.beside(record())
        (one,) = [row for row in found if row.test.name == "long" and row.metric.name == "output_throughput"]
        assert (one.published, one.ratio) == (198.0, pytest.approx(1.0))
        assert not published.why_not(record().suite, sparks())

    def test_elsewhere_they_are_left_out_and_it_is_said_why(self):
        other = record(fingerprint=sparks(nodes=(sparks().nodes[0].model_copy(update={"gpus": ()}),)))
        assert {row.published for row in published.beside(other)} == {None}
        assert "this is Qwen2.5-32B-Instruct on CPUs" in published.why_not(other.suite, other.fingerprint)

    def test_the_summary_is_the_guides(self):
        best = published.best(record(jitter=0))
        assert (best.output, best.requests) == (264.0, 100)
        assert best.total == pytest.approx(396.0)
        assert published.success(record(), record().suite.tests[-1]) == "100% (300/300)"
