"""What a profile must and must not say, by the version of vLLM: the guide's chapter 10, as far as it is still true.

Checked before anything is stopped; pure.
"""

from __future__ import annotations

from collections.abc import Iterator

from packaging.version import Version

from core.errors import ConfigError
from deploy.need import flag
from serve.cluster import Service

CHANNEL = "VLLM_USE_RAY_COMPILED_DAG_CHANNEL_TYPE"
NO_COMPILED_DAG = Version("0.20")
"""From here on vLLM has an executor for Ray without compiled graphs (RayExecutorV2)."""
GRAPHS_WORK = Version("0.20")
"""From here on CUDA graphs were seen to work with two stages (measured on two H100 with 0.21.0)."""
OURS = {
    "--host": "the cluster's [api] says where it listens",
    "--port": "the cluster's [api] says where it listens",
    "--api-key": "a key on the command line is seen by every user; invoke key.rotate makes one",
    "--middleware": "the guard of the API is put there",
    "--disable-uvicorn-access-log": "it is off: the watch alone would fill it",
    "--pipeline-parallel-size": "the profile's key pipeline_parallel",
    "--tensor-parallel-size": "the profile's key tensor_parallel",
    "--distributed-executor-backend": "the profile's key executor",
    "--served-model-name": "the profile's key served_names",
    "--nnodes": "it is the number of the cluster's nodes",
    "--node-rank": "it is the node's place in the cluster",
    "--master-addr": "it is the head's fabric address",
    "--master-port": "the cluster's key master_port",
    "--api-server-count": "the guard counts what runs, and there has to be one of it",
    "--headless": "workers have it by themselves",
    "--ssl-keyfile": "invoke serve --tls",
    "--ssl-certfile": "invoke serve --tls",
    "--uds": "the cluster's [api] says where it listens",
}
"""Options that the suite gives itself, and what takes their place in the configuration."""
SHORT = {
    "-asc": "--api-server-count",
    "-pp": "--pipeline-parallel-size",
    "-tp": "--tensor-parallel-size",
    "-n": "--nnodes",
    "-r": "--node-rank",
}
"""Other names that vLLM has for them."""
WATCHED = ("--disable-log-stats",)
"""Options that take away what the watchdog looks at."""


def require_musts(service: Service) -> None:
    """Raise ConfigError for the first thing in the profile that must not be there, or is missing."""
    for cause, move in violations(service):
        raise ConfigError(f"profile {service.profile.name}: {cause}", next_move=move)


def violations(service: Service) -> Iterator[tuple[str, str]]:
    """Name what breaks a must, each with what to do about it."""
    yield from _flags(service)
    yield from _channel(service)
    yield from _addresses(service)
    yield from _keys(service)
    if service.stack.cuda is None and service.profile.pipeline_parallel > 1 and _eager(service):
        yield (
            "--enforce-eager on CPUs with two stages: the warm-up is skipped, and every completion answers 500",
            """use --compilation-config '{"mode":2,"backend":"eager"}' instead""",
        )


def _flags(service: Service) -> Iterator[tuple[str, str]]:
    for given in service.profile.flags:
        # vLLM reads --tensor_parallel_size as well
        word = given.partition("=")[0].replace("_", "-") if given.startswith("-") else ""
        word = SHORT.get(word, word)
        # and the beginning of an option as the whole
        ours = next((one for one in OURS if len(word) > 2 and one.startswith(word)), None)
        if ours is not None:
            yield f"flags holds {word}, which the suite gives itself", OURS[ours]
        if word in WATCHED:
            yield f"flags holds {word}: the watchdog would see no token move", "remove it"


def _keys(service: Service) -> Iterator[tuple[str, str]]:
    given = {**service.stack.environment, **service.profile.environment}
    if "VLLM_API_KEY" in given:
        yield "VLLM_API_KEY is set: everybody on the node can read it", "remove it: invoke key.rotate makes a key"


def _channel(service: Service) -> Iterator[tuple[str, str]]:
    profile = service.profile
    value = profile.environment.get(CHANNEL)
    if value is not None and (service.vllm >= NO_COMPILED_DAG or profile.executor != "ray"):
        why = f"vLLM {service.vllm} has no compiled graphs" if profile.executor == "ray" else "there is no Ray"
        yield f"{CHANNEL} is set, and {why}", "remove it from the profile's environment"
    if (
        value != "shm"
        and service.vllm < NO_COMPILED_DAG
        and profile.executor == "ray"
        and profile.pipeline_parallel > 1
    ):
        yield (
            f"{CHANNEL} is not shm: before vLLM 0.20 the other channel crosses pipeline batches (vllm#15332)",
            f'set {CHANNEL} = "shm" in the profile\'s environment',
        )


def _addresses(service: Service) -> Iterator[tuple[str, str]]:
    """The distributed traffic goes over the fabric: no address of the management network has a place here."""
    management = {str(node.management) for node in service.cluster.nodes}
    given = {**service.stack.environment, **service.profile.environment}
    for key, value in given.items():
        if any(address in value for address in management):
            yield f"{key}={value} names the management network", "remove it: the suite sets the fabric's addresses"


def _eager(service: Service) -> bool:
    return "--enforce-eager" in service.profile.flags


def doubts(service: Service) -> Iterator[str]:
    """Name what may be there and is probably not meant; plans show it as notes."""
    if _eager(service) and service.vllm >= GRAPHS_WORK:
        yield (
            f"--enforce-eager is not needed with vLLM {service.vllm}: with CUDA graphs two H100 gave 2,402 tokens/s "
            "in place of 2,216"
        )
    if not _eager(service) and service.stack.cuda is not None and service.vllm < GRAPHS_WORK:
        yield f"the guide asks for --enforce-eager with vLLM {service.vllm}: CUDA graphs hang in some versions"
    if flag(service.profile.flags, "--gpu-memory-utilization") is None and service.stack.cuda is not None:
        yield "no --gpu-memory-utilization: vLLM takes 0.9 of the memory, the guide 0.80"
