"""What the head's supervisor does next: a pure function of what is wanted, what the nodes report, and the time.

A service lives and dies as one: when a rank is gone, or a node is silent, everything is ended on all nodes, memory is
waited for, and all of it starts again, each time a little later, until it is given up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from serve.onnode.wanted import Wanted

KEPT = 20
"""Failures that the state remembers."""
SAME = 2
"""Failures with one and the same reason after which a service that has never served is given up; a node that is silent
is none of these: it tells nothing of what is wanted."""
UP = ("active", "reloading", "refreshing")
DOWN = ("inactive", "failed")


class Phase(StrEnum):
    """Where the service is."""

    WAITING = "waiting"
    STOPPING = "stopping"
    RESTING = "resting"
    STARTING = "starting"
    SERVING = "serving"
    GIVEN_UP = "given-up"


@dataclass(frozen=True)
class Unit:
    """A unit as its node reports it: systemd's state, why it ended where it did, and what it has lost while it runs."""

    active: str
    why: str = ""
    lost: str = ""


@dataclass(frozen=True)
class Seen:
    """A node's last report: when it came, which order it obeys, its units, bytes of memory that are available.

    ``started`` names the units that were started by this order: until then a unit that is down says nothing.
    """

    at: float
    generation: str
    serial: int
    units: Mapping[str, Unit]
    memory: int
    started: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failure:
    """One end of the service that nobody asked for; ``at`` in seconds since the epoch."""

    at: float
    reason: str


@dataclass(frozen=True)
class Order:
    """What a node has to have: these units running and no others. A new serial is a new try."""

    generation: str
    serial: int
    run: tuple[str, ...] = ()


@dataclass(frozen=True)
class State:
    """The service as the head sees it; times in seconds since the epoch.

    ``row`` are the failures since it last served long enough, ``failures`` the last ones of all, ``serial`` grows with
    each order to stop or to start anew.
    """

    phase: Phase
    since: float
    reason: str = ""
    attempt: int = 0
    serial: int = 0
    stage: int = 0
    not_before: float = 0
    served: float | None = None
    row: tuple[Failure, ...] = ()
    failures: tuple[Failure, ...] = ()
    failed: int = 0
    """How many failures there were in all."""
    over: bool = False
    """Whether the row of failures ends here: it is not started again."""


def first(now: float, serial: int, served: float | None = None) -> State:
    """Return the state of a supervisor that has just begun: it knows nothing of the nodes.

    ``served`` is when this service served last, before the machine was started anew.
    """
    return State(Phase.WAITING, now, "no node has reported yet", serial=serial, served=served)


def order_for(state: State, wanted: Wanted, node: str) -> Order:
    """Return what a node has to do."""
    starting = wanted.until(state.stage) if state.phase in (Phase.STARTING, Phase.SERVING) else {}
    return Order(wanted.generation, state.serial, tuple(starting.get(node, ())))


def step(state: State, wanted: Wanted, seen: Mapping[str, Seen], now: float) -> State:
    """Return the next state; the same one where nothing has changed."""
    match state.phase:
        case Phase.WAITING:
            return _waiting(state, wanted, seen, now)
        case Phase.STOPPING:
            return _stopping(state, wanted, seen, now)
        case Phase.RESTING:
            return _resting(state, wanted, seen, now)
        case Phase.STARTING:
            return _starting(state, wanted, seen, now)
        case Phase.SERVING:
            return _serving(state, wanted, seen, now)
        case Phase.GIVEN_UP:
            return state


def _waiting(state: State, wanted: Wanted, seen: Mapping[str, Seen], now: float) -> State:
    absent = _absent(wanted, seen, now)
    if absent:
        return _because(state, _unheard(wanted, seen, absent))
    return _turn(state, Phase.STOPPING, now, "what may be left is ended first", serial=state.serial + 1)


def _stopping(state: State, wanted: Wanted, seen: Mapping[str, Seen], now: float) -> State:
    absent = _absent(wanted, seen, now)
    if not all(_ended(state, seen[node]) for node in wanted.members if node not in absent):
        return state
    if state.over:
        return _turn(state, Phase.GIVEN_UP, now, state.reason)
    return _turn(state, Phase.RESTING, now, state.reason)


def _resting(state: State, wanted: Wanted, seen: Mapping[str, Seen], now: float) -> State:
    absent = _absent(wanted, seen, now)
    if absent:
        return _turn(state, Phase.WAITING, now, _unheard(wanted, seen, absent))
    if not all(_ended(state, seen[node]) for node in wanted.members):
        # it was away while the others ended, and is back before it has noticed
        return _turn(state, Phase.STOPPING, now, state.reason)
    if now < state.not_before:
        return state
    short = list(_short(wanted, seen))
    if short and now - max(state.since, state.not_before) > wanted.limits.memory:
        return _failed(state, wanted, now, f"memory did not come back: {'; '.join(short)}")
    if short:
        return _because(state, f"waits for memory: {'; '.join(short)}")
    said = f"attempt {len(state.row) + 1} of {wanted.limits.attempts}"
    attempt, serial = state.attempt + 1, state.serial + 1
    return _turn(state, Phase.STARTING, now, said, attempt=attempt, serial=serial, stage=0)


def _starting(state: State, wanted: Wanted, seen: Mapping[str, Seen], now: float) -> State:
    trouble = list(_trouble(state, wanted, seen, now, DOWN))
    if trouble:
        return _failed(state, wanted, now, "; ".join(trouble), silent=bool(_absent(wanted, seen, now)))
    if now - state.since > wanted.limits.start:
        slow = ", ".join(_not_up(state, wanted, seen))
        return _failed(state, wanted, now, f"{slow} was not ready within {wanted.limits.start:g} s")
    if list(_not_up(state, wanted, seen)):
        return state
    if state.stage + 1 < len(wanted.stages):
        return replace(state, stage=state.stage + 1)
    return _turn(state, Phase.SERVING, now, "a token came through every rank", served=now)


def _serving(state: State, wanted: Wanted, seen: Mapping[str, Seen], now: float) -> State:
    trouble = list(_trouble(state, wanted, seen, now, (*DOWN, "deactivating", "activating")))
    if trouble:
        return _failed(state, wanted, now, "; ".join(trouble))
    if state.row and now - state.since > wanted.limits.stable:
        return replace(state, row=())
    return state


def _trouble(state: State, wanted: Wanted, seen: Mapping[str, Seen], now: float, bad: tuple[str, ...]) -> Iterator[str]:
    """Name every node that is lost, and every unit that has ended; what vLLM says of it last: it is often the echo."""
    absent = _absent(wanted, seen, now)
    other = [node for node in absent if _of_another_mind(wanted, seen, node)]
    yield from (f"{node} has another configuration" for node in other)
    yield from (f"{node} is silent for {wanted.limits.lost:g} s" for node in absent if node not in other)
    for node in reversed([node for node in wanted.members if node not in absent]):
        report = seen[node]
        if report.serial != state.serial:
            if state.phase is Phase.SERVING:
                yield f"{node} was started anew"
            continue  # it has not had the order yet
        for name in report.started.intersection(wanted.until(state.stage)[node]):
            unit = report.units.get(name, Unit("inactive"))
            if unit.active in bad:
                yield f"{node}: {name} ended: {unit.why}" if unit.why else f"{node}: {name} is {unit.active}"
            elif unit.lost and state.phase is Phase.SERVING:
                yield f"{node}: {name}: {unit.lost}"


def _not_up(state: State, wanted: Wanted, seen: Mapping[str, Seen]) -> Iterator[str]:
    for node, units in wanted.until(state.stage).items():
        for name in units:
            if seen[node].serial != state.serial or seen[node].units.get(name, Unit("inactive")).active not in UP:
                yield f"{node}: {name}"


def _failed(state: State, wanted: Wanted, now: float, reason: str, *, silent: bool = False) -> State:
    """Count a failure: end everything, then rest for longer than the last time, or give up."""
    failure = Failure(now, reason)
    row = (*state.row, failure)
    alike = len(row) >= SAME and _in_common(row[-SAME:]) and state.served is None and not silent
    over = alike or len(row) >= wanted.limits.attempts
    delays = wanted.limits.delays
    return replace(
        state,
        phase=Phase.STOPPING,
        since=now,
        serial=state.serial + 1,
        reason=f"given up after {len(row)} failures in a row: {reason}" if over else reason,
        over=over,
        not_before=now + delays[min(len(row), len(delays)) - 1],
        row=row,
        failures=(*state.failures, failure)[-KEPT:],
        failed=state.failed + 1,
    )


def _in_common(failures: Iterable[Failure]) -> bool:
    """Whether one of their causes is the same in all: what ends because of it may not be the same each time."""
    causes = [set(one.reason.split("; ")) for one in failures]
    return bool(set.intersection(*causes))


def _absent(wanted: Wanted, seen: Mapping[str, Seen], now: float) -> list[str]:
    """Name the nodes that are silent, or still want something else."""
    return [
        node
        for node in wanted.members
        if node not in seen or now - seen[node].at > wanted.limits.lost or seen[node].generation != wanted.generation
    ]


def _unheard(wanted: Wanted, seen: Mapping[str, Seen], absent: Iterable[str]) -> str:
    """Say of each node that is absent what it is: silent, or of another mind."""
    other = [node for node in absent if _of_another_mind(wanted, seen, node)]
    silent = [node for node in absent if node not in other]
    said = [f"{', '.join(silent)} has not reported"] if silent else []
    return "; ".join([*said, *(f"{node} has another configuration: invoke serve gives all the same" for node in other)])


def _of_another_mind(wanted: Wanted, seen: Mapping[str, Seen], node: str) -> bool:
    return node in seen and seen[node].generation != wanted.generation


def _short(wanted: Wanted, seen: Mapping[str, Seen]) -> Iterator[str]:
    for node in wanted.members:
        needed = wanted.memory.get(node, 0)
        if seen[node].memory < needed:
            yield f"{node} has {seen[node].memory / 2**30:.1f} of {needed / 2**30:.1f} GiB"


def _ended(state: State, seen: Seen) -> bool:
    """Whether a node has had the order to end everything, and nothing of it runs any more."""
    return seen.serial == state.serial and all(unit.active in DOWN for unit in seen.units.values())


def _because(state: State, reason: str) -> State:
    return state if state.reason == reason else replace(state, reason=reason)


def _turn(state: State, phase: Phase, now: float, reason: str, **changes: object) -> State:
    return replace(state, phase=phase, since=now, reason=reason, **changes)  # type: ignore[arg-type]
