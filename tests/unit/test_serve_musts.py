"""What a profile must and must not say, by the version of vLLM: refused before anything stops, with the next move."""

from __future__ import annotations

from typing import Any

import pytest

from core.config import Stack, load_cluster, load_profile, load_stack
from core.errors import ConfigError
from serve.cluster import Service
from serve.musts import CHANNEL, OURS, SHORT, doubts, require_musts, violations
from tests.unit.samples import service, tiny

SPARK = load_cluster("spark")


def sparks(stack: str = "guide", profile: str = "qwen2.5-32b", **changes: Any) -> Service:
    return Service(SPARK, load_stack(stack), load_profile(profile).model_copy(update=changes), "r")


def at(version: str) -> Stack:
    """Return the guide's stack with another vLLM."""
    guide = load_stack("guide")
    vllm = guide.components["vllm"].model_copy(update={"version": version})
    return guide.model_copy(update={"components": {**guide.components, "vllm": vllm}})


def refused(served: Service) -> tuple[str, str]:
    with pytest.raises(ConfigError) as caught:
        require_musts(served)
    return caught.value.cause, caught.value.next_move


@pytest.mark.parametrize(
    ("stack", "profile"), [("guide", "qwen2.5-32b"), ("current", "qwen2.5-32b-current"), ("cpu", "tiny")]
)
def test_what_is_shipped_breaks_nothing_and_leaves_no_doubt(stack: str, profile: str) -> None:
    served = sparks(stack, profile)
    assert list(violations(served)) == []
    assert list(doubts(served)) == []


class TestChannel:
    def test_the_guides_profile_on_a_current_vllm_is_refused_with_what_to_remove(self) -> None:
        cause, move = refused(sparks("current"))
        assert cause == f"profile qwen2.5-32b: {CHANNEL} is set, and vLLM 0.33.0 has no compiled graphs"
        assert move == "remove it from the profile's environment"

    @pytest.mark.parametrize("environment", [{}, {CHANNEL: "nccl"}, {CHANNEL: "auto"}])
    def test_an_old_vllm_with_two_stages_over_ray_needs_it(self, environment: dict[str, str]) -> None:
        cause, move = refused(sparks(environment=environment))
        assert "is not shm" in cause
        assert f'set {CHANNEL} = "shm"' in move

    @pytest.mark.parametrize("version", ["0.11.3.dev0+g275de3417", "0.19.2", "0.20.0rc1"])
    def test_it_is_needed_before_0_20(self, version: str) -> None:
        profile = load_profile("qwen2.5-32b").model_copy(update={"environment": {}})
        assert "is not shm" in refused(Service(SPARK, at(version), profile, "r"))[0]

    @pytest.mark.parametrize("version", ["0.20.0", "0.33.0", "1.0"])
    def test_it_is_refused_from_0_20_on(self, version: str) -> None:
        assert "has no compiled graphs" in refused(Service(SPARK, at(version), load_profile("qwen2.5-32b"), "r"))[0]

    def test_without_ray_there_is_nothing_to_set(self) -> None:
        assert "there is no Ray" in refused(sparks(executor="mp"))[0]
        assert list(violations(sparks(executor="mp", environment={}))) == []

    def test_one_stage_passes_nothing_on(self) -> None:
        assert list(violations(sparks(pipeline_parallel=1, tensor_parallel=2, environment={}))) == []


class TestFlags:
    @pytest.mark.parametrize("word", [*OURS, *SHORT])
    def test_what_the_suite_gives_itself_is_refused_with_what_takes_its_place(self, word: str) -> None:
        cause, move = refused(service(profile=tiny().model_copy(update={"flags": (word, "1")})))
        name = SHORT.get(word, word)
        assert cause == f"profile tiny: flags holds {name}, which the suite gives itself"
        assert move == OURS[name]

    @pytest.mark.parametrize("word", ["--port=1", "--api_key", "--tensor_parallel_size=2", "-tp=2"])
    def test_however_it_is_written(self, word: str) -> None:
        assert (
            "which the suite gives itself" in refused(service(profile=tiny().model_copy(update={"flags": (word,)})))[0]
        )

    def test_what_blinds_the_watchdog_is_refused(self) -> None:
        found = refused(service(profile=tiny().model_copy(update={"flags": ("--disable-log-stats",)})))
        assert found == (
            "profile tiny: flags holds --disable-log-stats: the watchdog would see no token move",
            "remove it",
        )

    def test_a_value_that_looks_like_one_of_ours_is_none(self) -> None:
        flags = ("--chat-template", "port", "--seed", "-1")
        assert list(violations(service(profile=tiny().model_copy(update={"flags": flags})))) == []

    def test_cpus_with_two_stages_need_their_warm_up(self) -> None:
        cause, move = refused(service(profile=tiny().model_copy(update={"flags": ("--enforce-eager",)})))
        assert "every completion answers 500" in cause
        assert "--compilation-config" in move


class TestAddresses:
    @pytest.mark.parametrize("value", ["192.168.34.100", "tcp://192.168.34.101:6379", "172.16.100.1,192.168.34.100"])
    def test_no_variable_names_the_management_network(self, value: str) -> None:
        environment = {**load_profile("qwen2.5-32b").environment, "MASTER_ADDR": value}
        cause, move = refused(sparks(environment=environment))
        assert cause.endswith(f"MASTER_ADDR={value} names the management network")
        assert "the suite sets the fabric's addresses" in move

    def test_the_fabrics_may_be_named(self) -> None:
        environment = {**load_profile("qwen2.5-32b").environment, "MASTER_ADDR": "172.16.100.1"}
        assert list(violations(sparks(environment=environment))) == []


class TestDoubts:
    def test_eager_is_doubtful_where_graphs_work_and_its_absence_where_they_hang(self) -> None:
        assert "is not needed with vLLM 0.33.0" in "".join(
            doubts(sparks("current", environment={}, flags=("--enforce-eager", "--gpu-memory-utilization", "0.8")))
        )
        assert "the guide asks for --enforce-eager" in "".join(doubts(sparks(flags=("--gpu-memory-utilization=0.8",))))

    def test_a_memory_share_that_is_not_said_is_doubtful_on_a_gpu_alone(self) -> None:
        assert "vLLM takes 0.9 of the memory" in "".join(doubts(sparks(flags=("--enforce-eager",))))
        assert list(doubts(service())) == []
