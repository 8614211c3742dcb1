"""The fetch on a node, against a hub on loopback: pinned, verified, resumed, patient, and silent about tokens."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import socket
import sys
import threading
import urllib.request
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import replace
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.config import ROOT
from core.process import run
from deploy.models.fetching import PACKAGES
from deploy.models.onnode import fetch, files, hubs, web
from deploy.models.onnode.files import Entry
from deploy.onnode import common
from deploy.onnode.common import Refused
from tests.unit.faultyserver import Asked, Reply, changed, cut, serving, status, whole
from tests.unit.modelhub import COMMIT, FILES, OLDER, REPOSITORY, Hub, Running, as_json, running, sha256

LARGE = "model-00001-of-00002.safetensors"
TOKEN = "hf_abcdefghijklmnop"


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        for spelled in (name, name.upper()):
            monkeypatch.delenv(spelled, raising=False)
    for name in ("HF_ENDPOINT", "HF_TOKEN", "MODELSCOPE_ENDPOINT", "MODELSCOPE_API_TOKEN"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(common, "PAUSE", 0.001)
    monkeypatch.setattr(common, "MARGIN", 0)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path / "models") as found:
        yield found


def refused(told: dict[str, Any]) -> Refused:
    with pytest.raises(Refused) as caught:
        fetch.fetch(told)
    return caught.value


@pytest.mark.processes
class TestArrival:
    def test_a_model_arrives_whole_with_a_manifest_of_its_commit_and_hashes(self, node: Running) -> None:
        fetch.fetch(node.told())
        assert node.arrived() == FILES
        assert node.manifest() == {
            "format": 1,
            "repository": REPOSITORY,
            "hub": "huggingface",
            "revision": "main",
            "commit": COMMIT,
            "files": [
                {"path": name, "size": len(FILES[name]), "sha256": sha256(FILES[name])} for name in sorted(FILES)
            ],
        }
        assert [path.name for path in node.models.iterdir()] == ["Tiny"]

    def test_a_branch_that_moves_meanwhile_changes_nothing(self, node: Running) -> None:
        def moves(reply: Reply) -> Reply:
            node.hub.moved = OLDER
            return reply

        node.server.fail("/revision/", moves)
        fetch.fetch(node.told())
        assert node.arrived() == FILES
        assert all(COMMIT in path for path in node.server.paths("/tree/") + node.server.paths("/resolve/"))

    def test_the_list_is_read_page_by_page_from_the_hub_itself(self, node: Running) -> None:
        fetch.fetch(node.told())
        assert len(node.server.paths("/tree/")) == 3

    def test_two_files_of_one_content_travel_once(self, node: Running) -> None:
        node.hub.files["model-00003.safetensors"] = FILES[LARGE]
        fetch.fetch(node.told())
        assert node.arrived() == node.hub.files
        assert len(node.cdn.asked) == 2

    def test_the_same_weights_in_another_format_stay_where_they_are(
        self, node: Running, capsys: pytest.CaptureFixture[str]
    ) -> None:
        node.hub.files |= {"pytorch_model.bin": b"x" * 100, "original/consolidated.00.pth": b"y"}
        fetch.fetch(node.told())
        assert node.arrived() == FILES
        assert "in other formats: original/consolidated.00.pth, pytorch_model.bin" in capsys.readouterr().out

    def test_a_model_without_safetensors_keeps_its_weights(self, node: Running) -> None:
        node.hub.files = {"config.json": b"{}", "pytorch_model.bin": b"x" * 100}
        fetch.fetch(node.told())
        assert node.arrived() == node.hub.files

    def test_a_newer_commit_takes_the_place_of_an_older_one_and_leaves_what_is_the_users(self, node: Running) -> None:
        fetch.fetch(node.told())
        (node.target / "notes.txt").write_text("mine")
        del node.hub.files["empty.txt"]
        node.hub.files["config.json"] = b"{}"
        asked = len(node.cdn.asked)
        fetch.fetch(node.told())
        assert node.arrived() == {**node.hub.files, "notes.txt": b"mine"}
        assert len(node.cdn.asked) == asked, "what is there already does not travel"

    def test_a_folder_that_was_filled_by_hand_is_verified_and_only_what_is_wrong_travels(self, node: Running) -> None:
        node.target.mkdir(parents=True)
        for name, data in FILES.items():
            (node.target / name).parent.mkdir(exist_ok=True)
            (node.target / name).write_bytes(data)
        damaged = bytearray(FILES[LARGE])
        damaged[1000] ^= 1
        (node.target / LARGE).write_bytes(damaged)
        fetch.fetch(node.told())
        assert node.arrived() == FILES
        assert [LARGE in asked.path for asked in node.cdn.asked] == [True]

    def test_progress_is_said_in_lines(self, node: Running, capsys: pytest.CaptureFixture[str]) -> None:
        fetch.fetch(node.told())
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == f"{REPOSITORY} at {COMMIT}: 5 files, 517 kB"
        assert lines[-2].startswith("517 kB of 517 kB, ")
        assert lines[-1] == f"whole and verified in {node.target}"


@pytest.mark.processes
class TestFaults:
    def test_after_a_cut_it_goes_on_from_the_byte_it_has(self, node: Running) -> None:
        node.cdn.fail(LARGE, cut(100_000))
        fetch.fetch(node.told())
        assert node.arrived() == FILES
        ranges = [asked.range for asked in node.cdn.asked if LARGE in asked.path]
        assert ranges == [None, "bytes=100000-"]

    def test_a_second_run_goes_on_where_the_first_one_was_ended(
        self, node: Running, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(common, "TRIES", 1)
        node.cdn.fail(LARGE, cut(100_000))
        assert refused(node.told()).kind == "network"
        assert not node.target.exists()
        assert files.read_manifest(files.staging_of(node.target))["partial"] is True
        before = len(node.cdn.asked)
        fetch.fetch(node.told())
        assert node.arrived() == FILES
        again = [asked.range for asked in node.cdn.asked[before:] if LARGE in asked.path]
        assert again == ["bytes=100000-"]

    def test_a_server_without_ranges_is_read_from_the_beginning(self, node: Running) -> None:
        node.cdn.fail(LARGE, cut(100_000))
        node.cdn.fail(LARGE, whole, times=2)
        fetch.fetch(node.told())
        assert node.arrived() == FILES

    def test_wrong_bytes_are_refused_and_nothing_is_put_in_place(self, node: Running) -> None:
        node.cdn.fail(LARGE, changed(5), times=9)
        error = refused(node.told())
        assert error.kind == "damaged"
        assert error.cause.startswith(f"{LARGE} is not what the hub lists")
        assert not node.target.exists()
        node.cdn.faults.clear()
        fetch.fetch(node.told())
        assert node.arrived() == FILES

    def test_wrong_bytes_of_a_small_file_are_seen_by_its_git_hash(self, node: Running) -> None:
        node.server.fail(r"resolve/.*config\.json", changed(5), times=9)
        assert refused(node.told()).cause.startswith("config.json is not what the hub lists")

    def test_a_part_of_an_earlier_run_that_is_wrong_is_fetched_anew(
        self, node: Running, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(common, "TRIES", 1)
        node.cdn.fail(LARGE, lambda reply: cut(100_000)(changed(5)(reply)))
        refused(node.told())
        fetch.fetch(node.told())
        assert node.arrived() == FILES

    def test_a_busy_hub_is_waited_for_as_long_as_it_says(self, node: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        waits: list[float] = []
        monkeypatch.setattr("time.sleep", waits.append)
        node.server.fail("/tree/", status(429, Retry_After="7"))
        node.server.fail("/revision/", status(429, RateLimit='"api";r=0;t=55'))
        node.cdn.fail(LARGE, status(503))
        fetch.fetch(node.told())
        assert node.arrived() == FILES
        assert sorted(wait for wait in waits if wait > 1) == [7, 55]

    def test_an_address_that_is_spent_is_asked_for_again(self, node: Running) -> None:
        node.cdn.fail(LARGE, status(403))
        fetch.fetch(node.told())
        assert node.arrived() == FILES
        assert len(node.server.paths(f"resolve/{COMMIT}/{LARGE}")) == 2

    def test_a_hub_that_stays_away_is_given_up_in_the_end(self, node: Running) -> None:
        node.server.fail("/revision/", status(502), times=99)
        error = refused(node.told())
        assert (error.kind, len(node.server.asked)) == ("network", common.TRIES)
        assert "502, 6 times in a row" in error.cause

    def test_a_hub_at_whose_address_nobody_listens_is_given_up_sooner(self, node: Running) -> None:
        with socket.create_server(("127.0.0.1", 0)) as nobody:
            port = nobody.getsockname()[1]
        told = node.told()
        told["environment"]["HF_ENDPOINT"] = f"http://127.0.0.1:{port}"
        error = refused(told)
        assert error.kind == "network"
        assert f"refused, {common.FEW} times in a row" in error.cause

    @pytest.mark.parametrize(
        ("part", "change", "says"),
        [
            ("/revision/", lambda _: Reply(200, b"<html>"), "no JSON"),
            ("/revision/", lambda _: Reply(200, b"[" * 100_000), "no JSON"),
            ("/revision/", lambda _: as_json({"sha": "main"}), "names no commit"),
            ("/tree/", lambda _: as_json({"error": "x"}), "list of files is none"),
            ("/tree/", lambda _: as_json([{"type": "file", "path": "a", "size": 3}]), "no size or no hash for 'a'"),
            ("/resolve/", lambda r: replace(r, headers={**r.headers, "X-Repo-Commit": OLDER}), "sends files of 0d0d"),
            ("/resolve/", status(416), "answers 416"),
        ],
    )
    def test_a_hub_that_says_something_else_is_refused(self, node: Running, part: str, change: Any, says: str) -> None:
        node.server.fail(part, change, times=9)
        error = refused(node.told())
        assert (error.kind, says in error.cause) == ("hub", True), error.cause
        assert not node.target.exists()

    def test_a_file_that_is_longer_than_listed_is_cut_off(self, node: Running) -> None:
        node.cdn.fail(LARGE, lambda reply: replace(reply, body=reply.body * 20), times=9)
        assert "longer than the hub lists" in refused(node.told()).cause

    def test_a_range_from_elsewhere_in_the_file_is_refused(self, node: Running) -> None:
        node.cdn.fail(LARGE, cut(100_000))
        node.cdn.fail(LARGE, lambda r: Reply(206, r.body[:10], {"Content-Range": "bytes 0-9/307200"}))
        assert "asked for byte 100000 on" in refused(node.told()).cause

    def test_without_room_nothing_is_asked_for(self, node: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, 1000))
        error = refused(node.told())
        assert (error.kind, "517 kB are still to come and 1 kB are free" in error.cause) == ("disk", True)
        assert not node.cdn.asked

    def test_what_is_there_twice_makes_room_once(self, node: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        node.target.mkdir(parents=True)
        blobs = files.staging_of(node.target) / "blobs"
        blobs.mkdir(parents=True)
        for path in (node.target / LARGE, blobs / f"sha256-{sha256(FILES[LARGE])}"):
            path.write_bytes(FILES[LARGE])
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, 1000))
        assert refused(node.told()).cause.startswith("210 kB are still to come")

    @pytest.mark.parametrize("fault", [errno.EPERM, errno.EXDEV, errno.EMLINK])
    def test_a_good_file_that_cannot_be_linked_is_copied(
        self, node: Running, monkeypatch: pytest.MonkeyPatch, fault: int
    ) -> None:
        node.target.mkdir(parents=True)
        (node.target / LARGE).write_bytes(FILES[LARGE])
        real = os.link

        def link(source: Path, target: Path) -> None:
            if Path(source).is_relative_to(node.target):
                raise OSError(fault, os.strerror(fault), str(source))
            real(source, target)

        monkeypatch.setattr(os, "link", link)
        fetch.fetch(node.told())
        assert node.arrived() == FILES
        assert not [asked for asked in node.cdn.asked if LARGE in asked.path]

    @pytest.mark.parametrize("there", ["http://127.0.0.1:abc/x", "http://[bad/x", f"http://{'x' * 70}.example/"])
    def test_a_redirect_to_something_that_is_no_address_is_refused(self, node: Running, there: str) -> None:
        node.server.fail(f"/resolve/.*{LARGE}", status(302, Location=there), times=9)
        error = refused(node.told())
        assert (error.kind, error.next_move) == ("hub", "check HF_ENDPOINT")
        assert error.cause.startswith("127.0.0.1 leads to something that is no address: ")

    def test_of_the_address_of_the_next_page_only_the_cursor_counts(self, node: Running) -> None:
        def odd(reply: Reply) -> Reply:
            link = reply.headers["Link"]
            return replace(reply, headers={**reply.headers, "Link": f"<http://[bad/x?{link.partition('?')[2]}"})

        node.server.fail("/tree/", odd)
        fetch.fetch(node.told())
        assert node.arrived() == FILES

    def test_who_fetches_a_model_that_another_fetch_brings_is_told_so(
        self, node: Running, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(files, "PATIENCE", 0.05, raising=False)
        asked, go = threading.Event(), threading.Event()

        def waits(reply: Reply) -> Reply:
            asked.set()
            go.wait(20)
            return reply

        node.server.fail("/revision/", waits)
        first = threading.Thread(target=fetch.fetch, args=(node.told(),))
        first.start()
        try:
            assert asked.wait(20)
            error = refused(node.told(revision=COMMIT))
        finally:
            go.set()
            first.join()
        assert (error.kind, error.cause) == ("busy", f"another fetch brings {node.target} just now")
        assert len(node.server.paths("/revision/")) == 1
        assert node.arrived() == FILES
        assert [path.name for path in node.models.iterdir()] == ["Tiny"]

    def test_a_full_disk_is_named(self, node: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device", "part")

        monkeypatch.setattr(fetch, "_take", full)
        assert fetch.main(request(tmp_path, node.told())) == 1


def request(folder: Path, told: dict[str, Any]) -> Path:
    path = folder / "request.json"
    path.write_text(json.dumps(told))
    return path


@pytest.mark.processes
class TestAccess:
    def test_a_token_is_for_the_hub_alone_and_never_shown(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with running(tmp_path / "models", Hub(token=TOKEN)) as node:
            path = request(tmp_path, node.told(environment={"HF_TOKEN": TOKEN}))
            assert fetch.main(path) == 0
            assert node.arrived() == FILES
            assert {asked.authorization for asked in node.server.asked} == {f"Bearer {TOKEN}"}
            assert {asked.authorization for asked in node.cdn.asked} == {""}
            assert not any(TOKEN in str(asked) for asked in node.cdn.asked)
            assert TOKEN not in capsys.readouterr().out + json.dumps(node.manifest())
        assert not path.exists()

    def test_a_redirect_within_the_hub_keeps_the_token(self, tmp_path: Path) -> None:
        with running(tmp_path / "models", Hub(token=TOKEN)) as node:
            there = f"/{REPOSITORY}/resolve/{COMMIT}/config.json"
            node.server.fail("config.json", status(307, Location=there))
            fetch.fetch(node.told(environment={"HF_TOKEN": TOKEN}))
            assert node.arrived() == FILES

    @pytest.mark.parametrize("token", ["", "hf_wrong"])
    @pytest.mark.parametrize(("gated", "says"), [(True, "agreed to its conditions"), (False, "or not for us")])
    def test_who_may_not_have_it_is_told_what_to_do(
        self, tmp_path: Path, token: str, *, gated: bool, says: str
    ) -> None:
        with running(tmp_path / "models", Hub(token=TOKEN, gated=gated)) as node:
            error = refused(node.told(environment={"HF_TOKEN": token}))
            assert (error.kind, says in error.cause) == ("access", True), error.cause
            assert "set HF_TOKEN" in error.next_move
            assert len(node.server.asked) == 1, "nothing that stays is tried twice"

    def test_a_revision_or_repository_that_is_not_there_is_named(self, node: Running) -> None:
        assert refused(node.told(revision="v9")).kind == "absent"
        assert "the hub has no Qwen/Tony" in refused(node.told(repository="Qwen/Tony")).cause

    def test_a_token_goes_to_nobody_in_the_clear(self, node: Running) -> None:
        told = node.told(environment={"HF_TOKEN": TOKEN, "HF_ENDPOINT": "http://hub.example"})
        assert "in the clear" in refused(told).cause

    @pytest.mark.parametrize(
        "address",
        ["file:///etc", "ftp://hub.example", "hub.example", "https://", "https://h:abc", "https://[h", "https://h:0"],
    )
    def test_an_endpoint_is_an_address_of_the_web(self, node: Running, address: str) -> None:
        assert "no address of a hub" in refused(node.told(environment={"HF_ENDPOINT": address})).cause

    def test_proxies_are_honoured(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        hub = Hub()

        def proxy(asked: Asked) -> Reply:
            address, _, path = asked.path.removeprefix("http://").partition("/")
            return hub(replace(asked, path=f"/{path}")) if address == "hub.example" else hub.content(asked)

        with serving(hub.content) as cdn, serving(proxy) as server:
            hub.cdn = cdn.url
            for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY"):
                monkeypatch.setenv(name, "")
            given = {"HF_ENDPOINT": "http://hub.example", "http_proxy": server.url, "no_proxy": "127.0.0.1"}
            told = Running(hub, server, cdn, tmp_path).told(environment=given)
            assert fetch.main(request(tmp_path, told)) == 0
            assert all(asked.path.startswith("http://hub.example/") for asked in server.asked)

    def test_a_redirect_from_tls_to_none_is_refused(self) -> None:
        redirects = web._Redirects("https://hub.example", {"Authorization": "Bearer x"})
        asked = urllib.request.Request("https://hub.example/a")
        with pytest.raises(Refused, match="without TLS"):
            redirects.redirect_request(asked, io.BytesIO(), 302, "", Message(), "http://cdn.example/a")


def test_a_request_is_read_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fetch.main(tmp_path / "gone.json") == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["error"], told["next"]) == ("absent", "run the same command again")


@pytest.mark.processes
class TestModelScope:
    def test_a_model_arrives_each_file_as_its_own_commit_has_it(self, node: Running) -> None:
        fetch.fetch(node.told(hub="modelscope"))
        assert node.arrived() == FILES
        assert (node.manifest()["hub"], node.manifest()["commit"]) == ("modelscope", COMMIT)
        asked = node.server.paths("FilePath=")
        assert all(f"Revision={COMMIT if 'config' in path else OLDER}" in path for path in asked)

    def test_what_it_answers_for_an_unknown_revision_is_no_empty_model(self, node: Running) -> None:
        assert refused(node.told(hub="modelscope", revision="v9")).kind == "absent"

    def test_a_list_that_may_have_been_cut_off_is_no_list(self, node: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hubs, "MOST", len(FILES))
        assert "the first 5 files only" in refused(node.told(hub="modelscope")).cause

    def test_a_token_is_its_cookie_too(self, node: Running) -> None:
        fetch.fetch(node.told(hub="modelscope", environment={"MODELSCOPE_API_TOKEN": "ms-secret"}))
        assert {asked.authorization for asked in node.server.asked} == {"Bearer ms-secret"}
        assert {asked.headers.get("cookie") for asked in node.server.asked} == {"m_session_id=ms-secret"}

    def test_wrong_bytes_are_refused(self, node: Running) -> None:
        node.server.fail("FilePath=config", changed(3), times=9)
        assert refused(node.told(hub="modelscope")).kind == "damaged"


class TestFolder:
    def test_a_model_of_a_folder_is_copied_and_hashed(self, tmp_path: Path) -> None:
        source, target = tmp_path / "downloaded", tmp_path / "models" / "Tiny"
        (source / ".cache").mkdir(parents=True)
        (source / ".cache" / "lock").write_text("")
        (source / "config.json").write_text("{}")
        (source / "model.safetensors").write_bytes(FILES[LARGE])
        told = {"hub": "folder", "repository": REPOSITORY, "revision": "main", "folder": str(source)}
        fetch.fetch({**told, "target": str(target), "environment": {}})
        assert sorted(path.name for path in target.iterdir()) == [
            "config.json",
            "model.safetensors",
            "sparkstack-model.json",
        ]
        (target / "config.json").write_text("changed")
        assert (source / "config.json").read_text() == "{}"

    def test_a_folder_can_be_taken_as_it_is(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text("{}")
        told = {"hub": "folder", "repository": REPOSITORY, "revision": "main", "folder": str(tmp_path)}
        fetch.fetch({**told, "target": str(tmp_path), "environment": {}})
        assert files.read_manifest(tmp_path)["files"] == [{"path": "config.json", "size": 2, "sha256": sha256(b"{}")}]

    @pytest.mark.parametrize("late", [b"longer", b"", None])
    def test_a_folder_that_changes_after_it_was_listed_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bytes | None
    ) -> None:
        told = _copied(tmp_path)
        real = hubs.folder_listing

        def listed(folder: Path) -> hubs.Listing:
            found = real(folder)
            if late is None:
                (folder / "config.json").unlink()
            else:
                (folder / "config.json").write_bytes(late)
            return found

        monkeypatch.setattr(hubs, "folder_listing", listed)
        error = refused(told)
        assert (error.kind, error.cause) == ("absent", "config.json has changed meanwhile")

    def test_a_file_that_grows_while_it_is_copied_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(shutil, "copyfile", lambda _, part: part.write_bytes(b"longer"))
        assert refused(_copied(tmp_path)).kind == "absent"

    def test_a_copy_needs_room_for_all_of_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        told = _copied(tmp_path)
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, 1000))
        error = refused(told)
        assert (error.kind, error.cause.startswith("307 kB are still to come")) == ("disk", True)

    def test_what_an_earlier_run_copied_is_copied_again(self, tmp_path: Path) -> None:
        told = _copied(tmp_path)
        target = Path(told["target"])
        blobs = files.staging_of(target) / "blobs"
        blobs.mkdir(parents=True)
        for entry in hubs.folder_listing(Path(told["folder"])).files:
            (blobs / entry.key).write_bytes(b"?" * entry.size)
        fetch.fetch(told)
        assert (target / "model.safetensors").read_bytes() == FILES[LARGE]

    def test_a_folder_without_a_model_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(Refused, match="there is no model in"):
            hubs.folder_listing(tmp_path)


def _copied(folder: Path) -> dict[str, Any]:
    """Make a model in a folder; return the request to take it from there."""
    source = folder / "downloaded"
    source.mkdir()
    (source / "config.json").write_text("{}")
    (source / "model.safetensors").write_bytes(FILES[LARGE])
    told = {"hub": "folder", "repository": REPOSITORY, "revision": "main", "folder": str(source)}
    return {**told, "target": str(folder / "models" / "Tiny"), "environment": {}}


NAMES = st.one_of(
    st.text(max_size=40),
    st.lists(st.sampled_from(["..", ".", "", "a", "b", "/", "\0", "\\", "c\n", "ü", "x" * 300]), max_size=5).map(
        "/".join
    ),
)


@given(st.lists(NAMES, max_size=6))
def test_names_of_a_list_stay_below_the_folder_or_are_refused(names: list[str]) -> None:
    folder = Path("/models/x")
    try:
        entries = files.require_names(Entry(name, 1) for name in names)
    except Refused:
        return
    paths = [Path(*(folder / entry.path).parts) for entry in entries]
    assert all(path.is_relative_to(folder) and ".." not in path.parts and path != folder for path in paths)
    assert len(set(paths)) == len(names)
    assert not any(path in other.parents for path in paths for other in paths)
    assert all(str(path).isprintable() for path in paths)


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../x",
        "a/../../x",
        "a//b",
        "",
        ".",
        "a/",
        "a\0b",
        "a\nb",
        "sparkstack-model.json",
        "\ud800",
        "x" * 256,
    ],
)
def test_a_hostile_name_is_refused(name: str) -> None:
    with pytest.raises(Refused) as caught:
        files.require_names([Entry(name, 1)])
    assert (caught.value.kind, caught.value.cause.isascii()) == ("hub", True)


def test_a_file_cannot_be_a_folder_too_nor_be_listed_twice() -> None:
    for names in (["a", "a/b"], ["a", "a"], ["a/b/c", "a-", "a/b"]):
        with pytest.raises(Refused):
            files.require_names([Entry(name, 1) for name in names])


@given(st.dictionaries(st.sampled_from(["Files", "LatestCommitter", "Id", "x"]), st.none() | st.text() | st.integers()))
def test_a_list_of_modelscope_that_is_something_else_ends_in_a_refusal(data: dict[str, Any]) -> None:
    with pytest.raises(Refused):
        hubs._of_modelscope(data)


@pytest.mark.processes
def test_the_scripts_run_on_a_node_where_nothing_is_installed(node: Running, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    for package in PACKAGES:
        place = Path(package.replace(".", "/"))
        (tools / place).mkdir(parents=True)
        for script in (ROOT / place).glob("*.py"):
            shutil.copyfile(script, tools / place / script.name)
    python = getattr(sys, "_base_executable", sys.executable)
    argv = [python, "-E", "-s", "-m", "deploy.models.onnode.fetch", str(request(tmp_path, node.told()))]
    done = run(argv, cwd=tools, check=False)
    assert (done.code, node.arrived()) == (0, FILES), done.tail()
