"""A question to the API and its answer, piece by piece."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.config import Cluster
from core.errors import NotServing, UsageError
from serve.chat import ask, parse
from tests.unit.loopback import Api, answering
from tests.unit.samples import local

pytestmark = pytest.mark.processes
"""A real server on this host's loopback."""


def event(content: str | None = None, finish: str | None = None, **more: Any) -> str:
    delta = {} if content is None else {"content": content}
    return "data: " + json.dumps({"choices": [{"delta": delta, "finish_reason": finish}], **more}) + "\n\n"


@contextmanager
def api(body: str, code: int = 200) -> Iterator[tuple[Cluster, Api]]:
    """Serve one answer; gives a cluster whose API is there."""
    head = local().head.model_copy(update={"local": True})
    with answering(body, code) as found:
        listen = local().api.model_copy(update={"listen": "loopback", "port": found.port})
        yield local().model_copy(update={"nodes": (head,), "api": listen}), found


def test_the_answer_comes_in_pieces_and_whole() -> None:
    stream = event("") + event("Two ") + ": ping\n\n" + event("machines.") + event(finish="stop") + "data: [DONE]\n\n"
    pieces: list[str] = []
    with api(stream) as (cluster, served):
        answer = ask(cluster, "tiny", "What is a lab?", pieces.append)
    assert answer == {"answer": "Two machines.", "finish_reason": "stop", "model": "tiny"}
    assert "".join(pieces) == "Two machines."
    ((path, body),) = served.asked
    assert path == "/v1/chat/completions"
    assert body["messages"] == [{"role": "user", "content": "What is a lab?"}]
    assert (body["model"], body["temperature"], body["stream"]) == ("tiny", 0, True)


def test_an_answer_without_a_token_is_an_error() -> None:
    with (
        api(event("") + event(finish="stop") + "data: [DONE]\n\n") as (cluster, _),
        pytest.raises(NotServing) as caught,
    ):
        ask(cluster, "tiny", "?", lambda _: None)
    assert caught.value.cause == "the API answered without a token"


def test_an_error_in_the_middle_of_the_stream_is_shown() -> None:
    """vLLM has sent code 200 when a stage is lost."""
    stream = event("Two ") + 'data: {"error": {"message": "EngineCore encountered an issue", "code": 500}}\n\n'
    with api(stream) as (cluster, _), pytest.raises(NotServing, match="the answer broke off") as caught:
        ask(cluster, "tiny", "?", lambda _: None)
    assert "EngineCore encountered an issue" in caught.value.evidence


@pytest.mark.parametrize("code", [400, 404, 500, 503])
def test_another_code_is_an_error_with_the_apis_words(code: int) -> None:
    with api('{"error": "no such model"}', code) as (cluster, _), pytest.raises(NotServing) as caught:
        ask(cluster, "tiny", "?", lambda _: None)
    assert caught.value.cause == f"the API answered {code}"
    assert "no such model" in caught.value.evidence


def test_an_api_that_is_not_there_is_named() -> None:
    with api("") as (cluster, _):
        pass
    with pytest.raises(NotServing, match=r"no answer from http://127\.0\.0\.1:\d+/v1") as caught:
        ask(cluster, "tiny", "?", lambda _: None)
    assert caught.value.node == "lab-a"


def test_a_proxy_of_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://198.18.0.1:1")
    with api(event("yes")) as (cluster, _):
        assert ask(cluster, "tiny", "?", lambda _: None)["answer"] == "yes"


def test_an_api_on_the_heads_own_loopback_is_reached_through_a_tunnel() -> None:
    listen = local().api.model_copy(update={"listen": "loopback"})
    with pytest.raises(UsageError) as caught:
        ask(local().model_copy(update={"api": listen}), "tiny", "?", lambda _: None)
    assert caught.value.next_move == "open a tunnel: ssh -L 8000:127.0.0.1:8000 spark@198.18.34.100"


@pytest.mark.parametrize(
    "line", ["", ": comment", "event: x", "data: [DONE]", 'data: {"usage": {}}', 'data: {"choices": []}']
)
def test_a_line_without_a_choice_is_empty(line: str) -> None:
    assert parse(line) == {}


@given(st.text())
def test_a_piece_comes_back_as_it_was(text: str) -> None:
    assert parse(event(text).strip())["delta"]["content"] == text
    assert parse(event(text).strip().replace("data: ", "data:", 1))["delta"]["content"] == text


JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["choices", "error", "delta"]), inner),
)


@given(st.one_of(st.text(), JSON.map(json.dumps)))
def test_any_line_is_read_or_refused(line: str) -> None:
    for text in (line, f"data: {line}"):
        with contextlib.suppress(NotServing):
            assert isinstance(parse(text), dict)
