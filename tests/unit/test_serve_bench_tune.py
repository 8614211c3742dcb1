"""The search: in which order settings are tried, when it stops, who wins, and what is written of it."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.config import Cluster, Profile, load_cluster, load_model, load_profile
from core.errors import NotServing
from serve.bench.record import Record, Run, save
from serve.bench.replicas import added, share, together
from serve.bench.search import GOALS, Outcome, Space, failed, next_setting, outcome_of, structures, trouble, winner
from serve.bench.setting import Setting, flags_of, profile_of
from serve.bench.startup import Startup
from serve.bench.suite import load_suite
from serve.bench.tomltext import alone, profile_text, toml
from serve.bench.tuning import Tuning, space_of, tune
from tests.unit.benchsamples import cpu_figures, published_figures, record, samples, sparks
from tests.unit.samples import lab_facts, local, spark_captures, tiny

SPARKS = Space(("one", "replicas", "pipeline", "tensor"))
SMALL = Space(("one", "pipeline"), ("mp",), ("eager", "full"), (), (0.7, 0.8))
GUIDE = load_profile("qwen2.5-32b")


def measured(setting: Setting, rate: float = 100.0, tokens: int = 1000, **changes: Any) -> Outcome:
    given: dict[str, Any] = {"throughput": {"streams-1": rate / 10, "streams-100": rate}, "kv_tokens": tokens}
    return Outcome(setting, 60.0, **{**given, "tpot": {"streams-1": 1000 / rate}, **changes})


def search(space: Space, speed: Callable[[Setting], Outcome], left: float = 1e9) -> list[Outcome]:
    """Search to the end with this machine."""
    done: list[Outcome] = []
    while (setting := next_setting(space, done, left)) is not None:
        done.append(speed(setting))
    return done


def graphs_help(setting: Setting) -> Outcome:
    factor = 1.2 if setting.graphs == "full" else 1.0
    factor *= 2 if setting.parallel == "pipeline" else 1
    return measured(setting, 100 * factor, int(1000 * (setting.fraction or 1)) * (3 if factor >= 2 else 1))


class TestFlags:
    def test_a_settings_flags_take_the_place_of_the_profiles(self):
        setting = Setting("tensor", "mp", "piecewise", 0.75, 8192)
        assert flags_of(GUIDE.flags, setting) == (
            *("--max-model-len", "4096", "--gpu-memory-utilization", "0.75"),
            *("--max-num-batched-tokens", "8192", "--compilation-config", '{"cudagraph_mode":"PIECEWISE"}'),
        )

    def test_nothing_chosen_leaves_the_flags_as_they_are(self):
        assert flags_of(tiny().flags, Setting("one")) == tiny().flags

    @pytest.mark.parametrize("flags", [("--compilation-config={}",), ("--compilation-config", "{}"), ("-O", "3")])
    def test_a_value_goes_with_its_option(self, flags: tuple[str, ...]):
        assert flags_of((*flags, "--x"), Setting("one", graphs="full")) == ("--x",)

    def test_a_profile_is_spread_over_the_nodes(self):
        made = profile_of(GUIDE, Setting("tensor", "mp"), 2, "new")
        assert (made.name, made.pipeline_parallel, made.tensor_parallel, made.executor) == ("new", 1, 2, "mp")
        assert profile_of(GUIDE, Setting("replicas"), 2, "new").ranks == 1


class TestSearch:
    def test_the_safest_setting_of_every_way_to_spread_comes_first(self):
        titles = [setting.title for setting in structures(SPARKS)]
        assert titles[0] == "one node, eager, 0.70 of the memory, 2048 tokens a step"
        assert len(titles) == 6
        assert titles[2].startswith("pipeline, ray, eager")

    def test_the_best_go_on_one_thing_at_a_time(self):
        done = search(SMALL, graphs_help)
        assert [one.setting for one in done] == [
            Setting("one", "mp", "eager", 0.7),
            Setting("pipeline", "mp", "eager", 0.7),
            Setting("pipeline", "mp", "full", 0.7),
            Setting("pipeline", "mp", "full", 0.8),
        ]
        best = winner(done, "throughput")
        assert best is not None
        assert best.setting == Setting("pipeline", "mp", "full", 0.7), "0.8 is no faster, so the safer one wins"
        most = winner(done, "context")
        assert most is not None
        assert most.setting.fraction == 0.8

    def test_nothing_more_daring_is_tried_after_a_sign_of_trouble(self):
        def short(setting: Setting) -> Outcome:
            return measured(
                setting, trouble="gx10-beee: 1.0 GiB of memory were left" if setting.graphs == "full" else ""
            )

        done = search(SMALL, short)
        assert all(one.setting.fraction == 0.7 for one in done)
        assert [one.setting.graphs for one in done].count("full") == 1

    def test_an_error_that_is_not_of_memory_skips_that_setting_alone(self):
        def broken(setting: Setting) -> Outcome:
            return failed(setting, 10, "hangs") if setting.parallel == "pipeline" else measured(setting)

        done = search(SMALL, broken)
        best = winner(done, "latency")
        assert best is not None
        assert best.setting.parallel == "one"
        assert len(done) == 4

    def test_a_setting_that_would_not_fit_into_the_time_is_not_begun(self):
        assert next_setting(SMALL, [], 1) is not None
        assert next_setting(SMALL, [measured(Setting("one", "mp", "eager", 0.7))], 71) is None
        assert next_setting(SMALL, [measured(Setting("one", "mp", "eager", 0.7))], 73) is not None

    @given(st.data())
    def test_it_ends_on_any_machine_and_tries_nothing_twice(self, data: st.DataObject):
        def drawn(setting: Setting) -> Outcome:
            kind = data.draw(st.sampled_from(["works", "fails", "trouble"]))
            rate = data.draw(st.floats(1, 1000))
            if kind == "fails":
                return failed(setting, 1, "error")
            return measured(setting, rate, trouble="short" if kind == "trouble" else "")

        done = search(SPARKS, drawn)
        assert len({one.setting for one in done}) == len(done)
        for place, one in enumerate(done):
            if one.trouble:
                assert not [later for later in done[place + 1 :] if later.setting.daring >= one.setting.daring]

    def test_without_an_outcome_there_is_no_winner(self):
        assert winner([], "latency") is None
        assert winner([failed(Setting("one"), 1, "x")], "context") is None

    @pytest.mark.parametrize("error", ["torch.OutOfMemoryError: CUDA out of memory", "x\nit was ended (oom-kill, 9)"])
    def test_an_error_that_speaks_of_memory_is_a_sign_of_trouble(self, error: str):
        assert failed(Setting("one"), 1, error).trouble

    def test_little_memory_left_or_much_in_swap_is_a_sign_of_trouble(self):
        assert trouble(record()) == ""
        own = samples()
        short = own[-1].model_copy(update={"memory_available": 2**30})
        assert trouble(record(samples={"gx10-beee": (*own, short)})) == "gx10-beee: 1.0 GiB of memory were left"
        swap = own[-1].model_copy(update={"swap_used": 2**30})
        assert trouble(record(samples={"gx10-beee": (*own, swap)})) == "gx10-beee: 1.0 GiB went into swap"

    def test_an_outcome_is_what_the_record_says(self):
        made = outcome_of(Setting("pipeline"), record(), 60)
        assert made.throughput["long"] == pytest.approx(198)
        assert (made.kv_tokens, made.works) == (511_392, True)
        assert made.score("latency") == pytest.approx(1000 / 245)


class TestSpace:
    def test_without_gpus_only_the_spreading_is_varied(self):
        assert space_of(tiny(), lab_facts(), 2) == Space(
            ("one", "replicas", "pipeline"), graphs=(), batched=(), fractions=()
        )

    def test_two_sparks_have_all_of_it(self):
        facts = spark_captures().parsed()
        assert space_of(GUIDE, facts, 2) == SPARKS
        assert space_of(GUIDE, facts, 1).parallels == ("one",)
        fixed = GUIDE.model_copy(update={"flags": ("--kv-cache-memory-bytes", "1000")})
        assert space_of(fixed, facts, 2).fractions == ()


class TestReplicas:
    def test_a_suite_is_divided_without_loss(self):
        suite = load_suite("tune")
        parts = [share(suite, number, 2) for number in range(2)]
        first, second = parts
        assert first is not None
        assert second is not None
        assert first.tests[0].name == "streams-1"
        assert second.tests[0].name == "streams-8", "one stream is one service's"
        for test in suite.tests[1:]:
            own = [one for part in (first, second) for one in part.tests if one.name == test.name]
            assert sum(one.prompts for one in own) == test.prompts
            assert sum(one.concurrency or 0 for one in own) == test.concurrency

    def test_a_rate_is_divided_too(self):
        part = share(load_suite("guide"), 1, 2)
        assert part is not None
        assert part.tests[0].rate == 1.0

    def test_loads_at_the_same_time_add_up(self):
        one = cpu_figures()
        both = added([one, one])
        assert both.completed == 2 * one.completed
        assert both.output_throughput == pytest.approx(2 * one.output_throughput)
        assert both.tpot_mean == pytest.approx(one.tpot_mean)
        assert both.tpot_p99 == one.tpot_p99

    def test_the_measurements_of_two_services_become_one(self):
        made = together(record().suite, [record(), record()])
        assert made.fingerprint.replicas == 2
        assert made.of("long")[0].output_throughput == pytest.approx(2 * record().of("long")[0].output_throughput)


class TestText:
    def test_a_profile_is_read_again_as_it_was(self, tmp_path: Path):
        path = tmp_path / "own.toml"
        for profile in (GUIDE, tiny()):
            path.write_text(profile_text(profile, ["why"]))
            again = load_model(Profile, path)
            assert again == profile.model_copy(update={"name": "own"})

    def test_a_cluster_of_one_node_is_read_again(self, tmp_path: Path):
        path = tmp_path / "own.toml"
        for name in ("local", "spark"):
            cluster = load_cluster(name)
            path.write_text(alone(cluster, cluster.nodes[1]))
            made = load_cluster(str(path))
            assert made.name == f"{name}.{cluster.nodes[1].name}"
            assert made.head == cluster.nodes[1]
            rest = {"name", "nodes", "lab"}
            assert made.model_dump(exclude=rest) == cluster.model_dump(exclude=rest)

    @given(st.dictionaries(st.text(max_size=8), st.text() | st.integers(-(10**9), 10**9) | st.booleans(), max_size=5))
    def test_any_text_survives(self, data: dict[str, Any]):
        assert tomllib.loads(toml({"a": data, "b": [data, data] if data else [1]}))["a"] == data


class Machine:
    """Commands as they would run: serve remembers, bench keeps a record."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.served: dict[str, Profile] = {}

    def __call__(self, words: Sequence[str]) -> None:
        flags = dict(word.removeprefix("--").partition("=")[::2] for word in words[1:])
        self.said.append(words[0])
        if words[0] == "serve":
            profile = load_model(Profile, Path(flags["profile"]))
            if profile.tensor_parallel > 1:
                raise NotServing("torch.OutOfMemoryError: CUDA out of memory", next_move="x")
            self.served[flags["cluster"]] = profile
        elif words[0] == "bench.measure":
            self._bench(flags)

    def _bench(self, flags: dict[str, str]) -> None:
        suite = load_suite(flags["suite"])
        profile = self.served[flags["cluster"]]
        nodes = load_cluster(flags["cluster"]).nodes
        runs = tuple(
            Run(test=test.name, began=0, ended=1, seed=1, figures=published_figures(load_suite("guide"), "long"))
            for test in suite.tests
        )
        print_ = sparks(flags=profile.flags, nodes=sparks().nodes[: len(nodes)])
        made = record(
            suite=suite, runs=runs, fingerprint=print_, startup=Startup(kv_tokens=1000 * len(nodes)), samples={}
        )
        save(made, Path(flags["output"]))


class TestTune:
    def tuned(self, folder: Path, space: Space) -> tuple[Machine, tuple[Outcome, ...]]:
        machine = Machine()
        cluster: Cluster = local()
        told: list[str] = []
        tuning = Tuning(cluster, GUIDE, load_suite("tune"), space, 1e6, folder, told.append, machine)
        return machine, tune(tuning)

    def test_every_setting_is_served_measured_and_stopped(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("core.config.WORK", tmp_path / "work")
        machine, done = self.tuned(tmp_path, Space(("one", "replicas", "pipeline"), ("mp",), (), (), ()))
        assert [one.setting.parallel for one in done] == ["one", "replicas", "pipeline"]
        assert machine.said == [
            *("serve", "bench.measure", "stop"),
            *("serve", "serve", "bench.measure", "bench.measure", "stop", "stop"),
            *("serve", "bench.measure", "stop"),
        ]
        two: Record = Record.model_validate_json((tmp_path / "02.json").read_text())
        assert two.fingerprint.replicas == 2

    def test_the_winners_are_profiles_with_their_evidence(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("core.config.WORK", tmp_path / "work")
        self.tuned(tmp_path, Space(("one", "replicas", "pipeline"), ("mp",), (), (), ()))
        for goal in GOALS:
            text = (tmp_path / f"qwen2.5-32b.{goal}.toml").read_text()
            assert text.startswith(f"# The best for {goal} that invoke tune found: ")
            assert "# [" in text
            assert load_model(Profile, tmp_path / f"qwen2.5-32b.{goal}.toml").model == GUIDE.model

    def test_what_runs_out_of_memory_ends_the_search(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("core.config.WORK", tmp_path / "work")
        machine, done = self.tuned(tmp_path, Space(("tensor", "pipeline"), ("mp",), ("eager", "full"), (), (0.7, 0.8)))
        assert len(done) == 1
        assert "out of memory" in done[0].trouble
        assert machine.said == ["serve", "stop"]
        assert json.dumps(done[0].throughput) == "{}"
