"""HTTPS before the API, by a real Caddy on this host's loopback: who listens, what is checked, what is passed on."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from socketserver import BaseRequestHandler, ThreadingTCPServer
from threading import Event, Thread
from typing import Any

import httpx
import pytest

from core.config import Address, Cluster, Tls
from core.errors import NotServing, UnfitNode, UsageError
from serve.api import chat
from serve.api.chat import ask
from serve.api.endpoint import Endpoint
from serve.api.tls import CADDYFILE, PACKAGE, PROXY, ROOT_CERTIFICATE, UNIT, caddyfile, proxy_files, require_proxy
from tests.unit.samples import lab_facts, local
from tests.unit.systemd_rules import exec_words, unit_values

ENGINE = "127.0.0.2"
"""In place of the head's loopback, which is the proxy's side here."""
KEY = "a" * 64
FILES = Tls(certificate=Path("/etc/ssl/fullchain.pem"), key=Path("/etc/ssl/private/key.pem"), name="spark.example")


def with_files() -> Cluster:
    return local().model_copy(update={"api": local().api.model_copy(update={"tls": FILES})})


def unit_of(cluster: Cluster) -> str:
    return proxy_files(cluster, "made by a test")[UNIT]


CLUSTERS = {"internal": local().with_tls(), "files": with_files()}


class TestPlan:
    def test_without_tls_there_is_no_proxy(self) -> None:
        assert proxy_files(local(), "") == {}
        require_proxy(local(), lab_facts())

    def test_vllm_has_the_loopback_and_the_proxy_the_address(self) -> None:
        cluster = local().with_tls()
        assert cluster.api_url == "https://198.18.34.100:8000/v1"
        assert cluster.engine_url == "http://127.0.0.1:8000/v1"
        text = proxy_files(cluster, "")[CADDYFILE]
        assert re.findall(r"^\tbind (.*)$", text, re.MULTILINE) == ["198.18.34.100"] * 2
        assert re.findall(r"reverse_proxy (\S+)", text) == ["127.0.0.1:8000"]

    def test_without_tls_vllm_has_the_address_itself(self) -> None:
        assert local().engine_url == local().api_url == "http://198.18.34.100:8000/v1"

    def test_a_certificates_name_is_that_of_the_api(self) -> None:
        assert with_files().api_url == "https://spark.example:8000/v1"
        unnamed = with_files().api.model_copy(update={"tls": FILES.model_copy(update={"name": None})})
        assert with_files().model_copy(update={"api": unnamed}).api_url == "https://198.18.34.100:8000/v1"

    def test_a_cluster_with_its_own_certificate_keeps_it(self) -> None:
        assert with_files().with_tls() == with_files()
        assert local().with_tls().with_tls() == local().with_tls()

    def test_an_api_on_the_loopback_has_no_tls(self) -> None:
        listen = local().api.model_copy(update={"listen": "loopback"})
        with pytest.raises(UsageError, match="--tls is for an API on the management network"):
            local().model_copy(update={"api": listen}).with_tls()

    def test_a_head_without_caddy_is_told_how_to_install_it_without_its_own_service(self) -> None:
        cluster = local().with_tls()
        with pytest.raises(UnfitNode) as caught:
            require_proxy(cluster, lab_facts())
        assert caught.value.node == "lab-a"
        assert "systemctl mask caddy; sudo apt-get install --no-install-recommends caddy" in caught.value.next_move
        require_proxy(cluster, lab_facts(packages=frozenset({PACKAGE})))


class TestUnit:
    @pytest.mark.parametrize("kind", CLUSTERS)
    def test_it_runs_caddy_with_the_file_that_is_written(self, kind: str) -> None:
        (start,) = unit_values(unit_of(CLUSTERS[kind]), "ExecStart")
        assert exec_words(start)[:4] == ["/usr/bin/caddy", "run", "--config", str(CADDYFILE)]

    def test_systemd_gives_it_a_certificate_of_your_own(self) -> None:
        unit = unit_of(with_files())
        assert unit_values(unit, "LoadCredential") == [
            "certificate:/etc/ssl/fullchain.pem",
            "key:/etc/ssl/private/key.pem",
        ]
        assert not unit_values(unit, "ExecStartPost")

    def test_its_own_authoritys_certificate_is_copied_by_itself_and_not_by_root(self) -> None:
        (copy,) = unit_values(unit_of(local().with_tls()), "ExecStartPost")
        assert exec_words(copy)[0] == "/usr/bin/install", "no + before it"
        assert exec_words(copy)[-1] == str(ROOT_CERTIFICATE)

    def test_it_binds_the_apis_port_and_no_other(self) -> None:
        unit = unit_of(local().with_tls())
        assert unit_values(unit, "SocketBindAllow") == ["ipv4:tcp:8000"]
        assert unit_values(unit, "CapabilityBoundingSet") == [""]

    def test_a_port_of_roots_takes_one_capability(self) -> None:
        api = local().api.model_copy(update={"port": 443, "tls": "internal"})
        unit = unit_of(local().model_copy(update={"api": api}))
        assert unit_values(unit, "CapabilityBoundingSet") == ["CAP_NET_BIND_SERVICE"]

    @pytest.mark.processes
    @pytest.mark.parametrize("kind", CLUSTERS)
    def test_it_is_as_closed_as_it_can_be(self, kind: str, tmp_path: Path) -> None:
        if shutil.which("systemd-analyze") is None:
            pytest.skip("systemd-analyze is not here")
        path = tmp_path / UNIT.name
        path.write_text(unit_of(CLUSTERS[kind]))
        argv = ["systemd-analyze", "security", "--offline=yes", "--threshold=15", str(path)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"for {PROXY}.service" in done.stdout


class Engine(ThreadingTCPServer):
    """A model server that says three words of a stream, the last one when it is told to."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__((ENGINE, 0), Answer)
        self.go_on = Event()
        self.client_gone = Event()
        self.breaks = False
        self.heads: list[str] = []

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class Answer(BaseRequestHandler):
    """One streamed answer, chunk by chunk as uvicorn sends it."""

    server: Engine

    def handle(self) -> None:
        head, _, body = self._head().partition("\r\n\r\n")
        self.server.heads.append(head)
        wanted = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
        while wanted and len(body.encode()) < int(wanted[1]):  # what is left unread would reset the connection
            body += self.request.recv(65536).decode()
        start = (
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        self.request.sendall(start.encode() + piece("one ") + piece("two "))
        if self._told() and not self.server.breaks:
            self.request.sendall(piece("three", "stop") + b"0\r\n\r\n")

    def _head(self) -> str:
        text = b""
        while b"\r\n\r\n" not in text and (more := self.request.recv(65536)):
            text += more
        return text.decode()

    def _told(self) -> bool:
        """Wait for the word to go on, or for the client's end, whichever comes first."""
        self.request.settimeout(0.02)
        while not self.server.go_on.is_set():
            try:
                if not self.request.recv(65536):
                    self.server.client_gone.set()
                    return False
            except TimeoutError:
                continue
        return True


def piece(word: str, finish: str | None = None) -> bytes:
    event = f"data: {json.dumps({'choices': [{'delta': {'content': word}, 'finish_reason': finish}]})}\n\n"
    return f"{len(event):x}\r\n{event}\r\n".encode()


@dataclass
class Proxy:
    """A running Caddy, and the model server behind it."""

    engine: Engine
    process: subprocess.Popen[bytes]
    root: str
    log: Path

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint("lab-a", f"https://127.0.0.1:{self.engine.port}/v1", KEY, self.root)


def on_loopback(port: int) -> Cluster:
    """Return the cluster of the lab with its API on this host."""
    head = local().head.model_copy(update={"management": Address("127.0.0.1")})
    api = local().api.model_copy(update={"port": port, "tls": "internal"})
    return local().model_copy(update={"nodes": (head, *local().workers), "api": api})


@contextmanager
def engine() -> Iterator[Engine]:
    with Engine() as found:
        thread = Thread(target=found.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield found
        finally:
            found.go_on.set()
            found.shutdown()
            thread.join()


def caddy() -> str:
    found = shutil.which("caddy")
    if found is None:
        pytest.skip("caddy is not here: apt-get install caddy")
    return found


@pytest.fixture
def proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    program = caddy()
    monkeypatch.setattr(chat, "TIMEOUT", httpx.Timeout(20))
    with engine() as behind:
        state, log = tmp_path / "state", tmp_path / "log"
        text = caddyfile(on_loopback(behind.port), "made by a test", PurePosixPath(state))
        (tmp_path / "Caddyfile").write_text(text.replace("reverse_proxy 127.0.0.1", f"reverse_proxy {ENGINE}"))
        argv = [program, "run", "--config", str(tmp_path / "Caddyfile"), "--adapter", "caddyfile"]
        places = {"HOME": str(state), "XDG_DATA_HOME": str(state), "XDG_CONFIG_HOME": str(state)}
        with log.open("wb") as output, subprocess.Popen(argv, env=places, stdout=output, stderr=output) as process:
            try:
                yield Proxy(behind, process, root_of(state, behind.port, log), log)
            finally:
                process.terminate()


def root_of(state: Path, port: int, log: Path) -> str:
    """Return the certificate of the authority once the proxy has one for its address and listens."""
    for _ in range(200):
        made = list(state.glob("certificates/*/127.0.0.1/127.0.0.1.json"))
        with socket.socket() as tried:
            if made and tried.connect_ex(("127.0.0.1", port)) == 0:
                return (state / "pki/authorities/local/root.crt").read_text()
        time.sleep(0.05)
    raise AssertionError(log.read_text())


def get(proxy: Proxy, path: str = "/v1/models", **options: Any) -> httpx.Response:
    verify = options.pop("verify", proxy.endpoint.verification())
    with httpx.Client(verify=verify, trust_env=False, timeout=5) as client:
        return client.get(f"https://127.0.0.1:{proxy.engine.port}{path}", **options)


@pytest.mark.processes
class TestCaddy:
    @pytest.mark.parametrize("kind", CLUSTERS)
    def test_it_takes_the_configuration(self, kind: str, tmp_path: Path) -> None:
        path = tmp_path / "Caddyfile"
        path.write_text(proxy_files(CLUSTERS[kind], "made by a test")[CADDYFILE])
        argv = [caddy(), "adapt", "--config", str(path), "--adapter", "caddyfile"]
        environment = {"CREDENTIALS_DIRECTORY": "/run/credentials/x", "HOME": str(tmp_path)}
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["admin"]["disabled"] is True
        (server,) = found["apps"]["http"]["servers"].values()
        assert server["listen"] == ["198.18.34.100:8000"]
        assert server["automatic_https"] == {"disable_redirects": True}
        assert server["protocols"] == ["h1", "h2"]
        assert "logs" not in server, "no access log"
        assert "trusted_proxies" not in server

    def test_a_question_is_answered_piece_by_piece_with_the_key_passed_on(self, proxy: Proxy) -> None:
        """The third word is said only when the first two have arrived."""
        arrived: list[str] = []

        def take(word: str) -> None:
            arrived.append(word)
            if "".join(arrived) == "one two ":
                proxy.engine.go_on.set()

        answer = ask(proxy.endpoint, "tiny", "?", take)
        assert answer["answer"] == "one two three"
        assert f"Authorization: Bearer {KEY}" in proxy.engine.heads[0]

    def test_an_answer_that_breaks_off_is_no_answer(self, proxy: Proxy) -> None:
        """This Caddy ends it as if it were whole: what is missing is the finish_reason."""
        proxy.engine.breaks = True
        proxy.engine.go_on.set()
        with pytest.raises(NotServing, match="broke off"):
            ask(proxy.endpoint, "tiny", "?", lambda _: None)

    def test_a_client_that_goes_ends_its_request_at_the_model_server(self, proxy: Proxy) -> None:
        url = f"{proxy.endpoint.url}/chat/completions"
        with (
            httpx.Client(verify=proxy.endpoint.verification(), trust_env=False) as client,
            client.stream("POST", url, json={}) as reply,
        ):
            assert next(reply.iter_bytes())
        assert proxy.engine.client_gone.wait(10)

    def test_a_certificate_that_nobody_vouches_for_is_refused(self, proxy: Proxy) -> None:
        with pytest.raises(NotServing, match="CERTIFICATE_VERIFY_FAILED"):
            ask(replace(proxy.endpoint, root=""), "tiny", "?", lambda _: None)
        assert not proxy.engine.heads

    def test_a_model_server_that_is_away_is_said_so_in_the_apis_form(self, proxy: Proxy) -> None:
        proxy.engine.shutdown()
        proxy.engine.server_close()
        reply = get(proxy, headers={"Authorization": f"Bearer {KEY}"})
        assert (reply.status_code, reply.json()["error"]["code"]) == (502, 502)
        assert reply.headers["retry-after"] == "5"
        log = proxy.log.read_text()
        assert "Bearer" not in log
        assert KEY not in log

    def test_another_name_in_the_host_header_is_not_answered_with_an_empty_success(self, proxy: Proxy) -> None:
        assert get(proxy, headers={"Host": "elsewhere"}).status_code == 421

    def test_plain_http_is_refused_on_its_port(self, proxy: Proxy) -> None:
        reply = httpx.get(f"http://127.0.0.1:{proxy.engine.port}/v1/models", trust_env=False)
        assert reply.status_code == 400
        assert not proxy.engine.heads

    def test_headers_without_end_are_refused(self, proxy: Proxy) -> None:
        assert get(proxy, headers={"X-Long": "a" * 40_000}).status_code == 431
        assert not proxy.engine.heads

    def test_it_listens_at_its_address_and_nowhere_else(self, proxy: Proxy) -> None:
        ports = {"port": proxy.engine.port}
        listening = subprocess.run(["ss", "-Hlntup"], capture_output=True, text=True, check=True).stdout
        own = [line.split() for line in listening.splitlines() if f"pid={proxy.process.pid}," in line]
        assert [(words[0], words[4]) for words in own] == [("tcp", f"127.0.0.1:{ports['port']}")]
