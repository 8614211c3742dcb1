"""Who lives on a node besides a service of ours: what one left behind, containers that come back by themselves.

And whether logind takes from our services what they share: they run as a user who logs in and out.
"""

from __future__ import annotations

from collections.abc import Iterator

from core.facts import NodeFacts
from core.findings import Finding, Severity
from core.surroundings import FIRST_USER, Container, OurProcess
from core.units import PREFIX
from deploy.checks.case import Case

ENDED = ("failed", "inactive")
"""States in which a unit holds nothing that it needs."""
BY_THEMSELVES = ("always", "unless-stopped", "on-failure")
"""Restart policies of docker that start a container without anybody's doing."""


def left_over(case: Case, seen: NodeFacts) -> list[OurProcess]:
    """Return processes of ours whose service has ended and whose family holds GPU memory or a port.

    None while a service runs there, none in a unit that runs or in somebody else's service, none whose starter still
    lives (a shell, a test).
    """
    if case.serves(seen):
        return []
    around, on_gpu = seen.condition.around, {process.pid for process in seen.condition.gpu_processes}
    loose = [process for process in around.ours if process.loose and _no_unit_runs(seen, process)]
    holding = {process.top for process in loose if process.ports or process.pid in on_gpu}
    return [process for process in loose if process.top in holding]


def _no_unit_runs(seen: NodeFacts, process: OurProcess) -> bool:
    """Whether no service holds the process, or one of ours that has ended; one of ours that was not seen may run."""
    if not process.unit.startswith(PREFIX):
        return not _elses(process)
    unit = seen.units.get(process.unit.removesuffix(".service"))
    return unit is not None and unit.active in ENDED


def _elses(process: OurProcess) -> bool:
    """Whether a service of somebody else holds the process: who made it starts and stops it."""
    return process.unit.endswith(".service") and not process.unit.startswith(PREFIX)


def what_is_held(seen: NodeFacts, process: OurProcess) -> str:
    """Say what a process holds, for people: "port 6379"."""
    gpu = any(one.pid == process.pid for one in seen.condition.gpu_processes)
    ports = ", ".join(map(str, process.ports))
    held = [*([f"port{'s' * (len(process.ports) > 1)} {ports}"] if ports else []), *(["GPU memory"] if gpu else [])]
    return " and ".join(held) or "memory"


def left_behind(case: Case) -> Iterator[Finding]:
    """A process of ours outlived its service and holds GPU memory or a port."""
    for node, seen, _ in case.nodes():
        for process in left_over(case, seen):
            yield Finding(
                node.name,
                f"process {process.pid} of ours was left behind and holds {what_is_held(seen, process)}: "
                f"{process.command[:60]}",
                f"invoke doctor --fix --cluster {case.cluster.flag}",
                "what starts next finds its port taken, or too little memory",
            )


def held_by_hand(case: Case) -> Iterator[Finding]:
    """A process of ours that no unit of ours holds: of somebody who is still there, or of a service of their own."""
    for node, seen, _ in case.nodes():
        for process in seen.condition.around.ours:
            elses = _elses(process)
            if process.pid == process.top and not process.unit.startswith(PREFIX) and (elses or not process.loose):
                by = f"in {process.unit}" if elses else f"by process {process.starter}"
                yield Finding(
                    node.name,
                    f"process {process.pid} of ours was started by hand, {by}: {process.command[:60]}",
                    "end it there; this suite ends nothing that is in somebody's hand",
                    "it takes memory that the model needs, and perhaps a port",
                    Severity.WARNING,
                )


def returning(case: Case) -> Iterator[Finding]:
    """A container starts by itself after a reboot, or when it was ended."""
    for node, _, condition in case.nodes():
        for container in condition.around.containers or ():
            if container.restart in BY_THEMSELVES or (container.gpu and container.running):
                yield _container(node.name, container)


def _container(node: str, container: Container) -> Finding:
    state = "runs" if container.running else "does not run now"
    again = f", restart policy {container.restart}" if container.restart in BY_THEMSELVES else ""
    return Finding(
        node,
        f"the container {container.name} ({container.image}) {state}{again}{', and it has the GPU' * container.gpu}",
        f"on the node: docker update --restart=no {container.name}; docker stop {container.name}, if it is not needed",
        "it takes memory, and after a reboot it is there before our service is",
        Severity.WARNING if container.gpu else Severity.NOTE,
    )


def hidden_docker(case: Case) -> Iterator[Finding]:
    """Docker starts with the machine, and what it runs could not be looked at."""
    for node, _, condition in case.nodes():
        if condition.around.docker == "enabled" and condition.around.containers is None:
            yield Finding(
                node.name,
                "docker starts with the machine, and does not tell this user which containers there are",
                "on the node: sudo docker ps --all names them; without one nothing is to do",
                "a container with a restart policy comes back by itself and takes memory",
                Severity.NOTE,
            )


def shared_memory(case: Case) -> Iterator[Finding]:
    """Logind removes what our services share as soon as their user's last SSH session ends."""
    for node, seen, _ in case.nodes():
        if loses_memory(seen):
            yield Finding(
                node.name,
                f"logind removes shared memory and semaphores of {case.cluster.user} at every logout, and our services "
                f"run as {case.cluster.user}",
                f"invoke doctor --fix --cluster {case.cluster.flag}, or on the node: sudo loginctl enable-linger "
                f"{case.cluster.user}",
                "a worker dies, or waits for ever, some time after somebody has logged out, without a message",
                Severity.WARNING,
            )


def loses_memory(seen: NodeFacts) -> bool:
    """Say whether logind takes what the SSH user's processes share away when that user's last session ends."""
    around = seen.condition.around
    return bool(around.removes_ipc and around.lingers is False and (around.uid or 0) >= FIRST_USER)
