"""No new requests, then the end of those that run: what comes before the service is stopped by its owner."""

from __future__ import annotations

from collections.abc import Iterator

from core.config import Cluster
from core.facts import Facts
from core.plan import Run, Step
from core.units import VLLM, runs

SIGN = "/run/sparkstack/drain"
"""While it is there and not old, the guard refuses new requests: who waits keeps it fresh (serve/onnode/guard.py)."""

# What the guard has let in is counted to the end of its answer.
_WAIT = """
import json, os, sys, time
patience, sign = float(sys.argv[1]), sys.argv[2]
deadline = time.monotonic() + patience
while True:
    os.utime(sign)
    try:
        with open("/run/sparkstack-vllm/live.json") as file:
            live = json.load(file)
    except (OSError, ValueError):
        live = {}
    if time.time() - live.get("at", 0) > 10:
        sys.exit()  # nobody counts: it does not answer any more
    count = live["in_flight"]
    if live["draining"] and not count:
        sys.exit()
    if time.monotonic() > deadline:
        sys.exit(print(f"{count} requests still ran after {patience:g} s, and were ended"))
    print(f"{count} requests still run", flush=True)
    time.sleep(0.5)
"""


def steps(cluster: Cluster, facts: Facts, patience: float) -> Iterator[Step]:
    """Give the steps on the head; none where vLLM does not run or nobody is waited for (``patience`` 0, in seconds)."""
    head = cluster.head.name
    if not runs(facts[head], VLLM) or patience <= 0:
        return
    why = "it is about to stop"
    yield Run(node=head, title="let in no new request", reason=why, argv=("touch", SIGN), privileged=True)
    yield Run(
        node=head,
        title="wait for running requests",
        reason=f"up to {patience:g} s (--drain), then they are ended",
        argv=("python3", "-I", "-S", "-c", _WAIT, str(patience), SIGN),
        privileged=True,
        timeout=patience + 30,
    )


def undo(cluster: Cluster, facts: Facts) -> tuple[Step, ...]:
    """Return what lets requests in again."""
    head = cluster.head.name
    if not runs(facts[head], VLLM):
        return ()
    why = "the service goes on"
    return (Run(node=head, title="let requests in again", reason=why, argv=("rm", "-f", SIGN), privileged=True),)
