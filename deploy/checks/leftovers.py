"""What is there already: processes on the GPU, ports, containers, and whether sshd outlives a shortage of memory."""

from __future__ import annotations

from collections.abc import Iterator

from core.condition import GpuProcess, Owner
from core.config import RAY_PORTS, Node
from core.facts import NodeFacts
from core.findings import Finding, Severity
from core.units import PREFIX, SUPERVISOR, VLLM, runs
from deploy.checks.case import Case, gib, running
from deploy.checks.residents import left_over

CONTAINERS = ("docker-", "libpod-", "cri-containerd-")
"""How the units of containers begin."""
SAFE_OOM = -900
"""A score from which on nothing but what cannot be killed is killed later."""


def gpu_processes(case: Case) -> Iterator[Finding]:
    """A process holds GPU memory and belongs to no service of ours that runs."""
    for node, seen, condition in case.nodes():
        known = {process.pid for process in left_over(case, seen)}
        for process in condition.gpu_processes:
            if process.pid in known:
                continue  # what is left of ours is named there
            owner = condition.owners.get(process.pid, Owner("?", "-"))
            if not owner.unit.startswith(PREFIX):
                yield _stranger(node, process, owner)
            elif not case.serves(seen):
                yield _left_over(node, case, process)


def _stranger(node: Node, process: GpuProcess, owner: Owner) -> Finding:
    return Finding(
        node.name,
        f"{_named(process)} is on the GPU; user {owner.user}, {_place(owner)}",
        "ask its owner to end it; this suite ends nothing that it did not start",
        "it takes memory that the model needs, and computing time",
        Severity.WARNING,
    )


def _left_over(node: Node, case: Case, process: GpuProcess) -> Finding:
    return Finding(
        node.name,
        f"{_named(process)} was left by a service of ours whose vLLM has ended",
        f"invoke stop --cluster {case.cluster.flag}, or invoke doctor --fix, which stops what is of no use",
        "after a crash the other rank lives on and holds its memory",
    )


def _named(process: GpuProcess) -> str:
    memory = gib(process.memory) if process.memory is not None else "memory unknown"
    return f"process {process.pid} {process.name} ({memory})"


def _place(owner: Owner) -> str:
    if owner.unit.startswith(CONTAINERS):
        return f"in a container ({owner.unit[:32]})"
    return "in no unit" if owner.unit == "-" else f"in {owner.unit}"


def half_a_service(case: Case) -> Iterator[Finding]:
    """Some of a service of ours runs, and some does not: the engine crashed, or a node was started anew."""
    head = case.cluster.head.name
    if head in case.silent or runs(case.facts[head], SUPERVISOR):
        return  # its supervisor knows, and brings it into order: `invoke status` says how far it is
    vllm = VLLM in running(case.facts[head])
    for node, seen, _ in case.nodes():
        units = running(seen)
        if bool(units) == vllm:
            continue
        says = f"{', '.join(units)} runs there, {VLLM} on {head} does not"
        yield Finding(
            node.name,
            says if units else f"no unit of the service runs there, {VLLM} on {head} does",
            f"invoke stop --cluster {case.cluster.flag}; or invoke serve, which starts what is missing",
            "no token comes, and ranks of an engine that crashed live on and hold their memory",
            Severity.WARNING,
        )


def like_ours(case: Case) -> Iterator[Finding]:
    """Ray or vLLM runs there that is no service of ours: nohup, a container, another suite."""
    for node, seen, condition in case.nodes():
        named = {process.pid for process in condition.gpu_processes} | {one.pid for one in left_over(case, seen)}
        for process in seen.processes:
            owner = condition.owners.get(process.pid)
            if owner is not None and not owner.unit.startswith(PREFIX) and process.pid not in named:
                yield Finding(
                    node.name,
                    f"process {process.pid} of user {owner.user} looks like Ray or vLLM, {_place(owner)}",
                    "end it where it was started (for the guide's: ray stop, as that user)",
                    "a second Ray on the node takes ports, and workers may join the wrong one",
                    Severity.WARNING,
                )
                break


def ports(case: Case) -> Iterator[Finding]:
    """A port that a service of ours is to listen at is taken."""
    cluster = case.cluster
    ray = range(cluster.ray_port, cluster.ray_port + RAY_PORTS)
    for node, seen, _ in case.nodes():
        wanted = {*ray, cluster.api.port} if node == cluster.head else set(ray)
        ours = {port for process in left_over(case, seen) for port in process.ports}
        taken = sorted({listener.port for listener in seen.listening} & wanted - ours)
        if taken and not running(seen):
            look = f"sudo ss -ltnp 'sport = :{taken[0]}'"
            yield Finding(
                node.name,
                f"{_listener(seen, taken[0])} listens at port{'s' * (len(taken) > 1)} {', '.join(map(str, taken))}",
                f"on the node: {look} names it; end it, or change the port in the cluster's file",
                "Ray or the API cannot start there",
            )


def _listener(seen: NodeFacts, port: int) -> str:
    """Say who listens there, as far as the SSH user may know it."""
    found = next((one for one in seen.condition.around.sockets if one.port == port), None)
    if found is None:
        return "something"
    who = f"process {found.pid} {found.name}" if found.pid else "a process"
    owner = seen.condition.owners.get(found.pid or 0, Owner(f"number {found.uid}" if found.uid else "root", "-"))
    return f"{who} of user {owner.user}, {_place(Owner(owner.user, found.unit))},"


def containers(case: Case) -> Iterator[Finding]:
    """Containers run on the node."""
    for node, _, condition in case.nodes():
        units = {owner.unit for owner in condition.owners.values() if owner.unit.startswith(CONTAINERS)}
        if units:
            yield Finding(
                node.name,
                f"containers run there: {len(units)} ({sorted(units)[0][:32]})",
                "docker ps on the node says which; stop those that are not needed",
                "their memory is the GPU's too",
                Severity.NOTE,
            )


def sshd(case: Case) -> Iterator[Finding]:
    """Sshd may be killed when memory runs out."""
    for node, _, condition in case.nodes():
        if condition.sshd_oom is not None and condition.sshd_oom > SAFE_OOM:
            yield Finding(
                node.name,
                f"sshd's OOM score is {condition.sshd_oom}",
                "on the node: sudo systemctl restart ssh; it protects itself when it starts, where it may",
                "when memory runs out the kernel may kill sshd before the model, and nobody gets in",
                Severity.NOTE,
            )
