"""Clients that ask known questions while something happens to the service, and note how every request ended."""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import httpx

from core.errors import NotServing
from lab.model import expected_answer, questions
from serve.api.chat import parse
from tests.machines.harness import eventually

ANSWERED, WRONG = "answered", "wrong"
REFUSED = "refused"
"""It was told no before an answer began: no connection, or another status than 200."""
BROKEN = "broken"
"""It was told in the middle that there is no more: an error in the stream, or the connection broke."""
SILENT = "silent"
"""Nobody told it anything until its own patience was over."""
LOST = "lost"
"""Its stream ended as if all were well, without an end of the answer."""
MODEL = "tiny"
PAUSE = 0.5
"""Seconds before a client that was not answered asks again."""
CONNECT = 5.0


@dataclass(frozen=True)
class Door:
    """Where the API is, and the key that opens it."""

    url: str
    key: str = field(repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """What a request carries."""
        return {"Authorization": f"Bearer {self.key}"}


@dataclass
class Asked:
    """One request; times as time.time() has them, which the machines share with this host."""

    question: str
    begun: float
    ended: float | None = None
    let_in: bool = False
    """An answer began: the status was 200."""
    said: str = ""
    finish: str | None = None
    outcome: str = ""
    why: str = ""

    def over(self, outcome: str, why: str = "") -> None:
        """Note the end. What was said of an answer that broke off must be the beginning of the right one."""
        expected = expected_answer(self.question)
        assert expected is not None
        self.outcome = outcome if expected.startswith(self.said) else WRONG
        self.why = why
        self.ended = time.time()

    def complete(self) -> None:
        """Note that the stream came to its end, and judge what it said."""
        if self.finish in ("stop", "length"):
            self.over(ANSWERED if self.said == expected_answer(self.question) else WRONG, self.finish)
        elif self.finish:
            self.over(BROKEN, f"finish_reason {self.finish}")
        else:
            self.over(LOST, "the stream ended without a finish_reason")


@dataclass
class Long(Asked):
    """A request for tokens up to a number, whatever they say."""

    def over(self, outcome: str, why: str = "") -> None:
        """Note the end; nobody knows the right text."""
        self.outcome, self.why, self.ended = outcome, why, time.time()

    def complete(self) -> None:
        """Note that the stream came to its end: whole is what has all its tokens."""
        self.over(ANSWERED if self.finish == "length" else LOST, str(self.finish))


def body(question: str, **more: Any) -> dict[str, Any]:
    """Return a question as the API takes it: temperature 0, so that there is one right answer."""
    messages = [{"role": "user", "content": question}]
    return {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 128, "stream": True, **more}


class Traffic:
    """Threads that ask one question after the other, from the first right answer until the block ends."""

    def __init__(self, door: Door, *, clients: int = 4, patience: float = 60, tokens: int = 0) -> None:
        """``patience``: seconds without a byte after which a client gives up; ``tokens``: long answers of so many."""
        self.asked: list[Asked] = []
        self._door, self._patience, self._tokens = door, patience, tokens
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._ask_on, args=(number,)) for number in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        if not eventually(lambda: self.answer_since(0) is not None, 60):
            self._stop()
            raise AssertionError(f"no right answer before anything was done: {self.asked[-4:]}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def answer_since(self, moment: float) -> Asked | None:
        """Return the first request that began after ``moment`` and was answered rightly."""
        return next((one for one in tuple(self.asked) if one.begun >= moment and one.outcome == ANSWERED), None)

    def in_flight(self, first: float, last: float) -> list[Asked]:
        """Return the requests that were under way at some time of the span."""
        return [one for one in tuple(self.asked) if one.begun <= last and (one.ended is None or one.ended >= first)]

    def of(self, *outcomes: str) -> list[Asked]:
        """Return the requests that ended in one of these ways."""
        return [one for one in tuple(self.asked) if one.outcome in outcomes]

    def _stop(self) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(self._patience + 3 * CONNECT)
        assert not any(thread.is_alive() for thread in self._threads), "a request has no end"

    def _ask_on(self, number: int) -> None:
        pairs = questions()
        mine = itertools.cycle(pairs[number % len(pairs) :] + pairs[: number % len(pairs)])
        timeout = httpx.Timeout(CONNECT, read=self._patience)
        with httpx.Client(timeout=timeout, trust_env=False) as client:
            while not self._end.is_set():
                one = (Long if self._tokens else Asked)(next(mine).question, time.time())
                self.asked.append(one)
                self._ask(client, one)
                if one.outcome != ANSWERED:
                    self._end.wait(PAUSE)

    def _ask(self, client: httpx.Client, one: Asked) -> None:
        more = {"max_tokens": self._tokens, "ignore_eos": True} if self._tokens else {}
        try:
            self._stream(client, one, body(one.question, **more))
        except NotServing as error:
            one.over(BROKEN, f"{error.cause} {error.evidence}")
        except httpx.ReadTimeout as error:
            one.over(SILENT, repr(error))
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            one.over(REFUSED, repr(error))
        except httpx.HTTPError as error:
            one.over(BROKEN, repr(error))

    def _stream(self, client: httpx.Client, one: Asked, wanted: dict[str, Any]) -> None:
        with client.stream(
            "POST", f"{self._door.url}/chat/completions", headers=self._door.headers, json=wanted
        ) as reply:
            if reply.status_code != httpx.codes.OK:
                text = reply.read().decode(errors="replace")[:300]
                one.over(REFUSED, f"{reply.status_code}, Retry-After {reply.headers.get('Retry-After')}: {text}")
                return
            one.let_in = True
            for line in reply.iter_lines():
                choice = parse(line)
                one.said += (choice.get("delta") or {}).get("content") or ""
                one.finish = choice.get("finish_reason") or one.finish
        one.complete()


def not_answered(traffic: Traffic) -> list[Asked]:
    """Return the requests that had no right answer."""
    return [one for one in traffic.asked if one.outcome != ANSWERED]


def let_in_for_nothing(traffic: Traffic) -> list[Asked]:
    """Return the requests whose answer began, and did not come to its right end."""
    return [one for one in traffic.asked if one.let_in and one.outcome != ANSWERED]
