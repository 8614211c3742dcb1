"""Ready means that a token came through every rank: what the head's supervisor says of that, as a wait. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from core.errors import NotServing
from core.facts import NodeFacts
from core.parsers import record_or_none, shown
from core.process import Completed

FRESH = 10
"""Seconds after which a state file says nothing any more: a supervisor writes it every two."""

# Prints the head's state with its age, and what vLLM's watch says; runs as the SSH user.
_LOOK = """
import json, sys, time
def read(path):
    try:
        with open(path) as file:
            return json.load(file)
    except (OSError, ValueError):
        return {}
state, live = read("/run/sparkstack/state.json"), read("/run/sparkstack-vllm/live.json")
said = state.get("phase", "no supervisor has spoken yet"), state.get("reason", ""), live.get("error", "")
print(json.dumps({"state": state, "age": time.time() - state.get("at", 0)}))
print(": ".join(word for word in said if word))
"""


def look_argv() -> tuple[str, ...]:
    """Return the argv that asks the head how far it is: a line of JSON, and one for people."""
    return ("python3", "-I", "-S", "-c", _LOOK)


def state_of(done: Completed) -> Mapping[str, Any]:
    """Return the state in the answer; empty where there is none, or an old one."""
    line = next((line for line in done.out.splitlines() if line.startswith("{")), "{}")
    try:
        answer: dict[str, Any] = json.loads(line)
    except ValueError:
        return {}
    return answer.get("state", {}) if answer.get("age", FRESH) < FRESH else {}


def serves(done: Completed, generation: str) -> bool:
    """Whether the service of this generation serves. Raises NotServing as soon as it was given up."""
    state = state_of(done)
    if state.get("generation") != generation:
        return False
    if state.get("phase") == "given-up":
        raise given_up(state)
    return state.get("phase") == "serving"


def given_up(state: Mapping[str, Any]) -> NotServing:
    """Return the error for a service that its supervisor has given up."""
    failures = [shown(str(one["reason"])) for one in state.get("failures", ())]
    return NotServing(
        shown(str(state.get("reason", "given up"))),
        next_move="invoke logs shows all of it; correct the cause, then invoke serve",
        evidence="\n".join(failures[-5:]),
    )


def too_slow(done: Completed) -> NotServing:
    """Return the error for a wait that came to its end."""
    state = state_of(done)
    phase, reason = state.get("phase", "no supervisor answers"), shown(str(state.get("reason", "")))
    return NotServing(
        f"no token came in time ({phase}: {reason})" if reason else f"no token came in time ({phase})",
        next_move="invoke logs shows what it waits for; invoke status, what the supervisors do now",
    )


def serving(seen: NodeFacts, generation: str) -> bool:
    """Whether the facts of the head say that this generation serves, and say it now."""
    state = fresh(seen)
    return state.get("generation") == generation and state.get("phase") == "serving"


def fresh(seen: NodeFacts) -> Mapping[str, Any]:
    """Return a node's state file; empty where its supervisor has not written it lately."""
    age = seen.moment - float(seen.state.get("at", 0) or 0)
    return seen.state if abs(age) < FRESH else {}


def generation_of(text: str) -> str:
    """Return the generation that a service.json names."""
    return str(record_or_none(text).get("generation", ""))
