"""The relay between nodes, on loopback: ranges in parallel, verified by the manifest, for nobody without the secret."""

from __future__ import annotations

import errno
import http.client
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from deploy.models.onnode import files, offer, take, verify
from deploy.onnode import calling, common, serving
from deploy.onnode.common import Refused
from tests.unit.modelhub import FILES, sha256
from tests.wheels.indexes import free_port

SECRET = "5c" * 32
LARGE = "model-00001-of-00002.safetensors"
PLACE = 64 * 1024
RANGES = -(-len(FILES[LARGE]) // PLACE)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(take, "RANGE", PLACE)
    monkeypatch.setattr(common, "PAUSE", 0.001)
    monkeypatch.setattr(common, "MARGIN", 0)


def made(folder: Path) -> Path:
    """Make a model as a fetch leaves it."""
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    listed = [(name, len(data), sha256(data)) for name, data in FILES.items()]
    (folder / files.MANIFEST).write_text(files.manifest_text({"repository": "Qwen/Tiny"}, listed))
    return folder


@dataclass
class Link:
    """A server, and what to tell who asks it. ``breaks`` are so many answers that end in their middle."""

    told: dict[str, Any]
    breaks: int = 0
    asked: list[tuple[str, str]] = field(default_factory=list)

    def to(self, target: Path, **changes: Any) -> dict[str, Any]:
        return {**self.told, "folder": str(target), **changes}


@contextmanager
def offering(source: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Link]:
    told = {"address": "127.0.0.1", "port": 0, "secret": SECRET, "folder": str(source)}
    offered = offer.served(told)
    model = offered.source
    assert isinstance(model, offer.Model)
    with serving.server(told, offered) as server:
        link = Link({**told, "port": server.server_port})
        real = serving.Handler._range

        def ranged(self: serving.Handler, number: int, size: int, wanted: str) -> None:
            path = model.entries[number].path
            link.asked.append((path, wanted))
            if link.breaks:
                link.breaks -= 1
                self.send_response(206)
                start, end = map(int, wanted.removeprefix("bytes=").split("-"))
                self.send_header("Content-Length", str(end + 1 - start))
                self.send_header("Content-Range", f"{wanted.replace('=', ' ')}/{size}")
                self.end_headers()
                self.wfile.write(FILES[path][start:end][:1000])
                self.close_connection = True
                return
            real(self, number, size, wanted)

        monkeypatch.setattr(serving.Handler, "_range", ranged)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield link
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return made(tmp_path / "a" / "Tiny")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "b" / "Tiny"


@pytest.fixture
def link(source: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Link]:
    with offering(source, monkeypatch) as found:
        yield found


def content(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def refused(told: dict[str, Any]) -> Refused:
    with pytest.raises(Refused) as caught:
        take.take(told)
    return caught.value


@pytest.mark.processes
class TestPull:
    def test_a_model_arrives_in_ranges_with_the_same_manifest(self, link: Link, source: Path, target: Path) -> None:
        take.take(link.to(target))
        assert content(target) == content(source)
        assert [path.name for path in target.parent.iterdir()] == ["Tiny"]
        assert len([path for path, _ in link.asked if path == LARGE]) == RANGES > 2

    def test_a_cut_costs_one_range(self, link: Link, source: Path, target: Path) -> None:
        link.breaks = 3
        take.take(link.to(target))
        assert content(target) == content(source)
        total = sum(-(-len(data) // PLACE) for data in FILES.values())
        assert len(link.asked) == total + 3

    def test_a_second_run_asks_for_what_the_first_one_lacks(
        self, link: Link, source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(take, "STREAMS", 1)
        monkeypatch.setattr(common, "TRIES", 1)
        real = calling.Caller.ask

        def ask(self: calling.Caller, path: str, wanted: str = "") -> http.client.HTTPResponse:
            if len(link.asked) == 4:
                raise common.Again("the link is cut")
            return real(self, path, wanted)

        with monkeypatch.context() as cut:
            cut.setattr(calling.Caller, "ask", ask)
            assert refused(link.to(target)).kind == "network"
        assert not target.exists()
        take.take(link.to(target))
        assert content(target) == content(source)
        assert len(set(link.asked)) == len(link.asked), "no range travels twice"

    def test_what_is_there_and_good_does_not_travel(self, link: Link, source: Path, target: Path) -> None:
        shutil.copytree(source, target)
        (target / "config.json").write_text("damaged")
        (target / "mine.txt").write_text("stays")
        take.take(link.to(target))
        assert content(target) == {**content(source), "mine.txt": b"stays"}
        assert [path for path, _ in link.asked] == ["config.json"]

    def test_a_file_that_is_damaged_at_the_source_is_not_taken(self, link: Link, source: Path, target: Path) -> None:
        data = bytearray(FILES[LARGE])
        data[70_000] ^= 1
        (source / LARGE).write_bytes(data)
        error = refused(link.to(target))
        assert (error.kind, error.cause) == ("damaged", f"{LARGE} did not arrive as the manifest lists it")
        assert not target.exists()
        (source / LARGE).write_bytes(FILES[LARGE])
        take.take(link.to(target))
        assert content(target) == content(source)

    def test_a_file_that_shrank_at_the_source_ends_in_an_error(
        self, link: Link, source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(common, "TRIES", 2)
        (source / LARGE).write_bytes(b"short")
        assert refused(link.to(target)).kind == "network"

    @pytest.mark.parametrize("fault", [errno.EPERM, errno.EXDEV, errno.EMLINK])
    def test_a_good_file_that_cannot_be_linked_is_copied(
        self, link: Link, source: Path, target: Path, monkeypatch: pytest.MonkeyPatch, fault: int
    ) -> None:
        shutil.copytree(source, target)
        real = os.link

        def refusing(one: Path, other: Path) -> None:
            if Path(one).is_relative_to(target):
                raise OSError(fault, os.strerror(fault), str(one))
            real(one, other)

        monkeypatch.setattr(os, "link", refusing)
        take.take(link.to(target))
        assert content(target) == content(source)
        assert link.asked == []

    def test_who_takes_a_model_that_another_run_brings_is_told_so(
        self, link: Link, target: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(files, "PATIENCE", 0.05)
        with files.held(target):
            assert refused(link.to(target)).kind == "busy"
        assert link.asked == []

    def test_what_is_there_of_a_file_is_looked_up_once(
        self, link: Link, target: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        looked: list[str] = []
        real = take.Arrival.missing

        def missing(self: take.Arrival) -> list[int]:
            looked.append(self.entry.path)
            return real(self)

        monkeypatch.setattr(take.Arrival, "missing", missing)
        take.take(link.to(target))
        assert sorted(looked) == sorted(FILES)

    def test_an_offer_stays_while_who_takes_it_hashes_what_is_there(
        self, source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(serving, "IDLE", 1)
        monkeypatch.setattr(calling, "BEAT", 0.02, raising=False)
        shutil.copytree(source, target)
        (target / "config.json").write_bytes(b"x" * len(FILES["config.json"]))
        real = common.digests

        def slow(*told: Any) -> dict[str, str]:
            time.sleep(1.5)
            return real(*told)

        told = {"address": "127.0.0.1", "port": free_port(), "secret": SECRET, "folder": str(source)}
        offered = threading.Thread(target=offer.serve, args=(told,))
        offered.start()
        monkeypatch.setattr(common, "digests", slow)
        take.take({**told, "folder": str(target)})
        offered.join()
        assert content(target) == content(source)

    def test_a_server_that_is_gone_is_given_up(self, target: Path) -> None:
        told = {"address": "127.0.0.1", "port": 9, "secret": SECRET, "folder": str(target)}
        assert refused(told).kind == "network"


@pytest.mark.processes
class TestSecret:
    def test_who_has_another_secret_gets_nothing(self, link: Link, target: Path) -> None:
        error = refused(link.to(target, secret="00" * 32))
        assert (error.kind, "answers 403" in error.cause) == ("access", True)

    @pytest.mark.parametrize("path", ["/manifest", "/file/0", "/", "/../../etc/passwd"])
    def test_who_has_none_gets_nothing(self, link: Link, path: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", link.told["port"])
        connection.request("GET", path, headers={"Range": "bytes=0-1"})
        assert (connection.getresponse().status, link.asked) == (403, [])
        connection.close()

    @pytest.mark.parametrize("code", ["", "00" * 32, "\xe9"])
    def test_who_has_none_keeps_no_offer_open(self, source: Path, code: str) -> None:
        told = {"address": "127.0.0.1", "port": 0, "secret": SECRET, "folder": str(source)}
        offered = offer.served(told)
        offered.last -= 1000
        with serving.server(told, offered) as server:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
            connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
            connection.request("GET", "/manifest", headers={serving.CODE: code})
            assert connection.getresponse().status == 403
            assert offered.idle > 900
            connection.close()
            caller = calling.Caller({**told, "port": server.server_port})
            caller.manifest()
            assert offered.idle < 900
            caller.close()
            server.shutdown()

    def test_a_code_is_good_for_its_own_request_only(self, link: Link) -> None:
        code = serving.code_of(SECRET, b"/file/0", b"bytes=0-1")
        connection = http.client.HTTPConnection("127.0.0.1", link.told["port"])
        for path, wanted, status in (
            ("/file/0", "bytes=0-1", 206),
            ("/file/1", "bytes=0-1", 403),
            ("/file/0", "bytes=0-2", 403),
        ):
            connection.request("GET", path, headers={"Range": wanted, serving.CODE: code})
            answer = connection.getresponse()
            answer.read()
            assert answer.status == status
        connection.close()

    @pytest.mark.parametrize(
        ("path", "wanted", "status"),
        [
            ("/file/9", "bytes=0-1", 404),
            ("/x", "", 404),
            ("/file/0", "", 416),
            ("/file/0", "bytes=5-1", 416),
            ("/file/0", "bytes=0-99999999", 416),
        ],
    )
    def test_what_is_not_there_is_said(self, link: Link, path: str, wanted: str, status: int) -> None:
        with pytest.raises(Refused, match=f"answers {status}"):
            calling.Caller(link.told).ask(path, wanted)

    def test_a_manifest_of_somebody_else_is_refused(
        self, link: Link, target: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = serving.Handler._manifest

        def other(self: serving.Handler) -> None:
            self.served.secret, known = "11" * 32, self.served.secret
            real(self)
            self.served.secret = known

        monkeypatch.setattr(serving.Handler, "_manifest", other)
        assert "not from the other node" in refused(link.to(target)).cause

    def test_a_manifest_with_a_hostile_name_is_refused(
        self, source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with offering(source, monkeypatch) as link:
            listed = [("../../evil", 1, sha256(b"x"))]
            monkeypatch.setattr(calling.Caller, "manifest", lambda _: files.manifest_text({}, listed).encode())
            assert "names a file '../../evil'" in refused(link.to(target)).cause


@pytest.mark.processes
def test_the_server_ends_by_itself_when_nobody_asks(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serving, "IDLE", 0.2)
    request = tmp_path / "request.json"
    request.write_text(json.dumps({"address": "127.0.0.1", "port": 0, "secret": SECRET, "folder": str(source)}))
    began = time.monotonic()
    assert offer.main(request) == 0
    assert time.monotonic() - began < 10
    assert not request.exists()
    out = capsys.readouterr().out
    assert SECRET not in out
    assert out.startswith(f"serving {source} at 127.0.0.1:")


def test_only_a_whole_model_is_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    request = tmp_path / "request.json"
    request.write_text(json.dumps({"address": "127.0.0.1", "port": 0, "secret": SECRET, "folder": str(tmp_path)}))
    assert offer.main(request) == 1
    assert json.loads(capsys.readouterr().out)["error"] == "damaged"


class TestVerify:
    def test_a_model_as_it_was_fetched_is_good(self, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert verify.main(source) == 0
        total = sum(len(data) for data in FILES.values())
        expected = {"files": len(FILES), "bytes": total, "damaged": [], "missing": []}
        assert json.loads(capsys.readouterr().out.splitlines()[-1]) == expected

    def test_what_is_damaged_or_missing_is_named(self, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (source / LARGE).write_bytes(FILES[LARGE][:-1] + b"?")
        (source / "config.json").unlink()
        assert verify.main(source) == 1
        told = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert (told["damaged"], told["missing"]) == ([LARGE], ["config.json"])

    @pytest.mark.parametrize("text", ["", "[]", "{half", '{"files": [{"path": "../x", "size": 1, "sha256": "0"}]}'])
    def test_a_damaged_manifest_is_said(self, source: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
        (source / files.MANIFEST).write_text(text)
        assert verify.main(source) == 1
        assert json.loads(capsys.readouterr().out)["error"] in ("damaged", "hub")
