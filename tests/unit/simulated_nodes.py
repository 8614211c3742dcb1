"""Nodes that obey as serve/onnode/agent.py does, and faults that befall them: what decide.step is tried on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from serve.onnode.decide import DOWN, Order, Phase, Seen, State, Unit, first, order_for, step
from serve.onnode.wanted import Limits, Wanted

A, B = "lab-a", "lab-b"
PLENTY, LITTLE = 8 << 30, 0
SLOW = 3
"""Turns in which a unit starts."""
LATE = 3
"""Turns that a worker may need more than `lost` until it has seen that it is alone (it was connecting)."""
LIMITS = Limits(start=60, delays=(2, 5, 10), attempts=4, lost=12, stable=100, memory=30)
STAGES: Mapping[str, tuple[dict[str, str], ...]] = {
    "ray": ({A: "ray-head"}, {B: "ray-worker"}, {A: "vllm"}),
    "mp": ({A: "vllm", B: "rank"},),
}


def wanted(executor: str) -> Wanted:
    addresses = {A: "198.18.100.1", B: "198.18.100.2"}
    memory = dict.fromkeys(addresses, 1 << 30)
    return Wanted("g1", "local", A, A, addresses, 29779, STAGES[executor], memory, LIMITS, "spark")


@dataclass
class Node:
    """One node: which order it has, and of each of its units the state and the order that it was started by."""

    name: str
    names: tuple[str, ...]
    generation: str = "g1"
    serial: int = 0
    started: set[str] = field(default_factory=set)
    active: dict[str, str] = field(default_factory=dict)
    started_by: dict[str, int] = field(default_factory=dict)
    age: dict[str, int] = field(default_factory=dict)
    memory: int = PLENTY
    heard: float = 0
    hangs: bool = False
    """What starts does not get ready."""

    def running(self) -> dict[str, int]:
        """Return the units that are not down, and the order that each was started by."""
        return {name: self.started_by[name] for name in self.names if self.active.get(name, "inactive") not in DOWN}

    def report(self, now: float) -> Seen:
        units = {name: Unit(self.active.get(name, "inactive"), "it ended") for name in self.names}
        return Seen(now, self.generation, self.serial, units, self.memory, frozenset(self.started))

    def obey(self, order: Order, now: float) -> None:
        self.heard = now
        if order.generation != self.generation:
            return
        if order.serial != self.serial:
            self.serial, self.started = order.serial, set()
        for name in self.names:
            if name not in order.run:
                self.end(name)
            elif name not in self.started:
                self.start(name)

    def start(self, name: str) -> None:
        """As systemd: what runs already goes on."""
        self.started.add(name)
        if self.active.get(name, "inactive") in DOWN:
            self.active[name], self.started_by[name], self.age[name] = "activating", self.serial, 0

    def end(self, name: str) -> None:
        if self.active.get(name, "inactive") not in DOWN:
            self.active[name] = "failed"

    def boot(self) -> None:
        self.serial, self.started, self.active = 0, set(), {}

    def pass_time(self, now: float) -> None:
        for name, state in self.active.items():
            self.age[name] += 1
            if state == "activating" and self.age[name] >= SLOW and not self.hangs:
                self.active[name] = "active"
        if self.name != A and now - self.heard > LIMITS.lost + LATE:
            for name in self.names:
                self.end(name)


class World:
    """Both nodes, the line between them, and the head's supervisor; a turn is a second."""

    def __init__(self, executor: str) -> None:
        self.wanted = wanted(executor)
        self.now = 1_000_000.0
        self.nodes = {name: Node(name, self.wanted.units_of(name), heard=self.now) for name in (A, B)}
        self.state = first(self.now, int(self.now))
        self.seen: dict[str, Seen] = {}
        self.cut_until = self.now
        self.restore: list[tuple[float, str, str, object]] = []
        """(when, node, attribute, value): faults that pass."""
        self.told_nothing: dict[str, int] = {}
        """Node to the last order without units that it has obeyed."""

    def turn(self) -> State:
        """Let a second pass: look, decide, obey. Return the state before."""
        self.now += 1
        for when, node, attribute, value in self.restore:
            if when <= self.now:
                setattr(self.nodes[node], attribute, value)
        self.restore = [one for one in self.restore if one[0] > self.now]
        reached = [node for name, node in self.nodes.items() if name == A or self.now >= self.cut_until]
        self.seen.update({node.name: node.report(self.now) for node in reached})
        before, self.state = self.state, step(self.state, self.wanted, self.seen, self.now)
        for node in reached:
            order = order_for(self.state, self.wanted, node.name)
            if not order.run and node.generation == order.generation:
                self.told_nothing[node.name] = order.serial
            node.obey(order, self.now)
        for node in self.nodes.values():
            node.pass_time(self.now)
        return before

    def befall(self, fault: str, node: str, seconds: int) -> None:
        """Let a fault begin; all but an end and a reboot pass by themselves."""
        one, over = self.nodes[node], self.now + seconds
        match fault:
            case "cut":
                self.cut_until = max(self.cut_until, over)
            case "end":
                one.end(one.names[seconds % len(one.names)])
            case "reboot":
                one.boot()
                if node == A:
                    self.state, self.seen = first(self.now, int(self.now)), {}
            case "memory":
                self._for_a_while(over, node, "memory", LITTLE)
            case "other service":
                self._for_a_while(over, node, "generation", "g0")
            case "hang":
                self._for_a_while(over, node, "hangs", True)

    def _for_a_while(self, over: float, node: str, attribute: str, value: object) -> None:
        usual = {"memory": PLENTY, "generation": "g1", "hangs": False}[attribute]
        self.restore = [one for one in self.restore if one[1:3] != (node, attribute)]
        self.restore.append((over, node, attribute, usual))
        setattr(self.nodes[node], attribute, value)

    def settle(self, seconds: int = 400) -> Phase:
        """Let time pass until it serves or was given up, and return the phase."""
        for _ in range(seconds):
            self.turn()
            if self.state.phase in (Phase.SERVING, Phase.GIVEN_UP):
                break
        return self.state.phase
