"""Indexes that take uploads: what they say they have, what is refused, and how twine is called."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from core.errors import CommandFailed, PublishRefused, RegistryRefused
from tests.unit.small_wheels import Place, small_place
from tests.unit.webserver import Web, serving
from wheels.publishing import pypi as module
from wheels.publishing.pypi import PackageIndex, package_index
from wheels.publishing.release import Release, draw

ALPHA = "spark_alpha-1.0+cu130-py3-none-any.whl"
NEEDED = "spark_needed-2.0-py3-none-any.whl"
PAGE = "/simple/spark-alpha/"

pytestmark = pytest.mark.processes


@pytest.fixture(autouse=True)
def no_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("TWINE_USERNAME", "TWINE_PASSWORD"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def web() -> Iterator[Web]:
    with serving() as found:
        yield found


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return small_place(tmp_path / "wheels")


@pytest.fixture
def release(place: Place) -> Release:
    return draw(place.manifest, place.folder)


@pytest.fixture
def index(web: Web) -> PackageIndex:
    return package_index(f"{web.url}/")


@pytest.fixture
def twine(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Remember how twine would have been called."""
    called: list[list[str]] = []

    def follow(argv: Sequence[str], *_: Any, **__: Any) -> None:
        called.append(list(argv))

    monkeypatch.setattr(module, "follow", follow)
    return called


def names(lines: list[str]) -> list[str]:
    return [line.partition(",")[0] for line in lines]


def sha256_of(release: Release, name: str) -> str:
    return next(part.sha256 for part in release.parts if part.name == name)


def test_an_index_that_knows_nothing_gets_every_wheel_and_nothing_else(
    index: PackageIndex, release: Release, twine: list[list[str]]
) -> None:
    assert names(index.pending(release)) == [ALPHA, NEEDED]
    index.send(release, Path("/releases/r"), print)
    (argv,) = twine
    assert argv[:4] == [sys.executable, "-m", "twine", "upload"]
    assert argv[4:] == [
        *("--non-interactive", "--disable-progress-bar", "--repository-url", index.upload),
        *(f"/releases/r/{name}" for name in (ALPHA, NEEDED)),
    ]


def test_what_is_there_with_its_hash_is_not_sent_again(
    web: Web, index: PackageIndex, release: Release, twine: list[list[str]]
) -> None:
    web.pages[PAGE] = f'<a href="../../{ALPHA}#sha256={sha256_of(release, ALPHA)}">x</a>'.encode()
    web.types[PAGE] = "text/html"
    assert names(index.pending(release)) == [NEEDED]
    data = {"files": [{"filename": NEEDED, "url": "x", "hashes": {"sha256": sha256_of(release, NEEDED)}}]}
    web.pages["/simple/spark-needed/"] = json.dumps(data).encode()
    web.types["/simple/spark-needed/"] = "application/vnd.pypi.simple.v1+json"
    assert index.pending(release) == []
    index.send(release, Path("/releases/r"), print)
    assert twine == []


@pytest.mark.parametrize("fragment", [f"#sha256={'0' * 64}", ""])
def test_another_file_under_the_same_name_is_refused_with_both_hashes_before_anything_is_sent(
    web: Web, index: PackageIndex, release: Release, twine: list[list[str]], fragment: str
) -> None:
    web.pages[PAGE] = f'<a href="/files/{ALPHA}{fragment}">x</a>'.encode()
    web.pages[f"/files/{ALPHA}"] = b"another"
    with pytest.raises(PublishRefused, match="has another spark_alpha") as caught:
        index.send(release, Path("/releases/r"), print)
    assert sha256_of(release, ALPHA) in str(caught.value)
    assert twine == []


@pytest.mark.parametrize("fragment", ["", "#md5=0123"])
def test_where_no_sha256_is_said_the_file_is_fetched_and_compared(
    web: Web, index: PackageIndex, place: Place, release: Release, fragment: str
) -> None:
    web.pages[PAGE] = f'<a href="/files/{ALPHA}{fragment}">{ALPHA}</a>'.encode()
    web.pages[f"/files/{ALPHA}"] = (place.folder / ALPHA).read_bytes()
    assert names(index.pending(release)) == [NEEDED]
    assert (f"/files/{ALPHA}", None) in web.asked


def test_what_another_index_has_is_not_on_this_one(web: Web, index: PackageIndex, release: Release) -> None:
    """Some servers send us to PyPI for what they do not have."""
    with serving() as other:
        other.pages[PAGE] = f'<a href="/x/{ALPHA}#sha256={sha256_of(release, ALPHA)}">x</a>'.encode()
        web.moved[PAGE] = f"{other.url}{PAGE}"
        assert names(index.pending(release)) == [ALPHA, NEEDED]
        assert other.asked == []


def test_a_page_that_has_moved_on_the_same_server_is_followed(web: Web, index: PackageIndex, release: Release) -> None:
    web.moved[PAGE] = "/elsewhere/"
    web.pages["/elsewhere/"] = f'<a href="/x/{ALPHA}#sha256={sha256_of(release, ALPHA)}">x</a>'.encode()
    assert names(index.pending(release)) == [NEEDED]


def test_a_page_that_moves_in_a_circle_is_no_page(web: Web, index: PackageIndex, release: Release) -> None:
    web.moved[PAGE] = PAGE
    assert names(index.pending(release)) == [ALPHA, NEEDED]


def test_what_is_no_index_page_is_said(web: Web, index: PackageIndex, release: Release) -> None:
    web.pages[PAGE], web.types[PAGE] = b'{"files": 1}', "application/vnd.pypi.simple.v1+json"
    with pytest.raises(RegistryRefused, match="does not say what is there: not an index page"):
        index.pending(release)


def test_a_server_that_is_not_there_is_said(release: Release) -> None:
    with serving() as gone:
        url = gone.url
    with pytest.raises(RegistryRefused, match=f"{url}/simple/spark-alpha/ does not say what is there"):
        package_index(url).pending(release)


class TestLogin:
    @pytest.fixture
    def variables(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TWINE_USERNAME", "me")
        monkeypatch.setenv("TWINE_PASSWORD", "secret")

    def header(self, index: PackageIndex, url: str) -> str:
        import httpx

        auth = index._auth(url)
        request = httpx.Request("GET", url)
        return next(auth.auth_flow(request)).headers["Authorization"] if auth else ""

    @pytest.mark.usefixtures("variables")
    def test_it_goes_to_the_server_that_takes_uploads_and_to_no_other(self) -> None:
        index = package_index("https://host/up,https://other/simple")
        assert self.header(index, "https://host/simple/x/") == "Basic bWU6c2VjcmV0"
        for url in ("https://other/simple/x/", "http://host/simple/x/", "https://host:444/x/"):
            assert self.header(index, url) == ""

    def test_it_may_stand_in_pypirc(self, tmp_path: Path) -> None:
        text = "[distutils]\nindex-servers = a\n[a]\nrepository = https://host/\nusername = me\npassword = secret\n"
        (tmp_path / ".pypirc").write_text(text)
        assert self.header(package_index("a"), "https://host/simple/x/") == "Basic bWU6c2VjcmV0"

    def test_a_section_is_named_to_twine_so_that_it_finds_the_password_itself(
        self, web: Web, release: Release, twine: list[list[str]], tmp_path: Path
    ) -> None:
        text = f"[distutils]\nindex-servers = a\n[a]\nrepository = {web.url}\nusername = me\npassword = secret\n"
        (tmp_path / ".pypirc").write_text(text)
        package_index("a").send(release, Path("/r"), print)
        assert twine[0][6:8] == ["--repository", "a"]
        assert "secret" not in " ".join(twine[0])

    def test_a_broken_pypirc_shows_none_of_its_lines(self, tmp_path: Path) -> None:
        (tmp_path / ".pypirc").write_text("password = secret\n")
        with pytest.raises(Exception, match="pypirc cannot be read") as caught:
            package_index("a")
        assert "secret" not in str(caught.value)
        assert caught.value.__cause__ is None


def test_what_twine_says_when_it_fails_is_shown_without_passwords(
    index: PackageIndex, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    def follow(*_: Any, **__: Any) -> None:
        raise CommandFailed("ended with 1", next_move="", evidence="403 from https://me:secret@host/ Forbidden")

    monkeypatch.setattr(module, "follow", follow)
    with pytest.raises(RegistryRefused, match="did not take all of 2 wheels") as caught:
        index.send(release, Path("/r"), print)
    assert caught.value.evidence == "403 from https://host/ Forbidden"
