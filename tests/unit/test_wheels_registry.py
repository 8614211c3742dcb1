"""Images from a registry: who may, who waits, what breaks off and what lies. The registry is a server on loopback."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.errors import ConfigError, HostNotReady, ImageRefused, RegistryRefused, SparkstackError, UsageError
from tests.unit.faultyserver import Memory, Reply, Server, changed, cut, serving, status, whole
from tests.unit.imagesamples import DOCKER, OCI, Sample, digest_of, noise, of, tar_of
from tests.unit.smalldisk import mounted
from wheels.images import blobstore, patience
from wheels.images.blobstore import kept
from wheels.images.login import Credentials, challenges, credentials, scrub
from wheels.images.oci import Descriptor, Image, forget, open_image
from wheels.images.patience import retry_after
from wheels.images.registry import Registry

SIZE = 5_000_000
LAYER = tar_of({"a": noise(SIZE)})
SECRET = "nvapi-very-secret"


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody's login counts, and pauses are short."""
    for name in ("NGC_API_KEY", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "DOCKER_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.001)


@pytest.fixture
def memory() -> Memory:
    sample = Sample()
    top = sample.index({**sample.image(LAYER, tar_of({"b": b"1"})), "platform": of("linux/arm64")})
    return Memory(sample, {"1": top["digest"]})


@pytest.fixture
def server(memory: Memory) -> Iterator[Server]:
    with serving(memory) as made:
        memory.url = made.url
        yield made


@pytest.fixture
def lines() -> list[str]:
    return []


class Reader:
    """Reads an image as a command does."""

    def __init__(self, server: Server, work: Path, lines: list[str]) -> None:
        self.server = server
        self.work = work
        self.lines = lines

    def image(self, suffix: str = ":1") -> Image:
        with open_image(f"{self.server.host}/team/app{suffix}", self.lines.append, work=self.work) as blobs:
            return blobs.image("linux/arm64")

    def layer(self, suffix: str = ":1") -> bytes:
        """Return the lowest layer's tar archive as its blob holds it."""
        with open_image(f"{self.server.host}/team/app{suffix}", self.lines.append, work=self.work) as blobs:
            blob = blobs.image("linux/arm64").layers[0].blob
            data = b"".join(blobs.read(blob, self.lines.append))
        assert digest_of(data) == blob.digest
        assert kept(blob, self.work).whole.read_bytes() == data
        return data

    def refuses(self, why: str, suffix: str = ":1", kind: type[SparkstackError] = RegistryRefused) -> SparkstackError:
        with pytest.raises(kind, match=why) as caught:
            self.layer(suffix)
        assert not list((self.work / "blobs" / "sha256").glob("[0-9a-f]*")) or self.whole_ones_are_good()
        return caught.value

    def whole_ones_are_good(self) -> bool:
        files = (self.work / "blobs" / "sha256").glob("[0-9a-f]*")
        return all(hashlib.sha256(path.read_bytes()).hexdigest() == path.name for path in files)

    def asked_of_blobs(self) -> list[str | None]:
        """Return the ranges asked for of the lowest layer."""
        blob = self.image().layers[0].blob
        return [asked.range for asked in self.server.asked if blob.digest in asked.path]


@pytest.fixture
def reader(server: Server, tmp_path: Path, lines: list[str]) -> Reader:
    return Reader(server, tmp_path / "work", lines)


@pytest.mark.processes
class TestAnImage:
    def test_it_is_read_and_then_kept(self, reader: Reader, server: Server) -> None:
        first = reader.layer()
        asked = len(server.asked)
        assert reader.layer() == first
        assert server.paths()[asked:] == ["/v2/team/app/manifests/1"], "only what the tag means is asked again"

    def test_a_pinned_one_that_is_kept_needs_no_network(self, reader: Reader, server: Server) -> None:
        image = reader.image()
        reader.layer()
        asked = len(server.asked)
        reader.layer(f"@{image.pinned.partition('@')[2]}")
        assert len(server.asked) == asked

    def test_it_says_how_it_is_pinned(self, reader: Reader, memory: Memory, server: Server) -> None:
        image = reader.image()
        assert image.reference == f"{server.host}/team/app:1"
        assert image.pinned == f"{server.host}/team/app@{memory.tags['1']}"

    def test_a_pinned_one_must_be_what_comes(self, reader: Reader, server: Server) -> None:
        wanted = digest_of(b"another")
        other = b'{"schemaVersion": 2}'
        lie = Reply(200, other, {"Docker-Content-Digest": wanted, "Content-Type": OCI["manifest"]})
        server.fail("manifests", lambda _: lie)
        reader.refuses(f"its digest is {digest_of(other)}, asked for was {wanted}", f"@{wanted}")

    def test_a_tag_is_pinned_by_what_came_and_not_by_what_is_said(self, reader: Reader, server: Server) -> None:
        server.fail("manifests/1", lambda r: replace(r, headers={"Docker-Content-Digest": digest_of(b"x")}))
        reader.refuses("what it gives for that tag .* is not what it should be")

    def test_a_manifest_changed_on_the_way_is_refused(self, reader: Reader, server: Server) -> None:
        server.fail("manifests/sha256", changed(5))
        assert "if it stays" in reader.refuses("a document of .* is not what it should be").next_move
        reader.layer()

    def test_a_damaged_document_in_the_store_is_fetched_again(self, reader: Reader) -> None:
        image = reader.image()
        kept(Descriptor("", image.digest, 0), reader.work).whole.write_bytes(b"{}")
        assert reader.image() == image

    def test_a_document_without_end_is_not_read(self, reader: Reader, server: Server) -> None:
        server.fail("manifests/1", lambda r: replace(r, body=bytes(4 * 1024**2 + 1)))
        reader.refuses("answers with more than 4 MiB where a document was asked for")

    def test_one_that_is_not_there_is_said(self, reader: Reader, server: Server) -> None:
        error = reader.refuses(f"{server.host}/team/app has no manifest 2\n", ":2")
        assert error.evidence == "MANIFEST_UNKNOWN: unknown to registry"
        assert "skopeo list-tags" in error.next_move

    def test_the_old_schema_is_refused_by_name(self, reader: Reader, memory: Memory) -> None:
        old = memory.sample.add(b'{"schemaVersion": 1, "fsLayers": []}', f"{DOCKER['manifest'][:-8]}v1+prettyjws")
        memory.tags["old"] = old["digest"]
        assert "skopeo copy" in reader.refuses("Docker's schema 1", ":old", ImageRefused).next_move

    def test_a_server_that_gives_no_proper_type_is_believed_by_the_document(
        self, reader: Reader, server: Server
    ) -> None:
        server.fail("manifests", lambda r: replace(r, headers={"Content-Type": "text/plain"}), times=9)
        assert reader.image().layers

    def test_what_is_kept_of_a_blob_can_be_forgotten(self, reader: Reader) -> None:
        size = len(reader.layer())
        blob = reader.image().layers[0].blob
        assert (forget(blob, work=reader.work), forget(blob, work=reader.work)) == (size, 0)
        reader.layer()
        assert len(reader.asked_of_blobs()) == 2

    def test_one_that_is_being_fetched_is_not_forgotten(self, reader: Reader, server: Server) -> None:
        with open_image(f"{server.host}/team/app:1", print, work=reader.work) as blobs:
            blob = blobs.image("linux/arm64").layers[0].blob
            with closing(blobs.read(blob, print)) as stream:
                next(stream)
                assert forget(blob, work=reader.work) == 0
                assert sum(map(len, stream)) > 0
        assert forget(blob, work=reader.work) == blob.size


@pytest.mark.processes
class TestATransfer:
    def test_one_that_breaks_off_goes_on_where_it_stopped(self, reader: Reader, server: Server) -> None:
        server.fail("blobs", lambda r: r)  # the configuration
        server.fail("blobs", cut(2_000_000))
        server.fail("blobs", cut(1_500_000))
        reader.layer()
        first, second, third = reader.asked_of_blobs()
        assert first is None
        assert second == "bytes=2000000-"
        assert third == "bytes=3500000-"
        assert any("the connection to 127.0.0.1" in line and "at 2 MB of 5 MB" in line for line in reader.lines)

    def test_one_that_ends_cleanly_but_too_early_goes_on_too(self, reader: Reader, server: Server) -> None:
        reader.image()
        server.fail("blobs", lambda r: replace(r, body=r.body[:1_000_000], chunked=True))
        reader.layer()
        assert reader.asked_of_blobs() == [None, "bytes=1000000-"]
        assert any("broke (it ended at 1 MB of 5 MB)" in line for line in reader.lines)

    def test_one_that_promises_less_than_the_blob_is_refused(self, reader: Reader, server: Server) -> None:
        blob = reader.image().layers[0].blob
        server.fail("blobs", lambda r: replace(r, body=r.body[:1_000_000]))
        reader.refuses(f"{blob.short} of .* has {blob.size} bytes, the registry gives 1000000")

    def test_one_that_never_gets_further_is_given_up(self, reader: Reader, server: Server) -> None:
        reader.image()
        server.fail("blobs", cut(1000), times=99)
        error = reader.refuses(r"the connection to .* broke \(.*\), 5 times in a row")
        assert error.next_move == patience.NEXT
        assert len(reader.asked_of_blobs()) == 5
        server.faults.clear()
        reader.layer()
        assert reader.asked_of_blobs()[-1] == "bytes=5000-"

    def test_one_that_gets_further_each_time_is_not(self, reader: Reader, server: Server) -> None:
        reader.image()
        server.fail("blobs", cut(blobstore.BLOCK), times=99)
        reader.layer()
        assert len(reader.asked_of_blobs()) == 5

    def test_a_server_that_ignores_ranges_gives_the_whole_again(self, reader: Reader, server: Server) -> None:
        reader.image()
        server.fail("blobs", cut(2_000_000))
        server.fail("blobs", whole)
        reader.layer()
        assert reader.asked_of_blobs() == [None, "bytes=2000000-"]

    def test_a_server_that_has_not_the_rest_is_asked_for_the_whole(self, reader: Reader, server: Server) -> None:
        reader.image()
        server.fail("blobs", cut(2_000_000))
        server.fail("blobs", status(416))
        reader.layer()
        assert reader.asked_of_blobs() == [None, "bytes=2000000-", None]

    @pytest.mark.parametrize("given", ["bytes 0-9/10", "bytes 2000000-9/10", "", "none", "bytes 2000000-/*"])
    def test_another_range_than_asked_for_is_refused(self, reader: Reader, server: Server, given: str) -> None:
        reader.image()
        server.fail("blobs", cut(2_000_000))
        server.fail("blobs", lambda r: replace(r, status=206, headers={"Content-Range": given}))
        reader.refuses("the registry gives the range .* where bytes 2000000 to the end were asked for")
        reader.layer()

    def test_a_reader_that_stops_early_leaves_what_came(self, reader: Reader, server: Server) -> None:
        with open_image(f"{server.host}/team/app:1", print, work=reader.work) as blobs:
            blob = blobs.image("linux/arm64").layers[0].blob
            with closing(blobs.read(blob, print)) as stream:
                size = len(next(stream))
            assert not kept(blob, reader.work).whole.exists()
            assert kept(blob, reader.work).part.stat().st_size == size
        reader.layer()
        assert reader.asked_of_blobs() == [None, f"bytes={size}-"]
        assert any(line.startswith(f"{blob.short}: going on from ") for line in reader.lines)

    def test_one_that_is_complete_but_not_named_yet_needs_no_network(self, reader: Reader) -> None:
        data = reader.layer()
        place = kept(reader.image().layers[0].blob, reader.work)
        place.whole.rename(place.part)
        place.known.write_text(f"{len(data)} {hashlib.sha256(data).hexdigest()}\n")
        assert reader.layer() == data
        assert reader.asked_of_blobs() == [None]

    @pytest.mark.parametrize("note", [None, "", "x", "9999999999 " + "0" * 64, "1000000 " + "0" * 64])
    def test_a_part_that_is_not_what_came_is_fetched_from_its_beginning(self, reader: Reader, note: str | None) -> None:
        place = kept(reader.image().layers[0].blob, reader.work)
        place.part.write_bytes(noise(2_000_000, "other"))
        if note is not None:
            place.known.write_text(note)
        reader.layer()
        assert reader.asked_of_blobs() == [None]

    def test_after_a_kill_it_goes_on_from_what_was_noted(
        self, reader: Reader, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(blobstore, "CHECKPOINT", 1_000_000)
        place = kept(reader.image().layers[0].blob, reader.work)
        server.fail("blobs", cut(2_000_000), times=1)
        server.fail("blobs", cut(0), times=9)
        reader.refuses("5 times in a row")
        size = int(place.known.read_text().split()[0])
        with place.part.open("ab") as file:
            file.write(b"not noted any more")
        server.faults.clear()
        reader.layer()
        assert reader.asked_of_blobs()[-1] == f"bytes={size}-"

    def test_a_blob_damaged_on_the_disk_is_fetched_again(self, reader: Reader) -> None:
        reader.layer()
        place = kept(reader.image().layers[0].blob, reader.work)
        place.whole.write_bytes(b"x" * place.whole.stat().st_size)
        reader.layer()
        assert any(
            "is damaged: its hash is not the one that it is kept under; removed" in line for line in reader.lines
        )

    def test_two_commands_wait_for_each_other(self, reader: Reader, server: Server) -> None:
        reader.image()
        server.fail("blobs", lambda r: time.sleep(1.5) or r)  # type: ignore[func-returns-value]
        threads = [threading.Thread(target=reader.layer) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert reader.asked_of_blobs() == [None]
        assert any(line.startswith("another command fetches") for line in reader.lines)


@pytest.mark.processes
class TestWrongBytes:
    @pytest.mark.parametrize("place", [0, 2_500_000, -1])
    def test_they_are_refused_and_nothing_of_them_stays(self, reader: Reader, server: Server, place: int) -> None:
        blob = reader.image().layers[0].blob
        server.fail("blobs", changed(place))
        error = reader.refuses(f"a blob of {blob.size} bytes of {server.host}/team/app is not what it should be")
        assert f"asked for was {blob.digest}" in error.cause
        assert error.next_move.startswith("run the same command again")
        assert f"{blob.short}: what came is not this blob; removed" in reader.lines
        assert not kept(blob, reader.work).part.exists()
        reader.layer()

    def test_wrong_bytes_before_a_break_are_found_out_after_it(self, reader: Reader, server: Server) -> None:
        reader.image()
        server.fail("blobs", lambda r: cut(2_000_000)(changed(1)(r)))
        reader.refuses("is not what it should be")
        reader.layer()

    def test_more_bytes_than_promised_are_refused_before_they_come(self, reader: Reader, server: Server) -> None:
        blob = reader.image().layers[0].blob
        server.fail("blobs", lambda r: replace(r, body=r.body + b"more"))
        reader.refuses(f"{blob.short} of .* has {blob.size} bytes, the registry gives {blob.size + 4}")

    def test_a_stream_that_does_not_end_is_refused(self, reader: Reader, server: Server) -> None:
        reader.image()
        server.fail("blobs", lambda r: replace(r, body=r.body + bytes(10), chunked=True))
        reader.refuses("the registry gives more")
        reader.layer()


SMALL = tar_of({"a": noise(20_000)})
FAULTS = st.one_of(
    st.integers(-1, 21_000).map(lambda after: ("cut", after)),
    st.integers(0, 20_000).map(lambda at: ("changed", at)),
    st.sampled_from([200, 206, 401, 403, 404, 416, 429, 500, 503]).map(lambda code: ("status", code)),
    st.integers(0, 21_000).map(lambda size: ("chunked", size)),
    st.integers(0, 21_000).map(lambda size: ("short", size)),
    st.sampled_from([("whole", 0), ("revoked", 0), ("nothing", 0), ("page", 0)]),
)


def fault_of(kind: str, number: int, memory: Memory) -> Callable[[Reply], Reply]:
    changes: dict[str, Callable[[Reply], Reply]] = {
        "cut": cut(number),
        "changed": lambda r: changed(number % len(r.body))(r) if r.body else r,
        "status": status(number),
        "chunked": lambda r: replace(r, body=r.body[:number], chunked=True),
        "short": lambda r: replace(r, body=r.body[:number]),
        "whole": whole,
        "revoked": memory.revoke,
        "nothing": lambda r: r,
        "page": lambda r: replace(r, body=b"<html>" * 2000, headers={"Content-Type": "text/html"}),
    }
    return changes[kind]


@pytest.mark.processes
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(faults=st.lists(st.tuples(st.sampled_from(["manifests", "blobs", "token"]), FAULTS), max_size=6))
def test_whatever_happens_it_is_mended_or_refused_and_no_file_is_bad(
    tmp_path_factory: pytest.TempPathFactory, faults: list[tuple[str, tuple[str, int]]]
) -> None:
    sample = Sample()
    top = sample.index({**sample.image(SMALL), "platform": of("linux/arm64")})
    memory = Memory(sample, {"1": top["digest"]}, closed=True)
    with serving(memory) as server:
        memory.url = server.url
        reader = Reader(server, tmp_path_factory.mktemp("work"), [])
        for where, (kind, number) in faults:
            server.fail(where, fault_of(kind, number, memory))
        with suppress(RegistryRefused, ImageRefused):
            assert gzip.decompress(reader.layer()) == SMALL
        assert reader.whole_ones_are_good()
        server.faults.clear()
        assert gzip.decompress(reader.layer()) == SMALL, "nothing that happened is in the way of the next command"


@pytest.mark.processes
def test_a_full_disk_is_said_and_what_came_is_used_once_there_is_space(server: Server, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "12m") as disk:
        ballast = disk / "ballast"
        free = shutil.disk_usage(disk).free
        ballast.write_bytes(bytes(free - 2_000_000))
        reader = Reader(server, disk / "work", [])
        with pytest.raises(HostNotReady, match=f"the disk of {disk}/work/blobs/sha256 is full"):
            reader.layer()
        ballast.unlink()
        reader.layer()


@pytest.mark.processes
class TestAToken:
    @pytest.fixture(autouse=True)
    def _closed(self, memory: Memory, server: Server) -> None:  # noqa: ARG002
        memory.closed = True

    def test_anybody_gets_one_that_may_read_and_no_more(self, reader: Reader, memory: Memory) -> None:
        reader.layer()
        assert memory.scopes == ["repository:team/app:pull"]

    def test_one_for_writing_is_asked_for_only_to_write(self, server: Server, memory: Memory) -> None:
        with Registry(server.host, "team/app", print, push=True) as registry:
            registry.request("GET", "manifests/1")
        assert memory.scopes == ["repository:team/app:pull,push"]

    def test_it_is_renewed_whenever_it_ends(self, reader: Reader, memory: Memory) -> None:
        memory.uses = 1
        reader.layer()
        assert memory.issued >= 4

    def test_it_is_renewed_in_the_middle_of_a_blob(self, reader: Reader, server: Server, memory: Memory) -> None:
        reader.image()
        server.fail("blobs", lambda r: cut(2_000_000)(memory.revoke(r)))
        issued = memory.issued
        reader.layer()
        assert memory.issued == issued + 2
        assert [asked.range for asked in server.asked if asked.range] == ["bytes=2000000-"] * 2

    def test_one_that_is_refused_at_once_is_not_asked_for_for_ever(self, reader: Reader, memory: Memory) -> None:
        memory.uses = 0
        error = reader.refuses("does not let us read team/app without a password or key")
        assert memory.issued == 1
        assert error.evidence == "UNAUTHORIZED: authentication required"
        assert "skopeo login" in error.next_move

    def test_a_busy_token_server_is_waited_for(self, reader: Reader, server: Server) -> None:
        server.fail("/token", status(503), times=2)
        server.fail("/token", cut(-1))
        reader.layer()

    @pytest.mark.parametrize(
        "body", [b"", b"{}", b"[]", b"null", b'{"token": 5}', b'{"token": "a\\nb"}', b'{"token": ""}']
    )
    def test_an_answer_without_one_is_said(self, reader: Reader, server: Server, body: bytes) -> None:
        server.fail("/token", lambda _: Reply(200, body))
        reader.refuses(r"127\.0\.0\.1 gives no token where it says that it does")

    @pytest.mark.parametrize("realm", ["http://example.org/token", "ftp://127.0.0.1/x", "file:///etc/passwd", "//x y/"])
    def test_a_token_server_that_may_not_be_asked_is_not(self, reader: Reader, memory: Memory, realm: str) -> None:
        memory.realm = realm
        reader.refuses("no https address|no address")

    def test_another_kind_of_login_is_not_tried(self, reader: Reader, server: Server) -> None:
        server.fail("manifests", status(401, WWW_Authenticate="Negotiate"))
        reader.refuses("does not let us read team/app without a password or key")

    def test_a_token_that_was_given_in_the_other_way_counts(self, reader: Reader, server: Server) -> None:
        def renamed(reply: Reply) -> Reply:
            return replace(reply, body=reply.body.replace(b'"token"', b'"access_token"'))

        server.fail("/token", renamed)
        reader.layer()


def logged_in(path: Path, host: str, user: str, password: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    auth = base64.b64encode(f"{user}:{password}".encode()).decode()
    path.write_text(json.dumps({"auths": {host: {"auth": auth}}}))
    return path


@pytest.mark.processes
class TestALogin:
    @pytest.fixture(autouse=True)
    def _private(self, memory: Memory, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        memory.closed, memory.anonymous, memory.users = True, False, {"me": SECRET}
        path = logged_in(tmp_path / "auth.json", server.host, "me", SECRET)
        monkeypatch.setenv("REGISTRY_AUTH_FILE", str(path))

    def test_what_skopeo_or_docker_left_is_used_for_the_token(self, reader: Reader, server: Server) -> None:
        reader.layer()
        for asked in server.asked:
            assert asked.authorization.startswith("Basic") == asked.path.startswith("/token")

    def test_it_is_used_itself_where_that_is_asked_for(self, reader: Reader, memory: Memory) -> None:
        memory.basic = True
        reader.layer()

    @pytest.mark.parametrize("basic", [False, True])
    def test_one_that_is_refused_is_named_by_where_it_comes_from(
        self, reader: Reader, memory: Memory, tmp_path: Path, *, basic: bool
    ) -> None:
        memory.basic, memory.users = basic, {"me": "another"}
        error = reader.refuses(f"does not let us read team/app with what {tmp_path}/auth.json holds")
        assert error.next_move.startswith("look at the name; renew the key or password")

    def test_nothing_secret_is_shown_or_logged(
        self, reader: Reader, server: Server, caplog: pytest.LogCaptureFixture
    ) -> None:
        basic = base64.b64encode(f"me:{SECRET}".encode()).decode()
        words = {
            "errors": [{"code": "DENIED", "message": f"{SECRET} {basic} Bearer token-1 https://x/?sig=abc\n\x1b[2J"}]
        }
        server.fail("blobs/", lambda _: Reply(403, json.dumps(words).encode()))
        with caplog.at_level(logging.INFO):
            error = reader.refuses("does not let us read")
        shown = str(error) + repr(error.__cause__) + "".join(reader.lines) + caplog.text
        for secret in (SECRET, basic, "token-1", "sig=abc", "\x1b"):
            assert secret not in shown
        assert "DENIED: … … Bearer … https://x/" in error.evidence

    def test_another_host_never_gets_it(self, reader: Reader, server: Server, memory: Memory) -> None:
        with serving(memory) as other:
            blob = next(d for d, kind in memory.sample.types.items() if "layer" in kind)
            there = f"{other.url}/v2/storage/blobs/{blob}?signature=abc"
            memory_closed = Memory(memory.sample)
            other.backend = memory_closed
            server.fail(f"blobs/{blob}", lambda _: Reply(307, headers={"Location": there}))
            reader.layer()
            assert [asked.authorization for asked in other.asked] == [""]
            assert "signature" in other.asked[0].path

    def test_the_same_host_gets_it_again_after_a_redirect(self, reader: Reader, server: Server, memory: Memory) -> None:
        blob = next(d for d, kind in memory.sample.types.items() if "layer" in kind)
        server.fail(f"app/blobs/{blob}", lambda _: Reply(302, headers={"Location": f"/v2/other/blobs/{blob}"}))
        reader.layer()
        assert server.paths("/v2/other/")


@pytest.mark.processes
class TestARedirect:
    @pytest.fixture
    def blob(self, reader: Reader) -> Descriptor:
        return reader.image().layers[0].blob

    @pytest.fixture
    def storage(self, memory: Memory) -> Iterator[Server]:
        with serving(Memory(memory.sample)) as made:
            yield made

    def sends(self, server: Server, location: str, times: int = 1) -> None:
        server.fail("blobs/", lambda _: Reply(307, headers={"Location": location}), times)

    def test_a_range_is_asked_for_there_as_well(
        self, reader: Reader, server: Server, storage: Server, blob: Descriptor
    ) -> None:
        self.sends(server, f"{storage.url}/v2/x/blobs/{blob.digest}?signature=abc", times=9)
        storage.fail("blobs", cut(2_000_000))
        reader.layer()
        assert [asked.range for asked in storage.asked] == [None, "bytes=2000000-"]
        assert len(server.paths(blob.digest)) == 2, "each try gets a fresh signature"

    def test_its_signature_is_not_shown(
        self, reader: Reader, server: Server, storage: Server, blob: Descriptor, caplog: pytest.LogCaptureFixture
    ) -> None:
        self.sends(server, f"{storage.url}/v2/x/gone/{blob.digest}?signature=abc")
        with caplog.at_level(logging.INFO):
            error = reader.refuses(f"has no gone {blob.digest}")
        self.sends(server, f"{storage.url}/v2/x/gone/{blob.digest}?signature=abc", times=9)
        storage.fail("gone", status(403))
        with caplog.at_level(logging.INFO):
            later = reader.refuses(rf"127\.0\.0\.1, where {server.host} sends us, answered 403 Forbidden")
        assert "signature" not in f"{error}{later}{caplog.text}{reader.lines}"

    def test_a_login_that_another_host_asks_for_is_not_answered(
        self, reader: Reader, server: Server, storage: Server, blob: Descriptor
    ) -> None:
        self.sends(server, f"{storage.url}/v2/x/blobs/{blob.digest}")
        storage.fail("blobs", status(401, WWW_Authenticate=f'Bearer realm="{storage.url}/token"'))
        reader.refuses("answered 401")
        assert not storage.paths("/token")

    @pytest.mark.parametrize(
        ("location", "why"),
        [
            ("http://example.org/x?signature=abc", "sends us to http://example.org/x, which is no https address"),
            ("ftp://example.org/x", "which is no https address"),
            ("http://u:p@127.0.0.1/x", "sends us to http://127.0.0.1/x, which is no https"),
            ("http://[", "sends us to http://%5b, which is no https address"),
            ("http://x:y/", "Invalid URL in location header"),
        ],
    )
    def test_some_places_are_not_gone_to(
        self, reader: Reader, server: Server, blob: Descriptor, location: str, why: str
    ) -> None:
        self.sends(server, location, times=9)
        reader.refuses(why)
        assert kept(blob, reader.work).known.exists() is False

    @pytest.mark.parametrize("location", ["", "/v2/round/blobs/x"])
    def test_a_circle_ends(self, reader: Reader, server: Server, blob: Descriptor, location: str) -> None:
        assert blob
        self.sends(server, location, times=99)
        reader.refuses("sends us from one address to the next, 5 times")


@pytest.mark.processes
class TestABusyServer:
    def test_it_is_waited_for_as_long_as_it_asks(self, reader: Reader, server: Server) -> None:
        reader.image()
        server.fail("blobs", status(429, Retry_After="1"))
        began = time.monotonic()
        reader.layer()
        assert 1 <= time.monotonic() - began < 10
        assert f"{server.host} is busy (429): try 2 of 5 in 1 s" in reader.lines

    def test_it_may_say_when(self, reader: Reader, server: Server) -> None:
        when = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
        server.fail("manifests", status(503, Retry_After=when))
        began = time.monotonic()
        reader.image()
        assert time.monotonic() - began > 0.5

    @pytest.mark.parametrize("code", [429, 500, 502, 503, 504])
    def test_it_need_not_say_how_long(self, reader: Reader, server: Server, code: int) -> None:
        server.fail("manifests", status(code), times=3)
        server.fail("blobs", status(code), times=3)
        reader.layer()

    def test_one_that_is_always_busy_is_given_up(self, reader: Reader, server: Server) -> None:
        server.fail("manifests", status(503), times=99)
        error = reader.refuses(r"is busy \(503\), 5 times in a row")
        assert error.next_move == "run the same command again later; what was fetched is kept"

    def test_one_that_asks_for_too_much_time_is_not_waited_for(self, reader: Reader, server: Server) -> None:
        server.fail("manifests", status(429, Retry_After="86400"))
        reader.refuses(r"is busy \(429\) and asks to wait 86400 s")

    def test_all_pauses_together_end_too(self, reader: Reader, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(patience, "LONGEST_WAIT", 0.5)
        server.fail("manifests", status(429, Retry_After="1"), times=99)
        reader.refuses(r"is busy \(429\), 1 times in a row")

    def test_an_answer_that_does_not_come_is_asked_for_again(self, reader: Reader, server: Server) -> None:
        server.fail("manifests", cut(-1), times=2)
        server.fail("manifests", cut(5), times=2)
        reader.layer()

    def test_nobody_there_is_said(self, tmp_path: Path, lines: list[str]) -> None:
        with (
            pytest.raises(RegistryRefused, match=r"the connection to 127\.0\.0\.1:1 broke \(.*\), 5 times in a row"),
            open_image("127.0.0.1:1/x:1", lines.append, work=tmp_path) as blobs,
        ):
            blobs.image("linux/arm64")


@pytest.mark.processes
class TestARequest:
    """What publishing uses."""

    def test_it_gives_the_answer_and_where_it_leads(self, server: Server) -> None:
        server.fail("uploads", lambda _: Reply(202, headers={"Location": "/v2/team/app/blobs/uploads/1?_state=abc"}))
        with Registry(server.host, "team/app", print, push=True) as registry:
            answer = registry.request("POST", "blobs/uploads/", accept=(202,))
            assert answer.location == f"{server.url}/v2/team/app/blobs/uploads/1?_state=abc"
            assert "_state" not in repr(answer)
            server.fail("uploads/1", lambda _: Reply(201))
            answer = registry.request("PUT", f"{answer.location}&digest=x", content=b"body", accept=(201,))
        assert (server.asked[-1].method, server.asked[-1].body) == ("PUT", b"body")

    def test_a_file_is_sent_again_from_its_beginning(self, server: Server, memory: Memory, tmp_path: Path) -> None:
        memory.closed = True
        (tmp_path / "file").write_bytes(noise(3_000_000))
        server.fail("manifests/x", status(503))
        server.fail("manifests/x", lambda _: Reply(201))
        with Registry(server.host, "team/app", print, push=True) as registry:
            registry.request("PUT", "manifests/x", content=tmp_path / "file", accept=(201,))
        assert [digest_of(asked.body) for asked in server.asked if "x" in asked.path[-1]][-1] == digest_of(
            noise(3_000_000)
        )
        assert server.asked[-1].headers["content-length"] == "3000000"

    def test_what_may_not_be_done_twice_is_not(self, server: Server) -> None:
        server.fail("uploads", cut(-1))
        with (
            Registry(server.host, "team/app", print, push=True) as registry,
            pytest.raises(RegistryRefused, match="cannot be reached"),
        ):
            registry.request("POST", "blobs/uploads/", accept=(202,))
        assert len(server.paths("uploads")) == 1

    def test_a_check_may_find_nothing(self, server: Server) -> None:
        with Registry(server.host, "team/app", print) as registry:
            assert registry.request("HEAD", "manifests/9", accept=(200, 404)).status == 404
            assert registry.request("HEAD", "manifests/1", accept=(200, 404)).status == 200

    def test_who_may_only_read_is_told_so(self, server: Server) -> None:
        server.fail("uploads", status(403))
        with (
            Registry(server.host, "team/app", print, push=True) as registry,
            pytest.raises(RegistryRefused, match="does not let us write to team/app without"),
        ):
            registry.request("POST", "blobs/uploads/")


class TestCredentials:
    def test_a_key_for_ngc_comes_from_the_environment_and_goes_nowhere_else(self, tmp_path: Path) -> None:
        variables = {"NGC_API_KEY": f" {SECRET}\n", "HOME": str(tmp_path)}
        found = credentials("nvcr.io", "nvidia/vllm", variables)
        assert found == Credentials("$oauthtoken", SECRET, "the environment variable NGC_API_KEY")
        assert base64.b64decode(found.basic().removeprefix("Basic ")).decode() == f"$oauthtoken:{SECRET}"
        assert SECRET not in repr(found)
        for host in ("nvcr.io.example", "x.nvcr.io", "docker.io"):
            assert credentials(host, "nvidia/vllm", variables) is None

    @pytest.mark.parametrize("key", ["two words", "line\nline", "ümlaut"])
    def test_what_can_be_no_key_is_said_and_not_shown(self, key: str) -> None:
        with pytest.raises(UsageError, match=r"^what NGC_API_KEY holds is no API key\n") as caught:
            credentials("nvcr.io", "x", {"NGC_API_KEY": key})
        assert key not in str(caught.value)

    def test_the_first_file_that_knows_the_registry_counts(self, tmp_path: Path) -> None:
        variables = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path / "run")}
        assert credentials("x.io", "a", variables) is None
        logged_in(tmp_path / ".docker" / "config.json", "x.io", "docker", "p:w")
        assert credentials("x.io", "a", variables) == Credentials("docker", "p:w", f"{tmp_path}/.docker/config.json")
        logged_in(tmp_path / "run" / "containers" / "auth.json", "y.io", "skopeo", "p")
        assert credentials("x.io", "a", variables) is not None
        logged_in(tmp_path / "run" / "containers" / "auth.json", "x.io", "skopeo", "p")
        assert (credentials("x.io", "a", variables) or Credentials("", "", "")).user == "skopeo"
        chosen = logged_in(tmp_path / "mine", "x.io", "mine", "p")
        variables["REGISTRY_AUTH_FILE"] = str(chosen)
        assert (credentials("x.io", "a", variables) or Credentials("", "", "")).user == "mine"

    @pytest.mark.parametrize(
        ("name", "host", "repository"),
        [
            ("x.io", "x.io", "a/b"),
            ("x.io/a", "x.io", "a/b"),
            ("x.io/a/b", "x.io", "a/b"),
            ("https://x.io", "x.io", "a"),
            ("https://x.io/v2/", "x.io", "a"),
            ("https://index.docker.io/v1/", "docker.io", "library/ubuntu"),
        ],
    )
    def test_a_registry_is_found_by_each_of_its_names(
        self, tmp_path: Path, name: str, host: str, repository: str
    ) -> None:
        path = logged_in(tmp_path / "auth.json", name, "me", "p")
        assert credentials(host, repository, {"REGISTRY_AUTH_FILE": str(path)})
        assert credentials("other.io", repository, {"REGISTRY_AUTH_FILE": str(path)}) is None

    def test_what_is_said_of_a_repository_counts_more(self, tmp_path: Path) -> None:
        entries = {"x.io": {"username": "all", "password": "p"}, "x.io/a": {"username": "a", "password": "p"}}
        (tmp_path / "auth.json").write_text(json.dumps({"auths": entries}))
        variables = {"REGISTRY_AUTH_FILE": str(tmp_path / "auth.json")}
        users = [found.user for name in ("a/b", "b/a") if (found := credentials("x.io", name, variables))]
        assert users == ["a", "all"]

    @pytest.mark.parametrize("auths", [None, {}, [], {"x.io": {}}, {"x.io": None}, {"x.io": {"identitytoken": "t"}}])
    def test_an_entry_without_password_is_none(self, tmp_path: Path, auths: object) -> None:
        (tmp_path / "auth.json").write_text(json.dumps({"auths": auths, "credsStore": "desktop"}))
        assert credentials("x.io", "a", {"REGISTRY_AUTH_FILE": str(tmp_path / "auth.json")}) is None

    @pytest.mark.parametrize(
        "text",
        ["", "secret", "[]", '{"auths": {"x.io": {"auth": "secret!"}}}', '{"auths":' * 5000]
        + [
            json.dumps({"auths": {"x.io": {"auth": base64.b64encode(word).decode()}}})
            for word in (b"secret", b"\xff:x")
        ],
    )
    def test_a_file_that_is_none_is_named_and_not_shown(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "auth.json").write_text(text)
        with pytest.raises(ConfigError, match=r"auth\.json cannot be read: it is no file of `docker login`") as caught:
            credentials("x.io", "a", {"REGISTRY_AUTH_FILE": str(tmp_path / "auth.json")})
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__
        assert "secret" not in str(caught.value)

    def test_a_file_that_may_not_be_read_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
            credentials("x.io", "a", {"REGISTRY_AUTH_FILE": str(tmp_path)})


class TestAChallenge:
    def test_ngc_names_a_scope_and_no_service(self) -> None:
        header = 'Bearer realm="https://nvcr.io/proxy_auth",scope="repository:nvidia/vllm:pull,push"'
        (found,) = challenges([header])
        assert found.scheme == "bearer"
        assert found.parameters == {
            "realm": "https://nvcr.io/proxy_auth",
            "scope": "repository:nvidia/vllm:pull,push",
        }

    @pytest.mark.parametrize(
        ("headers", "schemes"),
        [
            (['Basic realm="a", Bearer realm="b"'], ["basic", "bearer"]),
            (["BEARER realm=b", "Basic"], ["bearer", "basic"]),
            (["Negotiate YWJj==, Basic realm=x"], ["negotiate"]),
            ([""], []),
            (["=,=,"], []),
        ],
    )
    def test_there_may_be_several(self, headers: list[str], schemes: list[str]) -> None:
        assert [found.scheme for found in challenges(headers)][: len(schemes)] == schemes

    def test_a_value_may_have_quotes(self) -> None:
        (found,) = challenges([r'Bearer realm="a\"b, c=d", service = x'])
        assert found.parameters == {"realm": 'a"b, c=d', "service": "x"}

    @given(st.text(max_size=200))
    def test_any_header_is_read_or_left_out(self, text: str) -> None:
        for found in challenges([text, f"Bearer {text}"]):
            assert found.scheme == found.scheme.lower()

    @given(st.dictionaries(st.from_regex(r"[a-z]{1,8}", fullmatch=True), st.text(max_size=20), max_size=4))
    def test_what_is_written_is_read(self, parameters: dict[str, str]) -> None:
        quoted = {name: value.replace("\\", "\\\\").replace('"', '\\"') for name, value in parameters.items()}
        header = "Bearer " + ",".join(f'{name}="{value}"' for name, value in quoted.items())
        assert dict(challenges([header])[0].parameters) == parameters


class TestAWait:
    @pytest.mark.parametrize(
        ("text", "seconds"),
        [("0", 0), ("7", 7), ("9" * 30, 999_999_999), ("", None), ("-1", None), ("soon", None), ("１", None)],
    )
    def test_it_is_a_number(self, text: str, seconds: float | None) -> None:
        assert retry_after(text) == seconds

    def test_it_is_a_date(self) -> None:
        assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
        assert 50 < (retry_after(format_datetime(datetime.now(UTC) + timedelta(minutes=1))) or 0) <= 60

    @given(st.text(max_size=40))
    def test_it_is_anything(self, text: str) -> None:
        found = retry_after(text)
        assert found is None or found >= 0


@given(st.text(max_size=300))
def test_a_servers_words_are_one_short_line(text: str) -> None:
    shown = scrub(text, [])
    assert shown.isprintable()
    assert len(shown) <= 200


def test_a_registry_that_is_not_here_is_asked_over_https_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def answer(_: object, request: httpx.Request, **__: object) -> httpx.Response:
        asked.append(str(request.url))
        return httpx.Response(200, stream=httpx.ByteStream(b""), request=request)

    monkeypatch.setattr(httpx.Client, "send", answer)
    for host in ("nvcr.io", "docker.io", "10.0.0.1:5000"):
        with Registry(host, "a/b", print) as registry:
            registry.request("GET", "manifests/1")
    assert asked == [
        "https://nvcr.io/v2/a/b/manifests/1",
        "https://registry-1.docker.io/v2/a/b/manifests/1",
        "https://10.0.0.1:5000/v2/a/b/manifests/1",
    ]


class TestNgc:
    """NVIDIA's registry by its own ways, as far as they are known; no test reaches it."""

    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch) -> list[httpx.Request]:
        sample, asked = Sample(DOCKER), []
        top = sample.index({**sample.image(LAYER), "platform": of("linux/arm64")})
        closed = {"WWW-Authenticate": 'Bearer realm="https://nvcr.io/proxy_auth",scope="repository:x/y:pull,push"'}

        def answer(_: object, request: httpx.Request, **__: object) -> httpx.Response:
            asked.append(request)
            name = request.url.path.rpartition("/")[2]
            data = sample.blobs.get({"25.11-py3": top["digest"]}.get(name, name), b"")
            if name == "proxy_auth":
                return given(request, 200, b'{"token": "T"}')
            if request.url.host == "nvcr.io" and request.headers.get("Authorization") != "Bearer T":
                return given(request, 401, b"", closed)
            if request.url.host == "nvcr.io" and "/blobs/" in request.url.path:
                return given(request, 302, b"", {"Location": f"https://storage.example/{name}?Signature=S"})
            return given(request, 200, data, {"Content-Type": sample.types.get(name, DOCKER["index"])})

        def given(
            request: httpx.Request, status: int, body: bytes, headers: dict[str, str] | None = None
        ) -> httpx.Response:
            return httpx.Response(status, headers=headers, stream=httpx.ByteStream(body), request=request)

        monkeypatch.setattr(httpx.Client, "send", answer)
        return asked

    def read(self, work: Path) -> None:
        with open_image("nvcr.io/nvidia/vllm:25.11-py3", print, work=work) as blobs:
            (layer,) = blobs.image("linux/arm64").layers
            assert digest_of(b"".join(blobs.read(layer.blob, print))) == layer.blob.digest

    def test_a_public_image_needs_no_key(self, asked: list[httpx.Request], tmp_path: Path) -> None:
        self.read(tmp_path)
        (token,) = [request for request in asked if request.url.path == "/proxy_auth"]
        assert str(token.url) == "https://nvcr.io/proxy_auth?scope=repository%3Anvidia%2Fvllm%3Apull"
        assert "Authorization" not in token.headers

    def test_a_key_goes_to_the_token_server_only(
        self, asked: list[httpx.Request], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("NGC_API_KEY", SECRET)
        self.read(tmp_path)
        basic = f"Basic {base64.b64encode(f'$oauthtoken:{SECRET}'.encode()).decode()}"
        for request in asked:
            given = request.headers.get("Authorization", "")
            assert (given == basic) == (request.url.path == "/proxy_auth")
            assert given in {basic, "Bearer T", ""}
            assert not given or request.url.host == "nvcr.io"
            assert SECRET not in str(request.url)
        assert {request.url.host for request in asked} == {"nvcr.io", "storage.example"}
