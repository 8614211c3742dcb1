"""What was measured beside what somebody published, and whether the two can be held against each other. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from serve.bench.figures import METRICS, Metric
from serve.bench.record import Fingerprint, Record, Spread
from serve.bench.suite import Suite, Test


@dataclass(frozen=True)
class Beside:
    """One figure of one test: measured, published, and their ratio."""

    test: Test
    metric: Metric
    measured: Spread
    published: float | None

    @property
    def ratio(self) -> float | None:
        """Measured over published."""
        return self.measured.median / self.published if self.published else None


def comparable(suite: Suite, print_: Fingerprint) -> bool:
    """Whether the published figures are of such machines and of this model."""
    published = suite.published
    return published is not None and print_.gpu == published.gpu and print_.model == published.model


def why_not(suite: Suite, print_: Fingerprint) -> str:
    """Return why the published figures say nothing of what was measured; nothing where they do."""
    published = suite.published
    if published is None or comparable(suite, print_):
        return ""
    return (
        f"{published.source}: {published.model} on {published.gpu}; "
        f"this is {print_.model} on {print_.gpu or 'CPUs'}, so the two are not held against each other"
    )


def beside(record: Record, *, always: bool = False) -> tuple[Beside, ...]:
    """Return every figure, with the published one where that can be compared (or ``always``)."""
    return tuple(_beside(record, shown=always or comparable(record.suite, record.fingerprint)))


def _beside(record: Record, *, shown: bool) -> Iterator[Beside]:
    for test in record.suite.tests:
        for metric in METRICS:
            measured = record.spread(test, metric.name)
            if measured is not None:
                published = getattr(test.published, metric.name) if test.published and shown else None
                yield Beside(test, metric, measured, published)


def success(record: Record, test: Test) -> str:
    """Return how many requests were answered, as the guide writes it."""
    done = sum(figures.completed for figures in record.of(test))
    sent = test.prompts * len(record.of(test))
    return f"{done / sent:.0%} ({done}/{sent})" if sent else "not run"


@dataclass(frozen=True)
class Best:
    """The guide's table 7.3."""

    output: float | None
    total: float | None
    tpot_low: float | None
    tpot_high: float | None
    requests: int


def best(record: Record) -> Best:
    """Return the best of all tests."""
    spreads = {m.name: [s for t in record.suite.tests if (s := record.spread(t, m.name))] for m in METRICS}
    # a test of a second or two has its highest second in between two of vLLM's buckets
    peaks = spreads["peak_throughput"] + spreads["output_throughput"]
    totals, tpots = spreads["total_throughput"], spreads["tpot_mean"]
    return Best(
        output=max((spread.high for spread in peaks), default=None),
        total=max((spread.high for spread in totals), default=None),
        tpot_low=min((spread.low for spread in tpots), default=None),
        tpot_high=max((spread.high for spread in tpots), default=None),
        requests=max((test.concurrency or test.prompts for test in record.suite.tests), default=0),
    )
