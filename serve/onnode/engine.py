"""Runs vLLM and proves to systemd that it gives tokens (`python3 -m serve.onnode.engine OPTIONS -- vllm serve …`).

Ready means that a token came through every rank. From then on the watchdog is fed while the counters of tokens move,
and where nobody asks, by a question of our own that is answered. A server that is slow is not dead: only one that moves
nothing at all for the whole of WatchdogSec is killed.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import re
import resource
import secrets
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from serve.onnode import record
from serve.onnode.notify import notify

TURN, QUICK = 1.0, 0.2
"""Seconds between two looks, and until the first token."""
IDLE = 10.0
"""Seconds without a token after which we ask for one ourselves."""
WINDOW = 10.0
"""Seconds over which the rate of tokens is taken."""
PATIENCE = 5.0
"""Seconds for an answer that costs no token."""


@dataclass(frozen=True)
class Numbers:
    """What vLLM's metrics say; ``kv_cache`` is a share of 1."""

    running: int = 0
    waiting: int = 0
    prompt: int = 0
    generated: int = 0
    kv_cache: float = 0

    @property
    def busy(self) -> bool:
        """Whether somebody waits for tokens."""
        return self.running + self.waiting > 0


_GAUGES = {
    "running": "vllm:num_requests_running",
    "waiting": "vllm:num_requests_waiting",
    "prompt": "vllm:prompt_tokens_total",
    "generated": "vllm:generation_tokens_total",
}
_CACHE = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
"""The share of the KV cache in use; older versions have the second name."""


def numbers(text: str) -> Numbers:
    """Parse vLLM's /metrics, summed over engines."""
    sums: dict[str, float] = {}
    for name, value in re.findall(r"^(vllm:\w+)(?:\{[^\n]*\})? ([-+.\deE]+)$", text, re.MULTILINE):
        sums[name] = sums.get(name, 0) + float(value)
    cache = next((sums[name] for name in _CACHE if name in sums), 0.0)
    return Numbers(**{key: int(sums.get(name, 0)) for key, name in _GAUGES.items()}, kv_cache=round(cache, 4))


@dataclass
class Pulse:
    """When something moved last, and how fast tokens come. Times in seconds of one steady clock."""

    moved: float
    last: Numbers = field(default_factory=Numbers)
    token: float | None = None
    _marks: deque[tuple[float, int]] = field(default_factory=deque)

    def feel(self, now: float, seen: Numbers) -> None:
        """Take what the metrics say now."""
        if seen != self.last:
            self.moved = now
        if seen.generated > self.last.generated:
            self.token = now
        self.last = seen
        self._marks.append((now, seen.generated))
        while self._marks[0][0] < now - WINDOW:
            self._marks.popleft()

    def answered(self, now: float) -> None:
        """Note that a question of our own was answered."""
        self.moved = self.token = now

    @property
    def rate(self) -> float:
        """Tokens a second over the window."""
        (began, first), (ended, last) = self._marks[0], self._marks[-1]
        return round((last - first) / (ended - began), 1) if ended > began else 0.0


class Api:
    """vLLM's API as its watch asks it, with a key of its own that lives as long as the process."""

    def __init__(self, url: str, model: str, key: str) -> None:
        self._url, self._model = url, model
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        # no proxy of the environment comes between us and our own server
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def numbers(self) -> Numbers:
        """Return what /metrics says."""
        return numbers(self._get("/metrics", PATIENCE).decode(errors="replace"))

    def in_flight(self) -> tuple[int, bool]:
        """Return how many requests the guard has let in and not yet seen to their end, and whether it lets more in."""
        found = json.loads(self._get("/sparkstack/live", PATIENCE))
        return int(found["in_flight"]), bool(found["draining"])

    def token(self, timeout: float) -> bool:
        """Ask for one token, through every rank."""
        body = {"model": self._model, "max_tokens": 1, "temperature": 0, "prompt": "hello"}
        answer = json.loads(self._get("/v1/completions", timeout, json.dumps(body).encode()))
        return bool(answer["usage"]["completion_tokens"])

    def _get(self, path: str, timeout: float, body: bytes | None = None) -> bytes:
        request = urllib.request.Request(self._url + path, body, self._headers)  # noqa: S310 - our own server
        with self._opener.open(request, timeout=timeout) as reply:
            found: bytes = reply.read()
            return found


NO_ANSWER = (OSError, http.client.HTTPException, ValueError, KeyError, TypeError, OverflowError)
"""What a server that is not well gives us instead of an answer (urllib's own errors are OSErrors)."""


class Watch:
    """Looks at a running vLLM once a turn, and says what it sees to systemd and to live.json."""

    def __init__(self, api: Api, stall: float, live: Path) -> None:
        self._api, self._stall, self._live = api, stall, live
        self._pulse = Pulse(time.monotonic())
        self._pool = ThreadPoolExecutor(1)
        self._question: Future[bool] | None = None
        self.ready = False
        self._error = "starting"
        self._in_flight, self._draining = 0, False
        self._warned = False
        self._fed = 0.0

    def turn(self) -> None:
        """Look once."""
        now = time.monotonic()
        self._look(now)
        self._ask(now)
        quiet = now - self._pulse.moved
        # fed by what moved, not by the fact that we still run: after WatchdogSec without a move systemd ends it all
        if self.ready and (self._pulse.moved > self._fed or self._rests()):
            notify("WATCHDOG=1")
            self._fed = now
        self._say(quiet)
        self._write(now)

    def _look(self, now: float) -> None:
        try:
            self._pulse.feel(now, self._api.numbers())
            self._in_flight, self._draining = self._api.in_flight()
            self._error = ""
        except NO_ANSWER as error:
            self._error = str(error) or type(error).__name__

    def _ask(self, now: float) -> None:
        """Ask for a token: until the first one came, and whenever nobody else does."""
        if self._question is not None and self._question.done():
            self._take(now, self._question)
            self._question = None
        idle = not self._pulse.last.busy and now - (self._pulse.token or 0) > min(IDLE, self._stall / 3)
        if self._question is None and not self._error and (idle or not self.ready):
            self._question = self._pool.submit(self._api.token, 600 if not self.ready else self._stall)

    def _take(self, now: float, question: Future[bool]) -> None:
        error = question.exception()
        if error is None and question.result():
            self._pulse.answered(now)
            if not self.ready:
                self.ready = True
                notify("READY=1", "STATUS=gives tokens")
        elif error is not None and not isinstance(error, NO_ANSWER):
            raise error
        else:
            self._error = f"no token: {error}"

    def _rests(self) -> bool:
        """Whether nobody asks, and the next question of our own is not due yet.

        Who asks is in flight before vLLM counts it, and after the engine has ended with the request in it.
        """
        return not self._pulse.last.busy and not self._in_flight and self._question is None and not self._error

    def _say(self, quiet: float) -> None:
        if self.ready and quiet > self._stall / 2 and not self._warned:
            waits = f"{self._pulse.last.running} running, {self._pulse.last.waiting} waiting"
            sys.stderr.write(f"sparkstack: nothing has moved for {quiet:.0f} s ({waits}; {self._error or 'asked'})\n")
            sys.stderr.flush()
        self._warned = quiet > self._stall / 2

    def _write(self, now: float) -> None:
        seen, ago = self._pulse.last, time.time() - now
        data = {
            "at": time.time(),
            "ready": self.ready,
            "running": seen.running,
            "waiting": seen.waiting,
            "in_flight": self._in_flight,
            "prompt_tokens": seen.prompt,
            "generated_tokens": seen.generated,
            "tokens_per_second": self._pulse.rate if self._pulse.token else 0.0,
            "kv_cache": seen.kv_cache,
            "last_token": self._pulse.token + ago if self._pulse.token else None,
            "draining": self._draining,
            "error": self._error,
        }
        try:
            record.write(self._live, json.dumps(data) + "\n")
        except OSError as error:  # a full disk ends nothing
            sys.stderr.write(f"sparkstack: {self._live} cannot be written: {error}\n")


def main(argv: Sequence[str]) -> int:
    """Run the command behind `--` and watch it; return its exit code, negative for the signal that ended it."""
    parser = argparse.ArgumentParser(prog="engine")
    parser.add_argument("--url", required=True, help="where it listens")
    parser.add_argument("--model", required=True, help="a name that it serves")
    parser.add_argument("--stall", type=float, required=True, help="WatchdogSec, in seconds")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options: Any = parser.parse_args(argv)
    folder = Path(os.environ["RUNTIME_DIRECTORY"])
    key = secrets.token_hex(32)
    record.write(folder / "probe.sha256", hashlib.sha256(key.encode()).hexdigest() + "\n")
    child = _begin(options.command[1:])
    watch = Watch(Api(options.url, options.model, key), options.stall, folder / "live.json")
    while child.poll() is None:
        watch.turn()
        try:
            child.wait(TURN if watch.ready else QUICK)
        except subprocess.TimeoutExpired:
            continue
    return child.returncode


def _begin(command: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start vLLM; whoever tells us to end, tells it, from the first moment on."""
    early: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: early.append(number))
    child = subprocess.Popen(command)
    signal.signal(signal.SIGTERM, lambda number, _: child.send_signal(number))
    for number in early:
        child.send_signal(number)
    return child


def end(code: int) -> NoReturn:
    """End as vLLM has ended; by the same signal, so that systemd can tell of it."""
    sys.stderr.flush()
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # whatever there is to see is in vLLM's
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)  # a question that hangs does not hold us up


if __name__ == "__main__":
    end(main(sys.argv[1:]))
