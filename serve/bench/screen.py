"""What `invoke bench` answers: the figures of each test on a terminal, and as data."""

from __future__ import annotations

from collections.abc import Iterator
from io import StringIO
from typing import Any

from rich.console import Console
from rich.table import Table

from serve.bench import ceilings, published
from serve.bench.record import Record, Spread


def table(record: Record) -> str:
    """Return every figure with its spread, what was published, and what the memory allows."""
    compared = published.comparable(record.suite, record.fingerprint)
    grid = Table(title=f"{record.suite.description}, median of {record.suite.repeats}", title_justify="left")
    for name in ("test", "figure", "measured", "lowest to highest", *(["published", "ratio"] if compared else [])):
        grid.add_column(name, justify="left" if name in ("test", "figure") else "right")
    last = ""
    for one in published.beside(record):
        told = [_number(one.published), "" if one.ratio is None else f"{one.ratio:.2f}"] if compared else []
        name = one.test.name if one.test.name != last else ""
        last = one.test.name
        unit = f"{one.metric.label}, {one.metric.unit}"
        grid.add_row(name, unit, _number(one.measured.median), _ends(one.measured), *told)
    text = StringIO()
    Console(file=text, width=110).print(grid)
    return "\n".join([text.getvalue().rstrip(), *_notes(record)])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.2f}"


def _ends(spread: Spread) -> str:
    return f"{spread.low:,.2f} to {spread.high:,.2f}" if spread.count > 1 else ""


def _notes(record: Record) -> Iterator[str]:
    rate = ceilings.bandwidth(record.fingerprint)
    for test in record.suite.tests:
        for run in record.of(test)[:1]:
            top = ceilings.of_test(record, test, run)
            if top is not None and rate is not None:
                share = run.output_throughput / top.throughput
                yield (
                    f"{test.name}: memory at {rate[0]:.0f} GB/s allows {top.throughput:,.1f} tok/s "
                    f"with {run.in_flight:.1f} requests under way; {share:.0%} of it was reached"
                )
    if record.startup.kv_tokens is not None:
        yield f"KV cache: {record.startup.kv_tokens:,} tokens"
    why = published.why_not(record.suite, record.fingerprint)
    if why:
        yield f"not shown: {why}"


def as_data(record: Record) -> dict[str, Any]:
    """Return the medians and spreads for programs; the whole is in the file that was kept."""
    return {
        "suite": record.suite.name,
        "kv_tokens": record.startup.kv_tokens,
        "figures": [
            {
                "test": one.test.name,
                "figure": one.metric.name,
                "unit": one.metric.unit,
                "median": one.measured.median,
                "lowest": one.measured.low,
                "highest": one.measured.high,
                "runs": one.measured.count,
                "published": one.published,
            }
            for one in published.beside(record)
        ],
    }
