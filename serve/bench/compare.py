"""Two measurements beside each other: ratios with what the repeats leave open, and what has become worse."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from core.errors import Slower, UsageError
from serve.bench.figures import METRICS, Metric
from serve.bench.record import Record, Spread, differences
from serve.bench.suite import Test

TOLERANCE = 0.05
"""Share by which a figure may be worse before a comparison fails."""


@dataclass(frozen=True)
class Ratio:
    """One figure of one test, the second measurement over the first; ``low`` and ``high`` from their repeats."""

    test: str
    metric: Metric
    first: Spread
    second: Spread

    @property
    def value(self) -> float:
        """The ratio of the medians."""
        return self.second.median / self.first.median if self.first.median else float("inf")

    @property
    def low(self) -> float:
        """The least that the repeats allow."""
        return self.second.low / self.first.high if self.first.high else float("inf")

    @property
    def high(self) -> float:
        """The most that the repeats allow."""
        return self.second.high / self.first.low if self.first.low else float("inf")

    def verdict(self, tolerance: float = TOLERANCE) -> str:
        """Return "better" or "worse" where the medians differ by more than that and the repeats do not meet."""
        up, down = self.value > 1 + tolerance and self.low > 1, self.value < 1 - tolerance and self.high < 1
        if not up and not down:
            return "same"
        return "better" if up == self.metric.more_is_better else "worse"


def ratios(first: Record, second: Record) -> tuple[Ratio, ...]:
    """Return every figure that both have, of tests that both ran alike. Raises UsageError where there is none."""
    found = tuple(_ratios(first, second))
    if not found:
        raise UsageError(
            f"the two have no test in common: {_names(first)}; {_names(second)}",
            next_move="compare measurements of one suite",
        )
    return found


def _names(record: Record) -> str:
    return ", ".join(test.name for test in record.suite.tests)


def _ratios(first: Record, second: Record) -> Iterator[Ratio]:
    for test in common_tests(first, second):
        for metric in METRICS:
            one, other = first.spread(test, metric.name), second.spread(test, metric.name)
            if one is not None and other is not None:
                yield Ratio(test.name, metric, one, other)


def common_tests(first: Record, second: Record) -> tuple[Test, ...]:
    """Return the tests that both sent alike; what somebody published of them does not matter."""
    others = {test.name: _sent(test) for test in second.suite.tests}
    return tuple(test for test in first.suite.tests if others.get(test.name) == _sent(test))


def _sent(test: Test) -> Mapping[str, Any]:
    return test.model_dump(exclude={"title", "published"})


def worse(found: tuple[Ratio, ...], tolerance: float = TOLERANCE) -> tuple[Ratio, ...]:
    """Return what makes a comparison fail: figures of the gate that have become worse."""
    return tuple(ratio for ratio in found if ratio.metric.gate and ratio.verdict(tolerance) == "worse")


def refuse_worse(found: tuple[Ratio, ...], tolerance: float = TOLERANCE) -> None:
    """Raise Slower naming every figure that has become worse."""
    bad = worse(found, tolerance)
    if bad:
        lines = "\n".join(f"{one.test}: {one.metric.label} × {one.value:.3f}" for one in bad)
        raise Slower(
            f"{len(bad)} figures are worse by more than {tolerance:.0%}",
            next_move="look at what differs between the two, or allow more with --tolerance",
            evidence=lines,
        )


def as_text(first: Record, second: Record, found: tuple[Ratio, ...], tolerance: float = TOLERANCE) -> str:
    """Return the comparison for people: a line a figure, then what the two differ in."""
    rows: list[tuple[str, ...]] = [("test", "figure", "first", "second", "ratio", "from repeats", "")]
    rows += [_row(one, tolerance) for one in found]
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = ["  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    other = differences(first.fingerprint, second.fingerprint)
    differ = [f"  {name}: {before[:60]} → {after[:60]}" for name, (before, after) in other.items()]
    return "\n".join([*lines, "", *(["they differ in", *differ] if differ else ["they ran on the same"])])


def _row(one: Ratio, tolerance: float) -> tuple[str, ...]:
    unit = one.metric.unit
    verdict = one.verdict(tolerance)
    return (
        one.test,
        one.metric.label,
        f"{one.first.median:.2f} {unit}",
        f"{one.second.median:.2f} {unit}",
        f"{one.value:.3f}",
        f"{one.low:.3f} to {one.high:.3f}",
        "" if verdict == "same" else verdict,
    )


def as_data(first: Record, second: Record, found: tuple[Ratio, ...], tolerance: float = TOLERANCE) -> dict[str, Any]:
    """Return the comparison for programs."""
    return {
        "tolerance": tolerance,
        "worse": [f"{one.test}.{one.metric.name}" for one in worse(found, tolerance)],
        "differences": {name: list(pair) for name, pair in differences(first.fingerprint, second.fingerprint).items()},
        "ratios": [
            {
                "test": one.test,
                "figure": one.metric.name,
                "first": one.first.median,
                "second": one.second.median,
                "ratio": round(one.value, 4),
                "from": round(one.low, 4),
                "to": round(one.high, 4),
                "verdict": one.verdict(tolerance),
            }
            for one in found
        ],
    }
