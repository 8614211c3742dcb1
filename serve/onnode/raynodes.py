"""Waits until Ray has every node with its GPU (`python -m serve.onnode.raynodes ADDRESS SECONDS NODE…`).

Runs with the release's Python: `ray list nodes` needs the dashboard, which is off; ray.nodes() asks the control store.
"""

from __future__ import annotations

import importlib
import logging
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def missing(nodes: Iterable[Mapping[str, Any]], wanted: Sequence[str]) -> list[str]:
    """Return the fabric addresses that Ray does not have alive with a GPU; ``nodes`` as ray.nodes() gives them."""
    there = {
        str(node["NodeManagerAddress"]) for node in nodes if node["Alive"] and node["Resources"].get("GPU", 0) >= 1
    }
    return [address for address in wanted if address not in there]


def main(address: str, seconds: float, wanted: Sequence[str]) -> str:
    """Ask once a second; return what is missing when time is up, nothing as soon as all are there."""
    ray: Any = importlib.import_module("ray")
    deadline, lacks = time.monotonic() + seconds, ", ".join(wanted)
    while time.monotonic() < deadline:
        try:
            if not ray.is_initialized():
                ray.init(address=address, log_to_driver=False, configure_logging=False, logging_level=logging.ERROR)
            lacks = ", ".join(missing(ray.nodes(), wanted))
        except (ConnectionError, RuntimeError, OSError) as error:  # the head's control store is not there yet
            lacks = f"{', '.join(wanted)} ({error})"
        if not lacks:
            return ""
        time.sleep(0.5)
    return f"Error: Ray has not all nodes with their GPUs after {seconds:g} s: {lacks} is missing"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], float(sys.argv[2]), sys.argv[3:]) or 0)
