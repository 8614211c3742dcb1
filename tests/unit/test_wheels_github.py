"""GitHub releases: which files go there under which names, and where a token goes. tests/wheels asks a whole API."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from core.errors import PublishRefused, RegistryRefused, UsageError
from tests.unit.faultyserver import Reply, serving
from tests.unit.small_wheels import small_place
from wheels.publishing.github import LARGEST, github, notes
from wheels.publishing.release import Part, Release, draw


@pytest.fixture
def release(tmp_path: Path) -> Release:
    place = small_place(tmp_path / "wheels")
    return draw(place.manifest, place.folder)


def with_part(release: Release, name: str, size: int = 1) -> Release:
    return replace(release, parts=(*release.parts, Part(name, "0" * 64, size)))


@pytest.mark.parametrize(
    ("name", "size", "why"),
    [
        (
            "large-1-py3-none-any.whl",
            LARGEST,
            r"large-1-py3-none-any\.whl has 2\.1 GB, a file of a GitHub release less",
        ),
        ("a-1!2.0-py3-none-any.whl", 1, "GitHub would give a-1!2.0-py3-none-any.whl another name"),
        (".hidden", 1, "another name"),
        ("a b.whl", 1, "another name"),
    ],
)
def test_what_github_does_not_take_as_it_is_is_refused_before_it_is_asked(
    release: Release, name: str, size: int, why: str
) -> None:
    with pytest.raises(PublishRefused, match=why):
        github("a/b").pending(with_part(release, name, size))


def test_more_files_than_a_release_may_have_are_refused(release: Release) -> None:
    many = tuple(Part(f"a{number}.whl", "0" * 64, 1) for number in range(1001))
    with pytest.raises(PublishRefused, match="1000 at most"):
        github("a/b").pending(replace(release, parts=many))


@pytest.mark.parametrize(
    "url", ["http://ghe.example/api/v3", "https://user:secret@host/api", "ghe.example", "ftp://h/"]
)
def test_a_server_that_a_token_must_not_be_sent_to_is_refused(
    release: Release, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("GITHUB_API_URL", url)
    with pytest.raises(UsageError, match="is no https address") as caught:
        github("a/b").pending(release)
    assert "secret" not in str(caught.value)


@pytest.mark.processes
class TestAnswers:
    @pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"\xff", b'{"id": "x"}', b'{"id": 1, "tag_name": "x"}'])
    def test_one_that_is_not_githubs_is_said(
        self, release: Release, monkeypatch: pytest.MonkeyPatch, body: bytes
    ) -> None:
        with serving(lambda _: Reply(200, body)) as server:
            monkeypatch.setenv("GITHUB_API_URL", server.url)
            with pytest.raises(RegistryRefused, match="GitHub's answer cannot be read"):
                github("a/b").pending(release)

    def test_a_limit_that_is_reached_is_said(self, release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
        with serving(lambda _: Reply(403, b"{}", {"X-RateLimit-Remaining": "0"})) as server:
            monkeypatch.setenv("GITHUB_API_URL", server.url)
            with pytest.raises(RegistryRefused) as caught:
                github("a/b").pending(release)
        assert "limit of requests" in caught.value.next_move

    def test_a_server_that_is_gone_is_said(self, release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
        with serving(lambda _: Reply(200)) as server:
            monkeypatch.setenv("GITHUB_API_URL", server.url)
        with pytest.raises(RegistryRefused, match="GitHub cannot be asked"):
            github("a/b").pending(release)


def test_the_plus_of_a_local_version_stays_a_plus_in_an_address() -> None:
    url = httpx.URL("https://uploads.github.com/x", params={"name": "a-1.0+cu130-py3-none-any.whl"})
    assert str(url) == "https://uploads.github.com/x?name=a-1.0%2Bcu130-py3-none-any.whl"


def test_the_page_of_a_release_says_how_to_check_and_install_it(release: Release) -> None:
    text = notes(release.manifest)
    assert text.startswith("2 wheels of the stack small for x86_64, Python 3.11, glibc 2.36.")
    assert "sha256sum -c --ignore-missing SHA256SUMS" in text
