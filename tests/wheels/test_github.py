"""GitHub releases against GitHub's own description of its API, on loopback: the live service was never asked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from core.errors import PublishRefused, RegistryRefused
from tests.unit.faultyserver import Asked, Server, cut, status
from tests.unit.small_wheels import small_place
from tests.wheels.octokit import GitHubServer, Wrong, running
from wheels.images import patience
from wheels.publishing import github as module
from wheels.publishing.github import GitHub, github
from wheels.publishing.release import Release, assemble, draw

pytestmark = pytest.mark.wheels
ALPHA = "spark_alpha-1.0+cu130-py3-none-any.whl"
EXPECTED = [
    *("SHA256SUMS", "manifest.json", "sbom.cdx.json", ALPHA, "spark-alpha.intoto.json"),
    *("spark_needed-2.0-py3-none-any.whl", "stack.lock"),
]


@pytest.fixture(params=["api.github.com", "ghes-3.17"], autouse=True)
def service(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[GitHubServer, Server]]:
    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.001)
    with running(request.param) as (made, server):
        monkeypatch.setenv("GITHUB_API_URL", made.url)
        monkeypatch.setenv("GITHUB_TOKEN", made.token)
        yield made, server
        assert made.wrong == []


@pytest.fixture
def state(service: tuple[GitHubServer, Server]) -> GitHubServer:
    return service[0]


@pytest.fixture
def server(service: tuple[GitHubServer, Server]) -> Server:
    return service[1]


@pytest.fixture
def release(tmp_path: Path) -> Release:
    place = small_place(tmp_path / "wheels")
    return draw(place.manifest, place.folder)


@pytest.fixture
def folder(release: Release, tmp_path: Path) -> Path:
    assemble(release, tmp_path / "releases" / release.name, print)
    return tmp_path / "releases" / release.name


@pytest.fixture
def there() -> GitHub:
    return github("someone/wheels")


def require_whole(state: GitHubServer, release: Release, folder: Path) -> None:
    (made,) = state.releases.values()
    assert (made["tag_name"], made["draft"]) == (release.name, False)
    by_name = {part.last: folder / part.name for part in release.parts}
    assert sorted(asset["name"] for asset in made["assets"]) == sorted(EXPECTED)
    for asset in made["assets"]:
        assert state.files[asset["id"]] == by_name[asset["name"]].read_bytes()


def test_a_release_is_a_draft_until_all_is_there_and_the_second_time_nothing_is_done(
    state: GitHubServer, server: Server, there: GitHub, release: Release, folder: Path
) -> None:
    assert there.pending(release)[0].startswith(f"{release.name}: 7 files")
    there.send(release, folder, print)
    require_whole(state, release, folder)
    changes = [(asked.method, asked.path.partition("?")[0]) for asked in server.asked if asked.method != "GET"]
    releases = "/repos/someone/wheels/releases"
    assert changes == [("POST", releases), *[("POST", f"{releases}/1/assets")] * 7, ("PATCH", f"{releases}/1")]
    server.asked.clear()
    assert there.pending(release) == []
    there.send(release, folder, print)
    assert {asked.method for asked in server.asked} == {"GET"}


def test_an_upload_that_broke_off_is_removed_and_sent_again(
    state: GitHubServer, there: GitHub, release: Release, folder: Path
) -> None:
    state.breaks.append(ALPHA)
    lines: list[str] = []
    there.send(release, folder, lines.append)
    require_whole(state, release, folder)
    assert any("is busy (502): try 2 of 5" in line for line in lines)


def test_a_command_that_was_interrupted_goes_on_with_its_draft(
    state: GitHubServer, server: Server, there: GitHub, release: Release, folder: Path
) -> None:
    server.fail("name=spark-alpha", status(403))
    with pytest.raises(RegistryRefused, match="GitHub answered 403"):
        there.send(release, folder, print)
    assert state.releases[1]["draft"]
    lines = there.pending(release)
    assert lines[-1] == f"{release.name} is a draft until all is there"
    state.releases[1]["assets"][0]["state"] = "starter"
    server.asked.clear()
    there.send(release, folder, print)
    require_whole(state, release, folder)
    assert sum("name=" in asked.path for asked in server.asked) < 7


def test_an_answer_that_got_lost_does_no_harm(
    state: GitHubServer, server: Server, there: GitHub, release: Release, folder: Path
) -> None:
    server.fail("name=stack.lock", cut(-1))
    there.send(release, folder, print)
    require_whole(state, release, folder)
    assert sum("name=stack.lock" in asked.path for asked in server.asked) == 1


def test_another_file_under_one_of_our_names_is_refused_before_anything_is_sent(
    state: GitHubServer, server: Server, there: GitHub, release: Release, folder: Path
) -> None:
    there.send(release, folder, print)
    (asset,) = [one for one in state.releases[1]["assets"] if one["name"] == ALPHA]
    asset["digest"] = f"sha256:{'0' * 64}"
    server.asked.clear()
    with pytest.raises(PublishRefused, match=r"has another spark_alpha.*sha256:0000") as caught:
        there.send(release, folder, print)
    assert next(part.sha256 for part in release.parts if part.name == ALPHA) in str(caught.value)
    assert {asked.method for asked in server.asked} == {"GET"}


def test_a_file_without_a_hash_is_fetched_and_compared_and_the_token_stays_at_home(
    state: GitHubServer, there: GitHub, release: Release, folder: Path
) -> None:
    state.says_digests = False
    there.send(release, folder, print)
    assert there.pending(release) == []
    number = next(one["id"] for one in state.releases[1]["assets"] if one["name"] == "stack.lock")
    state.files[number] = b"x" * len(state.files[number])
    with pytest.raises(PublishRefused, match=r"has another stack\.lock"):
        there.pending(release)


def test_a_server_that_is_busy_is_asked_again(
    state: GitHubServer, server: Server, there: GitHub, release: Release, folder: Path
) -> None:
    server.fail("/releases/tags/", status(429, Retry_After="0"))
    server.fail("/assets", status(403, Retry_After="0"))
    there.send(release, folder, print)
    require_whole(state, release, folder)


def test_many_files_and_releases_are_listed_page_by_page(
    state: GitHubServer, there: GitHub, release: Release, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "A_PAGE", 2)
    there.send(release, folder, print)
    state.releases[1]["draft"] = True
    for number in range(2, 6):
        state.releases[number] = {**state.releases[1], "id": number, "tag_name": f"other-{number}", "assets": []}
    state.releases[1] = state.releases.pop(1)
    assert there.pending(release) == [f"{release.name} is a draft until all is there"]


def test_without_a_token_nothing_can_be_sent_and_what_is_public_can_be_compared(
    state: GitHubServer, there: GitHub, release: Release, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GITHUB_TOKEN")
    monkeypatch.delenv("GH_TOKEN", raising=False)
    with pytest.raises(RegistryRefused, match="takes nothing for someone/wheels without a token"):
        there.send(release, folder, print)
    monkeypatch.setenv("GH_TOKEN", state.token)
    there.send(release, folder, print)
    monkeypatch.delenv("GH_TOKEN")
    assert there.pending(release) == []


def test_a_wrong_token_is_said_and_not_shown(
    there: GitHub, release: Release, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_TOKEN", "another-token")
    with pytest.raises(RegistryRefused, match="GitHub answered 401") as caught:
        there.send(release, folder, print)
    assert "another-token" not in str(caught.value)


def test_files_that_the_token_is_sent_elsewhere_for_are_not_sent(
    state: GitHubServer, there: GitHub, release: Release, folder: Path
) -> None:
    there.send(release, folder, print)
    state.releases[1]["upload_url"] = "https://elsewhere.example/assets{?name,label}"
    state.releases[1]["assets"].pop()
    with pytest.raises(RegistryRefused, match=r"sends us to https://elsewhere\.example/assets"):
        there.send(release, folder, print)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/repos/a/b/release", None),
        ("GET", "/repos/a/b/releases?per_page=many", None),
        ("GET", "/repos/a/b/releases?tag=x", None),
        ("POST", "/repos/a/b/releases", b'{"name": "no tag"}'),
        ("POST", "/repos/a/b/releases", b'{"tag_name": 5}'),
        ("POST", "/repos/a/b/releases", b'{"tag_name": "x", "colour": "red"}'),
        ("POST", "/repos/a/b/releases/1/assets", b"x"),
    ],
)
def test_the_description_refuses_wrong_requests(
    state: GitHubServer, method: str, path: str, body: bytes | None
) -> None:
    kind = "application/octet-stream" if path.endswith("assets") else "application/json"
    headers = {"accept": "application/vnd.github+json", **({"content-type": kind} if body else {})}
    with pytest.raises(Wrong):
        state._checked(Asked(method, path, headers, body or b""))
