"""What vLLM says of itself when it starts, out of its log: KV cache, weights on each rank, seconds. Pure."""

from __future__ import annotations

import re

from core.config import Model

_RANK = re.compile(r"\(?(?:RayWorkerWrapper|RayWorkerProc|Worker)[_\w]*(?: pid=(\d+))?(?:, ip=([\d.]+))?")
_LOADED = re.compile(r"Model loading took ([\d.]+) (GiB|GB)")
_AVAILABLE = re.compile(r"Available KV cache memory: ([\d.]+) GiB")
_TOKENS = re.compile(r"KV cache size: ([\d,]+) tokens")
_SECONDS = re.compile(r"init engine \(.*\) took ([\d.]+) s")


class Startup(Model):
    """The last start that a log tells of; sizes in GiB as vLLM says them, one of each rank."""

    kv_tokens: int | None = None
    loaded: tuple[float, ...] = ()
    kv_memory: tuple[float, ...] = ()
    seconds: float | None = None
    """Of the engine's own beginning (profiling, cache, warm-up), without the loading of weights."""


def parse(log: str) -> Startup:
    """Parse a log of one start. Ranks say their sizes in any order; equal lines of one rank count once."""
    tokens = [int(found.replace(",", "")) for found in _TOKENS.findall(log)]
    seconds = [float(found) for found in _SECONDS.findall(log)]
    return Startup(
        # with several ranks each says its own; the smallest is what the engine uses
        kv_tokens=min(tokens) if tokens else None,
        loaded=_by_rank(log, _LOADED),
        kv_memory=_by_rank(log, _AVAILABLE),
        seconds=seconds[-1] if seconds else None,
    )


def _by_rank(log: str, pattern: re.Pattern[str]) -> tuple[float, ...]:
    found: dict[str, float] = {}
    for line in log.splitlines():
        match = pattern.search(line)
        if match:
            who = _RANK.search(line)
            found[who[0] if who else ""] = float(match[1])
    return tuple(found.values())


def log_argv(units: tuple[str, ...]) -> tuple[str, ...]:
    """Return the argv that prints the journal of the last run of units on a node."""
    return ("python3", "-I", "-c", _JOURNAL, *units)


_JOURNAL = """
import subprocess, sys
for unit in sys.argv[1:]:
    asked = ["systemctl", "show", unit, "--property=InvocationID", "--value"]
    run = subprocess.run(asked, capture_output=True, text=True).stdout.strip()
    if run:
        subprocess.run(["journalctl", "_SYSTEMD_INVOCATION_ID=" + run, "-o", "cat", "--no-pager"])
"""
