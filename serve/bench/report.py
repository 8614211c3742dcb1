"""A measurement as one HTML file that needs nothing else: tables, ceilings and plots; with a second one beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from serve.bench import ceilings, compare, plots, published
from serve.bench.figures import METRICS
from serve.bench.record import Record, Sample, differences
from serve.bench.suite import Test

GIB = 2**30
Value = Callable[[Sample], float | None]
_PAGES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    undefined=StrictUndefined,
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True)
class Plot:
    """A plot with its caption; ``legend`` is (colour, label)."""

    title: str
    svg: str
    """Made by plots.py, which escapes what it is given."""
    legend: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True)
class Row:
    """A line of a table: what it is about, then its cells."""

    label: str
    cells: tuple[str, ...]


def page(record: Record, other: Record | None = None) -> str:
    """Return the report of ``record``; with ``other``, what it was compared with, beside it."""
    return _PAGES.get_template("report.html.j2").render(
        record=record,
        other=other,
        title=record.title or f"{record.fingerprint.profile} on {record.fingerprint.cluster}",
        tests=[(test, _test_rows(record, test)) for test in record.suite.tests if record.of(test)],
        summary=_summary(record),
        memory=_memory(record),
        cache=_cache(record),
        ceilings=_ceilings(record),
        rate=ceilings.bandwidth(record.fingerprint),
        why_not=published.why_not(record.suite, record.fingerprint),
        source=record.suite.published and record.suite.published.source,
        comparable=published.comparable(record.suite, record.fingerprint),
        plots=[plot for plot in (*_bar_plots(record, other), *_time_plots(record)) if plot.svg],
        ratios=compare.ratios(other, record) if other else (),
        differ=differences(other.fingerprint, record.fingerprint) if other else {},
        machine=_machine(record),
    )


def number(value: float | None, digits: int = 2) -> str:
    """Return a number for a table; a dash for none."""
    return "–" if value is None else f"{value:,.{digits}f}"


def _test_rows(record: Record, test: Test) -> tuple[Row, ...]:
    """Return the guide's table 7.2 for a test: measured with its spread, published, ratio."""
    rows = [Row("requests answered", (published.success(record, test), "", ""))]
    for one in published.beside(record):
        if one.test == test:
            spread = one.measured
            around = f" ({number(spread.low)} to {number(spread.high)})" if spread.count > 1 else ""
            ratio = "" if one.ratio is None else f"{one.ratio:.2f} ×"
            rows.append(
                Row(
                    f"{one.metric.label}, {one.metric.unit}",
                    (number(spread.median) + around, number(one.published) if one.published else "", ratio),
                )
            )
    return tuple(rows)


def _summary(record: Record) -> tuple[Row, ...]:
    """Return the guide's table 7.3."""
    best = published.best(record)
    return (
        Row("highest output throughput, tok/s", (number(best.output, 0),)),
        Row("highest total throughput, tok/s", (number(best.total, 0),)),
        Row("time for one token, ms", (f"{number(best.tpot_low, 0)} to {number(best.tpot_high, 0)}",)),
        Row("most requests at once", (str(best.requests),)),
    )


def _memory(record: Record) -> tuple[Row, ...]:
    """Return the guide's table 7.4: memory in use, layers and weights, by node."""
    shape = ceilings.shape_of(record.fingerprint)
    ranks = {rank.node: rank for rank in ceilings.ranks(record.fingerprint, shape)} if shape else {}
    loaded = dict(zip((node.name for node in record.fingerprint.nodes), record.startup.loaded, strict=False))
    rows = []
    for node in record.fingerprint.nodes:
        rank, own = ranks.get(node.name), record.samples.get(node.name, ())
        gpu = max((sample.gpu_used for sample in own if sample.gpu_used is not None), default=None)
        used = max((sample.memory_used for sample in own), default=None)
        cells = (
            number(gpu / 1e9 if gpu else None, 1),
            number(used / GIB if used else None, 1),
            f"{rank.first}–{rank.last}" if rank else "–",
            number(rank.weights / GIB if rank else None, 1),
            number(loaded.get(node.name), 1),
        )
        rows.append(Row(node.name, cells))
    return tuple(rows)


def _cache(record: Record) -> tuple[Row, ...]:
    """Return the KV cache as computed, measured and published, on one node and on all of them."""
    print_, told = record.fingerprint, record.suite.published
    memory, count = min(node.memory for node in print_.nodes), len(print_.nodes)
    shown = told if published.comparable(record.suite, print_) else None
    one = ceilings.kv_tokens(print_, memory, nodes=1)
    rows = [Row("one node", (number(one, 0), "", number(shown.kv_tokens_one_node if shown else None, 0)))]
    if count > 1:
        spread = ceilings.kv_tokens(print_, memory, nodes=count)
        here = number(record.startup.kv_tokens, 0)
        rows.append(Row(f"{count} nodes", (number(spread, 0), here, number(shown.kv_tokens if shown else None, 0))))
    return tuple(rows)


def _ceilings(record: Record) -> tuple[Row, ...]:
    """Return for each test what memory allows at its concurrency, and how far the measurement is from it."""
    rows = []
    for test in record.suite.tests:
        runs = record.of(test)
        found = [(run, top) for run in runs if (top := ceilings.of_test(record, test, run)) is not None]
        if not found:
            continue
        run, top = found[len(found) // 2]
        share = run.output_throughput / top.throughput
        rows.append(
            Row(
                test.title,
                (
                    number(run.in_flight, 1),
                    number(top.tpot, 1),
                    number(run.tpot_mean, 1),
                    number(top.throughput, 1),
                    number(run.output_throughput, 1),
                    f"{share:.0%}",
                ),
            )
        )
    return tuple(rows)


def _bar_plots(record: Record, other: Record | None) -> Iterable[Plot]:
    """Give throughput, TTFT and TPOT by test: measured, the second measurement, published."""
    shown = {(one.test.name, one.metric.name): one.published for one in published.beside(record)}
    for metric in METRICS:
        if not (metric.gate or metric.name == "peak_throughput"):
            continue
        groups = [
            plots.Group(test.name, bars)
            for test in record.suite.tests
            if (bars := tuple(_bars(record, other, test.name, metric.name, shown.get((test.name, metric.name)))))
        ]
        legend = [(1, "measured"), *([(2, "before")] if other else [])]
        legend += [(3, "published")] if any(shown.values()) else []
        svg = plots.bars(metric.label, metric.unit, groups)
        yield Plot(f"{metric.label}, {metric.unit}", svg, tuple(legend))


def _bars(record: Record, other: Record | None, test: str, metric: str, told: float | None) -> Iterable[plots.Bar]:
    for one, label, colour in ((record, "measured", 1), (other, "before", 2)):
        spread = one.spread(test, metric) if one is not None else None
        if spread is not None:
            yield plots.Bar(label, spread.median, spread.low, spread.high, colour)
    if told is not None:
        yield plots.Bar("published", told, told, told, 3)


def _time_plots(record: Record) -> Iterable[Plot]:
    """Give KV cache, requests and memory over time."""
    head = record.samples.get(record.fingerprint.nodes[0].name, ())
    cache = [plots.Series("KV cache", _points(head, lambda s: None if s.kv_cache is None else s.kv_cache * 100))]
    yield _lines("KV cache in use, %", cache, most=100)
    requests = [
        plots.Series("running", _points(head, lambda s: s.running), 1),
        plots.Series("waiting", _points(head, lambda s: s.waiting), 2),
    ]
    yield _lines("requests in the engine", requests)
    yield _lines("memory in use, GiB", _by_node(record, lambda s: s.memory_used / GIB or None))
    yield _lines("GPU memory of processes, GiB", _by_node(record, lambda s: s.gpu_used and s.gpu_used / GIB))


def _points(own: Sequence[Sample], value: Value) -> tuple[tuple[float, float], ...]:
    step = max(1, len(own) // 600)  # a line has no more points than the plot has pixels
    return tuple((sample.at, found) for sample in own[::step] if (found := value(sample)) is not None)


def _by_node(record: Record, value: Value) -> list[plots.Series]:
    return [
        plots.Series(name, _points(own, value), place) for place, (name, own) in enumerate(record.samples.items(), 1)
    ]


def _lines(title: str, series: Sequence[plots.Series], *, most: float | None = None) -> Plot:
    found = [one for one in series if one.points]
    legend = tuple((one.colour, one.label) for one in found)
    svg = plots.lines(title, "", found, most=most)
    return Plot(title, svg, legend)


def _machine(record: Record) -> tuple[Row, ...]:
    print_ = record.fingerprint
    rows = [
        Row("measured", (f"{record.at} by {record.by}",)),
        Row("suite", (f"{record.suite.name}: {record.suite.description}, {record.suite.repeats} times each",)),
        Row("stack, release", (f"{print_.stack}, {print_.release}",)),
        Row("profile", (print_.profile,)),
        Row("parallel", (_parallel(record),)),
        Row("flags", (" ".join(print_.flags) or "none",)),
        Row("environment", (" ".join(f"{key}={value}" for key, value in print_.environment.items()) or "none",)),
        Row("sparkstack", (print_.commit or "not from git",)),
    ]
    for node in print_.nodes:
        gpus = ", ".join(f"{gpu.name} ({gpu.capability}, driver {gpu.driver})" for gpu in node.gpus) or "no GPU"
        rate = f", {node.rate:.0f} GB/s" if node.rate else ""
        said = f"{gpus}{rate}; {node.cores} cores, {node.memory / GIB:.1f} GiB, {node.system}, kernel {node.kernel}"
        rows.append(Row(node.name, (said,)))
    return tuple(rows)


def _parallel(record: Record) -> str:
    print_ = record.fingerprint
    copies = f"{print_.replicas} replicas of " if print_.replicas > 1 else ""
    return f"{copies}PP={print_.pipeline_parallel}, TP={print_.tensor_parallel}, {print_.executor}"
