"""Files by their hash: fetched once, checked at every use, and downloads that break off."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from build.sdist import Indexes, fetch_sdist, pip_indexes
from core.download import client, fetched, public
from core.errors import BuildFailed, HostNotReady
from core.store import digest, full_disk_is_said, has_file, held, intact
from tests.unit.smalldisk import mounted
from tests.unit.webserver import Web, serving
from wheels.publishing.simple import from_html, from_json

BODY = b"source " * 100_000
HASH = hashlib.sha256(BODY).hexdigest()
SDIST = "flash_attn-2.7.4.post1.tar.gz"


@pytest.fixture
def web() -> Iterator[Web]:
    with serving() as found:
        found.pages["/a.tar.gz"] = BODY
        yield found


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk") as found:
        yield found


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def index(web: Web, monkeypatch: pytest.MonkeyPatch) -> Web:
    """Serve an index in JSON with one source distribution, and tell pip to look there."""
    web.pages["/files/x"] = BODY
    page = '{"meta": {"api-version": "1.0"}, "files": [{"filename": "%s", "url": "../../files/x", "hashes": {%s}}]}'
    web.pages["/simple/flash-attn/"] = (page % (SDIST, f'"sha256": "{HASH}"')).encode()
    web.types["/simple/flash-attn/"] = "application/vnd.pypi.simple.v1+json"
    monkeypatch.setenv("PIP_INDEX_URL", f"{web.url}/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    return web


@pytest.mark.processes
class TestADownload:
    def test_it_is_kept_under_its_hash_and_not_asked_for_again(
        self, web: Web, tmp_path: Path, lines: list[str]
    ) -> None:
        for _ in range(2):
            found = fetched(f"{web.url}/a.tar.gz", HASH, "a.tar.gz", lines.append, work=tmp_path)
            assert found == tmp_path / "files" / HASH / "a.tar.gz"
        assert found.read_bytes() == BODY
        assert len(web.asked) == 1

    def test_another_file_is_refused_with_both_hashes_and_not_kept(self, web: Web, tmp_path: Path) -> None:
        web.pages["/a.tar.gz"] = b"something else"
        with pytest.raises(BuildFailed, match=f"its sha256 is {hashlib.sha256(b'something else').hexdigest()}, pinned"):
            fetched(f"{web.url}/a.tar.gz", HASH, "a.tar.gz", print, work=tmp_path)
        assert not has_file(HASH, work=tmp_path)
        assert [path.name for path in (tmp_path / "files" / HASH).iterdir()] == [".lock"]

    def test_one_that_breaks_off_goes_on_where_it_stopped(self, web: Web, tmp_path: Path) -> None:
        web.ends_after = 300_000
        with pytest.raises(BuildFailed, match="cannot be fetched") as caught:
            fetched(f"{web.url}/a.tar.gz", HASH, "a.tar.gz", print, work=tmp_path)
        part = tmp_path / "files" / HASH / ".a.tar.gz.part"
        size = part.stat().st_size
        assert 0 < size <= 300_000
        assert "goes on from" in caught.value.next_move
        assert fetched(f"{web.url}/a.tar.gz", HASH, "a.tar.gz", print, work=tmp_path).read_bytes() == BODY
        assert web.asked[-1] == ("/a.tar.gz", f"bytes={size}-")

    def test_what_an_earlier_run_left_may_be_anything(self, web: Web, tmp_path: Path, lines: list[str]) -> None:
        part = tmp_path / "files" / HASH / ".a.tar.gz.part"
        for left in (b"not its beginning", BODY, BODY + b"and more"):
            part.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(left)
            found = fetched(f"{web.url}/a.tar.gz", HASH, "a.tar.gz", lines.append, work=tmp_path)
            assert found.read_bytes() == BODY
            found.unlink()
        assert sum("fetched from the beginning" in line for line in lines) == 2

    def test_a_file_damaged_in_the_store_is_found_out_and_fetched_again(
        self, web: Web, tmp_path: Path, lines: list[str]
    ) -> None:
        fetched(f"{web.url}/a.tar.gz", HASH, "a.tar.gz", lines.append, work=tmp_path).write_bytes(b"damaged")
        assert fetched(f"{web.url}/a.tar.gz", HASH, "a.tar.gz", lines.append, work=tmp_path).read_bytes() == BODY
        assert any("is damaged" in line for line in lines)

    def test_it_follows_where_the_file_has_moved_to(self, web: Web, tmp_path: Path) -> None:
        web.moved["/old"] = f"{web.url}/a.tar.gz?signature=secret"
        assert fetched(f"{web.url}/old", HASH, "a.tar.gz", print, work=tmp_path).read_bytes() == BODY

    def test_a_signature_in_a_url_is_not_shown(self, web: Web, tmp_path: Path) -> None:
        url = f"http://user:secret@127.0.0.1:{web.port}/none?signature=secret"
        with pytest.raises(BuildFailed, match=r"/none cannot be fetched: .*404") as caught:
            fetched(url, HASH, "none", print, work=tmp_path)
        assert "secret" not in str(caught.value)

    def test_nobody_there_is_said(self, tmp_path: Path) -> None:
        with pytest.raises(BuildFailed, match=r"http://127\.0\.0\.1:1/a cannot be fetched") as caught:
            fetched("http://127.0.0.1:1/a", HASH, "a", print, work=tmp_path)
        assert "network and proxy" in caught.value.next_move

    @pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://x/y", "/etc/passwd"])
    def test_only_the_web_is_asked(self, url: str, tmp_path: Path) -> None:
        with pytest.raises(BuildFailed, match="is not an http"):
            fetched(url, HASH, "a", print, work=tmp_path)

    @pytest.mark.parametrize("name", ["../a", "a/b", "", ".", ".hidden", "a\n"])
    def test_a_name_that_is_no_file_name_is_refused(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(BuildFailed, match="no plain file name"):
            fetched("http://127.0.0.1:1/a", HASH, name, print, work=tmp_path)


@pytest.mark.processes
class TestASourceDistribution:
    def test_it_comes_from_the_index_that_pip_is_configured_for(
        self, index: Web, tmp_path: Path, lines: list[str]
    ) -> None:
        found = fetch_sdist("flash-attn==2.7.4.post1", HASH, lines.append, work=tmp_path)
        assert found == tmp_path / "files" / HASH / SDIST
        assert lines == [f"fetch {SDIST} from 127.0.0.1"]
        index.pages.clear()
        assert fetch_sdist("flash-attn==2.7.4.post1", HASH, lines.append, work=tmp_path) == found
        assert len(lines) == 1

    def test_a_page_in_html_does_as_well(self, index: Web, tmp_path: Path) -> None:
        anchors = f'<a href="x">other</a><a href="/files/{SDIST}#sha256={HASH}">{SDIST}</a>'
        index.pages["/simple/flash-attn/"] = f"<!DOCTYPE html><html><body>{anchors}</body></html>".encode()
        index.types["/simple/flash-attn/"] = "text/html"
        index.pages[f"/files/{SDIST}"] = BODY
        assert fetch_sdist("flash_attn==2.7.4.post1", HASH, print, work=tmp_path).read_bytes() == BODY

    def test_a_replaced_one_is_refused_before_it_is_fetched(self, index: Web, tmp_path: Path) -> None:
        with pytest.raises(BuildFailed, match=f"its sha256 is {HASH}, pinned is {'0' * 64}"):
            fetch_sdist("flash-attn==2.7.4.post1", "0" * 64, print, work=tmp_path)
        assert [path for path, _ in index.asked] == ["/simple/flash-attn/"]

    def test_a_corrupt_one_is_refused_when_it_comes(self, index: Web, tmp_path: Path) -> None:
        index.pages["/files/x"] = BODY[:-1] + b"!"
        with pytest.raises(BuildFailed, match=f"{SDIST} from .* is not what the recipe names"):
            fetch_sdist("flash-attn==2.7.4.post1", HASH, print, work=tmp_path)
        assert not has_file(HASH, work=tmp_path)

    @pytest.mark.parametrize("requirement", ["flash-attn==9.9", "unknown==1"])
    def test_one_that_no_index_has_is_named(self, index: Web, tmp_path: Path, requirement: str) -> None:
        with pytest.raises(BuildFailed, match=f"no source distribution of {requirement} at {index.url}/simple"):
            fetch_sdist(requirement, HASH, print, work=tmp_path)

    def test_an_index_that_fails_is_shown_as_evidence(
        self, index: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
        monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"{index.url}/simple file:///nowhere")
        assert pip_indexes().urls == ("http://127.0.0.1:1/simple", f"{index.url}/simple")
        assert fetch_sdist("flash-attn==2.7.4.post1", HASH, print, work=tmp_path).is_file(), "the other one has it"
        with pytest.raises(BuildFailed) as caught:
            fetch_sdist("flash-attn==1", "0" * 64, print, work=tmp_path)
        assert caught.value.evidence.startswith("http://127.0.0.1:1/simple: ")

    def test_without_configuration_it_is_pypi(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CERT"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
        assert pip_indexes() == Indexes(("https://pypi.org/simple",))


def test_an_index_page_that_is_something_else_is_refused() -> None:
    for page in ({}, [], None, {"files": [{}]}, {"files": [None]}, {"files": 3}):
        with pytest.raises(ValueError, match="not an index page"):
            from_json(page, "http://x/")


def test_a_base_in_html_counts() -> None:
    (link,) = from_html('<base href="https://files.example/d/"><a href="a%2Bb-1.tar.gz#sha256=AB">x</a>', "https://x/")
    assert (link.name, link.url, link.sha256) == ("a+b-1.tar.gz", "https://files.example/d/a%2Bb-1.tar.gz", "ab")


def test_a_missing_file_is_not_intact(tmp_path: Path) -> None:
    assert intact(HASH, print, work=tmp_path) is None


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    with pytest.raises(HostNotReady, match=f"the disk of {tmp_path} is full"), full_disk_is_said(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(PermissionError), full_disk_is_said(tmp_path):
        raise PermissionError(errno.EPERM, "no")


@pytest.mark.processes
def test_a_really_full_disk_is_said_and_leaves_what_came_for_the_next_run(web: Web, small_disk: Path) -> None:
    with pytest.raises(HostNotReady, match="is full") as caught:
        fetched(f"{web.url}/a.tar.gz", HASH, "a.tar.gz", print, work=small_disk)
    assert "free space" in caught.value.next_move
    assert not has_file(HASH, work=small_disk)


def test_a_held_file_is_held(tmp_path: Path, lines: list[str]) -> None:
    with held(tmp_path / "x" / ".lock", "does x", lines.append):
        assert lines == []


def test_urls_are_shown_without_secrets() -> None:
    assert public("https://user:pass@example.org/a?b#c") == "https://example.org/a"


def test_a_digest_is_that_of_the_contents(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(BODY)
    assert digest(tmp_path / "x") == HASH


def test_a_client_trusts_what_it_is_told_to() -> None:
    with client() as web:
        assert web.follow_redirects
