"""What Prometheus says of its targets, asked on the head."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from core.errors import NotServing
from core.process import Completed
from serve.monitor.scrape import PROMETHEUS_PORT, Target

# no proxy: what the environment of a login may name does not reach the head's loopback
_ASK = """
import json, sys, urllib.request
answer = {"error": "", "targets": []}
try:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(sys.argv[1] + "/api/v1/targets?state=active", timeout=10) as reply:
        for one in json.load(reply)["data"]["activeTargets"]:
            job, node = one["labels"]["job"], one["labels"].get("node", "")
            address, health = one["labels"]["instance"], one["health"]
            answer["targets"].append([job, node, address, health, one["lastError"]])
except (OSError, ValueError, KeyError) as error:
    answer["error"] = str(error)
print(json.dumps(answer))
"""


@dataclass(frozen=True)
class Seen:
    """A target as Prometheus sees it; ``health`` is "up", "down" or, before the first scrape, "unknown"."""

    target: Target
    health: str
    error: str


def ask_argv(port: int = PROMETHEUS_PORT) -> tuple[str, ...]:
    """Return the argv that asks Prometheus on the head for its targets."""
    return ("python3", "-c", _ASK, f"http://127.0.0.1:{port}")


def parse(text: str) -> tuple[tuple[Seen, ...], str]:
    """Return what Prometheus said of its targets, and why it said nothing."""
    try:
        answer = json.loads(text)
        rows = tuple(Seen(Target(*row[:3]), row[3], row[4]) for row in answer["targets"])
        return rows, str(answer["error"])
    except (ValueError, KeyError, TypeError, IndexError):
        return (), "the answer cannot be read"


def all_up(wanted: Sequence[Target], done: Completed) -> bool:
    """Whether Prometheus scrapes every wanted target with success."""
    seen, _ = parse(done.out)
    return {one.target for one in seen if one.health == "up"} >= set(wanted)


def not_up(head: str, wanted: Sequence[Target], done: Completed) -> NotServing:
    """Return the error for wanted targets that are not up."""
    seen, error = parse(done.out)
    if not seen:
        return NotServing(
            f"Prometheus does not answer: {error or 'it has no targets'}",
            node=head,
            next_move="read what it said: invoke logs",
        )
    health = {one.target: f"{one.health} {one.error}".strip() for one in seen}
    down = {one: health.get(one, "not a target") for one in wanted if health.get(one) != "up"}
    return NotServing(
        f"{len(wanted) - len(down)} of {len(wanted)} targets are up",
        node=head,
        next_move="read what the unit there said: invoke logs; a refused key is taken anew by: invoke monitor",
        evidence="\n".join(f"{one.job} of {one.node} at {one.address}: {said}" for one, said in down.items()),
    )


def table(seen: Sequence[Seen]) -> str:
    """Return the targets for people, one a line."""
    return "\n".join(
        f"{one.health:8}{one.target.job:6}{one.target.node}  {one.target.address}  {one.error}".rstrip()
        for one in sorted(seen, key=lambda one: (one.target.job, one.target.node))
    )
