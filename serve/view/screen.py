"""The status on one screen. What a node said is shown as plain text: it cannot mark up or move anything."""

from __future__ import annotations

from collections.abc import Iterator
from io import StringIO

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from serve.view.said import clock, span
from serve.view.status import STOPPED, NodeStatus, Requests, Service, Status, is_fresh

WIDTH = 110
"""Columns where there is no terminal."""
LAST = 3
"""Failures that are shown; --json has all that are remembered."""
COLUMNS = ("node", "role", "release", "units", "Ray", "processes", "memory free", "report")
STYLES = {"serving": "green", "given-up": "red", "unknown": "red", STOPPED: "dim"}


def screen(status: Status) -> RenderableType:
    """Return the whole screen."""
    head = Text(f"{status.cluster} at {status.api}", style="bold")
    lines = [*_service(status), *_requests(status), *_problems(status)]
    return Group(head, *lines, _nodes(status), *_notes(status))


def as_text(renderable: RenderableType, width: int = WIDTH) -> str:
    """Return something as plain text."""
    sheet = StringIO()
    Console(file=sheet, width=width).print(renderable)
    return "".join(f"{line.rstrip()}\n" for line in sheet.getvalue().split("\n")).rstrip("\n") + "\n"


def gist(status: Status) -> object:
    """Return what makes a screen another one: words and states, not ages and rates, which always change."""
    nodes = [(one.units, one.ray, one.processes, one.release, one.notes, one.error) for one in status.nodes]
    service = status.service
    said = service.phase, service.since, service.attempt, service.phase == "unknown" or service.reason
    return said, service.failures, status.wanted, status.serving, len(status.doubts), nodes


def _service(status: Status) -> Iterator[Text]:
    service, now = status.service, status.now
    if service.phase == STOPPED:
        yield Text("stopped: no supervisor is enabled, nothing is wanted", style=STYLES[STOPPED])
        return
    yield Text(_phase(status), style=STYLES.get(service.phase, "yellow") if status.serving else "red bold")
    if service.phase == "resting" and service.starts_at and service.starts_at > now:
        yield Text(f"  starts again in {span(service.starts_at - now)}")
    if service.failures:
        *_, last = service.failures
        yield Text(f"last restart: {_when(last.at, now)}: {last.reason}")
    elif service.said:
        yield Text("last restart: none, no failure is remembered")
    yield from _earlier(service, now)


def _phase(status: Status) -> str:
    """Return phase, since when, which try, and why: of what waits, why is what it waits for."""
    service, now = status.service, status.now
    since = "" if service.since is None or service.phase != service.said else f" since {_when(service.since, now)}"
    attempt = f", start {service.attempt}" if service.attempt and service.phase == service.said else ""
    waits = service.phase in ("waiting", "stopping", "resting", "starting")
    denied = "not serving, though the supervisor says: " if service.phase == "serving" and not status.serving else ""
    joint = " waits for:" if waits and not service.reason.startswith("waits for") else ""
    return f"{denied}{service.phase}{since}{attempt}{':' + joint if service.reason else ''} {service.reason}".rstrip()


def _earlier(service: Service, now: float) -> Iterator[Text]:
    earlier = service.failures[-LAST - 1 : -1]
    if earlier:
        yield Text(f"{len(service.failures)} failures are remembered, before the last one:")
    for one in reversed(earlier):
        yield Text(f"  {_when(one.at, now)}: {one.reason}")


def _when(moment: float | None, now: float) -> str:
    if moment is None:
        return "at no known time"
    return f"{clock(moment, now)} ({span(now - moment)} ago)" if now >= moment else clock(moment, now)


def _requests(status: Status) -> Iterator[Text]:
    found = status.requests
    if found is None or not status.wanted:
        return
    if not is_fresh(found.age):
        yield Text("requests: not known, the model server's last numbers are old", style="red")
        return
    yield Text("requests: " + ", ".join(_numbers(found, status.now)))
    if found.draining:
        yield Text("draining: no new request is taken, those that run are waited for", style="yellow")
    if found.error:
        yield Text(f"model server: {found.error}", style="yellow")


def _numbers(found: Requests, now: float) -> Iterator[str]:
    yield f"{found.running} running, {found.waiting} waiting"
    if found.tokens_per_second is not None:
        yield f"{found.tokens_per_second:.1f} tokens/s"
    if found.kv_cache is not None:
        yield f"KV cache {100 * found.kv_cache:.0f} %"
    yield "no token yet" if found.last_token is None else f"last token {span(now - found.last_token)} ago"


def _problems(status: Status) -> Iterator[Text]:
    for text in status.doubts:
        yield Text(f"doubt: {text}", style="yellow")
    for node in status.nodes:
        if node.error:
            yield Text(f"no answer: {node.name}: {node.error} ({node.exit_code})", style="red")


def _nodes(status: Status) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, overflow="fold")
    for node in status.nodes:
        table.add_row(*(Text(cell, style="red" if node.error else "") for cell in _cells(node)))
    return table


def _cells(node: NodeStatus) -> tuple[str, ...]:
    if node.error:
        return node.name, node.role, f"no answer ({node.exit_code})", *[""] * 5
    processes = ", ".join(kind if n == 1 else f"{n} {kind}" for kind, n in (node.processes or {}).items())
    memory = f"{(node.memory_available or 0) / 2**30:.1f} of {(node.memory_total or 0) / 2**30:.1f} GiB"
    report = "never" if node.report is None else f"{span(node.report)} ago"
    return (
        *(node.name, node.role, node.release or "none"),
        *("\n".join(_units(node)) or "none", node.ray or "-", processes or "none"),
        *(memory, report),
    )


def _units(node: NodeStatus) -> Iterator[str]:
    """Give a line a state, with the units that are in it."""
    units = node.units or {}
    for state in dict.fromkeys(units.values()):
        names = (name.removeprefix("sparkstack-") for name, one in units.items() if one == state)
        yield f"{state}: {', '.join(names)}"


def _notes(status: Status) -> Iterator[Text]:
    for node in status.nodes:
        for text in node.notes:
            yield Text(f"note: {node.name}: {text}")
