"""What a measurement was made on, out of facts and configuration."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from core import process
from core.config import CONFIG, ROOT
from core.errors import CommandFailed
from core.facts import Facts, NodeFacts
from core.parsers import record_or_none
from serve.bench.record import Fingerprint, Gpu, NodePrint
from serve.cluster import Service

SIZES = (
    *("architectures", "hidden_size", "intermediate_size", "max_position_embeddings", "num_attention_heads"),
    *("num_hidden_layers", "num_key_value_heads", "head_dim", "tie_word_embeddings", "torch_dtype", "dtype"),
    *("vocab_size", "text_config", "quantization_config", "num_experts", "num_local_experts", "n_routed_experts"),
    "kv_lora_rank",
)
"""The keys of a config.json that say how large a model is (deploy/shape.py)."""
Rates = Mapping[str, Mapping[str, Any]]
"""What `invoke probe` measured, by node."""


def fingerprint(service: Service, facts: Facts, rates: Rates, *, commit: str | None) -> Fingerprint:
    """Return the fingerprint of what the service runs on."""
    cluster, profile = service.cluster, service.profile
    head = facts[cluster.head.name]
    lock = head.locks.get(service.release)
    return Fingerprint(
        cluster=cluster.name,
        nodes=tuple(node_print(facts[node.name], rates.get(node.name, {})) for node in cluster.nodes),
        stack=service.stack.name,
        release=service.release,
        lock=hashlib.sha256(lock.encode()).hexdigest() if lock else None,
        profile=profile.name,
        model=service.model.name,
        pipeline_parallel=profile.pipeline_parallel,
        tensor_parallel=profile.tensor_parallel,
        executor=profile.executor,
        flags=profile.flags,
        environment={**service.stack.environment, **profile.environment},
        shape=shape(service, head.condition.model_config),
        commit=commit,
    )


def node_print(seen: NodeFacts, rates: Mapping[str, Any]) -> NodePrint:
    """Return what a node is."""
    found = rates.get("devices", {}).get("found", [])
    return NodePrint(
        name=seen.name,
        architecture=seen.architecture,
        kernel=seen.kernel,
        system=seen.os.get("PRETTY_NAME", "?"),
        cores=seen.cores,
        memory=seen.memory_total,
        gpus=tuple(Gpu(name=gpu.name, capability=gpu.capability, driver=gpu.driver) for gpu in seen.gpus),
        memory_rate=rates.get("memory", {}).get("read", {}).get("median"),
        gpu_rate=found[0]["copy"]["median"] if found else None,
    )


def shape(service: Service, config: str) -> dict[str, Any]:
    """Return the model's sizes: out of its config.json on the head, else as the suite knows the model."""
    known = CONFIG / "models" / f"{service.model.name}.json"
    text = config or (known.read_text(encoding="utf-8") if known.is_file() else "")
    return {key: value for key, value in record_or_none(text).items() if key in SIZES}


def commit() -> str | None:
    """Return the commit of this suite, with a + where files were changed since; None outside of git."""
    try:
        head = process.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT).out.strip()
        changed = process.run(["git", "status", "--porcelain", "--untracked-files=no"], cwd=ROOT).out.strip()
    except CommandFailed:
        return None
    return head + "+" * bool(changed)
