"""Images in a real registry, pushed by skopeo: tokens that end, who is busy, what breaks off and what lies."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import pytest

from core.errors import RegistryRefused
from core.process import run
from tests.unit.faultyserver import Server, changed, cut, in_front_of, serving, status
from tests.unit.imagesamples import Sample, digest_of, noise, of, tagged, tar_of
from tests.wheels.registry import Authority, Registry, running, token_server
from wheels.images import patience
from wheels.images.blobstore import kept
from wheels.images.oci import Descriptor, Image, open_image
from wheels.images.registry import Registry as Session

pytestmark = pytest.mark.wheels

USER = ("me", "not-a-secret")
SIZE = 40_000_000
TARS = (tar_of({"usr/lib/a": noise(SIZE)}), tar_of({"b": b"1"}))
ARM, X86 = "linux/arm64", "linux/amd64"


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("NGC_API_KEY", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "DOCKER_CONFIG", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.05)


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a layout with an image for two platforms."""
    sample = Sample()
    entries = [{**sample.image(*tars, platform=name), "platform": of(name)} for name, tars in ((X86, ()), (ARM, TARS))]
    return sample.folder(tmp_path_factory.mktemp("layout"), tagged(sample.index(*entries), "1"))


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, layout: Path) -> Iterator[Registry]:
    """Run a registry that wants tokens of a token server, with the image in it."""
    authority, folder = tmp_path_factory.mktemp("authority"), tmp_path_factory.mktemp("registry")
    with token_server(authority, USER) as tokens, running(folder, tokens=tokens) as made:
        made.push(f"oci:{layout}:1", "team/app:1", "--all")
        yield made


@pytest.fixture
def front(real: Registry) -> Iterator[Server]:
    """Stand in front of the registry, to fail on demand."""
    with serving(in_front_of(real.host)) as made:
        yield made


@pytest.fixture
def lines() -> list[str]:
    return []


def read(host: str, work: Path, lines: list[str], suffix: str = ":1") -> tuple[Image, list[bytes]]:
    """Return the image and its layers' blobs, checked once more."""
    with open_image(f"{host}/team/app{suffix}", lines.append, work=work) as blobs:
        image = blobs.image(ARM)
        found = [b"".join(blobs.read(layer.blob, lines.append)) for layer in image.layers]
    for layer, data in zip(image.layers, found, strict=True):
        assert digest_of(data) == layer.blob.digest
        assert digest_of(gzip.decompress(data)) == layer.diff_id
    return image, found


def nothing_bad(work: Path) -> None:
    """Look whether everything that is kept as whole is what its name says."""
    for path in (work / "blobs" / "sha256").glob("[0-9a-f]*"):
        with path.open("rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == path.name


def layer_digest(real: Registry, work: Path) -> str:
    with open_image(f"{real.host}/team/app:1", print, work=work) as blobs:
        return blobs.image(ARM).layers[0].blob.digest


class TestAnImage:
    def test_it_is_what_skopeo_pushed(self, real: Registry, layout: Path, tmp_path: Path, lines: list[str]) -> None:
        image, blobs = read(real.host, tmp_path, lines)
        assert [gzip.decompress(data) for data in blobs] == list(TARS)
        raw = real.skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{real.host}/team/app:1").out.encode()
        assert image.pinned == f"{real.host}/team/app@{digest_of(raw)}"
        with open_image(f"oci:{layout}:1", print) as disk:
            assert disk.image(ARM).layers == image.layers

    @pytest.mark.parametrize("format_", ["v2s2", "oci"])
    def test_each_of_the_two_formats_is_read(
        self, real: Registry, layout: Path, tmp_path: Path, lines: list[str], format_: str
    ) -> None:
        real.push(f"oci:{layout}:1", f"team/app:{format_}", "--override-arch=arm64", f"--format={format_}")
        image, blobs = read(real.host, tmp_path, lines, f":{format_}")
        assert [gzip.decompress(data) for data in blobs] == list(TARS)
        assert ("docker" in image.layers[0].blob.media_type) == (format_ == "v2s2")

    def test_layers_packed_by_zstd_are_given_as_they_are(self, real: Registry, layout: Path, tmp_path: Path) -> None:
        flags = ("--override-arch=arm64", "--format=oci", "--dest-compress-format=zstd")
        real.push(f"oci:{layout}:1", "team/app:zstd", *flags)
        with open_image(f"{real.host}/team/app:zstd", print, work=tmp_path) as blobs:
            for layer in blobs.image(ARM).layers:
                data = b"".join(blobs.read(layer.blob, print))
                assert digest_of(data) == layer.blob.digest
                assert data.startswith(b"\x28\xb5\x2f\xfd") == layer.blob.media_type.endswith("zstd")

    def test_an_archive_of_skopeo_is_read(self, layout: Path, tmp_path: Path) -> None:
        archive = tmp_path / "image.tar"
        flags = ("--insecure-policy", "--override-arch=arm64", "copy")
        run(["skopeo", *flags, f"oci:{layout}:1", f"oci-archive:{archive}:named"])
        with open_image(f"oci-archive:{archive}:named", print) as blobs:
            layers = blobs.image(ARM).layers
            assert [gzip.decompress(b"".join(blobs.read(layer.blob, print))) for layer in layers] == list(TARS)

    def test_a_layout_of_umoci_is_read(self, tmp_path: Path) -> None:
        place = tmp_path / "made"
        run(["umoci", "init", f"--layout={place}"])
        run(["umoci", "new", f"--image={place}:new"])
        (tmp_path / "file").write_bytes(b"content")
        run(["umoci", "insert", f"--image={place}:new", str(tmp_path / "file"), "/opt/file"])
        run(["umoci", "config", f"--image={place}:new", "--architecture=arm64"])
        with open_image(f"oci:{place}:new", print) as blobs:
            (layer,) = blobs.image(ARM).layers
            assert b"content" in gzip.decompress(b"".join(blobs.read(layer.blob, print)))


class TestTokens:
    def test_they_are_asked_for_no_more_than_reading(self, real: Registry, tmp_path: Path, lines: list[str]) -> None:
        real.tokens.given.clear()
        read(real.host, tmp_path, lines)
        assert set(real.tokens.given) == {"repository:team/app:pull"}

    def test_one_that_ends_in_the_middle_of_a_blob_is_renewed(
        self, real: Registry, front: Server, tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The registry itself refuses the token with which the blob was begun."""
        digest = layer_digest(real, tmp_path / "first")
        monkeypatch.setattr(real.tokens, "seconds", 3)
        front.fail(f"blobs/{digest}", lambda reply: time.sleep(4) or cut(15_000_000)(reply))  # type: ignore[func-returns-value]
        read(front.host, tmp_path / "work", lines)
        statuses = [(asked.range, asked.authorization[-20:]) for asked in front.asked if digest in asked.path]
        assert [first for first, _ in statuses] == [None, "bytes=15000000-", "bytes=15000000-"]
        assert statuses[1][1] != statuses[2][1], "another token"
        nothing_bad(tmp_path / "work")

    def test_a_wrong_password_is_refused(
        self, real: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str]
    ) -> None:
        path = tmp_path / "auth.json"
        path.write_text(json.dumps({"auths": {real.host: {"username": "me", "password": "wrong-password"}}}))
        monkeypatch.setenv("REGISTRY_AUTH_FILE", str(path))
        with pytest.raises(RegistryRefused, match=f"does not let us read team/app with what {path} holds") as caught:
            read(real.host, tmp_path, lines)
        assert "wrong-password" not in str(caught.value)


class TestFaults:
    """A proxy in front of the real registry does to its answers what networks do."""

    def test_a_cut_in_the_middle_of_a_blob_is_mended(
        self, real: Registry, front: Server, tmp_path: Path, lines: list[str]
    ) -> None:
        digest = layer_digest(real, tmp_path / "first")
        for after in (9_000_000, 1, 12_000_000):
            front.fail(f"blobs/{digest}", cut(after))
        read(front.host, tmp_path / "work", lines)
        ranges = [asked.range for asked in front.asked if digest in asked.path and asked.authorization]
        assert ranges == [None, "bytes=9000000-", "bytes=9000001-", "bytes=21000001-"]
        assert sum("the connection to" in line for line in lines) == 3

    def test_a_busy_registry_is_waited_for(self, front: Server, tmp_path: Path, lines: list[str]) -> None:
        front.fail("manifests", status(429, Retry_After="1"))
        front.fail("blobs", status(429, Retry_After="1"))
        front.fail("blobs", status(503), times=2)
        began = time.monotonic()
        read(front.host, tmp_path, lines)
        assert time.monotonic() - began > 2
        assert sum("is busy (429)" in line for line in lines) == 2

    @pytest.mark.parametrize("place", [0, 20_000_000, -1])
    def test_wrong_bytes_are_refused_and_never_kept(
        self, real: Registry, front: Server, tmp_path: Path, lines: list[str], place: int
    ) -> None:
        digest = layer_digest(real, tmp_path / "first")
        work = tmp_path / "work"
        read(real.host, tmp_path / "other", lines)
        front.fail(f"blobs/{digest}", lambda reply: changed(place)(reply) if reply.status == 200 else reply, times=2)
        with pytest.raises(RegistryRefused, match=f"is not what it should be: .* asked for was {digest}"):
            read(front.host, work, lines)
        nothing_bad(work)
        assert not kept(Descriptor("", digest, 0), work).part.exists()
        front.faults.clear()
        read(front.host, work, lines)

    def test_a_proxy_that_gives_a_page_of_its_own_is_refused(
        self, front: Server, tmp_path: Path, lines: list[str]
    ) -> None:
        page = b"<html>please log in to this network</html>"
        front.fail("blobs", lambda reply: replace(reply, status=200, body=page, headers={}))
        with pytest.raises(RegistryRefused, match=r"a document of .* is not what it should be"):
            read(front.host, tmp_path, lines)
        nothing_bad(tmp_path)

    def test_a_registry_whose_own_disk_is_damaged_is_refused(
        self, layout: Path, tmp_path: Path, lines: list[str]
    ) -> None:
        with running(tmp_path / "registry") as made:
            made.push(f"oci:{layout}:1", "team/app:1", "--all")
            blob = made.blob(layer_digest(made, tmp_path / "first"))
            with blob.open("r+b") as file:
                file.seek(1_000_000)
                file.write(b"damage")
            with pytest.raises(RegistryRefused, match="is not what it should be"):
                read(made.host, tmp_path / "work", lines)
        nothing_bad(tmp_path / "work")

    def test_a_killed_command_goes_on(self, real: Registry, front: Server, tmp_path: Path, lines: list[str]) -> None:
        """It is killed while it reads; what it noted is fetched by nobody again."""
        digest = layer_digest(real, tmp_path / "first")
        work = tmp_path / "work"
        code = (
            "import sys, pathlib\nfrom wheels.images import blobstore\nfrom wheels.images.oci import open_image\n"
            "blobstore.CHECKPOINT = 4_000_000\n"
            "with open_image(sys.argv[1], print, work=pathlib.Path(sys.argv[2])) as blobs:\n"
            "    stream = blobs.read(blobs.image('linux/arm64').layers[0].blob, print)\n"
            "    size = 0\n"
            "    for block in stream:\n"
            "        size += len(block)\n"
            "        if size > 20_000_000:\n            print('enough', flush=True)\n            sys.stdin.read()\n"
        )
        argv = [sys.executable, "-c", code, f"{front.host}/team/app:1", str(work)]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert "enough" in process.stdout.readline()
            process.kill()
        read(front.host, work, lines)
        (again,) = [asked.range for asked in front.asked if digest in asked.path and asked.range]
        assert int((again or "").removeprefix("bytes=").removesuffix("-")) > 15_000_000
        nothing_bad(work)

    def test_a_reader_that_stops_early_fetches_no_more(self, front: Server, tmp_path: Path) -> None:
        with open_image(f"{front.host}/team/app:1", print, work=tmp_path) as blobs:
            blob = blobs.image(ARM).layers[0].blob
            with closing(blobs.read(blob, print)) as stream:
                next(stream)
            assert kept(blob, tmp_path).part.stat().st_size < 2_000_000


class TestOtherRegistries:
    def test_one_with_a_password_lets_in_who_logged_in_by_skopeo(
        self, layout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str]
    ) -> None:
        auth = tmp_path / "auth.json"
        with running(tmp_path / "registry", user=USER) as made:
            made.push(f"oci:{layout}:1", "team/app:1", "--all")
            with pytest.raises(RegistryRefused, match="does not let us read team/app without a password or key"):
                read(made.host, tmp_path / "work", lines)
            login = ["login", "--tls-verify=false", f"--authfile={auth}", f"--username={USER[0]}", "--password-stdin"]
            run(["skopeo", *login, made.host], stdin=USER[1])
            monkeypatch.setenv("REGISTRY_AUTH_FILE", str(auth))
            read(made.host, tmp_path / "work", lines)

    def test_one_with_a_certificate_must_be_trusted(
        self, layout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str]
    ) -> None:
        authority = Authority.made(tmp_path / "authority")
        with running(tmp_path / "registry", tls=authority) as made:
            made.push(f"oci:{layout}:1", "team/app:1", "--all")
            with pytest.raises(RegistryRefused, match=r"cannot be reached: .*CERTIFICATE_VERIFY_FAILED") as caught:
                read(made.host, tmp_path / "work", lines)
            assert "SSL_CERT_FILE" in caught.value.next_move
            monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate))
            read(made.host, tmp_path / "work", lines)

    def test_what_is_pushed_by_our_session_is_pulled_by_skopeo(
        self, real: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The requests that publishing makes, with a token to write that is asked for by itself."""
        path = tmp_path / "auth.json"
        path.write_text(json.dumps({"auths": {real.host: {"username": USER[0], "password": USER[1]}}}))
        monkeypatch.setenv("REGISTRY_AUTH_FILE", str(path))
        sample = Sample()
        manifest = sample.image(TARS[1])
        with ExitStack() as stack:
            session = stack.enter_context(Session(real.host, "team/pushed", print, push=True))
            for digest, data in sample.blobs.items():
                if digest == manifest["digest"]:
                    continue
                assert session.request("HEAD", f"blobs/{digest}", accept=(200, 404)).status == 404
                begun = session.request("POST", "blobs/uploads/", accept=(202,))
                (tmp_path / "blob").write_bytes(data)
                session.request("PUT", f"{begun.location}&digest={digest}", content=tmp_path / "blob", accept=(201,))
                assert session.request("HEAD", f"blobs/{digest}", accept=(200, 404)).status == 200
            body = sample.blobs[manifest["digest"]]
            told = {"Content-Type": manifest["mediaType"]}
            session.request("PUT", "manifests/1", headers=told, content=body, accept=(201,))
        flags = ("--src-tls-verify=false", "--override-arch=arm64")
        real.skopeo("copy", *flags, f"docker://{real.host}/team/pushed:1", f"oci:{tmp_path / 'out'}:1")
        with open_image(f"oci:{tmp_path / 'out'}:1", print) as blobs:
            assert blobs.image(ARM).digest == manifest["digest"]
