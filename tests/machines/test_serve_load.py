"""Many clients at once, with the client that people use, while things break: each request has an answer or an error."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import openai
import pytest

from core.config import WORK
from lab.model import questions
from tests.machines.clients import ANSWERED, BROKEN, MODEL, REFUSED, SILENT, WRONG, Asked, Door
from tests.machines.faults import ENDS, SLACK, Fault, killed
from tests.machines.harness import Lab, eventually
from tests.machines.serving import MP, NODES, OVERHEAD, A, B, Service, footprint, nothing_left_behind

pytestmark = pytest.mark.machines

PATIENCE = 120.0
"""Seconds without a byte after which a client gives up: two hundred of them share four places and two cores."""
PAUSE = 1.0
"""Seconds before a client that was not answered comes again."""


@dataclass(frozen=True)
class Load:
    """How many clients, for how many seconds, and what happens to them: seconds after the beginning, name, fault."""

    clients: int
    seconds: float
    faults: tuple[tuple[float, str, Fault], ...]


@dataclass
class Crowd:
    """Clients in a thread and an event loop of their own."""

    door: Door
    clients: int
    asked: list[Asked] = field(default_factory=list)
    end: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Ask until the end is said, and let every request come to its own."""
        asyncio.run(self._all())

    async def _all(self) -> None:
        # trust_env off: a proxy of the environment has no business between us and our own machines
        http = openai.DefaultAsyncHttpxClient(trust_env=False)
        timeout = openai.Timeout(PATIENCE, connect=5.0)
        async with openai.AsyncOpenAI(
            base_url=self.door.url, api_key=self.door.key, max_retries=0, timeout=timeout, http_client=http
        ) as client:
            await asyncio.gather(*(self._one(client, number) for number in range(self.clients)))

    async def _one(self, client: openai.AsyncOpenAI, number: int) -> None:
        pairs = questions()
        first = number % len(pairs)
        for pair in itertools.cycle(pairs[first:] + pairs[:first]):
            if self.end.is_set():
                return
            one = Asked(pair.question, time.time())
            self.asked.append(one)
            await ask(client, one)
            if one.outcome != ANSWERED:
                await asyncio.sleep(PAUSE)

    def answered_since(self, moment: float) -> bool:
        """Say whether a request that began after ``moment`` was answered rightly."""
        return any(one.begun >= moment and one.outcome == ANSWERED for one in tuple(self.asked))


async def ask(client: openai.AsyncOpenAI, one: Asked) -> None:
    """Ask one question, as a stream; note how that ended."""
    try:
        stream = await client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": one.question}],
            temperature=0,
            max_tokens=128,
            stream=True,
        )
        one.let_in = True
        async for event in stream:
            for choice in event.choices[:1]:
                one.said += choice.delta.content or ""
                one.finish = choice.finish_reason or one.finish
    except openai.APITimeoutError as error:
        # to connect takes no 120 s: only silence does
        one.over(SILENT if time.time() - one.begun > PATIENCE / 2 else REFUSED, repr(error))
    except openai.OpenAIError as error:
        one.over(BROKEN if one.let_in else REFUSED, repr(error)[:300])
    else:
        one.complete()


CI = Load(50, 120, ((30, "kill -9 of the engine core", killed(A, "engine")),))
LONG = Load(
    200,
    600,
    (
        (60, "kill -9 of the worker's rank", killed(B, "rank")),
        (300, "kill -9 of the API server", killed(A, "API server")),
    ),
)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "load", [pytest.param(CI, id="50-clients"), pytest.param(LONG, id="200-clients", marks=pytest.mark.long)]
)
def test_under_load_each_request_has_an_answer_or_an_error_whatever_breaks(
    lab: Lab, serving_with: Callable[[str], Service], load: Load
) -> None:
    service = serving_with(MP)
    before = {name: footprint(lab, name) for name in NODES}
    crowd = Crowd(service.door, load.clients)
    thread = threading.Thread(target=crowd.run)
    began = time.time()
    thread.start()
    try:
        struck = [_strike(service, crowd, began + at, name, fault) for at, name, fault in load.faults]
        time.sleep(max(0.0, began + load.seconds - time.time()))
    finally:
        crowd.end.set()
        thread.join(PATIENCE + 60)
    counts = Counter(one.outcome or "never ended" for one in crowd.asked)
    _note(load, counts, struck)
    assert not thread.is_alive(), counts
    assert counts[WRONG] == 0, [one for one in crowd.asked if one.outcome == WRONG][:5]
    lost = [one for one in crowd.asked if one.outcome not in (ANSWERED, REFUSED, BROKEN)]
    assert lost == [], counts
    assert counts[ANSWERED] >= 2 * load.clients, counts
    for one in struck:
        assert one["ended_within_s"] <= ENDS + SLACK, one
        assert one["back_within_s"] <= service.bare + OVERHEAD, one
    nothing_left_behind(lab, before)


def _strike(service: Service, crowd: Crowd, at: float, name: str, fault: Fault) -> dict[str, float | str]:
    """Let a fault happen at a time; return how soon its requests ended, and how soon right answers came again."""
    time.sleep(max(0.0, at - time.time()))
    before, began = service.since(), time.time()
    with fault(service.lab):
        moment = time.time()
    caught = [one for one in tuple(crowd.asked) if one.begun <= moment and (one.ended is None or one.ended >= began)]
    since = float(service.waits_until_back(before, service.bare + 2 * OVERHEAD)["since"])
    assert eventually(partial(crowd.answered_since, since), 60), "it serves, and nobody is answered"
    first = min(one.ended or 0.0 for one in tuple(crowd.asked) if one.begun >= since and one.outcome == ANSWERED)
    assert eventually(lambda: all(one.ended for one in caught), 2 * ENDS)
    return {
        "name": name,
        "executor": service.executor,
        "in_flight": len(caught),
        "ended_within_s": round(max((one.ended or 0.0) - moment for one in caught), 1),
        "back_within_s": round(first - moment, 1),
    }


def _note(load: Load, counts: Counter[str], struck: list[dict[str, float | str]]) -> None:
    """Add the counts to .work/load.json, for who wants to see them."""
    path = WORK / "load.json"
    rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    told = counts[REFUSED] + counts[BROKEN]
    row = {
        "clients": load.clients,
        "seconds": load.seconds,
        "answered": counts[ANSWERED],
        "refused": told,
        "lost": counts.total() - counts[ANSWERED] - told,
        "outcomes": dict(counts),
        "faults": struck,
    }
    path.write_text(json.dumps([*rows, row], indent=1) + "\n", encoding="utf-8")
