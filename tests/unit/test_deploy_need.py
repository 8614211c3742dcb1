"""What a model needs of a node's memory, against numbers that people published of their own machines."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.config import CONFIG, Profile, load_profile
from core.facts import NodeFacts
from deploy.need import CPU_WORK, GIB, GPU_WORK, PROCESSES, flag, judged, need_of, unified, utilization, whole_number
from deploy.shape import Shape, kv_bytes_a_token, largest_stage, read_shape
from tests.unit.samples import lab_facts, spark_captures, tiny

CONFIG_TEXT = (CONFIG / "models" / "Qwen2.5-32B-Instruct.json").read_text()
QWEN = json.loads(CONFIG_TEXT)
WHOLE_FILE = 65_527_752_704
"""Bytes of Qwen2.5-32B's parameters as model.safetensors.index.json gives them (metadata.total_size)."""


def shape(**changes: Any) -> Shape:
    found = read_shape(json.dumps({**QWEN, **changes}))
    assert found is not None
    return found


def qwen(**changes: Any) -> Profile:
    return load_profile("qwen2.5-32b").model_copy(update=changes)


def alone() -> Profile:
    return qwen(pipeline_parallel=1)


def spark(**changes: Any) -> NodeFacts:
    return replace(spark_captures().parsed()["gx10-beee"], **changes)


def test_qwens_parameters_are_counted_to_the_last_one() -> None:
    assert largest_stage(shape(), alone()) * 2 == WHOLE_FILE


@pytest.mark.parametrize(
    ("kind", "numbers", "tied", "parameters"),
    [
        ("LlamaForCausalLM", (4096, 14336, 32, 32, 8, 128256), False, 8_030_261_248),
        ("MistralForCausalLM", (4096, 14336, 32, 32, 8, 32000), False, 7_241_732_096),
        ("Qwen2ForCausalLM", (3584, 18944, 28, 28, 4, 152064), False, 7_615_616_512),
        ("Qwen2ForCausalLM", (896, 4864, 14, 24, 2, 151936), True, 494_032_768),
    ],
    ids=["Llama 3.1 8B", "Mistral 7B", "Qwen2.5 7B", "Qwen2.5 0.5B"],
)
def test_parameters_of_plain_models_are_those_that_the_hub_names(
    kind: str,
    numbers: tuple[int, ...],
    tied: bool,  # noqa: FBT001
    parameters: int,
) -> None:
    hidden, inner, heads, layers, kept, words = numbers
    found = Shape(
        architectures=(kind,),
        hidden_size=hidden,
        intermediate_size=inner,
        num_attention_heads=heads,
        num_hidden_layers=layers,
        num_key_value_heads=kept,
        vocab_size=words,
        tie_word_embeddings=tied,
    )
    assert largest_stage(found, alone()) == parameters


def test_the_guides_rank_has_30_5_gib_of_weights() -> None:
    """Its 4.2 and 7.4: about 30.5 GB after loading on each of two nodes; what vLLM prints are GiB."""
    weights = need_of(qwen(), shape(), spark()).weights
    assert weights is not None
    assert f"{weights / GIB:.1f}" == "30.5"


def test_the_guides_kv_cache_is_predicted_within_a_hundredth() -> None:
    """Its 7.4: 511,392 tokens at --gpu-memory-utilization 0.80; a Spark then had 121.69 GiB (vLLM's own messages)."""
    tokens = need_of(qwen(), shape(), spark(memory_total=int(121.69 * GIB))).tokens
    assert tokens is not None
    assert tokens == pytest.approx(511_392, rel=0.01)


def test_a_token_takes_a_key_and_a_value_a_layer_and_head() -> None:
    assert kv_bytes_a_token(shape(), qwen(pipeline_parallel=1), 2) == 2 * 64 * 8 * 128 * 2
    assert kv_bytes_a_token(shape(), qwen(pipeline_parallel=2), 2) == 131_072
    assert kv_bytes_a_token(shape(), qwen(pipeline_parallel=1, tensor_parallel=2), 2) == 131_072
    many = qwen(pipeline_parallel=1, tensor_parallel=16)
    assert kv_bytes_a_token(shape(), many, 1) == 2 * 64 * 1 * 128, "a head is not divided"


def test_the_largest_stage_has_the_layer_that_is_left_over_and_one_end() -> None:
    whole, half = (largest_stage(shape(), qwen(pipeline_parallel=stages)) for stages in (1, 2))
    assert whole == 64 * shape().layer + 2 * shape().embedding + 5120
    assert half == 32 * shape().layer + shape().embedding + 5120
    assert largest_stage(shape(num_hidden_layers=65), qwen()) == half + shape().layer
    assert largest_stage(shape(), qwen(pipeline_parallel=1, tensor_parallel=2)) == whole // 2


def test_one_embedding_for_both_ends_is_counted_once() -> None:
    tied = shape(tie_word_embeddings=True)
    assert largest_stage(shape(), alone()) - largest_stage(tied, alone()) == tied.embedding


def test_weights_are_those_of_the_files_where_these_are_more_than_is_counted() -> None:
    files = {"a.safetensors": WHOLE_FILE // 2, "b.safetensors": WHOLE_FILE // 2, "config.json": 10**12}
    counted, seen = (need_of(qwen(), shape(), spark(model_files=these)).weights for these in ({}, files))
    assert counted == seen, "or a model that is there in part would need less"
    larger = {**files, "pictures.safetensors": WHOLE_FILE}
    assert need_of(qwen(), shape(), spark(model_files=larger)).weights == WHOLE_FILE


def test_weights_that_cannot_be_counted_are_those_of_the_files() -> None:
    files = {"model.safetensors": WHOLE_FILE}
    quantised = shape(quantization_config={"quant_method": "awq"}, num_experts=None)
    assert need_of(qwen(), quantised, spark()).weights is None
    assert need_of(qwen(), quantised, spark(model_files=files)).weights == WHOLE_FILE // 2
    assert need_of(qwen(), None, spark()).inside is None


def test_a_spark_gives_vllm_its_share_and_keeps_something_around() -> None:
    need = need_of(qwen(), shape(), spark())
    assert need.claim == int(0.80 * spark().memory_total)
    assert need.around == GIB + PROCESSES
    assert need.total == need.claim + need.around
    assert need.inside == (need.weights or 0) + 4096 * 131_072 + GPU_WORK


def test_a_cpu_gives_what_is_needed_and_no_share() -> None:
    seen = lab_facts(model_files={"model.safetensors": 1_713_656})["lab-a"]
    need = need_of(tiny(), None, seen)
    assert (need.claim, need.tokens) == (None, None)
    assert need.weights == 856_828
    assert need.kv_cache == 67_108_864
    assert need.total == 856_828 + 67_108_864 + CPU_WORK + tiny().object_store


def test_only_a_gpu_in_the_machines_own_memory_shares_it() -> None:
    assert unified(spark())
    assert not unified(spark(gpus=(replace(spark().gpus[0], capability="9.0"),)))
    assert not unified(lab_facts()["lab-a"])


def test_a_gpu_with_memory_of_its_own_is_not_judged() -> None:
    own = spark(gpus=(replace(spark().gpus[0], capability="9.0"),), model_files={"a.safetensors": WHOLE_FILE})
    need = need_of(qwen(), shape(), own)
    assert (need.inside, need.total, need.tokens, need.claim) == (None, None, None, None)
    assert not judged(own)
    assert judged(spark())
    assert judged(lab_facts()["lab-a"])


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("4096", 4096),
        ("32k", 32_000),
        ("25.6k", 25_600),
        ("32K", 32_768),
        ("1.5K", None),
        ("1m", 10**6),
        ("2M", 2**21),
        ("1G", 2**30),
        ("1.5", None),
        ("auto", None),
        ("-1", None),
        ("", None),
        ("k", None),
        ("9" * 5000, None),
        ("٣", None),
    ],
)
def test_a_number_is_read_as_vllm_reads_it(text: str, number: int | None) -> None:
    assert whole_number(text) == number


@pytest.mark.parametrize(
    ("flags", "tokens"),
    [
        (("--max-model-len", "4096"), 4096),
        (("--max-model-len", "8k"), 8000),
        (("--max-model-len=8K",), 8192),
        (("--max-model-len", "auto"), 32_768),
        ((), 32_768),
    ],
)
def test_a_sequence_is_as_long_as_the_profile_says_or_the_model_takes(flags: tuple[str, ...], tokens: int) -> None:
    assert need_of(qwen(flags=flags), shape(), spark()).kv_cache == tokens * 131_072


def test_a_sequence_of_which_nobody_says_the_length_has_4096_tokens() -> None:
    assert need_of(qwen(flags=()), shape(max_position_embeddings=None), spark()).kv_cache == 4096 * 131_072


def test_what_the_profile_gives_the_kv_cache_is_read_in_short_too() -> None:
    assert need_of(qwen(flags=("--kv-cache-memory-bytes", "1G")), shape(), spark()).kv_cache == GIB


@pytest.mark.parametrize(
    ("flags", "value"),
    [
        ((), None),
        (("--a", "1"), "1"),
        (("--a=2",), "2"),
        (("--a", "1", "--b", "--a=3"), "3"),
        (("--a",), ""),
        (("--ab", "1"), None),
    ],
)
def test_an_option_is_read_in_both_forms_and_the_last_one_counts(flags: tuple[str, ...], value: str | None) -> None:
    assert flag(flags, "--a") == value


def test_the_share_is_vllms_own_where_the_profile_says_none() -> None:
    assert utilization(qwen()) == 0.80
    assert utilization(qwen(flags=())) == utilization(qwen(flags=("--gpu-memory-utilization", "most"))) == 0.9


def test_types_of_numbers_follow_the_flags() -> None:
    plain = need_of(qwen(flags=()), shape(), spark())
    fp8 = need_of(qwen(flags=("--kv-cache-dtype", "fp8_e4m3")), shape(), spark())
    wide = need_of(qwen(flags=("--dtype", "float32")), shape(), spark())
    assert fp8.kv_token is not None
    assert plain.kv_token == 2 * fp8.kv_token
    assert plain.weights is not None
    assert wide.weights == 2 * plain.weights
    assert wide.kv_token == 2 * plain.kv_token, "the KV cache has the type of the weights where it has none of its own"


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "5", "{}", '{"text_config": 3}', json.dumps({**QWEN, "hidden_size": 0}), "[" * 10**5]
)
def test_a_config_that_tells_too_little_has_no_shape(text: str) -> None:
    assert read_shape(text) is None


def test_a_model_of_several_kinds_keeps_its_shape_under_text_config() -> None:
    nested = json.dumps({"architectures": ["X"], "text_config": {**QWEN, "architectures": None}})
    assert read_shape(nested) is None, "a list of architectures is a list"
    found = read_shape(json.dumps({"model_type": "x", "text_config": QWEN}))
    assert found == shape()


@given(st.text())
def test_any_config_is_read_or_has_no_shape(text: str) -> None:
    assert read_shape(text) is None or isinstance(read_shape(text), Shape)
