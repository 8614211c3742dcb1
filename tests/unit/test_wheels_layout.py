"""Images on the disk: folders and archives, whole, damaged and hostile."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.errors import ImageRefused, SparkstackError, UsageError
from tests.unit.imagesamples import Sample, digest_of, noise, of, tagged, tar_of
from wheels.images import layout
from wheels.images.oci import Descriptor, open_image

LAYER = tar_of({"a": noise(3_000_000)})


@pytest.fixture
def sample() -> Sample:
    return Sample()


@pytest.fixture(params=["oci", "oci-archive"])
def put(request: pytest.FixtureRequest, tmp_path: Path, sample: Sample) -> Callable[..., str]:
    """Write the sample with these entries in its index.json and return how it is named."""

    def written(*entries: dict[str, Any]) -> str:
        if request.param == "oci":
            return f"oci:{sample.folder(tmp_path / 'l', *entries)}"
        return f"oci-archive:{sample.archive(tmp_path / 'l.tar', *entries)}"

    return written


def refuses(reference: str, why: str, kind: type[SparkstackError] = ImageRefused) -> SparkstackError:
    """Ask for the image and all its blobs; return the error."""
    with pytest.raises(kind, match=why) as caught:
        everything(reference)
    return caught.value


def everything(reference: str) -> list[bytes]:
    """Return the layers' blobs."""
    with open_image(reference, print) as blobs:
        return [b"".join(blobs.read(layer.blob, print)) for layer in blobs.image("linux/arm64").layers]


class TestALayout:
    def test_its_blobs_are_read_and_verified(self, sample: Sample, put: Callable[..., str]) -> None:
        manifest = sample.image(LAYER, LAYER)
        reference = put(tagged(sample.index({**manifest, "platform": of("linux/arm64")}), "v1"))
        with open_image(f"{reference}:v1", print) as blobs:
            image = blobs.image("linux/arm64")
            (layer, again) = image.layers
            assert layer == again
            assert gzip.decompress(b"".join(blobs.read(layer.blob, print))) == LAYER
        assert (image.reference, image.digest) == (f"{reference}:v1", manifest["digest"])

    def test_it_can_be_asked_for_by_what_it_is_pinned_to(self, sample: Sample, put: Callable[..., str]) -> None:
        first, second = sample.image(LAYER), sample.image()
        reference = put(tagged(first, "v1"), tagged(second, "v2"))
        with open_image(f"{reference}:v2", print) as blobs:
            pinned = blobs.image("linux/arm64").pinned
        assert pinned == f"{reference}@{second['digest']}"
        with open_image(pinned, print) as blobs:
            assert blobs.image("linux/arm64").digest == second["digest"]
        error = refuses(f"{reference}@{digest_of(b'')}", f"has no image {digest_of(b'')}", UsageError)
        assert error.next_move == "these tags are there: v1, v2; name one"

    def test_of_several_tags_one_must_be_named(self, sample: Sample, put: Callable[..., str]) -> None:
        reference = put(tagged(sample.image(LAYER), "25.11"), tagged(sample.image(), "25.10"))
        error = refuses(reference, "holds several images", UsageError)
        assert error.next_move == "name one: 25.10, 25.11"
        error = refuses(f"{reference}:25.12", r"has no tag '25\.12' \(did you mean 25\.1[01]\?\)", UsageError)
        assert error.next_move == "these tags are there: 25.10, 25.11; name one"

    def test_without_tags_the_only_one_is_meant(self, sample: Sample, put: Callable[..., str]) -> None:
        reference = put(sample.image(LAYER))
        with open_image(reference, print) as blobs:
            assert len(blobs.image("linux/arm64").layers) == 1
        error = refuses(f"{reference}:v1", "has no tag 'v1'", UsageError)
        assert error.next_move == "no tag is there; name one"

    def test_what_an_older_tag_left_is_not_meant(self, sample: Sample, put: Callable[..., str]) -> None:
        new = sample.image(LAYER)
        with open_image(put(sample.image(), tagged(new, "v1")), print) as blobs:
            assert blobs.image("linux/arm64").digest == new["digest"]

    def test_of_several_platforms_the_wanted_one_is_taken(self, sample: Sample, put: Callable[..., str]) -> None:
        entries = [{**sample.image(platform=one), "platform": of(one)} for one in ("linux/amd64", "linux/arm64")]
        with open_image(f"{put(*(tagged(entry, 'v1') for entry in entries))}:v1", print) as blobs:
            assert blobs.image("linux/arm64").digest == entries[1]["digest"]

    def test_nothing_in_it_is_said(self, put: Callable[..., str]) -> None:
        refuses(put(), "has no image", UsageError)

    def test_a_damaged_blob_is_named(self, sample: Sample, put: Callable[..., str]) -> None:
        manifest = sample.image(LAYER)
        layer = next(digest for digest, kind in sample.types.items() if "layer" in kind)
        sample.blobs[layer] = sample.blobs[layer][:-1] + b"?"
        refuses(put(manifest), f"the blob {layer} is damaged: its digest is {digest_of(sample.blobs[layer])}")
        sample.blobs[layer] += b"?"
        refuses(put(manifest), f"its blob {layer} has 3001[0-9]+ bytes, 3001[0-9]+ are promised")
        del sample.blobs[layer]

    def test_a_damaged_document_is_named(self, sample: Sample, put: Callable[..., str]) -> None:
        manifest = sample.image(LAYER)
        sample.blobs[manifest["digest"]] = sample.blobs[manifest["digest"]].replace(b"linux", b"Linux")
        sample.blobs[manifest["digest"]] = sample.blobs[manifest["digest"]].replace(b"2", b"3", 1)
        refuses(put(manifest), f"the blob {manifest['digest']} is damaged")

    def test_a_missing_blob_is_named(self, sample: Sample, put: Callable[..., str]) -> None:
        manifest = sample.image(LAYER)
        layer = next(digest for digest, kind in sample.types.items() if "layer" in kind)
        del sample.blobs[layer]
        refuses(put(manifest), f"has no blob {layer}")

    def test_a_document_too_large_is_not_read(self, sample: Sample, put: Callable[..., str]) -> None:
        refuses(put(sample.add(b" " * (4 * 1024**2 + 1), "manifest")), "its blobs/sha256/.* has 4 MB")

    def test_a_reader_that_stops_early_may_begin_again(self, sample: Sample, put: Callable[..., str]) -> None:
        with open_image(put(sample.image(LAYER)), print) as blobs:
            (layer,) = blobs.image("linux/arm64").layers
            first = next(iter(blobs.read(layer.blob, print)))
            assert len(first) < layer.blob.size
            assert b"".join(blobs.read(layer.blob, print)).startswith(first)


class TestAFolder:
    def test_its_name_may_have_a_colon(self, sample: Sample, tmp_path: Path) -> None:
        place = sample.folder(tmp_path / "a:b", tagged(sample.image(LAYER), "v1"))
        for reference in (f"oci:{place}", f"oci:{place}:v1"):
            with open_image(reference, print) as blobs:
                assert len(blobs.image("linux/arm64").layers) == 1

    @pytest.mark.parametrize(
        ("name", "text", "why"),
        [
            ("oci-layout", None, "has no oci-layout"),
            ("oci-layout", "{}", "its oci-layout cannot be read: imageLayoutVersion: Field required"),
            ("oci-layout", '{"imageLayoutVersion": "2.0.0"}', r"its layout is of version '2\.0\.0'; 1\.0\.0 is read"),
            ("index.json", None, "has no index.json"),
            ("index.json", "{", "its index.json cannot be read"),
            ("index.json", '{"schemaVersion": 1}', "its index.json is not of schema 2"),
            ("index.json", '{"schemaVersion": 2}', r"its index\.json cannot be read: manifests: Field required"),
        ],
    )
    def test_what_is_none_is_refused(
        self, sample: Sample, tmp_path: Path, name: str, text: str | None, why: str
    ) -> None:
        place = sample.folder(tmp_path / "l", sample.image(LAYER))
        (place / name).unlink() if text is None else (place / name).write_text(text)
        refuses(f"oci:{place}", why)

    def test_a_blob_that_never_ends_is_not_opened(self, sample: Sample, tmp_path: Path) -> None:
        manifest = sample.image(LAYER)
        place = sample.folder(tmp_path / "l", manifest)
        path = place / "blobs" / manifest["digest"].replace(":", "/")
        path.unlink()
        os.mkfifo(path)
        refuses(f"oci:{place}", "is no plain file")
        path.unlink()
        path.symlink_to("/dev/zero")
        refuses(f"oci:{place}", "is no plain file")

    def test_blobs_may_be_shared_by_links(self, sample: Sample, tmp_path: Path) -> None:
        place = sample.folder(tmp_path / "l", sample.image(LAYER))
        (place / "blobs").rename(tmp_path / "shared")
        (place / "blobs").symlink_to(tmp_path / "shared")
        with open_image(f"oci:{place}", print) as blobs:
            assert len(blobs.image("linux/arm64").layers) == 1

    def test_a_blob_that_shrinks_while_it_is_read_is_refused(self, sample: Sample, tmp_path: Path) -> None:
        place = sample.folder(tmp_path / "l", sample.image(LAYER))
        with open_image(f"oci:{place}", print) as blobs:
            (layer,) = blobs.image("linux/arm64").layers
            stream = iter(blobs.read(layer.blob, print))
            next(stream)
            os.truncate(place / "blobs" / layer.blob.digest.replace(":", "/"), 2_000_000)
            with pytest.raises(ImageRefused, match="is damaged"):
                list(stream)

    def test_a_digest_that_leads_elsewhere_is_none(self, sample: Sample, tmp_path: Path) -> None:
        place = sample.folder(tmp_path / "l", sample.image(LAYER))
        with open_image(f"oci:{place}", print) as blobs, pytest.raises(ImageRefused, match="is no digest"):
            next(iter(blobs.read(Descriptor("", "sha256:../../../etc/passwd", 1), print)))


def member(
    name: str, kind: bytes = tarfile.REGTYPE, content: bytes = b"", **more: Any
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.size = len(content)
    for key, value in more.items():
        setattr(info, key, value)
    return info, content


def archive_of(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> str:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return f"oci-archive:{path}"


class TestAnArchive:
    def test_its_members_may_be_named_from_here(self, sample: Sample, tmp_path: Path) -> None:
        files = sample.files(sample.image(LAYER))
        members = [member("./", tarfile.DIRTYPE), member("./blobs", tarfile.DIRTYPE)]
        members += [member(f"./{name}", content=data) for name, data in files.items()]
        with open_image(archive_of(tmp_path / "a.tar", *members), print) as blobs:
            (layer,) = blobs.image("linux/arm64").layers
            assert gzip.decompress(b"".join(blobs.read(layer.blob, print))) == LAYER

    @pytest.mark.parametrize(
        ("hostile", "why"),
        [
            (member("../x"), "has a member '../x', which leads out of it"),
            (member("/etc/passwd"), "has a member '/etc/passwd', which leads out of it"),
            (member("blobs/../../x"), "leads out of it"),
            (member("x", tarfile.SYMTYPE, linkname="/etc/passwd"), "has a member 'x', which is no plain file"),
            (member("x", tarfile.LNKTYPE, linkname="index.json"), "which is no plain file"),
            (member("x", tarfile.CHRTYPE), "which is no plain file"),
            (member("x", tarfile.FIFOTYPE), "which is no plain file"),
            (member("x", tarfile.GNUTYPE_SPARSE), "which is no plain file|that can be read"),
            (member("index.json"), "has the member 'index.json' twice"),
            (
                member("x", pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}),
                "no plain file|that can be read",
            ),
            (member("x", pax_headers={"comment": "y" * (layout.LARGEST_HEADER + 1)}), "its headers are too large"),
        ],
    )
    def test_a_hostile_member_is_refused(
        self, sample: Sample, tmp_path: Path, hostile: tuple[tarfile.TarInfo, bytes], why: str
    ) -> None:
        members = [member(name, content=data) for name, data in sample.files(sample.image(LAYER)).items()]
        refuses(archive_of(tmp_path / "a.tar", *members, hostile), why)

    def test_too_many_members_are_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(layout, "MOST_MEMBERS", 10)
        refuses(archive_of(tmp_path / "a.tar", *(member(f"{n}") for n in range(11))), "more than 10 members")

    @pytest.mark.parametrize(
        ("beginning", "tool"), [(b"\x1f\x8b\x08", "gunzip"), (b"\x28\xb5\x2f\xfd", "unzstd"), (b"BZh9", "bunzip2")]
    )
    def test_a_compressed_one_is_refused_with_what_unpacks_it(
        self, tmp_path: Path, beginning: bytes, tool: str
    ) -> None:
        (tmp_path / "a.tar").write_bytes(beginning + bytes(600))
        error = refuses(f"oci-archive:{tmp_path}/a.tar", "is a compressed archive")
        assert error.next_move == f"unpack it with {tool} first"

    @pytest.mark.parametrize("content", [b"", b"x", noise(2000), bytes(511)])
    def test_what_is_none_is_refused(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "a.tar").write_bytes(content)
        refuses(f"oci-archive:{tmp_path}/a.tar", "is no tar archive that can be read")

    def test_one_that_ends_too_early_is_refused(self, sample: Sample, tmp_path: Path) -> None:
        path = sample.archive(tmp_path / "a.tar", sample.image(LAYER))
        os.truncate(path, 1_000_000)
        refuses(f"oci-archive:{path}", "is no tar archive that can be read: unexpected end of data")

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
    @given(st.lists(st.tuples(st.integers(0, 6000), st.integers(0, 255)), min_size=1, max_size=8))
    def test_any_change_is_refused_or_changes_nothing(self, tmp_path: Path, changes: list[tuple[int, int]]) -> None:
        sample = Sample()
        tar = tar_of({"a": b"1"})
        path = sample.archive(tmp_path / "a.tar", sample.image(tar))
        data = bytearray(path.read_bytes())
        for place, byte in changes:
            data[place % len(data)] = byte
        path.write_bytes(data)
        try:
            with open_image(f"oci-archive:{path}", print) as blobs:
                (layer,) = blobs.image("linux/arm64").layers
                assert gzip.decompress(b"".join(blobs.read(layer.blob, print))) == tar
        except (ImageRefused, UsageError):
            pass
