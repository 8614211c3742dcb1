"""What a profile needs of a node's memory: weights, KV cache and margins, computed from the model's shape. Pure.

On a Spark the GPU has no memory of its own: vLLM takes `--gpu-memory-utilization` of the whole machine's, fills it with
weights and what it works with, and makes the rest its KV cache
(https://docs.vllm.ai/en/stable/configuration/conserving_memory/).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from core.config import Profile
from core.facts import NodeFacts
from deploy.shape import DTYPES, Shape, kv_bytes_a_token, largest_stage

GIB = 2**30
UTILIZATION = 0.9
"""vLLM's own --gpu-memory-utilization."""
CONTEXT = 4096
"""Tokens of one sequence where neither profile nor model says it."""
GPU_WORK = 5 * GIB
"""What a rank takes on a GPU besides weights and KV cache: CUDA's context, activations, NCCL's buffers. The guide's
numbers leave 4.4 GiB for it (0.80 of 121.7 GiB, less 30.5 GiB of weights and 511,392 tokens)."""
CPU_WORK = GIB
"""The same on a CPU: an estimate."""
PROCESSES = 4 * GIB
"""Host memory of vLLM's and Ray's processes beside a GPU, and what keeps sshd answering: a margin, not measured on a
Spark. Ray's own guard kills workers at 95 % of a node, 6 GiB before its end."""
UNIFIED = {"8.7", "11.0", "12.1"}
"""Compute capabilities whose GPU has the machine's memory: Orin, Thor, GB10 (vllm/utils/mem_utils.py, PR 35356)."""


@dataclass(frozen=True)
class Need:
    """Bytes that a profile needs on one node; None where the model does not tell.

    ``claim`` is what vLLM takes whatever the model's size; None where it takes only what it needs.
    """

    weights: int | None
    kv_token: int | None
    kv_cache: int | None
    """What must be there at least: one sequence of the full length, or what the profile sets."""
    work: int
    around: int
    """Beside vLLM's own: Ray's object store, processes, margin."""
    claim: int | None

    @property
    def inside(self) -> int | None:
        """What must fit into the claim."""
        known = self.weights is not None and self.kv_cache is not None
        return (self.weights or 0) + (self.kv_cache or 0) + self.work if known else None

    @property
    def total(self) -> int | None:
        """What has to be available before it starts."""
        vllm = self.inside if self.claim is None else self.claim
        return None if vllm is None else vllm + self.around

    @property
    def tokens(self) -> int | None:
        """How many tokens the KV cache will hold, where vLLM fills what it claims."""
        if self.claim is None or not self.kv_token or self.weights is None:
            return None
        return max(0, self.claim - self.weights - self.work) // self.kv_token


def unified(seen: NodeFacts) -> bool:
    """Whether the node's GPU has no memory of its own."""
    return any(gpu.capability in UNIFIED for gpu in seen.gpus)


def judged(seen: NodeFacts) -> bool:
    """Whether the model lies in the memory of the machine: what a GPU has of its own is not looked at."""
    return unified(seen) or not seen.gpus


def need_of(profile: Profile, shape: Shape | None, seen: NodeFacts) -> Need:
    """Return what the profile needs on this node."""
    if not judged(seen):
        return Need(weights=None, kv_token=None, kv_cache=None, work=0, around=0, claim=None)
    gpu = unified(seen)
    ray = profile.object_store if profile.executor == "ray" else 0
    kv_token = kv_bytes_a_token(shape, profile, _kv_number(profile, shape)) if shape and shape.plain else None
    return Need(
        weights=_weights(profile, shape, seen.model_files),
        kv_token=kv_token,
        kv_cache=_kv_cache(profile, shape, kv_token),
        work=GPU_WORK if gpu else CPU_WORK,
        around=ray + (PROCESSES if gpu else 0),
        claim=int(utilization(profile) * seen.memory_total) if gpu else None,
    )


def utilization(profile: Profile) -> float:
    """Return the share of the memory that vLLM takes."""
    given = flag(profile.flags, "--gpu-memory-utilization") or ""
    return float(given) if re.fullmatch(r"[01]?\.?\d+", given) else UTILIZATION


def flag(flags: Sequence[str], name: str) -> str | None:
    """Return the value of an option among arguments, as `--name value` or `--name=value`; the last one counts."""
    found = None
    for word, following in zip(flags, [*flags[1:], ""], strict=False):
        if word == name:
            found = following
        elif word.startswith(f"{name}="):
            found = word.partition("=")[2]
    return found


def whole_number(text: str) -> int | None:
    """Read a number as vLLM's options do; None for any other text. 32k is 32000, 25.6k 25600, 32K 32768.

    https://docs.vllm.ai/en/latest/cli/ (Human-readable integer arguments), human_readable_int in vLLM.
    """
    match = re.fullmatch(r"(\d{1,15})(\.\d{1,15})?([kmgtKMGT]?)", text.strip(), re.ASCII)
    if match is None or (match[2] and not match[3].islower()):
        return None
    power = "kmgt".find(match[3].lower()) + 1 if match[3] else 0
    return int(Decimal(match[1] + (match[2] or "")) * (1024 if match[3].isupper() else 1000) ** power)


def _weights(profile: Profile, shape: Shape | None, files: Mapping[str, int]) -> int | None:
    """Return the bytes of the largest rank's weights: what its parameters take, or its share of the files if larger.

    The files may hold what the shape does not tell (a part that sees pictures), or be there in part only.
    """
    there = sum(size for name, size in files.items() if name.endswith(".safetensors"))
    share = -(-there // profile.ranks)
    if shape is None or not shape.plain:
        return share or None
    return max(share, largest_stage(shape, profile) * _number(profile, shape))


def _number(profile: Profile, shape: Shape) -> int:
    """Return the bytes of a number of the weights, and of the KV cache where it has no type of its own."""
    return DTYPES.get(flag(profile.flags, "--dtype") or "", shape.number)


def _kv_number(profile: Profile, shape: Shape) -> int:
    given = flag(profile.flags, "--kv-cache-dtype") or ""
    return 1 if given.startswith("fp8") else DTYPES.get(given, _number(profile, shape))


def _kv_cache(profile: Profile, shape: Shape | None, kv_token: int | None) -> int | None:
    given = whole_number(flag(profile.flags, "--kv-cache-memory-bytes") or "")
    if given is not None or kv_token is None:
        return given
    longest = shape.max_position_embeddings if shape else None
    return kv_token * (whole_number(flag(profile.flags, "--max-model-len") or "") or longest or CONTEXT)
