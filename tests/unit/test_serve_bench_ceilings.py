"""What memory allows of the guide's model on the guide's machines, beside what the guide measured."""

from __future__ import annotations

import json

import pytest

from core.config import CONFIG
from serve.bench.ceilings import bandwidth, ceiling, kv_tokens, ranks, shape_of, stages
from serve.bench.record import Fingerprint, Gpu, NodePrint

SHAPE = json.loads((CONFIG / "models" / "Qwen2.5-32B-Instruct.json").read_text())
GIB = 2**30


def node(name: str, rate: float | None = None) -> NodePrint:
    gpu = Gpu(name="NVIDIA GB10", capability="12.1", driver="580.95.05")
    return NodePrint(
        name=name,
        architecture="aarch64",
        kernel="6.14",
        system="DGX OS",
        cores=20,
        memory=int(121.7 * GIB),
        gpus=(gpu,),
        gpu_rate=rate,
    )


def sparks(pipeline: int = 2, tensor: int = 1, *, rate: float | None = None, replicas: int = 1) -> Fingerprint:
    return Fingerprint(
        cluster="spark",
        nodes=(node("a", rate), node("b", rate)),
        stack="guide",
        release="guide-1",
        profile="qwen2.5-32b",
        model="Qwen2.5-32B-Instruct",
        pipeline_parallel=pipeline,
        tensor_parallel=tensor,
        replicas=replicas,
        executor="ray",
        flags=("--enforce-eager", "--gpu-memory-utilization", "0.80", "--max-model-len", "4096"),
        environment={},
        shape=SHAPE,
    )


def test_the_layers_are_divided_as_the_guide_says():
    assert stages(64, 2) == ((0, 31), (32, 63))


@pytest.mark.parametrize(
    ("layers", "count", "sizes"), [(64, 1, [64]), (5, 2, [3, 2]), (10, 4, [2, 3, 3, 2]), (11, 4, [3, 3, 3, 2])]
)
def test_layers_that_do_not_divide_go_to_the_stages_before_the_last(layers, count, sizes):
    assert [last - first + 1 for first, last in stages(layers, count)] == sizes


def test_each_rank_of_the_guide_holds_30_5_gib_of_weights():
    shape = shape_of(sparks())
    assert shape is not None
    assert [round(rank.weights / GIB, 1) for rank in ranks(sparks(), shape)] == [30.5, 30.5]
    assert [(rank.node, rank.first, rank.last) for rank in ranks(sparks(), shape)] == [("a", 0, 31), ("b", 32, 63)]


def test_the_ranks_together_are_the_model():
    shape = shape_of(sparks())
    assert shape is not None
    (whole,) = ranks(sparks(pipeline=1), shape)
    assert sum(rank.weights for rank in ranks(sparks(), shape)) == whole.weights
    assert whole.weights == pytest.approx(65.53e9, rel=0.001)


@pytest.mark.parametrize(("pipeline", "tensor", "tokens"), [(1, 1, 4.26), (2, 1, 4.26), (1, 2, 8.5)])
def test_one_stream_is_bound_by_the_weights_and_stages_do_not_help_it(pipeline, tensor, tokens):
    found = ceiling(sparks(pipeline, tensor), 1, 512)
    assert found is not None
    assert found.throughput == pytest.approx(tokens, rel=0.01)


def test_the_guides_tpot_is_above_what_the_memory_allows():
    found = ceiling(sparks(), 29, 640)
    assert found is not None
    assert 230 < found.tpot < 394.71


def test_two_replicas_have_twice_the_tokens_of_one_with_half_of_the_sequences():
    one, two = ceiling(sparks(1), 8, 512), ceiling(sparks(1, replicas=2), 16, 512)
    assert one is not None
    assert two is not None
    assert two.throughput == pytest.approx(2 * one.throughput)
    assert two.tpot == pytest.approx(one.tpot)


def test_a_measured_bandwidth_goes_before_the_makers_figure():
    assert bandwidth(sparks()) == (273.0, "the maker's figure")
    assert bandwidth(sparks(rate=230.0)) == (230.0, "invoke probe")


def test_without_a_bandwidth_or_a_shape_there_is_no_ceiling():
    no_gpu = sparks().model_copy(update={"nodes": (node("a").model_copy(update={"gpus": ()}),)})
    assert ceiling(no_gpu, 1, 512) is None
    assert ceiling(sparks().model_copy(update={"shape": {}}), 1, 512) is None


def test_the_kv_cache_of_two_nodes_is_the_guides_within_two_percent():
    assert kv_tokens(sparks(), int(121.7 * GIB), nodes=2) == pytest.approx(511_392, rel=0.02)


def test_the_guides_cache_on_one_node_needs_more_than_the_share_that_it_names():
    computed = kv_tokens(sparks(), int(121.7 * GIB), nodes=1)
    assert computed is not None
    assert computed < 152_160
