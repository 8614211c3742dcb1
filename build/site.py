"""Where a build runs: on this host as a child process, or on a node as a unit that outlives our connection."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from build.job import entered, own_python, runner_argv, unit_properties
from build.watch import Watch, failure
from core.config import WORK, Cluster, shown
from core.facts import Facts, NodeFacts
from core.host import CONTROLLER
from core.plan import Job, Plan, Pull, Push, Run, Step, make_plan
from core.root import root_steps
from wheels.target import Target, target_of

TIMEOUT = 24 * 3600
RUNNING = ("active", "activating")
UNIT = "sparkstack-build-"
"""What the names of build units begin with; recipe and identity follow."""


@dataclass(frozen=True)
class Site:
    """A machine that builds."""

    name: str
    folder: PurePosixPath
    """Where its jobs lie."""
    cluster: Cluster | None
    """Whose node it is."""
    seen: NodeFacts
    target: Target
    """What the machine itself is; what is built may be for another one (a cross build)."""

    @property
    def here(self) -> bool:
        """It is this host, without a unit."""
        return self.cluster is None

    @property
    def user(self) -> str:
        """Whom a unit on a node runs as."""
        return self.cluster.user if self.cluster else ""


def controller(seen: NodeFacts) -> Site:
    """Return this host as a machine that builds."""
    return Site(CONTROLLER, PurePosixPath(WORK / "build"), None, seen, target_of(seen))


def node(cluster: Cluster, seen: NodeFacts) -> Site:
    """Return a node as a machine that builds."""
    return Site(seen.name, PurePosixPath(cluster.root / "build"), cluster, seen, target_of(seen))


@dataclass(frozen=True)
class Errand:
    """One build at its site.

    ``name`` is the job's folder and in the unit's name, ``memory`` the unit's limit in bytes, ``cuda`` the folder of
    the toolkit that it gets, ``host_name`` the name that the machine has for it.
    """

    site: Site
    name: str
    title: str
    reason: str
    memory: int
    with_cache: bool = False
    """With the site's compiler cache."""
    cuda: str = ""
    expected_seconds: float | None = None
    host_name: str = "sparkstack"

    @property
    def local(self) -> Path:
        """The job's folder on this host: filled here, and what comes out arrives here."""
        return WORK / "build" / self.name

    @property
    def cache(self) -> str:
        """The folder of the compiler cache at the site, beside its jobs; empty where the build is to have none."""
        return str(self.site.folder.parent / "ccache") if self.with_cache else ""

    @property
    def unit(self) -> str:
        """The unit on a node."""
        return f"{UNIT}{self.name}"

    @property
    def log(self) -> Path:
        """Where this host keeps the build's lines."""
        return WORK / "logs" / f"build-{self.name}.log"

    @property
    def running(self) -> bool:
        """Whether the site builds it already."""
        unit = self.site.seen.units.get(self.unit)
        return not self.site.here and unit is not None and unit.active in RUNNING

    @property
    def finished(self) -> bool:
        """Whether the site has built it already, while nobody was looking."""
        return not self.site.here and self.name in self.site.seen.builds


def steps(errand: Errand) -> tuple[Step, ...]:
    """Return what carries a job that is laid out on this host to its site, runs it and brings the wheel back."""
    if errand.site.here:
        return (_job(errand),)
    place = errand.site.folder / errand.name
    bring = Pull(
        node=errand.site.name,
        title="bring the wheel here",
        reason="it is checked and listed here",
        source=place / "out",
        destination=errand.local / "out",
    )
    result = Run(
        node=errand.site.name,
        title="remove the job from the node",
        reason="what it made is here",
        argv=("rm", "-rf", str(place)),
        timeout=600,
    )
    started = () if errand.running or errand.finished else _sent(errand, place)
    return (*started, *(() if errand.finished else (_job(errand),)), bring, result)


def _sent(errand: Errand, place: PurePosixPath) -> tuple[Step, ...]:
    cache = (errand.cache, str(place / "ccache")) if errand.cache else ()
    make = ("mkdir", "-p", str(place / "in"), str(place / "cuda"), str(place / "out"), *cache)
    root = root_steps(errand.site.cluster, errand.site.seen) if errand.site.cluster else ()
    return (
        *root,
        Run(node=errand.site.name, title=f"make {place}", reason="the job's own folder", argv=make),
        Push(
            node=errand.site.name,
            title="send source and build requirements",
            reason="the build has no network",
            sources=(errand.local / "in",),
            destination=place,
            size=0,
        ),
    )


def _job(errand: Errand) -> Job:
    site = errand.site
    watch = Watch(errand.log, errand.expected_seconds)
    place = site.folder / errand.name
    argv = (
        entered(errand.local, own_python(), cuda=errand.cuda, name=errand.host_name, cache=errand.cache)
        if site.here
        else runner_argv("/usr/bin/python3")
    )
    return Job(
        node=site.name,
        title=errand.title,
        reason=f"{errand.reason}; log: {shown(errand.log)}",
        argv=argv,
        timeout=TIMEOUT,
        watch=watch,
        failure=lambda how, lines: failure(errand.title, site.name, how, lines, errand.log),
        unit=None if site.here else errand.unit,
        user=site.user,
        privileged=not site.here,
        properties=unit_properties(place, memory=errand.memory, cuda=errand.cuda, cache=errand.cache),
        log=str(place / "log"),
        hint=f"invoke build.stop --on {site.name}",
    )


def plan_stop(cluster: Cluster, facts: Facts, on: str) -> Plan:
    """Return what ends the builds that run on the nodes, or on one of them."""
    steps = [
        Run(
            node=name,
            title=f"stop {unit}",
            reason="stop was asked for",
            argv=("systemctl", "stop", unit),
            privileged=True,
        )
        for name, seen in facts.items()
        if on in ("", name)
        for unit, state in seen.units.items()
        if unit.startswith(UNIT) and state.active in RUNNING
    ]
    return make_plan(f"stop the builds on {on or cluster.name}", [("stop builds", steps)])
