"""A question to the API and its answer, piece by piece."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import AuthenticationRefused, NotConverged, NotServing, UsageError
from core.host import SudoPassword
from core.local import LocalHost
from core.process import Completed
from serve.api.chat import ask, parse
from serve.api.endpoint import Endpoint, find, read_key
from serve.api.keys import fingerprint
from tests.unit.loopback import Api, answering
from tests.unit.samples import local

pytestmark = pytest.mark.processes
"""A real server on this host's loopback."""

KEY = "a" * 64


def event(content: str | None = None, finish: str | None = None, **more: Any) -> str:
    delta = {} if content is None else {"content": content}
    return "data: " + json.dumps({"choices": [{"delta": delta, "finish_reason": finish}], **more}) + "\n\n"


@contextmanager
def api(body: str, code: int = 200) -> Iterator[tuple[Endpoint, Api]]:
    """Serve one answer; gives where, and what it is asked."""
    with answering(body, code) as found:
        yield Endpoint("lab-a", found.url, KEY), found


def test_the_answer_comes_in_pieces_and_whole() -> None:
    stream = event("") + event("Two ") + ": ping\n\n" + event("machines.") + event(finish="stop") + "data: [DONE]\n\n"
    pieces: list[str] = []
    with api(stream) as (endpoint, served):
        answer = ask(endpoint, "tiny", "What is a lab?", pieces.append)
    assert answer == {"answer": "Two machines.", "finish_reason": "stop", "model": "tiny"}
    assert "".join(pieces) == "Two machines."
    ((path, body),) = served.asked
    assert path == "/v1/chat/completions"
    assert body["messages"] == [{"role": "user", "content": "What is a lab?"}]
    assert (body["model"], body["temperature"], body["stream"]) == ("tiny", 0, True)
    assert served.authorizations == [f"Bearer {KEY}"]


def test_an_answer_without_a_token_is_an_error() -> None:
    with (
        api(event("") + event(finish="stop") + "data: [DONE]\n\n") as (endpoint, _),
        pytest.raises(NotServing) as caught,
    ):
        ask(endpoint, "tiny", "?", lambda _: None)
    assert caught.value.cause == "the API answered without a token"


def test_an_error_in_the_middle_of_the_stream_is_shown() -> None:
    """vLLM has sent code 200 when a stage is lost."""
    stream = event("Two ") + 'data: {"error": {"message": "EngineCore encountered an issue", "code": 500}}\n\n'
    with api(stream) as (endpoint, _), pytest.raises(NotServing, match="the answer broke off") as caught:
        ask(endpoint, "tiny", "?", lambda _: None)
    assert "EngineCore encountered an issue" in caught.value.evidence


def test_a_stream_that_ends_without_saying_why_is_no_answer() -> None:
    with api(event("Two ")) as (endpoint, _), pytest.raises(NotServing, match="the answer broke off"):
        ask(endpoint, "tiny", "?", lambda _: None)


@pytest.mark.parametrize("code", [400, 404, 500, 503])
def test_another_code_is_an_error_with_the_apis_words(code: int) -> None:
    with api('{"error": "no such model"}', code) as (endpoint, _), pytest.raises(NotServing) as caught:
        ask(endpoint, "tiny", "?", lambda _: None)
    assert caught.value.cause == f"the API answered {code}"
    assert "no such model" in caught.value.evidence


def test_an_api_that_is_not_there_is_named() -> None:
    with api("") as (endpoint, _):
        pass
    with pytest.raises(NotServing, match=r"no answer from http://127\.0\.0\.1:\d+/v1") as caught:
        ask(endpoint, "tiny", "?", lambda _: None)
    assert caught.value.node == "lab-a"


def test_a_proxy_of_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://198.18.0.1:1")
    with api(event("yes", "stop")) as (endpoint, _):
        assert ask(endpoint, "tiny", "?", lambda _: None)["answer"] == "yes"


def test_a_key_that_is_not_the_apis_is_said_to_be_so() -> None:
    with api('{"error": {"message": "?"}}', 401) as (endpoint, _), pytest.raises(AuthenticationRefused) as caught:
        ask(endpoint, "tiny", "?", lambda _: None)
    assert "invoke key.show" in caught.value.next_move
    assert KEY not in str(caught.value)


def test_a_key_of_any_letters_is_sent_as_it_is() -> None:
    with api(event("yes", "stop")) as (endpoint, served):
        ask(replace(endpoint, key="schlüssel"), "tiny", "?", lambda _: None)
    assert served.authorizations == ["Bearer schlüssel".encode().decode("latin-1")]


class Head(LocalHost):
    """This host as a head whose files lie below a folder; knows what was read as root."""

    def __init__(self, folder: Path) -> None:
        super().__init__("lab-a", SudoPassword(None))
        self._folder = folder
        self.as_root: list[str] = []

    def run(self, argv: Sequence[str], *, privileged: bool = False, **options: Any) -> Completed:
        program, path = argv
        self.as_root += [path] if privileged else []
        return super().run((program, f"{self._folder}{path}"), **options)

    def put(self, path: str, text: str) -> None:
        file = Path(f"{self._folder}{path}")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


@pytest.fixture
def head(tmp_path: Path) -> Head:
    """A head that serves."""
    found = Head(tmp_path)
    found.put("/etc/sparkstack/credentials/api-key", KEY + "\n")
    found.put("/etc/sparkstack/credentials.json", json.dumps({"api-key": fingerprint(KEY)}))
    return found


def test_the_key_is_read_as_root_and_shown_in_no_repr(head: Head) -> None:
    endpoint = find(local(), head)
    assert (endpoint.url, endpoint.key, endpoint.root) == (local().api_url, KEY, "")
    assert head.as_root == ["/etc/sparkstack/credentials/api-key"]
    assert KEY not in repr(endpoint)


def test_a_key_that_was_given_is_taken_and_none_is_read(head: Head) -> None:
    assert find(local(), head, " mine\n").key == "mine"
    assert not head.as_root


def test_a_head_that_has_no_key_is_told_to_serve(tmp_path: Path) -> None:
    with pytest.raises(NotServing) as caught:
        find(local(), Head(tmp_path))
    assert (caught.value.node, caught.value.next_move) == ("lab-a", "invoke serve --cluster local")


def test_a_key_whose_change_was_cut_off_is_not_handed_out(head: Head) -> None:
    head.put("/etc/sparkstack/credentials/api-key", "b" * 64 + "\n")
    with pytest.raises(NotConverged) as caught:
        read_key(local(), head)
    assert caught.value.next_move == "invoke key.rotate --cluster local"


def test_what_was_served_last_says_where_the_api_is(head: Head) -> None:
    head.put("/etc/sparkstack/service.json", json.dumps({"api": {"url": "https://lab-a:8000/v1", "tls": True}}))
    head.put("/run/sparkstack-proxy/root.crt", "a certificate")
    endpoint = find(local(), head)
    assert (endpoint.url, endpoint.root) == ("https://lab-a:8000/v1", "a certificate")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"api": {}}', '{"api": 1}', "null"])
def test_a_service_that_cannot_be_read_is_an_error(text: str, head: Head) -> None:
    head.put("/etc/sparkstack/service.json", text)
    with pytest.raises(NotServing, match="cannot be read"):
        find(local(), head)


def test_an_api_on_the_heads_own_loopback_is_reached_through_a_tunnel_and_no_key_is_read(head: Head) -> None:
    listen = local().api.model_copy(update={"listen": "loopback"})
    with pytest.raises(UsageError) as caught:
        find(local().model_copy(update={"api": listen}), head)
    assert caught.value.next_move == "open a tunnel: ssh -L 8000:127.0.0.1:8000 spark@198.18.34.100"
    assert not head.as_root


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
