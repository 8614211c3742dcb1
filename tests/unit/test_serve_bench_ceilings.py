"""What memory allows of the guide's model on the guide's machines, beside what the guide measured."""

from __future__ import annotations

import pytest

from serve.bench.ceilings import bandwidth, ceiling, kv_tokens, ranks, shape_of, stages
from serve.bench.record import Gpu
from tests.unit.benchsamples import GIB, node, sparks


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
    assert [(rank.node, rank.first, rank.last) for rank in ranks(sparks(), shape)] == [
        ("gx10-beee", 0, 31),
        ("gx10-c6fb", 32, 63),
    ]


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


def test_a_gpu_with_memory_of_its_own_is_not_counted_by_the_machines():
    h200 = Gpu(name="NVIDIA H200", capability="9.0", driver="580.159.04")
    nodes = tuple(one.model_copy(update={"gpus": (h200,)}) for one in sparks().nodes)
    assert kv_tokens(sparks().model_copy(update={"nodes": nodes}), int(121.7 * GIB), nodes=2) is None


def test_the_guides_cache_on_one_node_needs_more_than_the_share_that_it_names():
    computed = kv_tokens(sparks(), int(121.7 * GIB), nodes=1)
    assert computed is not None
    assert computed < 152_160
