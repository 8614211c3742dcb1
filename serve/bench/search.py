"""The search for the best setting as a pure function of what has been measured: which setting is next, and which wins.

One thing is varied at a time, the safest value first: how the model is spread, then the executor's graphs, then tokens
a step, then the share of the memory. What comes later starts from the best that came before. At the first sign that
memory runs short nothing more daring is tried: a Spark that runs out of memory is gone until its power is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from serve.bench.record import Record
from serve.bench.setting import GRAPHS, Executor, Graphs, Parallel, Setting

Goal = Literal["latency", "throughput", "context"]
GOALS: tuple[Goal, ...] = ("latency", "throughput", "context")
SCARCE = 0.05
"""Share of a node's memory below which what is available is a sign of trouble."""
SWAPPED = 256 * 2**20
"""Bytes more in swap that are one too."""
CLEAR = 1.03
"""A more daring setting has to be better by this much; less is within what repeats differ by."""
MARGIN = 1.2
"""A setting is begun while so many times the mean of those before is left."""
OUT_OF_MEMORY = (
    *("out of memory", "No available memory for the cache blocks", "oom-kill", "less than desired GPU memory"),
    *("memory runs short", "ended for memory", "larger than the available KV cache memory"),
)
"""What errors say when memory was the cause."""


@dataclass(frozen=True)
class Space:
    """What may be varied; empty parts stay as the profile has them."""

    parallels: tuple[Parallel, ...]
    executors: tuple[Executor, ...] = ("ray", "mp")
    graphs: tuple[Graphs, ...] = GRAPHS
    batched: tuple[int, ...] = (2048, 8192, 16384)
    fractions: tuple[float, ...] = (0.70, 0.75, 0.80, 0.85)

    def first(self, parallel: Parallel, executor: Executor) -> Setting:
        """Return the safest setting of a way to spread the model."""
        return Setting(
            parallel,
            executor,
            self.graphs[0] if self.graphs else None,
            self.fractions[0] if self.fractions else None,
            self.batched[0] if self.batched else None,
        )


@dataclass(frozen=True)
class Outcome:
    """What came of a setting: measured, or an error; ``trouble`` is the sign that memory ran short."""

    setting: Setting
    seconds: float
    throughput: Mapping[str, float] = field(default_factory=dict)
    """Output tokens a second by test."""
    tpot: Mapping[str, float] = field(default_factory=dict)
    kv_tokens: int | None = None
    error: str = ""
    trouble: str = ""

    @property
    def works(self) -> bool:
        """Whether it served, with memory to spare."""
        return bool(self.throughput) and not self.error and not self.trouble

    def score(self, goal: Goal) -> float:
        """Return what counts for a goal; more is better. 0 where it was not measured."""
        if goal == "context":
            return float(self.kv_tokens or 0)
        if goal == "throughput":
            return max(self.throughput.values(), default=0.0)
        first = next(iter(self.tpot.values()), 0.0)
        return 1000 / first if first else 0.0


def outcome_of(setting: Setting, record: Record, seconds: float) -> Outcome:
    """Return the outcome of a setting that was measured."""
    tests = [test.name for test in record.suite.tests]
    spreads = {name: (record.spread(name, "output_throughput"), record.spread(name, "tpot_mean")) for name in tests}
    return Outcome(
        setting,
        seconds,
        throughput={name: both[0].median for name, both in spreads.items() if both[0] is not None},
        tpot={name: both[1].median for name, both in spreads.items() if both[1] is not None},
        kv_tokens=record.startup.kv_tokens and record.startup.kv_tokens * record.fingerprint.replicas,
        trouble=trouble(record),
    )


def trouble(record: Record) -> str:
    """Return the first sign that memory runs short; nothing where there is none."""
    memory = {node.name: node.memory for node in record.fingerprint.nodes}
    for name, samples in record.samples.items():
        least = min((sample.memory_available for sample in samples), default=None)
        if least is not None and least < SCARCE * memory.get(name, 0):
            return f"{name}: {least / 2**30:.1f} GiB of memory were left"
        swapped = samples[-1].swap_used - samples[0].swap_used if samples else 0
        if swapped > SWAPPED:
            return f"{name}: {swapped / 2**30:.1f} GiB went into swap"
    return ""


def failed(setting: Setting, seconds: float, error: str) -> Outcome:
    """Return the outcome of a setting that did not serve; an error that speaks of memory is a sign of trouble too."""
    about = next((line for line in error.splitlines() if any(text in line for text in OUT_OF_MEMORY)), "")
    return Outcome(setting, seconds, error=error[-2000:], trouble=about[:200])


def next_setting(space: Space, done: Sequence[Outcome], left: float, goals: Sequence[Goal] = GOALS) -> Setting | None:
    """Return what to measure next; None when everything that is worth it was measured, or ``left`` seconds are few."""
    if done and left < MARGIN * sum(one.seconds for one in done) / len(done):
        return None
    tried = {one.setting for one in done}
    limit = min((one.setting.daring for one in done if one.trouble), default=None)
    for setting in _candidates(space, done, goals):
        if setting not in tried and (limit is None or _milder(setting.daring, limit)):
            return setting
    return None


def _milder(daring: tuple[float, int, int], limit: tuple[float, int, int]) -> bool:
    """Whether a setting asks for less than one that ran short, and in nothing for more."""
    return daring != limit and all(own <= other for own, other in zip(daring, limit, strict=True))


def _candidates(space: Space, done: Sequence[Outcome], goals: Sequence[Goal]) -> Iterator[Setting]:
    """Give settings in the order in which they are tried; each stage needs the outcomes of the one before."""
    yield from structures(space)
    ways: tuple[Callable[[Setting], Iterator[Setting]], ...] = (
        lambda best: (replace(best, graphs=graphs) for graphs in space.graphs),
        lambda best: (replace(best, batched=batched) for batched in space.batched),
        lambda best: (replace(best, fraction=fraction) for fraction in space.fractions),
    )
    for way in ways:
        for best in dict.fromkeys(one.setting for goal in goals if (one := winner(done, goal)) is not None):
            # upwards only: what is safer was tried on the way here
            yield from (setting for setting in way(best) if setting.daring > best.daring)


def structures(space: Space) -> Iterator[Setting]:
    """Give the safest setting of every way to spread the model; without ranks on other nodes the executor is one."""
    for parallel in space.parallels:
        alone = parallel in ("one", "replicas")
        for executor in space.executors[:1] if alone else space.executors:
            yield space.first(parallel, executor)


def winner(done: Sequence[Outcome], goal: Goal) -> Outcome | None:
    """Return the best outcome for a goal; of those nearly as good the safest, for context the fastest first."""
    working = [one for one in done if one.works and one.score(goal) > 0]
    if not working:
        return None
    top = max(one.score(goal) for one in working)
    near = [one for one in working if one.score(goal) * CLEAR >= top]
    return winner(near, "throughput") if goal == "context" else min(near, key=lambda one: one.setting.daring)
