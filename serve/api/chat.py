"""One question to the OpenAI API, the answer as it comes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import httpx

from core.errors import AuthenticationRefused, NotServing, SparkstackError
from serve.api.endpoint import Endpoint

TIMEOUT = httpx.Timeout(10, read=300)
"""Seconds; a loaded pair may take long for the first token (the guide's P99 is over 12 s)."""


def ask(endpoint: Endpoint, model: str, prompt: str, on_piece: Callable[[str], None]) -> dict[str, Any]:
    """Ask for a completion at temperature 0; hand on each piece; return {"answer", "finish_reason", "model"}.

    Raises NotServing when there is no API or no token, AuthenticationRefused when the key is not the API's.
    """
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "max_tokens": 256,
        "stream": True,
    }
    try:
        return _streamed(endpoint, body, on_piece)
    except httpx.HTTPError as error:
        raise NotServing(
            f"no answer from {endpoint.url}: {error or type(error).__name__}",
            node=endpoint.node,
            next_move="invoke status shows what runs; invoke serve starts it",
        ) from error


def _streamed(endpoint: Endpoint, body: dict[str, Any], on_piece: Callable[[str], None]) -> dict[str, Any]:
    pieces: list[str] = []
    finish = None
    with (
        # trust_env off: a proxy of the environment has no business between us and our own machines
        httpx.Client(timeout=TIMEOUT, trust_env=False, verify=endpoint.verification()) as client,
        client.stream("POST", f"{endpoint.url}/chat/completions", headers=_headers(endpoint), json=body) as reply,
    ):
        if reply.status_code != httpx.codes.OK:
            raise _refused(endpoint, reply.status_code, reply.read().decode(errors="replace"))
        for line in reply.iter_lines():
            choice = parse(line)
            piece = (choice.get("delta") or {}).get("content") or ""
            finish = choice.get("finish_reason") or finish
            pieces.append(piece)
            on_piece(piece)
    if not any(pieces):
        raise NotServing("the API answered without a token", node=endpoint.node, next_move="invoke logs")
    if finish is None:  # a proxy may end what was cut off behind it as if it were whole
        raise NotServing("the answer broke off", node=endpoint.node, next_move="invoke logs")
    return {"answer": "".join(pieces), "finish_reason": finish, "model": body["model"]}


def _headers(endpoint: Endpoint) -> dict[bytes, bytes]:
    return {b"Authorization": b"Bearer " + endpoint.key.encode()}


def _refused(endpoint: Endpoint, code: int, text: str) -> SparkstackError:
    if code == httpx.codes.UNAUTHORIZED:
        next_move = "invoke key.show prints the key; is SPARKSTACK_API_KEY set to another?"
        return AuthenticationRefused("the API does not know this key", node=endpoint.node, next_move=next_move)
    return NotServing(f"the API answered {code}", node=endpoint.node, next_move="invoke logs", evidence=text[:500])


def parse(line: str) -> Mapping[str, Any]:
    """Parse a line of server-sent events to its first choice; empty for a line without one (blank, usage, [DONE]).

    Raises NotServing for an error in the stream: a stage that is lost in the middle of an answer comes with code 200.
    """
    data = line.removeprefix("data:").strip()
    if not line.startswith("data:") or data == "[DONE]":
        return {}
    try:
        event: Mapping[str, Any] = json.loads(data)
        first: Mapping[str, Any] = {**(event.get("choices") or [{}])[0]}
    except (ValueError, AttributeError, TypeError, LookupError) as broken:
        raise NotServing("the API sent what is no event", next_move="invoke logs", evidence=data[:500]) from broken
    if event.get("error"):
        raise NotServing("the answer broke off", next_move="invoke logs", evidence=json.dumps(event["error"])[:500])
    return first
