"""A suite as a plan: one run that is not counted for each test, then rounds of all tests; what came is kept each time.

Rounds, so that a machine that slows down shows in every test and not in the last one alone. Each run has prompts of its
own: vLLM keeps what it has computed of a prompt, and would answer the same one faster the second time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from core.facts import Facts
from core.plan import Call, Plan, Run, Step, make_plan
from core.units import RUNNING, stop_argv
from serve.bench import figures
from serve.bench.client import UNIT, Heard, Load, engine_url, incomplete, load_job
from serve.bench.record import Run as Measured
from serve.bench.suite import Suite, Test
from serve.cluster import Service


@dataclass
class Measurement:
    """What has been measured until now; ``clock`` gives the seconds since the beginning, ``keep`` takes each run."""

    seed: int
    clock: Callable[[], float]
    keep: Callable[[tuple[Measured, ...]], object]
    runs: list[Measured] = field(default_factory=list)

    def begins(self) -> float:
        """Return the moment for a run that begins now."""
        return self.clock()

    def ended(self, run: Measured) -> None:
        """Take a run and hand on all of them."""
        self.runs.append(run)
        self.keep(tuple(self.runs))


@dataclass(frozen=True)
class _Turn:
    """One run of one test: which, and with which prompts."""

    test: Test
    number: int
    seed: int


def plan_bench(service: Service, suite: Suite, facts: Facts, measurement: Measurement) -> Plan:
    """Return what measures the suite on the running service."""
    head = service.cluster.head.name
    url = engine_url(service.cluster, facts[head])
    turns = tuple(_turns(suite, measurement.seed))
    stages: list[tuple[str, tuple[Step, ...]]] = [("end what was left", tuple(_left(service, facts)))]
    for place, test in enumerate(suite.tests):
        load = Load(test, measurement.seed + place, url, warm_up=True)
        title = f"warm up: {test.title}"
        stages.append((title, (load_job(service, load, Heard(), title),)))
    for turn in turns:
        title = f"{turn.test.title}, {turn.number} of {suite.repeats}"
        stages.append((title, tuple(_steps(service, turn, url, title, measurement))))
    return make_plan(f"measure {service.profile.name} on {service.cluster.name}: {suite.description}", stages)


def _turns(suite: Suite, seed: int) -> Iterator[_Turn]:
    for number in range(1, suite.repeats + 1):
        for place, test in enumerate(suite.tests):
            yield _Turn(test, number, seed + 100 * number + place)


def _left(service: Service, facts: Facts) -> Iterator[Step]:
    """End a load that an earlier command left running: it would be measured as well."""
    head = service.cluster.head.name
    unit = facts[head].units.get(UNIT)
    if unit is not None and unit.active in RUNNING:
        yield Run(
            node=head,
            title=f"stop {UNIT}",
            reason="an earlier benchmark still runs",
            argv=stop_argv([UNIT]),
            privileged=True,
        )


def _steps(service: Service, turn: _Turn, url: str, title: str, measurement: Measurement) -> Iterator[Step]:
    heard, began = Heard(), [0.0]
    node = service.cluster.head.name

    def begin(_: object) -> None:
        began[0] = measurement.begins()

    def keep(_: object) -> None:
        found = figures.parse(heard.figures, node) if heard.figures else None
        if found is None or found.failed or found.completed != turn.test.prompts:
            raise incomplete(turn.test, heard, node)
        measurement.ended(
            Measured(
                test=turn.test.name,
                began=round(began[0], 3),
                ended=round(measurement.clock(), 3),
                seed=turn.seed,
                figures=found,
            )
        )

    # on the head's row, so that the three follow each other: the steps of different nodes run at the same time
    yield Call(node=node, title="note the time", reason="samples are matched to runs by it", shown="", action=begin)
    yield load_job(service, Load(turn.test, turn.seed, url), heard, title)
    yield Call(
        node=node, title="keep the figures", reason="an interrupted measurement keeps them", shown="", action=keep
    )
