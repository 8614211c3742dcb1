"""The journals of our units on all nodes as one stream, and the model server's real error in front of it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from fnmatch import fnmatch
from threading import Event, Lock
from typing import Any

from core.config import Cluster, Node
from core.errors import SparkstackError, UsageError
from core.parsers import record_or_none, shown
from core.process import end_all
from core.remote import Hosts
from serve.onnode.reasons import real_error

PREFIX = "sparkstack-"
UNITS = tuple(
    PREFIX + name
    for name in ("supervisor", "ray-head", "ray-worker", "vllm", "rank", "proxy", "prometheus", "node-exporter")
)
"""Units that may begin while their journal is followed: journalctl looks only once which names fit a pattern."""
ENGINE = tuple(PREFIX + name for name in ("ray-head", "ray-worker", "vllm", "rank"))
"""Units whose errors are the model server's."""
NO_UNIT = PREFIX + "none"
"""Said beside a pattern: one that fits no unit is an error to journalctl, unless a name stands beside it."""
FOREVER = 10 * 365 * 86400.0
LINES = 200
DEEP = 1000
"""Entries of a node that are read at least: the cause lies above what it brought about."""
FIELDS = "MESSAGE,UNIT,_SYSTEMD_UNIT,INVOCATION_ID,_SYSTEMD_INVOCATION_ID"
NO_ERROR = "this log names no error"
ENDS = r"A process of this unit has been killed by the OOM killer|Main process exited, code=(?:killed|dumped).*"
"""What systemd itself says of an end that left no exception."""


@dataclass(frozen=True)
class Wanted:
    """Which entries are wanted: units and nodes (all of ours without one), how many of each node, since when."""

    units: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    lines: int | None = None
    since: str = ""

    @property
    def most(self) -> int | None:
        """How many entries of each node are shown; all of them since a time that was said."""
        return self.lines if self.lines is not None else None if self.since else LINES


@dataclass(frozen=True)
class Entry:
    """One entry; ``moment`` in microseconds since 1970, ``run`` is the unit's run it belongs to."""

    moment: int
    node: str
    unit: str
    message: str
    run: str = ""
    cursor: str = ""


@dataclass(frozen=True)
class Fault:
    """The model server's real error; ``over`` where a later run of it has no error."""

    moment: int
    node: str
    unit: str
    line: str
    over: bool


@dataclass(frozen=True)
class Merged:
    """The entries of all nodes in the order of their time, and why each silent node is silent."""

    entries: tuple[Entry, ...]
    silent: Mapping[str, SparkstackError]


def journal_argv(wanted: Wanted, *, follow: bool = False, after: str = "") -> tuple[str, ...]:
    """Return the argv that prints entries as JSON lines; ``after`` is the cursor of the last one that is known."""
    patterns = [name if name.startswith(PREFIX) else PREFIX + name for name in wanted.units] or [f"{PREFIX}*"]
    known = [name for name in UNITS if any(fnmatch(name, pattern) for pattern in patterns)]
    units = (f"--unit={name}" for name in dict.fromkeys([*known, *patterns, NO_UNIT]))
    # in UTC: stamps are, and a time that is said without a zone is then too
    argv = ("env", "LC_ALL=C", "TZ=UTC", "journalctl", *units, "-o", "json", f"--output-fields={FIELDS}", "--no-pager")
    since = (f"--since={wanted.since}",) if wanted.since else ()
    if follow:  # journalctl takes one of the two
        return (*argv, "-f", "--no-tail", *((f"--after-cursor={after}",) if after else since))
    lines = wanted.most
    return (*argv, *since, *(("-n", str(max(lines, DEEP))) if lines is not None else ()))


def merged(cluster: Cluster, hosts: Hosts, wanted: Wanted) -> Merged:
    """Read the journals of all nodes at once; a node that does not answer is named, the others are read.

    Raises UsageError where journalctl cannot read the time.
    """
    nodes = chosen(cluster, wanted)
    with ThreadPoolExecutor(len(nodes)) as pool:
        asked = {node.name: pool.submit(_read, hosts, node.name, wanted) for node in nodes}
    entries: list[Entry] = []
    silent: dict[str, SparkstackError] = {}
    for name, answer in asked.items():
        try:
            entries += answer.result()
        except UsageError:
            raise
        except SparkstackError as error:
            silent[name] = error
    return Merged(tuple(sorted(entries, key=lambda entry: entry.moment)), silent)


def latest(entries: Sequence[Entry], most: int | None) -> list[Entry]:
    """Return the last entries of each node, this many; all of them without a number."""
    if most is None:
        return list(entries)
    left: Counter[str] = Counter()
    kept = []
    for entry in reversed(entries):
        left[entry.node] += 1
        if left[entry.node] <= most:
            kept.append(entry)
    return kept[::-1]


def chosen(cluster: Cluster, wanted: Wanted) -> tuple[Node, ...]:
    """Return the nodes that are wanted, in the cluster's order. Raises ConfigError for one that does not exist."""
    named = [cluster.node(name) for name in wanted.nodes]
    return tuple(node for node in cluster.nodes if node in named) if named else cluster.nodes


def _read(hosts: Hosts, name: str, wanted: Wanted) -> list[Entry]:
    try:
        done = hosts[name].run(journal_argv(wanted), privileged=True)
    except SparkstackError as error:
        if "Failed to parse timestamp" in error.evidence:
            raise UsageError(
                f"--since {wanted.since!r} is no time that journalctl reads",
                next_move='say it like --since "10 min ago", --since -2h or --since "2026-11-23 12:00" (UTC)',
            ) from error
        raise
    return list(parse(name, done.out))


def follow(
    cluster: Cluster, hosts: Hosts, wanted: Wanted, seen: Merged, on_entry: Callable[[Entry], None]
) -> dict[str, SparkstackError]:
    """Hand on entries after those that were seen as they come, until Ctrl-C or until every node has gone silent.

    Returns why nodes went silent meanwhile.
    """
    lock, ending = Lock(), Event()
    silent: dict[str, SparkstackError] = {}
    last = {entry.node: entry.cursor for entry in seen.entries}

    def one(name: str, line: str) -> None:
        with lock:
            for entry in parse(name, line):
                on_entry(entry)

    def listen(name: str) -> None:
        argv = journal_argv(wanted, follow=True, after=last.get(name, ""))
        try:
            hosts[name].run(argv, privileged=True, timeout=FOREVER, on_line=lambda line: one(name, line))
        except SparkstackError as error:
            if not ending.is_set():  # it is we who end it otherwise
                silent[name] = error
                one(name, _said(error))

    names = [node.name for node in chosen(cluster, wanted) if node.name not in seen.silent]
    with ThreadPoolExecutor(max(1, len(names))) as pool:
        listeners = [pool.submit(listen, name) for name in names]
        try:
            for done in listeners:
                done.result()
        except KeyboardInterrupt:
            ending.set()
            hosts.close()
            end_all()
    return silent


def _said(error: SparkstackError) -> str:
    """Return an entry of our own: from here on nothing comes from this node."""
    moment = str(int(datetime.now(UTC).timestamp() * 1e6))
    return json.dumps({"__REALTIME_TIMESTAMP": moment, "MESSAGE": f"(no answer from here on: {error.cause})"})


def parse(node: str, text: str) -> Iterator[Entry]:
    """Parse `journalctl -o json`: an entry a line. What is no entry is passed over."""
    for line in text.split("\n"):
        entry = record_or_none(line) if line.startswith("{") else {}
        moment = str(entry.get("__REALTIME_TIMESTAMP", ""))
        if not (moment.isascii() and moment.isdecimal() and len(moment) <= 17):
            continue
        unit = entry.get("UNIT") or entry.get("_SYSTEMD_UNIT")  # UNIT: what systemd itself says of a unit
        run = entry.get("INVOCATION_ID") or entry.get("_SYSTEMD_INVOCATION_ID")
        yield Entry(
            moment=int(moment),
            node=node,
            unit=shown(_text(unit)).removesuffix(".service"),
            message=_text(entry.get("MESSAGE")),
            run=_text(run),
            cursor=_text(entry.get("__CURSOR")),
        )


def _text(value: Any) -> str:
    """Return an entry's text; journald gives bytes that are no UTF-8 as numbers, and a field that came twice as a list.

    https://systemd.io/JOURNAL_EXPORT_FORMATS/#journal-json-format
    """
    if not isinstance(value, list):
        return str(value or "")
    numbers = bool(value) and all(isinstance(item, int) and 0 <= item < 256 for item in value)
    return bytes(value).decode(errors="replace") if numbers else "\n".join(map(_text, value))


def as_text(entry: Entry) -> str:
    """Return "time node unit: message"; further lines of a message stand below it."""
    stamp = datetime.fromtimestamp(entry.moment / 1e6, UTC).strftime("%H:%M:%S.%f")[:-3]
    lines = (shown(line) for line in entry.message.split("\n"))
    return f"{stamp} {entry.node} {entry.unit.removeprefix(PREFIX)}: " + "\n    ".join(lines)


def as_data(entry: Entry) -> dict[str, Any]:
    """Return an entry for programs."""
    data = asdict(replace(entry, message=shown(entry.message.replace("\n", "\v")).replace("\v", "\n")))
    return {key: data[key] for key in ("moment", "node", "unit", "message")}


def fault(entries: Sequence[Entry]) -> Fault | None:
    """Return the real error of the model server's last run that has one; None where none has. Pure.

    A run is one of all its units on all nodes: a rank's error is the server's.
    """
    runs = _runs([entry for entry in entries if entry.unit in ENGINE])
    for number, run in enumerate(reversed(runs)):
        found = _error_of(run)
        if found is not None:
            return replace(found, over=number > 0)
    return None


def _runs(entries: Iterable[Entry]) -> list[list[Entry]]:
    """Divide entries into runs of the whole server: a new one begins where a unit that has run in it starts again."""
    runs: list[list[Entry]] = [[]]
    places: dict[str, int] = {}
    started: set[tuple[str, str]] = set()
    for entry in entries:
        if entry.run and entry.run not in places:
            if (entry.node, entry.unit) in started:
                runs.append([])
                started.clear()
            started.add((entry.node, entry.unit))
            places[entry.run] = len(runs) - 1
        runs[places.get(entry.run, len(runs) - 1)].append(entry)
    return runs


def _error_of(run: Sequence[Entry]) -> Fault | None:
    """Return a run's error: its first exception that names a cause, else how systemd says that a process ended."""
    # the sentence at the end is what real_error gives back of a log that names none: the last line
    line = real_error("\n".join([*(entry.message for entry in run), NO_ERROR]))
    if line == NO_ERROR:
        ends = (re.search(ENDS, entry.message) for entry in run)
        line = next((end[0] for end in ends if end), "")
    entry = next((entry for entry in run if line and line in entry.message), None)
    return Fault(entry.moment, entry.node, entry.unit, shown(line), over=False) if entry else None


def heading(found: Fault) -> str:
    """Return the error as the block that stands in front of the entries."""
    when = datetime.fromtimestamp(found.moment / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    first = "the model server's error" + (" (of an earlier run: it was started again since)" if found.over else "")
    return f"{first}, on {found.node} in {found.unit.removeprefix(PREFIX)} at {when}:\n    {found.line}\n"


def as_page(entries: Sequence[Entry], found: Fault | None, silent: Mapping[str, SparkstackError]) -> dict[str, Any]:
    """Return all of it for programs."""
    return {
        "error": asdict(found) if found else None,
        "entries": [as_data(entry) for entry in entries],
        "silent": {name: {"error": error.cause, "exit_code": error.exit_code} for name, error in silent.items()},
    }
