"""Driver, GPU and CUDA: do they fit the stack?"""

from __future__ import annotations

import re
from collections.abc import Iterator

from core.findings import Finding, Severity
from core.question import CUDA
from deploy.checks.case import Case

OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
"""CUDA's major version to the oldest driver that runs what was built for it
(https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html, table 1)."""

FEWER_RANKS = "lower pipeline_parallel or tensor_parallel in the profile, or choose another with --profile"
"""What to do about a profile that needs more GPUs than there are."""


def driver_answers(case: Case) -> Iterator[Finding]:
    """The driver's module is loaded, and nvidia-smi does not answer, or says another version: wants a reboot."""
    for node, seen, condition in case.nodes():
        said = {gpu.driver for gpu in seen.gpus}
        if condition.module is None or said == {condition.module}:
            continue
        yield Finding(
            node.name,
            f"the driver {condition.module} is loaded, nvidia-smi "
            + (f"is of {', '.join(sorted(said))}" if said else "does not answer"),
            "reboot the node",
            "the driver was replaced while its predecessor is loaded: no program can open the GPU",
        )


def driver_version(case: Case) -> Iterator[Finding]:
    """The driver is old for the stack's CUDA."""
    needed = OLDEST_DRIVER.get(int((case.stack.cuda or "0").partition(".")[0]))
    for node, seen, _ in case.nodes():
        for gpu in seen.gpus if needed else ():
            major = gpu.driver.partition(".")[0]
            if needed and major.isdecimal() and int(major) < needed:
                yield Finding(
                    node.name,
                    f"its driver is {gpu.driver}, CUDA {case.stack.cuda} needs {needed} or newer",
                    "update the node's system (on DGX OS: the dashboard, or apt full-upgrade), then reboot it",
                    "PyTorch finds no GPU: the driver is older than its CUDA runtime",
                )


def capability(case: Case) -> Iterator[Finding]:
    """No code of the stack runs on the GPU."""
    codes = case.stack.architectures
    for node, seen, _ in case.nodes():
        for gpu in seen.gpus if codes else ():
            if re.fullmatch(r"\d+\.\d", gpu.capability) and not any(_runs(code, gpu.capability) for code in codes):
                yield Finding(
                    node.name,
                    f"{gpu.name} has capability {gpu.capability}, the stack {case.stack.name} has code for "
                    + ", ".join(f"sm_{code}" for code in codes),
                    "choose another stack in the cluster's file, or build one for this GPU",
                    "every kernel would end with `no kernel image is available for execution on the device`",
                )


def _runs(code: str, capability: str) -> bool:
    """Whether code for 120 runs on a GPU of "12.1": within a major version on that minor and later ones.

    Code for 121a runs on 12.1 alone
    (https://docs.nvidia.com/cuda/cuda-c-programming-guide/index.html#compute-capability-and-streaming-multiprocessor-versions).
    """
    wanted, number = capability.replace(".", ""), code.rstrip("af")
    if code.endswith("a"):
        return number == wanted
    return number[:-1] == wanted[:-1] and number[-1:] <= wanted[-1:]


def toolkit(case: Case) -> Iterator[Finding]:
    """The stack uses the node's CUDA toolkit (triton assembles its kernels with ptxas), and it is not the right one."""
    if not any(value.startswith(f"{CUDA}/") for value in case.stack.environment.values()):
        return
    for node, seen, _ in case.nodes():
        wanted = case.stack.cuda or ""
        if seen.gpus and (seen.cuda or "").partition(".")[0] != wanted.partition(".")[0]:
            has = f"is of CUDA {seen.cuda}" if seen.cuda else "is not there"
            yield Finding(
                node.name,
                f"{CUDA} {has}, the stack {case.stack.name} uses its ptxas of CUDA {wanted}",
                f"install the CUDA toolkit {wanted} there, or point the link {CUDA} to it",
                "triton cannot make kernels while the model starts",
            )


def ranks(case: Case) -> Iterator[Finding]:
    """The profile has more ranks than the nodes have GPUs, one each."""
    wanted, have = case.profile.ranks, len(case.cluster.nodes)
    if wanted > have:
        yield Finding(
            case.cluster.head.name,
            f"the profile {case.profile.name} has {wanted} ranks, {case.cluster.name} has {have} nodes",
            FEWER_RANKS,
            "Ray would wait for a GPU that does not come",
        )
    elif wanted < have:
        yield Finding(
            case.cluster.head.name,
            f"the profile {case.profile.name} has {wanted} ranks, {case.cluster.name} has {have} nodes",
            "raise pipeline_parallel or tensor_parallel in the profile where all nodes are to work",
            "a node stays idle",
            Severity.NOTE,
        )
