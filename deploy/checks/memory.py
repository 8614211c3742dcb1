"""Memory: is there what the profile needs, on every node?"""

from __future__ import annotations

from collections.abc import Iterator

from core.facts import NodeFacts
from core.findings import Finding, Severity
from deploy.checks.case import Case, gib
from deploy.need import Need, judged, utilization

SWAPPED = 2**30
"""Bytes in swap that say that the node was short of memory."""
NOT_COUNTED = "nothing is to do: models of this kind are not counted (docs/doctor.md)"


def fits(case: Case) -> Iterator[Finding]:
    """What vLLM may take, or the whole machine, is too little for the model, whatever else runs."""
    for node, seen, _ in case.nodes():
        need = case.need(seen)
        if _too_large(need, seen):
            yield Finding(
                node.name,
                f"the profile {case.profile.name} needs {gib(need.total or 0)}, the machine has "
                f"{gib(seen.memory_total)}",
                "a smaller model: choose another profile with --profile",
                "the node runs out of memory while the model is loaded",
            )
        if need.claim is not None and need.inside is not None and need.inside > need.claim:
            yield Finding(
                node.name,
                f"the model needs {gib(need.inside)} ({gib(need.weights or 0)} of weights, {gib(need.kv_cache or 0)} "
                f"of KV cache, {gib(need.work)} to work with), vLLM may take {gib(need.claim)} "
                f"({utilization(case.profile):g} of {gib(seen.memory_total)})",
                "more nodes (pipeline_parallel), a shorter --max-model-len, or a smaller or quantised model",
                "vLLM loads the weights for minutes, then ends: no available memory for the cache blocks",
            )


def _too_large(need: Need, seen: NodeFacts) -> bool:
    """Whether a machine whose GPU takes no share of its memory has too little of it in all."""
    return need.claim is None and need.total is not None and need.total > seen.memory_total


def available(case: Case) -> Iterator[Finding]:
    """Too little memory is available for what starts now."""
    for node, seen, _ in case.nodes():
        need = case.need(seen)
        if case.serves(seen) or _too_large(need, seen) or need.total is None or seen.memory_available >= need.total:
            continue
        enough = need.claim is not None and seen.memory_available >= need.claim
        yield Finding(
            node.name,
            f"{gib(seen.memory_available)} of {gib(seen.memory_total)} are available, the profile "
            f"{case.profile.name} needs {gib(need.total)}",
            "end what holds memory (other findings name it), or lower --gpu-memory-utilization in the profile",
            "vLLM starts and leaves too little for the rest: a node that runs out freezes until its power is cut"
            if enough
            else "vLLM ends at its start, or the node runs out of memory and freezes until its power is cut",
            Severity.WARNING if enough else Severity.PROBLEM,
        )


def page_cache(case: Case) -> Iterator[Finding]:
    """What vLLM takes is available, but holds page cache, which CUDA does not count as free (vllm#48140)."""
    for node, seen, condition in case.nodes():
        need, free = case.need(seen), condition.memory_free
        if case.serves(seen) or need.claim is None or free is None:
            continue
        if free < need.claim <= seen.memory_available:
            yield Finding(
                node.name,
                f"{gib(free)} are free, {gib(seen.memory_available)} with the page cache; vLLM takes {gib(need.claim)}",
                "on the node, before it starts: sync; echo 3 | sudo tee /proc/sys/vm/drop_caches",
                "some versions of vLLM count only what is free, and end with `Free memory on device … is less than "
                "desired GPU memory utilization`",
                Severity.WARNING,
            )


def known(case: Case) -> Iterator[Finding]:
    """The model's shape is not known, so neither is its need."""
    for node, seen, condition in case.nodes():
        if not judged(seen) or case.need(seen).inside is not None:
            continue
        shape, move = case.shape(seen), "bring the model to the node, then ask again"
        has = "its config.json tells too little" if condition.model_config else "it is not on the node"
        if condition.model_config and shape is not None and not shape.plain:
            has, move = "it is of another kind", NOT_COUNTED
        yield Finding(
            node.name,
            f"what the model {case.profile.model} needs of the memory is not known: {has}",
            move,
            "whether the model fits was not checked",
            Severity.NOTE,
        )


def swap(case: Case) -> Iterator[Finding]:
    """Much lies in swap: the node was short of memory, or is."""
    for node, _, condition in case.nodes():
        if condition.swapped >= SWAPPED:
            yield Finding(
                node.name,
                f"{gib(condition.swapped)} of its memory lie in swap",
                "on the node, when enough memory is available again: sudo swapoff -a; sudo swapon -a",
                "it was short of memory before; what is swapped out answers late when it is needed",
                Severity.WARNING,
            )
