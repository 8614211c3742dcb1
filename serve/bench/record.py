"""A measurement as it is kept: what was measured, on what, when; read again years later by the same names."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from core.config import Model
from core.errors import ConfigError
from serve.bench.figures import Figures
from serve.bench.startup import Startup
from serve.bench.suite import Suite, Test

VERSION = 1


class Gpu(Model):
    """A GPU as the driver names it."""

    name: str
    capability: str
    driver: str


class NodePrint(Model):
    """What a node is, as far as it bears on speed; memory in bytes, rates in GB/s as `invoke probe` measures them."""

    name: str
    architecture: str
    kernel: str
    system: str
    cores: int
    memory: int
    gpus: tuple[Gpu, ...] = ()
    memory_rate: float | None = None
    gpu_rate: float | None = None

    @property
    def rate(self) -> float | None:
        """The bandwidth of the memory that the model lies in."""
        return self.gpu_rate if self.gpus else self.memory_rate


class Fingerprint(Model):
    """Everything that decides a figure."""

    cluster: str
    nodes: tuple[NodePrint, ...]
    stack: str
    release: str
    """Names the stack's wheels by a hash over all of theirs."""
    lock: str | None = None
    """SHA-256 of the release's lock, as the head has it."""
    profile: str
    model: str
    pipeline_parallel: int
    tensor_parallel: int
    replicas: int = 1
    executor: str
    flags: tuple[str, ...]
    environment: dict[str, str]
    shape: dict[str, Any] = Field(default_factory=dict)
    """The model's config.json, as far as it says how large it is."""
    commit: str | None = None
    """Of this suite; with a + where files were changed since."""

    @property
    def gpu(self) -> str | None:
        """The head's GPU by name."""
        return next((gpu.name for gpu in self.nodes[0].gpus), None)


class Run(Model):
    """One run of a test; times in seconds since the measurement began."""

    test: str
    began: float
    ended: float
    seed: int
    figures: Figures


class Sample(Model):
    """A node at a moment, in seconds since the measurement began; memory in bytes, KV cache from 0 to 1."""

    at: float
    memory_used: int
    memory_available: int
    swap_used: int = 0
    gpu_used: int | None = None
    sent: int | None = None
    """Bytes that have left by the fabric's interface since the machine's start."""
    kv_cache: float | None = None
    running: int | None = None
    waiting: int | None = None


class Record(Model):
    """A whole measurement."""

    version: int = VERSION
    at: str
    """When it began: ISO 8601, UTC."""
    by: str
    title: str = ""
    suite: Suite
    fingerprint: Fingerprint
    startup: Startup = Startup()
    runs: tuple[Run, ...] = ()
    samples: dict[str, tuple[Sample, ...]] = Field(default_factory=dict)
    """By node."""

    def of(self, test: Test | str) -> tuple[Figures, ...]:
        """Return the figures of every run of a test."""
        name = test if isinstance(test, str) else test.name
        return tuple(run.figures for run in self.runs if run.test == name)

    def spread(self, test: Test | str, metric: str) -> Spread | None:
        """Return a figure's median and spread over the runs of a test; None where no run has it."""
        return Spread.of(getattr(figures, metric) for figures in self.of(test))


@dataclass(frozen=True)
class Spread:
    """The median of repeats, and how far they lie apart."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """Return the spread of the values that are there; None without one."""
        known = [value for value in values if value is not None]
        return cls(statistics.median(known), min(known), max(known), len(known)) if known else None

    @property
    def share(self) -> float:
        """From the lowest to the highest, as a share of the median."""
        return (self.high - self.low) / self.median if self.median else 0.0


def save(record: Record, path: Path) -> Path:
    """Write a record whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(json.dumps(record.model_dump(mode="json"), indent=1) + "\n", encoding="utf-8")
    beside.replace(path)
    return path


def load(path: Path) -> Record:
    """Read a record. Raises ConfigError."""
    try:
        return Record.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", next_move="check the path") from error
    except (ValidationError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} is no result of invoke bench",
            next_move="name a file that invoke bench has kept",
            evidence="\n".join(str(error).splitlines()[:6]),
        ) from error


def differences(one: Fingerprint, other: Fingerprint) -> Mapping[str, tuple[str, str]]:
    """Return what two measurements differ in, by name, as text."""
    before, after = _flat(one.model_dump(mode="json")), _flat(other.model_dump(mode="json"))
    return {
        name: (before.get(name, "none"), after.get(name, "none"))
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name) and not name.endswith("_rate")  # measured anew each time
    }


def _flat(data: Any, name: str = "") -> dict[str, str]:
    """Return nested data as name to text; flags stay one text, as they are read."""
    if isinstance(data, dict):
        return {key: text for k, v in data.items() for key, text in _flat(v, f"{name}.{k}".strip(".")).items()}
    if isinstance(data, list) and any(isinstance(item, dict) for item in data):
        return {key: text for n, v in enumerate(data) for key, text in _flat(v, f"{name}.{n}").items()}
    return {name: " ".join(map(str, data)) if isinstance(data, list) else str(data)}
