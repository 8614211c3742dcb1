"""A measurement as it happens: look, plan, load and sample, read the log, keep."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.apply import Context, Journal, apply
from core.config import WORK, Cluster, Profile
from core.errors import CommandFailed, FactsError, NotServing, UnfitNode
from core.facts import Facts
from core.hand import Hand
from core.parsers import record_or_none
from core.plan import Plan
from core.question import Question
from core.remote import Hosts
from core.screen import Screen
from core.units import ENGINE, VLLM, runs
from deploy import probe
from deploy.need import flag, whole_number
from serve.bench import startup
from serve.bench.fingerprint import Rates, commit, fingerprint
from serve.bench.measure import Measurement, plan_bench
from serve.bench.record import Record, Run, save
from serve.bench.sampler import Samples, sampling
from serve.bench.suite import Suite
from serve.cluster import Service
from serve.files import WANTED

FOLDER = WORK / "bench"


@dataclass(frozen=True)
class Wanted:
    """What is to be measured, and where it is kept."""

    service: Service
    suite: Suite
    title: str
    output: Path
    probe: bool = True


def question(profile: Profile) -> Question:
    """Return what the nodes are asked first."""
    return Question(profile=profile, whole=True, inventory=True)


def result_path(cluster: Cluster, profile: str, suite: Suite, hand: Hand) -> Path:
    """Return where a measurement is kept that was given no file."""
    stamp = hand.at.replace("-", "").replace(":", "")
    return FOLDER / f"{stamp}-{cluster.name}-{profile}-{suite.name}.json"


def require_serving(service: Service, facts: Facts) -> None:
    """Raise NotServing unless the service runs, and serves this profile."""
    head, cluster = facts[service.cluster.head.name], service.cluster
    move = f"invoke serve --cluster {cluster.flag} --profile {service.profile.name}"
    if not runs(head, VLLM):
        raise NotServing("vLLM does not run: there is nothing to measure", node=head.name, next_move=move)
    served = _profile_served(record_or_none(head.files.get(str(WANTED), "")))
    if served and served != service.profile.name:
        raise NotServing(
            f"it serves the profile {served}, not {service.profile.name}",
            node=head.name,
            next_move=f"{move}; or measure what runs with --profile {served}",
        )


def _profile_served(said: Mapping[str, Any]) -> str:
    profile = said.get("profile")
    return str(profile.get("name", "")) if isinstance(profile, dict) else str(profile or "")


def require_room(service: Service, suite: Suite) -> None:
    """Raise ConfigError where the suite asks for longer sequences than the profile serves."""
    suite.require_room(whole_number(flag(service.profile.flags, "--max-model-len") or ""))


def unmeasured(wanted: Wanted, facts: Facts) -> Plan:
    """Return the plan as it would run, to be shown."""
    return plan_bench(wanted.service, wanted.suite, facts, Measurement(0, lambda: 0.0, lambda _: None))


def measure(wanted: Wanted, facts: Facts, hosts: Hosts, guard: Callable[[], None] = lambda: None) -> Record:
    """Measure, and return what came; kept after every run, so that an interruption loses only the run under way."""
    screen, samples = Screen(), Samples()
    rates = _rates(wanted, hosts, screen.line)
    begun = _begin(wanted, facts, rates)

    def keep(done: tuple[Run, ...]) -> None:
        save(begun.model_copy(update={"runs": done, "samples": samples.kept()}), wanted.output)

    measurement = Measurement(int(time.time()) % 10**6 * 1000, samples.now, keep)
    plan = plan_bench(wanted.service, wanted.suite, facts, measurement)
    screen.line(plan.title)
    journal = Journal("bench")
    with sampling(wanted.service.cluster, hosts, facts, samples):
        apply(plan, Context(hosts, screen, journal, guard))
    screen.line(f"journal: {journal.path}", style="dim")
    made = begun.model_copy(
        update={
            "runs": tuple(measurement.runs),
            "samples": samples.kept(),
            "startup": read_startup(wanted.service.cluster, hosts),
        }
    )
    save(made, wanted.output)
    return made


def _begin(wanted: Wanted, facts: Facts, rates: Rates) -> Record:
    hand = Hand.mine()
    return Record(
        at=hand.at,
        by=hand.by,
        title=wanted.title,
        suite=wanted.suite,
        fingerprint=fingerprint(wanted.service, facts, rates, commit=commit()),
    )


def _rates(wanted: Wanted, hosts: Hosts, report: Callable[[str], None]) -> Rates:
    """Measure the memory; nothing where the release has no probe: ceilings then go by the maker's figure."""
    if not wanted.probe:
        return {}
    try:
        return probe.measure(wanted.service.cluster, hosts)
    except (CommandFailed, FactsError, UnfitNode) as error:
        report(f"the memory's bandwidth was not measured: {error.cause}")
        return {}


def read_startup(cluster: Cluster, hosts: Hosts) -> startup.Startup:
    """Read what the ranks said when they started, out of the journals of all nodes."""
    texts = (
        hosts[node.name].run(startup.log_argv(ENGINE), privileged=True, timeout=60, check=False).out
        for node in cluster.nodes
    )
    return startup.parse("\n".join(texts))
