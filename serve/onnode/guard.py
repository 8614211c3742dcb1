"""The guard before the API: nobody without a key; counts requests in flight; lets none in while the service drains.

vLLM takes it as `--middleware serve.onnode.guard.Guard`. vLLM's own key would stand in argv or the environment, guards
the paths below /v1 only (https://docs.vllm.ai/en/latest/usage/security/) and needs a restart for a new one. Here keys
are known by their SHA-256 alone: of 256 random bits that tells nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import os
import re
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from pathlib import Path
from typing import Any, TypeAlias

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

HEALTH, METRICS, LIVE = "/health", "/metrics", "/sparkstack/live"
RETRY_AFTER = 30
"""Seconds after which a client that is turned away while the service drains may come again."""
FADES = 30
"""Seconds after which a sign to drain that nobody renews says nothing any more."""
READ_ON = 16 * 1024**2
READ_ON_SECONDS = 5
"""How much of a question is taken before it is refused, and for how long."""
API, MONITOR, PROBE = "api-key", "monitor-key", "probe"
"""Who asks; the first two are names in credentials.json."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_POLICY_VIOLATION, _TRY_AGAIN_LATER = 1008, 1013
"""Codes of a closed WebSocket (https://www.iana.org/assignments/websocket/)."""


class Watched:
    """Fingerprints out of a small file, read again when the file has changed: a look at it costs microseconds.

    A file that is missing or cannot be read gives none, so that nobody is let in.
    """

    def __init__(self, path: Path | None, parse: Callable[[str], dict[str, str]]) -> None:
        self._path = path
        self._parse = parse
        self._seen: tuple[int, ...] | None = None
        self._found: dict[str, str] = {}

    def __call__(self) -> dict[str, str]:
        """Return the fingerprints as they are now: name to SHA-256 in hex."""
        seen = self._look()
        if seen is None:
            self._seen, self._found = None, {}
        elif seen != self._seen:
            self._seen, self._found = seen, self._read()
        return self._found

    def _look(self) -> tuple[int, ...] | None:
        try:
            state = self._path.stat() if self._path else None
        except OSError:
            return None
        return state and (state.st_mtime_ns, state.st_ctime_ns, state.st_ino, state.st_size)

    def _read(self) -> dict[str, str]:
        try:
            found = self._parse(self._path.read_text(encoding="utf-8")) if self._path else {}
        except (OSError, ValueError):
            return {}
        return {name: digest for name, digest in found.items() if _DIGEST.fullmatch(digest)}


def credentials(text: str) -> dict[str, str]:
    """Return the fingerprints in credentials.json; raises ValueError when it is no JSON object."""
    data = json.loads(text)
    if not isinstance(data, dict):
        raise ValueError("not an object")
    return {name: digest for name, digest in data.items() if isinstance(digest, str)}


def probe(text: str) -> dict[str, str]:
    """Return the fingerprint of the key that the unit's own probe made for itself."""
    return {PROBE: text.strip()}


def bearer(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """Return the key of an Authorization header (RFC 6750); None without one, and with two: which would count?"""
    values = [value for name, value in headers if name.lower() == b"authorization"]
    if len(values) != 1:
        return None
    scheme, _, key = values[0].strip().partition(b" ")
    return key.strip() or None if scheme.lower() == b"bearer" else None


def bearer_name(key: bytes | None, known: Iterable[tuple[str, str]]) -> str | None:
    """Return whose key this is. Every fingerprint is compared, each in constant time."""
    digest = hashlib.sha256(key or b"").hexdigest()
    matching = [name for name, expected in known if hmac.compare_digest(digest, expected)]
    return matching[0] if key and matching else None


def may(who: str | None, method: str, path: str) -> bool:
    """Whether this one may do this: the monitor may read metrics, the unit's own probe and the users all."""
    return who in (API, PROBE) or (who == MONITOR and (method, path) == ("GET", METRICS))


def draining(sign: Path) -> bool:
    """Whether the sign to drain is there and was given lately: who gave it may have gone, and the service goes on."""
    try:
        return time.time() - sign.stat().st_mtime < FADES
    except OSError:
        return False


class Guard:
    """An ASGI application around another one (https://asgi.readthedocs.io/en/latest/specs/www.html)."""

    def __init__(self, app: App) -> None:
        self._app = app
        folder = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
        named = os.environ.get("SPARKSTACK_CREDENTIALS", "/etc/sparkstack/credentials.json")
        self._credentials = Watched(Path(named), credentials)
        self._probe = Watched(Path(folder, "probe.sha256") if folder else None, probe)
        self._drain = Path(os.environ.get("SPARKSTACK_DRAIN", "/run/sparkstack/drain"))
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through to the application, or answer it here."""
        kind = scope["type"]
        if kind == "lifespan" or (kind == "http" and _is_health(scope)):
            await self._app(scope, receive, send)
        elif kind == "http":
            await self._http(scope, receive, send)
        elif kind == "websocket":
            await self._websocket(scope, receive, send)
        else:
            raise ValueError(f"a kind of connection that nobody guards: {kind}")

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path, who = scope["method"], scope["path"], self._who(scope)
        if not may(who, method, path):
            await _read_on(receive)
            await _refuse(send)
        elif (method, path) == ("GET", LIVE):
            await _answer(send, 200, {"in_flight": self._in_flight, "draining": self._draining()})
        elif (method, path) == ("GET", METRICS) or who == PROBE:
            await self._app(scope, receive, send)
        elif self._draining():
            await _read_on(receive)
            await _turn_away(send)
        else:
            await self._counted(scope, receive, send)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not may(self._who(scope), "WEBSOCKET", scope["path"]):
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
        elif self._draining():
            await send({"type": "websocket.close", "code": _TRY_AGAIN_LATER})
        else:
            await self._counted(scope, receive, send)

    async def _counted(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count a request until the application is done with it: its body was sent, broke off, or nobody wants it."""
        self._in_flight += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._in_flight -= 1

    def _who(self, scope: Scope) -> str | None:
        return bearer_name(bearer(scope["headers"]), [*self._credentials().items(), *self._probe().items()])

    def _draining(self) -> bool:
        return draining(self._drain)


def _is_health(scope: Scope) -> bool:
    return scope["path"] == HEALTH and scope["method"] in ("GET", "HEAD")


async def _read_on(receive: Receive) -> None:
    """Take the rest of a question that gets no answer: a client, or a proxy, that still sends sees a reset instead."""
    left, more = READ_ON, True
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(READ_ON_SECONDS):
            while more and left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                more = message["type"] == "http.request" and message.get("more_body", False)


async def _refuse(send: Send) -> None:
    message = "A key is needed, or this one is not right: send it as `Authorization: Bearer KEY`."
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": "invalid_api_key"}
    await _answer(send, 401, {"error": error}, (b"www-authenticate", b"Bearer"))


async def _turn_away(send: Send) -> None:
    message = f"The service is about to stop and takes no new requests; try again in {RETRY_AFTER} seconds."
    error = {"message": message, "type": "server_error", "param": None, "code": "draining"}
    await _answer(send, 503, {"error": error}, (b"retry-after", str(RETRY_AFTER).encode()))


async def _answer(send: Send, code: int, data: object, *headers: tuple[bytes, bytes]) -> None:
    body = json.dumps(data).encode()
    own = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": code, "headers": [*own, *headers]})
    await send({"type": "http.response.body", "body": body})
