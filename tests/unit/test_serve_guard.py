"""The guard before the API: who is let in, who is counted, who is turned away. The application is driven directly."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve.onnode import guard as module
from serve.onnode.guard import FADES, App, Guard, Receive, Scope, Send, bearer, draining

KEY, MONITOR, LINK, PROBE = ("a" * 64, "b" * 64, "c" * 64, "d" * 64)
Headers = list[tuple[bytes, bytes]]


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def authorized(key: str) -> Headers:
    return [(b"host", b"head:8000"), (b"authorization", f"Bearer {key}".encode())]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node's folder with credentials.json and probe.sha256; `drain` in it is the sign to drain."""
    write_credentials(tmp_path, KEY)
    (tmp_path / "probe.sha256").write_text(digest(PROBE) + "\n")
    monkeypatch.setenv("SPARKSTACK_CREDENTIALS", str(tmp_path / "credentials.json"))
    monkeypatch.setenv("SPARKSTACK_DRAIN", str(tmp_path / "drain"))
    monkeypatch.setenv("RUNTIME_DIRECTORY", f"{tmp_path}:/run/another")
    return tmp_path


def write_credentials(folder: Path, key: str) -> None:
    """Replace the file as a plan's Write does: beside it, then rename."""
    names = {"api-key": key, "monitor-key": MONITOR, "link-key": LINK}
    (folder / "new").write_text(json.dumps({name: digest(value) for name, value in names.items()}))
    (folder / "new").rename(folder / "credentials.json")


class Answer:
    """What was sent back."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    @property
    def data(self) -> Any:
        return json.loads(b"".join(message["body"] for message in self.sent[1:]))


async def hello(_: Scope, __: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b'{"answer": "hello"}'})


async def nothing_more() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


async def get(guard: Guard, path: str, headers: Headers | None = None, method: str = "GET") -> Answer:
    answer = Answer()
    scope = {"type": "http", "method": method, "path": path, "headers": headers or []}
    await guard(scope, nothing_more, answer.send)
    return answer


def asked(path: str, headers: Headers | None = None, method: str = "GET", app: App = hello) -> Answer:
    return asyncio.run(get(Guard(app), path, headers, method))


OPENS = {
    "/v1/models": {KEY, PROBE},
    "/v1/chat/completions": {KEY, PROBE},
    "/metrics": {KEY, PROBE, MONITOR},
    "/sparkstack/live": {KEY, PROBE},
    "/docs": {KEY, PROBE},
    "/health/": {KEY, PROBE},
    "//health": {KEY, PROBE},
    "/v1/../health": {KEY, PROBE},
    "/health": {KEY, PROBE, MONITOR, LINK, "wrong", ""},
}


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("path", OPENS)
@pytest.mark.parametrize("key", [KEY, PROBE, MONITOR, LINK, "wrong", ""])
def test_a_key_opens_what_it_is_for(path: str, key: str) -> None:
    assert asked(path, authorized(key)).status == (200 if key in OPENS[path] else 401)


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("path", sorted(OPENS.keys() - {"/health"}))
def test_nobody_is_let_in_without_a_key(path: str) -> None:
    assert asked(path).status == 401


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/metrics"), ("HEAD", "/metrics"), ("GET", "/metrics/"), ("GET", "/v1/models"), ("OPTIONS", "/metrics")],
)
def test_the_monitors_key_reads_metrics_and_nothing_else(method: str, path: str) -> None:
    assert asked("/metrics", authorized(MONITOR)).status == 200
    assert asked(path, authorized(MONITOR), method).status == 401


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("method", ["POST", "OPTIONS", "DELETE", "get", "CONNECT"])
def test_only_reading_the_health_is_free(method: str) -> None:
    assert asked("/health", method=method).status == 401
    assert asked("/v1/models", method=method).status == 401


@pytest.mark.usefixtures("place")
def test_a_refusal_has_the_form_that_openai_clients_read_and_reaches_no_application() -> None:
    async def never(*_: Any) -> None:
        pytest.fail("the application was asked")

    answer = asked("/v1/models", authorized("wrong"), app=never)
    assert (answer.status, answer.data["error"]["code"]) == (401, "invalid_api_key")
    assert answer.data["error"]["type"] == "invalid_request_error"
    assert answer.headers[b"www-authenticate"] == b"Bearer"
    assert answer.headers[b"content-length"] == str(len(answer.sent[1]["body"])).encode()
    assert b"wrong" not in answer.sent[1]["body"]


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    "value",
    ["Bearer", "Bearer ", f"Basic {KEY}", KEY, f"Bearer {KEY}x", f"Bearer {KEY[1:]}", f"Bearer {KEY},", digest(KEY)],
)
def test_what_is_no_bearer_of_the_key_is_refused(value: str) -> None:
    assert asked("/v1/models", [(b"authorization", value.encode())]).status == 401


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("value", [f"bearer {KEY}", f"BEARER   {KEY} ", f" Bearer {KEY}"])
def test_the_schemes_case_and_spaces_do_not_count(value: str) -> None:
    assert asked("/v1/models", [(b"Authorization", value.encode())]).status == 200


@pytest.mark.usefixtures("place")
def test_a_fingerprint_is_no_key() -> None:
    assert asked("/v1/models", authorized(digest(KEY))).status == 401


@pytest.mark.usefixtures("place")
def test_two_authorizations_are_none() -> None:
    assert asked("/v1/models", [*authorized(KEY), *authorized(KEY)]).status == 401


@pytest.mark.usefixtures("place")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from([b"authorization", b"Authorization", b"cookie"]), st.binary()), max_size=3))
def test_any_headers_without_the_key_are_refused(headers: Headers) -> None:
    assert asked("/v1/models", headers).status == 401


@given(st.binary(min_size=1).filter(lambda key: key == key.strip()))
def test_a_key_of_any_bytes_is_taken_as_it_is(key: bytes) -> None:
    assert bearer([(b"authorization", b"Bearer " + key)]) == key


async def endless() -> dict[str, Any]:
    return {"type": "http.request", "body": b"x" * 1024**2, "more_body": True}


def in_pieces(messages: list[dict[str, Any]]) -> Receive:
    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    return receive


@pytest.mark.parametrize("key", [KEY, "wrong"])
def test_a_question_that_is_refused_is_read_to_its_end_first_but_not_for_ever(key: str, place: Path) -> None:
    (place / "drain").touch()
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": authorized(key)}
    pieces: list[dict[str, Any]] = [{"type": "http.request", "body": b"x", "more_body": True}] * 3
    pieces += [{"type": "http.request"}, {"type": "more than that is not asked for"}]
    gone = [{"type": "http.request", "more_body": True}, {"type": "http.disconnect"}]
    for receive in (in_pieces(pieces), in_pieces(gone), endless):
        answer = Answer()
        asyncio.run(_awaited(Guard(hello)(scope, receive, answer.send)))
        assert answer.status == (503 if key == KEY else 401)
    assert len(pieces) == 1
    assert not gone


@pytest.mark.usefixtures("place")
def test_a_question_that_never_comes_is_refused_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READ_ON_SECONDS", 0.01)

    async def silent() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    answer = Answer()
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": authorized("wrong")}
    asyncio.run(_awaited(Guard(hello)(scope, silent, answer.send)))
    assert answer.status == 401


def test_a_new_key_counts_at_once_and_the_old_one_no_more(place: Path) -> None:
    async def rotated() -> list[int]:
        guard = Guard(hello)
        before = await get(guard, "/v1/models", authorized(KEY))
        write_credentials(place, "e" * 64)
        after = [await get(guard, "/v1/models", authorized(key)) for key in (KEY, "e" * 64, KEY, PROBE)]
        return [answer.status for answer in (before, *after)]

    assert asyncio.run(rotated()) == [200, 401, 200, 401, 200]


def break_json(file: Path) -> None:
    file.write_text('{"api-key": ')


def forge_types(file: Path) -> None:
    file.write_text(json.dumps({"api-key": [digest(KEY)], "monitor-key": None}))


def make_list(file: Path) -> None:
    file.write_text(json.dumps([digest(KEY)]))


def hold_empty(file: Path) -> None:
    file.write_text(json.dumps({"api-key": "", "monitor-key": "0"}))


def write_bytes(file: Path) -> None:
    file.write_bytes(b"\xff\xfe")


@pytest.mark.parametrize("damage", [Path.unlink, break_json, forge_types, make_list, hold_empty, write_bytes])
def test_credentials_that_cannot_be_read_let_nobody_in_until_they_can(
    place: Path, damage: Callable[[Path], None]
) -> None:
    async def damaged() -> list[int]:
        guard = Guard(hello)
        found = [await get(guard, "/v1/models", authorized(KEY))]
        damage(place / "credentials.json")
        found += [await get(guard, "/v1/models", authorized(key)) for key in (KEY, "", MONITOR)]
        found += [await get(guard, "/v1/models", authorized(PROBE))]
        write_credentials(place, KEY)
        return [answer.status for answer in (*found, await get(guard, "/v1/models", authorized(KEY)))]

    assert asyncio.run(damaged()) == [200, 401, 401, 401, 200, 200]


def test_without_a_runtime_folder_there_is_no_probe(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNTIME_DIRECTORY")
    monkeypatch.chdir(place)
    assert asked("/v1/models", authorized(PROBE)).status == 401
    assert asked("/v1/models", authorized(KEY)).status == 200


class Stream:
    """An application whose answer goes on until it is told to end, breaks, or its client has gone."""

    def __init__(self) -> None:
        self.end = asyncio.Event()
        self.broken = False

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        gone = asyncio.ensure_future(receive())
        ended = asyncio.ensure_future(self.end.wait())
        await asyncio.wait({gone, ended}, return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        ended.cancel()
        if self.broken:
            raise ConnectionError("a stage was lost")
        await send({"type": "http.response.body", "body": b""})


async def begun(
    guard: Guard, kind: str = "http", headers: Headers | None = None
) -> tuple[asyncio.Task[None], asyncio.Event]:
    """Begin a streamed answer; gives its task and the event that its client is gone."""
    gone = asyncio.Event()

    async def receive() -> dict[str, Any]:
        await gone.wait()
        return {"type": f"{kind}.disconnect"}

    scope = {"type": kind, "method": "POST", "path": "/v1/completions", "headers": headers or authorized(KEY)}
    task = asyncio.ensure_future(guard(scope, receive, Answer().send))
    await asyncio.sleep(0)
    return task, gone


async def in_flight(guard: Guard) -> int:
    answer = await get(guard, "/sparkstack/live", authorized(PROBE))
    return int(answer.data["in_flight"])


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("ending", ["whole", "broken", "client gone", "cancelled"])
def test_a_request_is_in_flight_until_its_streamed_body_has_ended_somehow(ending: str) -> None:
    async def counted() -> tuple[list[int], BaseException | None]:
        stream = Stream()
        guard = Guard(stream)
        (first, gone), (second, _) = await begun(guard), await begun(guard)
        counts = [await in_flight(guard)]
        if ending == "client gone":
            gone.set()
        elif ending == "cancelled":
            first.cancel()
        else:
            stream.broken = ending == "broken"
            stream.end.set()
        await asyncio.wait({first})
        counts.append(await in_flight(guard))
        stream.end.set()
        await asyncio.wait({second})
        return [*counts, await in_flight(guard)], None if first.cancelled() else first.exception()

    counts, error = asyncio.run(counted())
    assert counts == [2, 0 if ending in {"whole", "broken"} else 1, 0]
    assert isinstance(error, ConnectionError) == (ending == "broken")


@pytest.mark.usefixtures("place")
def test_what_was_refused_and_what_our_own_probe_asks_is_not_counted() -> None:
    async def counted() -> list[int]:
        stream = Stream()
        guard = Guard(stream)
        await get(guard, "/v1/completions", authorized("wrong"), "POST")
        tasks = [(await begun(guard, headers=authorized(key)))[0] for key in (PROBE, KEY)]
        found = await in_flight(guard)
        stream.end.set()
        await asyncio.gather(*tasks)
        return [found, await in_flight(guard)]

    assert asyncio.run(counted()) == [1, 0]


DRAINED = {
    ("/v1/models", KEY): 503,
    ("/v1/models", "wrong"): 401,
    ("/v1/models", PROBE): 200,
    ("/metrics", KEY): 200,
    ("/metrics", MONITOR): 200,
    ("/sparkstack/live", KEY): 200,
    ("/health", ""): 200,
}


@pytest.mark.parametrize(("path", "key"), DRAINED)
def test_while_the_service_drains_no_new_request_is_let_in(path: str, key: str, place: Path) -> None:
    (place / "drain").touch()
    assert asked(path, authorized(key)).status == DRAINED[path, key]


def test_who_is_turned_away_is_told_when_to_come_again(place: Path) -> None:
    (place / "drain").touch()
    answer = asked("/v1/models", authorized(KEY))
    assert answer.headers[b"retry-after"] == b"30"
    assert answer.data["error"]["code"] == "draining"


def test_a_sign_to_drain_that_nobody_renews_fades(place: Path) -> None:
    """Who gave it has gone: its controller lost power, say, and the service goes on."""
    (place / "drain").touch()
    assert draining(place / "drain")
    old = time.time() - FADES
    os.utime(place / "drain", (old, old))
    assert not draining(place / "drain")
    assert asked("/v1/models", authorized(KEY)).status == 200


def test_what_runs_when_the_draining_begins_ends_in_peace_and_after_it_all_is_as_before(place: Path) -> None:
    async def drained() -> list[Any]:
        stream = Stream()
        guard = Guard(stream)
        task, _ = await begun(guard)
        (place / "drain").touch()
        live = (await get(guard, "/sparkstack/live", authorized(KEY))).data
        turned_away = (await get(guard, "/v1/models", authorized(KEY))).status
        stream.end.set()
        await task
        (place / "drain").unlink()
        return [live, turned_away, (await get(guard, "/v1/models", authorized(KEY))).status, await in_flight(guard)]

    assert asyncio.run(drained()) == [{"in_flight": 1, "draining": True}, 503, 200, 0]


def websocket(guard: Guard, key: str) -> list[Any]:
    answer = Answer()
    scope = {"type": "websocket", "path": "/v1/realtime", "headers": authorized(key)}
    asyncio.run(_awaited(guard(scope, nothing_more, answer.send)))
    return answer.sent


async def _awaited(call: Awaitable[None]) -> None:
    await call


async def accepting(_: Scope, __: Receive, send: Send) -> None:
    await send({"type": "websocket.accept"})


def test_a_websocket_needs_the_key_too_and_none_is_opened_while_draining(place: Path) -> None:
    guard = Guard(accepting)
    assert websocket(guard, KEY) == [{"type": "websocket.accept"}]
    for key in ("wrong", MONITOR, LINK):
        assert websocket(guard, key) == [{"type": "websocket.close", "code": 1008}]
    (place / "drain").touch()
    assert websocket(guard, KEY) == [{"type": "websocket.close", "code": 1013}]


def test_a_websocket_is_in_flight_while_it_is_open(place: Path) -> None:
    async def counted() -> list[int]:
        stream = Stream()
        guard = Guard(stream)
        task, gone = await begun(guard, "websocket")
        counts = [await in_flight(guard)]
        gone.set()
        await task
        return [*counts, await in_flight(guard)]

    assert place.is_dir()
    assert asyncio.run(counted()) == [1, 0]


def test_the_applications_own_start_and_end_pass_and_what_nobody_knows_does_not() -> None:
    seen: list[str] = []

    async def app(scope: Scope, _: Receive, __: Send) -> None:
        seen.append(scope["type"])

    asyncio.run(_awaited(Guard(app)({"type": "lifespan"}, nothing_more, Answer().send)))
    with pytest.raises(ValueError, match="telepathy"):
        asyncio.run(_awaited(Guard(app)({"type": "telepathy"}, nothing_more, Answer().send)))
    assert seen == ["lifespan"]


def test_a_file_is_read_again_only_when_it_has_changed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    real = Path.read_text

    def counted(self: Path, *args: Any, **more: Any) -> str:
        reads.append(self.name)
        return real(self, *args, **more)

    monkeypatch.setattr(Path, "read_text", counted)

    async def often() -> None:
        guard = Guard(hello)
        for _ in range(5):
            await get(guard, "/v1/models", authorized(KEY))
        write_credentials(place, KEY)
        for _ in range(5):
            await get(guard, "/v1/models", authorized(KEY))

    asyncio.run(often())
    assert reads == ["credentials.json", "probe.sha256", "credentials.json"]
