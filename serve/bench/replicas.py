"""One test sent to several services of the same model: divided, measured at the same time, put together. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from serve.bench.figures import Figures
from serve.bench.record import Record, Run
from serve.bench.suite import Suite, Test

MEANS = ("ttft_mean", "ttft_median", "tpot_mean", "tpot_median", "itl_mean")
WORST = ("ttft_p99", "tpot_p99", "itl_p99")


def share(suite: Suite, number: int, count: int) -> Suite | None:
    """Return what the service ``number`` of ``count`` gets of a suite; None where that is nothing.

    A test with fewer streams than services goes to the first ones only.
    """
    tests = tuple(found for test in suite.tests if (found := _part(test, number, count)) is not None)
    return suite.model_copy(update={"tests": tests, "published": None}) if tests else None


def _part(test: Test, number: int, count: int) -> Test | None:
    streams = test.concurrency if test.concurrency is not None else test.prompts
    parts = min(count, streams, test.prompts)
    if number >= parts:
        return None
    return test.model_copy(
        update={
            "prompts": _slice(test.prompts, number, parts),
            "concurrency": None if test.concurrency is None else _slice(test.concurrency, number, parts),
            "rate": None if test.rate is None else test.rate / parts,
            "published": None,
        }
    )


def _slice(whole: int, number: int, parts: int) -> int:
    return whole // parts + (number < whole % parts)


def together(suite: Suite, records: Sequence[Record]) -> Record:
    """Return the measurement of all services as one: throughputs add up, times are means, weighed by requests."""
    first = records[0]
    prints = [record.fingerprint for record in records]
    return first.model_copy(
        update={
            "suite": suite,
            "runs": tuple(_runs(records)),
            "samples": {node: own for record in records for node, own in record.samples.items()},
            "fingerprint": prints[0].model_copy(
                update={"nodes": tuple(node for one in prints for node in one.nodes), "replicas": len(records)}
            ),
        }
    )


def _runs(records: Sequence[Record]) -> Iterator[Run]:
    for place, run in enumerate(records[0].runs):
        same = [run]
        for other in records[1:]:
            turn = sum(one.test == run.test for one in records[0].runs[:place])
            same += [one for one in other.runs if one.test == run.test][turn : turn + 1]
        yield run.model_copy(update={"figures": added([one.figures for one in same])})


def added(parts: Sequence[Figures]) -> Figures:
    """Return figures of loads that ran at the same time as those of one load."""
    whole = parts[0].model_dump()
    duration = max(part.duration for part in parts)
    for name in ("completed", "failed", "input_tokens", "output_tokens"):
        whole[name] = sum(getattr(part, name) for part in parts)
    for name in ("peak_throughput", "peak_requests"):
        known = [value for part in parts if (value := getattr(part, name)) is not None]
        whole[name] = sum(known) if known else None
    for name in MEANS:
        whole[name] = _mean([(getattr(part, name), part.completed) for part in parts])
    for name in WORST:
        whole[name] = max((value for part in parts if (value := getattr(part, name)) is not None), default=None)
    whole |= {"duration": duration, "output_throughput": whole["output_tokens"] / duration}
    return Figures(**whole | {"total_throughput": (whole["output_tokens"] + whole["input_tokens"]) / duration})


def _mean(values: Sequence[tuple[float | None, int]]) -> float | None:
    known = [(value, weight) for value, weight in values if value is not None and weight]
    return sum(value * weight for value, weight in known) / sum(weight for _, weight in known) if known else None
