"""A model's shape, out of its config.json: how many bytes its weights and its KV cache take on one node.

What is counted here are models of plain layers (Qwen2, Llama, Mistral: a gated MLP, grouped attention). Of any other
(experts, latent attention, quantised) the weights are known only where their files are.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from core.config import Profile

DTYPES = {"bfloat16": 2, "float16": 2, "float32": 4, "half": 2, "float": 4}
"""Bytes a number, by the names of config.json and of vLLM's --dtype."""
NOT_PLAIN = ("quantization_config", "num_experts", "num_local_experts", "n_routed_experts", "kv_lora_rank")
"""Keys of models whose weights and caches are counted otherwise."""
BIASED = {"Qwen2ForCausalLM"}
"""Architectures whose query, key and value layers have a bias, and whose config.json does not say so."""

Count = Annotated[int, Field(gt=0)]


class Shape(BaseModel):
    """The keys of a config.json that decide how large the model is; others are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    architectures: tuple[str, ...] = ()
    hidden_size: Count
    intermediate_size: Count
    num_attention_heads: Count
    num_hidden_layers: Count
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    vocab_size: Count
    max_position_embeddings: Count | None = None
    """The longest sequence, in tokens."""
    tie_word_embeddings: bool = False
    torch_dtype: str | None = None
    dtype: str | None = None
    plain: bool = True
    """Whether its weights can be counted from these numbers."""

    @property
    def kv_heads(self) -> int:
        """Heads that are kept for every token."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head(self) -> int:
        """Numbers in one head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def number(self) -> int:
        """Bytes of one number; 2 where the file does not say."""
        return DTYPES.get(self.dtype or self.torch_dtype or "", 2)

    @property
    def embedding(self) -> int:
        """Parameters of the embedding, and as many of the output layer unless the two are one."""
        return self.vocab_size * self.hidden_size

    @property
    def layer(self) -> int:
        """Parameters of one layer: attention with its biases, a gated MLP, two norms."""
        queries, keys = self.num_attention_heads * self.head, self.kv_heads * self.head
        biases = queries + 2 * keys if set(self.architectures) & BIASED else 0
        attention = self.hidden_size * (2 * queries + 2 * keys) + biases
        return attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size


def read_shape(text: str) -> Shape | None:
    """Read a config.json; None where it does not say what is needed. Some models keep it under text_config."""
    try:
        data: Any = json.loads(text)
        inner = data.get("text_config", data)
        plain = not any(inner.get(key) or data.get(key) for key in NOT_PLAIN)
        return Shape.model_validate({**data, **inner, "plain": plain})
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None


def largest_stage(shape: Shape, profile: Profile) -> int:
    """Return the parameters of the largest rank.

    vLLM gives every stage as many layers, and one more to some where the number does not divide; the first has the
    embedding, the last the output layer (get_pp_indices in vllm/distributed/utils.py). Tensor parallelism divides both.
    """
    stages, slices = profile.pipeline_parallel, profile.tensor_parallel
    layers = -(-shape.num_hidden_layers // stages)
    ends = shape.embedding if stages > 1 or shape.tie_word_embeddings else 2 * shape.embedding
    return (layers * shape.layer + ends + shape.hidden_size) // slices


def kv_bytes_a_token(shape: Shape, profile: Profile, number: int) -> int:
    """Return the bytes that one token takes in the largest rank's KV cache: a key and a value a layer and head.

    A head is never divided: with more slices than heads each slice has one.
    """
    layers = -(-shape.num_hidden_layers // profile.pipeline_parallel)
    return 2 * layers * max(1, shape.kv_heads // profile.tensor_parallel) * shape.head * number
