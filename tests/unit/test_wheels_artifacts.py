"""Releases as OCI artifacts: the manifest, blobs that are sent once, uploads that break off, tags that stay."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from core.errors import PublishRefused, RegistryRefused
from tests.unit.faultyserver import Asked, Reply, Server, cut, serving, status
from tests.unit.small_wheels import Place, small_place
from wheels.images import patience
from wheels.publishing import artifacts as module
from wheels.publishing.artifacts import Artifacts, artifacts, digest_of, manifest_of
from wheels.publishing.release import Release, assemble, draw

LARGE = "spark_alpha-1.0+cu130-py3-none-any.whl"


@dataclass
class Store:
    """A registry in memory that takes uploads, in pieces where ``pieces`` is set, and remembers broken ones."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    tags: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    pieces: bool = True
    remembers: bool = True

    def __call__(self, asked: Asked) -> Reply:
        address = urlsplit(asked.path)
        if match := re.fullmatch(r"/v2/wheels/blobs/(sha256:[0-9a-f]{64})", address.path):
            return Reply(200 if match[1] in self.blobs else 404)
        if match := re.fullmatch(r"/v2/wheels/manifests/(.+)", address.path):
            return self._manifest(asked, match[1])
        if address.path == "/v2/wheels/blobs/uploads/" and asked.method == "POST":
            name = str(len(self.uploads))
            self.uploads[name] = b""
            return self._state(name, 202)
        if match := re.fullmatch(r"/v2/wheels/blobs/uploads/(\d+)", address.path):
            return self._upload(asked, match[1], parse_qs(address.query))
        return Reply(200 if address.path == "/v2/" else 404)

    def _manifest(self, asked: Asked, tag: str) -> Reply:
        if asked.method == "PUT":
            self.tags[tag] = asked.body
            return Reply(201, headers={"Docker-Content-Digest": digest_of(asked.body)})
        return Reply(200, self.tags[tag]) if tag in self.tags else Reply(404)

    def _upload(self, asked: Asked, name: str, query: dict[str, list[str]]) -> Reply:
        if asked.method == "GET":
            return self._state(name, 204) if self.remembers else Reply(404)
        if asked.method == "PATCH":
            if not self.pieces:
                return Reply(405)
            if asked.headers["content-range"].partition("-")[0] != str(len(self.uploads[name])):
                return Reply(416)
            self.uploads[name] += asked.body
            return self._state(name, 202)
        data = self.uploads[name] + asked.body
        if digest_of(data) != query["digest"][0]:
            return Reply(400, b'{"errors": [{"code": "DIGEST_INVALID", "message": "it is not"}]}')
        self.blobs[digest_of(data)] = data
        return Reply(201, headers={"Docker-Content-Digest": digest_of(data)})

    def _state(self, name: str, code: int) -> Reply:
        there = max(len(self.uploads[name]) - 1, 0)
        return Reply(code, headers={"Location": f"/v2/wheels/blobs/uploads/{name}?x=1", "Range": f"0-{there}"})


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "AT_ONCE", 1000)
    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.001)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return small_place(tmp_path / "wheels", content="VALUE = 1\n" * 1000)


@pytest.fixture
def release(place: Place) -> Release:
    return draw(place.manifest, place.folder)


@pytest.fixture
def folder(release: Release, tmp_path: Path) -> Path:
    assemble(release, tmp_path / "releases" / release.name, print)
    return tmp_path / "releases" / release.name


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def server(store: Store) -> Iterator[Server]:
    with serving(store) as found:
        yield found


@pytest.fixture
def there(server: Server) -> Artifacts:
    return artifacts(f"{server.host}/wheels")


def methods(server: Server, method: str) -> list[str]:
    return [asked.path for asked in server.asked if asked.method == method]


def require_whole(store: Store, release: Release, folder: Path) -> None:
    document = json.loads(store.tags[release.name])
    for layer in document["layers"]:
        name = layer["annotations"]["org.opencontainers.image.title"]
        assert store.blobs[layer["digest"]] == (folder / name).read_bytes()
    assert [layer["annotations"]["org.opencontainers.image.title"] for layer in document["layers"]] == [
        part.name for part in release.files
    ]


def test_the_manifest_names_every_file_by_its_hash_and_is_the_same_twice(place: Place, release: Release) -> None:
    document = manifest_of(release)
    assert document == manifest_of(draw(place.manifest, place.folder))
    data = json.loads(document)
    assert data["artifactType"] == "application/vnd.sparkstack.release.v1"
    assert data["config"] == {
        "mediaType": "application/vnd.oci.empty.v1+json",
        "digest": f"sha256:{hashlib.sha256(b'{}').hexdigest()}",
        "size": 2,
    }
    assert data["layers"][0] == {
        "mediaType": "application/octet-stream",
        "digest": f"sha256:{release.files[0].sha256}",
        "size": release.files[0].size,
        "annotations": {"org.opencontainers.image.title": "SHA256SUMS"},
    }


@pytest.mark.processes
class TestSending:
    def test_all_files_arrive_and_the_second_time_nothing_is_done(
        self, store: Store, server: Server, there: Artifacts, release: Release, folder: Path
    ) -> None:
        assert there.pending(release) == [f"{release.name}, {release.size / 1000:.0f} kB"]
        there.send(release, folder, print)
        require_whole(store, release, folder)
        assert there.pending(release) == []
        before = len(methods(server, "POST"))
        there.send(release, folder, print)
        assert len(methods(server, "POST")) == before

    def test_what_the_repository_has_is_not_sent_again(
        self, store: Store, server: Server, there: Artifacts, release: Release, folder: Path
    ) -> None:
        there.send(release, folder, print)
        store.tags.clear()
        server.asked.clear()
        there.send(release, folder, print)
        assert methods(server, "POST") == methods(server, "PATCH") == []
        assert len(methods(server, "PUT")) == 1

    def test_a_large_file_goes_in_pieces(
        self, server: Server, there: Artifacts, release: Release, folder: Path
    ) -> None:
        there.send(release, folder, print)
        ranges = [asked.headers["content-range"] for asked in server.asked if asked.method == "PATCH"]
        size = (folder / LARGE).stat().st_size
        assert {"0-999", "1000-1999", f"{size // 1000 * 1000}-{size - 1}"} <= set(ranges)

    def test_a_registry_that_takes_no_pieces_gets_it_whole(
        self, store: Store, there: Artifacts, release: Release, folder: Path
    ) -> None:
        store.pieces = False
        there.send(release, folder, print)
        require_whole(store, release, folder)

    @pytest.mark.parametrize("store", [Store(remembers=True), Store(remembers=False)], ids=["goes-on", "begins-anew"])
    def test_an_upload_that_broke_off_goes_on_or_begins_anew(
        self, store: Store, server: Server, there: Artifacts, release: Release, folder: Path
    ) -> None:
        lines: list[str] = []
        server.fail(r"uploads/\d+\?x=1$", lambda reply: reply, times=2)
        server.fail(r"uploads/\d+\?x=1$", cut(-1))
        there.send(release, folder, lines.append)
        require_whole(store, release, folder)
        assert any("try 2 of 5" in line for line in lines)

    def test_a_registry_that_breaks_off_again_and_again_is_given_up(
        self, server: Server, there: Artifacts, release: Release, folder: Path
    ) -> None:
        server.fail(r"uploads/\d+\?x=1$", cut(-1), times=1000)
        with pytest.raises(RegistryRefused, match="times in a row"):
            there.send(release, folder, print)

    def test_an_interrupted_command_sends_only_what_is_missing(
        self, store: Store, server: Server, there: Artifacts, release: Release, folder: Path
    ) -> None:
        server.fail(f"manifests/{release.name}", lambda reply: reply, times=1)
        server.fail(f"manifests/{release.name}", status(403))
        with pytest.raises(RegistryRefused):
            there.send(release, folder, print)
        store.tags.clear()
        server.asked.clear()
        there.send(release, folder, print)
        assert methods(server, "POST") == []
        require_whole(store, release, folder)

    def test_another_release_under_the_tag_is_refused_with_both_digests(
        self, store: Store, server: Server, there: Artifacts, release: Release, folder: Path
    ) -> None:
        store.tags[release.name] = b'{"schemaVersion": 2}'
        with pytest.raises(PublishRefused, match="is there and is another one") as caught:
            there.send(release, folder, print)
        assert digest_of(store.tags[release.name]) in str(caught.value)
        assert digest_of(manifest_of(release)) in str(caught.value)
        assert methods(server, "POST") == []

    def test_a_release_that_is_not_signed_yet_is_compared_afterwards(
        self, store: Store, there: Artifacts, release: Release
    ) -> None:
        store.tags[release.name] = b"{}"
        unsigned = replace(release, unsigned=True)
        assert there.pending(unsigned) == [f"{release.name} is compared once it is signed"]

    def test_a_blob_that_the_registry_calls_otherwise_is_not_believed(
        self, server: Server, there: Artifacts, release: Release, folder: Path
    ) -> None:
        server.fail("digest=", lambda _: Reply(201, headers={"Docker-Content-Digest": f"sha256:{'0' * 64}"}))
        with pytest.raises(RegistryRefused, match="stored the empty configuration as sha256:000"):
            there.send(release, folder, print)

    def test_a_file_that_changed_meanwhile_is_refused_by_its_digest(
        self, store: Store, there: Artifacts, release: Release, folder: Path
    ) -> None:
        (folder / "stack.lock").write_bytes(b"x" * (folder / "stack.lock").stat().st_size)
        with pytest.raises(RegistryRefused, match="400"):
            there.send(release, folder, print)
        assert release.name not in store.tags
