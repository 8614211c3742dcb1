"""What is otherwise than in the guide's chapter 5, each with its reason; `invoke serve --dry-run` lists it."""

from __future__ import annotations

from collections.abc import Iterator

from core.facts import Facts
from serve.cluster import Service
from serve.commands import environment_of


def deviations(service: Service, facts: Facts) -> tuple[str, ...]:
    """Return what differs from the guide's chapter 5; nothing for a profile that is not its own.

    First what the suite does otherwise, as far as it is true of this cluster, then what the profile itself changes.
    """
    own = service.profile.guide
    found = () if own is None else (*_of_suite(service, facts), *(f"{what}: {why}" for what, why in own.items()))
    return tuple(f"unlike the guide, {text}" for text in found)


def _of_suite(service: Service, facts: Facts) -> Iterator[str]:
    cluster, head = service.cluster, service.cluster.head
    yield "systemd units in place of nohup: their environment is there before Ray starts, and stop leaves no process"
    yield "vllm serve in place of python -m vllm.entrypoints.openai.api_server: vLLM's own door to the same server"
    yield "--served-model-name: clients may call the model by the guide's path and by a short name"
    yield "--middleware, --disable-uvicorn-access-log: the guard asks for the key; its own log would be the watch's"
    yield "supervisors on every node: a rank that is lost takes the whole service down and up again"
    yield f"the API listens on {cluster.api_host} only and asks for a key: the guide has 0.0.0.0, open to anyone"
    if cluster.api.tls is not None:
        yield "Caddy stands before vLLM: clients talk to the API by TLS"
    if service.profile.executor == "ray":
        yield from _of_ray(service)
    if cluster.workers:
        environment = environment_of(service, head, facts[head.name])
        yield "each node has its own VLLM_HOST_IP, not the head's: vLLM finds its workers by these addresses in Ray"
        yield "the workers have a --node-ip-address: without it Ray takes that of the default route, the management one"
        interface = environment["NCCL_SOCKET_IFNAME"]
        yield f"NCCL, Gloo and TensorPipe are held to {interface}: left alone they take the default route's interface"
        if "NCCL_IB_HCA" in environment:
            yield f"NCCL_IB_HCA={environment['NCCL_IB_HCA']}: each half of the port carries half of its rate"
    if service.stack.environment:
        names = ", ".join(service.stack.environment)
        yield f"{names}: the stack sets them, config/stacks/{service.stack.name}.toml says why"


def _of_ray(service: Service) -> Iterator[str]:
    profile = service.profile
    yield "Ray's dashboard is off: CVE-2023-48022 lets anyone run code through it"
    yield (
        f"Ray plans with {profile.ray_cpus} CPUs and {profile.object_store / 2**30:g} GiB of object store a node, "
        "not with all CPUs and 30 % of the memory: the GPU lives in the same memory"
    )
    yield "--no-monitor, --disable-usage-stats: the autoscaler's port is open to all, and nothing is told to others"
    ports = "--node-manager-port, --object-manager-port, --min-worker-port, --max-worker-port"
    yield f"{ports}: Ray's ports are fixed, so that the firewall can close them outside of the fabric"
    yield "--block: systemd sees Ray end"
    yield "RAY_worker_niceness=0: Ray nices its workers to 15, and anything else on the node would come first"
    if service.ray_asks:
        yield "RAY_AUTH_MODE=token: Ray lets in only who has the cluster's token"
