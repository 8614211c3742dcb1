"""Measurements for tests: the real figures of a benchmark on CPUs, and such as two Sparks might give."""

from __future__ import annotations

import json
from typing import Any

from core.config import CONFIG
from serve.bench.figures import Figures, parse
from serve.bench.record import Fingerprint, Gpu, NodePrint, Record, Run, Sample
from serve.bench.startup import Startup
from serve.bench.suite import Suite, load_suite
from tests.unit.samples import capture

SHAPE = json.loads((CONFIG / "models" / "Qwen2.5-32B-Instruct.json").read_text())
GIB = 2**30


def cpu_figures(name: str = "all") -> Figures:
    """Return what vLLM 0.32.0 measured on two CPU cores with the tiny model: `rate`, `all` or `single`."""
    return parse(capture(f"vllm-bench.cpu.{name}.json"), "lab-a")


def node(name: str, rate: float | None = None) -> NodePrint:
    gpu = Gpu(name="NVIDIA GB10", capability="12.1", driver="580.95.05")
    return NodePrint(
        name=name,
        architecture="aarch64",
        kernel="6.14.0-1015-nvidia",
        system="Ubuntu 24.04.3 LTS",
        cores=20,
        memory=int(121.7 * GIB),
        gpus=(gpu,),
        gpu_rate=rate,
    )


def sparks(pipeline: int = 2, tensor: int = 1, *, rate: float | None = None, **changes: Any) -> Fingerprint:
    """Return the fingerprint of the guide's machines and flags."""
    given = Fingerprint(
        cluster="spark",
        nodes=(node("gx10-beee", rate), node("gx10-c6fb", rate)),
        stack="guide",
        release="guide-aarch64-cp312-0123456789",
        profile="qwen2.5-32b",
        model="Qwen2.5-32B-Instruct",
        pipeline_parallel=pipeline,
        tensor_parallel=tensor,
        executor="ray",
        flags=("--enforce-eager", "--gpu-memory-utilization", "0.80", "--max-model-len", "4096"),
        environment={"HF_HUB_OFFLINE": "1"},
        shape=SHAPE,
        commit="0123456789ab",
    )
    return given.model_copy(update=changes)


def published_figures(suite: Suite, name: str, factor: float = 1.0) -> Figures:
    """Return the guide's own figures of a test as if they had been measured, faster by ``factor``."""
    test = next(one for one in suite.tests if one.name == name)
    shown = test.published
    throughput = (shown.output_throughput if shown else 4.0) * factor
    tokens = test.prompts * test.output
    return Figures(
        completed=test.prompts,
        duration=tokens / throughput,
        input_tokens=test.prompts * test.input,
        output_tokens=tokens,
        output_throughput=throughput,
        total_throughput=throughput * (1 + test.input / test.output),
        peak_throughput=(shown.peak_throughput if shown else 5.0) * factor,
        ttft_mean=(shown.ttft_mean if shown else 500.0) / factor,
        tpot_mean=(shown.tpot_mean if shown else 245.0) / factor,
        tpot_p99=(shown.tpot_p99 if shown else 250.0) / factor,
    )


def samples(count: int = 60) -> tuple[Sample, ...]:
    """Return a minute of a node under load."""
    return tuple(
        Sample(
            at=float(second),
            memory_used=int((96 + second / 30) * GIB),
            memory_available=int((25 - second / 30) * GIB),
            gpu_used=94 * GIB,
            kv_cache=min(0.6, second / 100),
            running=min(50, second),
            waiting=0,
        )
        for second in range(count)
    )


def record(factor: float = 1.0, jitter: float = 0.01, repeats: int = 3, **changes: Any) -> Record:
    """Return a measurement of the guide's suite on two Sparks; ``jitter`` is how far the repeats lie apart."""
    suite, clock, runs = load_suite("guide"), 0.0, []
    for number in range(repeats):
        for test in suite.tests:
            own = published_figures(suite, test.name, factor * (1 + jitter * (number - (repeats - 1) / 2)))
            runs.append(Run(test=test.name, began=clock, ended=clock + own.duration, seed=number, figures=own))
            clock += own.duration + 5
    made = Record(
        at="2026-11-30T14:00:00Z",
        by="user@controller",
        suite=suite,
        fingerprint=sparks(),
        startup=Startup(kv_tokens=511_392, loaded=(30.5, 30.5), kv_memory=(62.4, 62.4), seconds=45.0),
        runs=tuple(runs),
        samples={"gx10-beee": samples(), "gx10-c6fb": samples()},
    )
    return made.model_copy(update=changes)
