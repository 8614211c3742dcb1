"""Names of images, and their documents: read, chosen from, and refused when they are not what they should be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ImageRefused, UsageError
from tests.unit.imagesamples import DOCKER, OCI, Sample, digest_of, of, tar_of
from wheels.images.documents import Descriptor, Document, check_digest, listed, normal, resolve
from wheels.images.oci import Image, open_image
from wheels.images.reference import Reference, is_loopback, parse_reference

REFERENCES = json.loads((Path(__file__).parent / "tables" / "image_references.json").read_text())
LAYER = tar_of({"a": b"1"})
UPPER = tar_of({"b": b"2"})
ATTESTATION = {"os": "unknown", "architecture": "unknown"}


class Held:
    """The documents of a sample, given as they are."""

    def __init__(self, sample: Sample) -> None:
        self.sample = sample

    def document(self, wanted: Descriptor) -> bytes:
        return self.sample.blobs[wanted.digest]


def resolved(sample: Sample, top: dict[str, Any], platform: str = "linux/arm64", promised: str | None = None) -> Image:
    media_type = top["mediaType"] if promised is None else promised
    document = Document(Descriptor(media_type, top["digest"], top["size"]), sample.blobs[top["digest"]])
    return resolve(Held(sample), document, platform, "x.io/a:1", f"x.io/a@{top['digest']}")


class TestAReference:
    @pytest.mark.parametrize("case", REFERENCES, ids=[case["text"] or "nothing" for case in REFERENCES])
    def test_it_is_read_or_refused(self, case: dict[str, Any]) -> None:
        if "parts" in case:
            assert parse_reference(case["text"]) == Reference(*case["parts"])
            return
        with pytest.raises(UsageError, match="names no image: ") as caught:
            parse_reference(case["text"])
        assert case["why"] in caught.value.cause

    def test_the_name_of_a_repository_ends_somewhere(self) -> None:
        with pytest.raises(UsageError, match="is no repository"):
            parse_reference(f"x.io/{'a' * 256}")

    @given(st.text(max_size=60))
    def test_what_is_read_is_written_the_same_again(self, text: str) -> None:
        try:
            found = parse_reference(text)
        except UsageError:
            return
        assert parse_reference(str(found)) == found

    @given(st.from_regex(r"[a-z]{1,5}\.io/[a-z0-9._/%:@?#~\\ -]{1,30}", fullmatch=True))
    def test_nothing_that_means_something_in_a_url_comes_through(self, text: str) -> None:
        try:
            found = parse_reference(text)
        except UsageError:
            return
        assert not set(found.repository + found.tag) & set("%:@?#~\\ ")
        assert "//" not in found.repository
        assert not {"", ".", ".."} & set(found.repository.split("/"))

    @pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "::1", "[::1]"])
    def test_loopback_is_known_by_its_address(self, host: str) -> None:
        assert is_loopback(host)

    @pytest.mark.parametrize("host", ["10.0.0.1", "localhost.example", "127.0.0.1.example", "0.0.0.0", "nvcr.io"])
    def test_others_are_not_loopback(self, host: str) -> None:
        assert not is_loopback(host)


class TestAnImage:
    @pytest.mark.parametrize("kinds", [OCI, DOCKER], ids=["oci", "docker"])
    def test_its_layers_come_bottom_first_with_the_digests_of_their_tars(self, kinds: dict[str, str]) -> None:
        sample = Sample(kinds)
        manifest = sample.image(LAYER, UPPER, LAYER)
        top = sample.index({**manifest, "platform": of("linux/arm64")})
        image = resolved(sample, top)
        assert [layer.diff_id for layer in image.layers] == [digest_of(LAYER), digest_of(UPPER), digest_of(LAYER)]
        assert image.layers[0] == image.layers[2], "an identical layer may come twice"
        assert image.layers[0].blob.media_type == kinds["layer"]
        assert (image.digest, image.platform) == (manifest["digest"], "linux/arm64")
        assert (image.reference, image.pinned) == ("x.io/a:1", f"x.io/a@{top['digest']}")

    def test_a_manifest_without_index_is_one_as_well(self) -> None:
        sample = Sample()
        assert len(resolved(sample, sample.image(LAYER)).layers) == 1

    def test_documents_need_not_say_what_they_are(self) -> None:
        sample = Sample()
        manifest = sample.image(LAYER, manifest={"mediaType": None})
        top = sample.index({**manifest, "platform": of("linux/arm64")}, mediaType=None, annotations=None)
        assert len(resolved(sample, top, promised="").layers) == 1

    def test_an_index_may_point_to_another(self) -> None:
        sample = Sample()
        inner = sample.index({**sample.image(LAYER), "platform": of("linux/arm64")})
        assert len(resolved(sample, sample.index(inner)).layers) == 1

    def test_indexes_within_indexes_end_somewhere(self) -> None:
        sample = Sample()
        top = sample.image(LAYER)
        for _ in range(3):
            top = sample.index(top)
        with pytest.raises(ImageRefused, match="it is an index of indexes, 3 deep"):
            resolved(sample, top)


class TestThePlatform:
    def test_it_is_chosen_among_others_and_among_statements_about_them(self) -> None:
        sample = Sample()
        entries = [
            {**sample.image(UPPER, platform="linux/amd64"), "platform": of("linux/amd64")},
            {**sample.image(LAYER, platform="linux/arm64/v8"), "platform": of("linux/arm64/v8")},
            {**sample.image(platform="unknown/unknown"), "platform": ATTESTATION},
        ]
        top = sample.index(*entries)
        for wanted in ("linux/arm64", "linux/arm64/v8"):
            assert resolved(sample, top, wanted).digest == entries[1]["digest"]
        assert resolved(sample, top, "linux/amd64").digest == entries[0]["digest"]

    def test_one_that_is_not_there_is_refused_naming_those_that_are(self) -> None:
        sample = Sample()
        entry = sample.image(platform="linux/amd64")
        statement = {"annotations": {"vnd.docker.reference.type": "attestation-manifest"}}
        top = sample.index({**entry, "platform": of("linux/amd64")}, {**entry, "platform": of("linux/x"), **statement})
        with pytest.raises(ImageRefused, match=r"it is not for linux/arm64, but for linux/amd64\n") as caught:
            resolved(sample, top)
        assert "--platform" in caught.value.next_move

    def test_a_variant_that_asks_for_more_is_not_taken_for_less(self) -> None:
        sample = Sample()
        top = sample.index({**sample.image(platform="linux/arm64/v9"), "platform": of("linux/arm64/v9")})
        with pytest.raises(ImageRefused, match="not for linux/arm64, but for linux/arm64/v9"):
            resolved(sample, top)
        assert resolved(sample, top, "linux/arm64/v9").layers == ()

    def test_an_index_that_lies_about_it_is_refused(self) -> None:
        sample = Sample()
        top = sample.index({**sample.image(platform="linux/amd64"), "platform": of("linux/arm64")})
        with pytest.raises(ImageRefused, match="it is for linux/amd64, not for linux/arm64"):
            resolved(sample, top)

    def test_nothing_but_statements_is_no_image(self) -> None:
        sample = Sample()
        with pytest.raises(ImageRefused, match="but for no platform at all"):
            resolved(sample, sample.index({**sample.image(), "platform": ATTESTATION}))

    @pytest.mark.parametrize("platform", ["arm64", "", "linux/", "linux/arm64/v8/x", "linux/../x", "Linux/arm64"])
    def test_what_is_none_is_refused(self, platform: str) -> None:
        with pytest.raises(ImageRefused, match="is no platform"):
            normal(platform)


FOREIGN = {
    "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    "digest": digest_of(b""),
    "size": 0,
}
PLAIN = {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest_of(b""), "size": 0}
ROOT = {"type": "layers", "diff_ids": [digest_of(LAYER)]}


@pytest.mark.parametrize(
    ("manifest", "why"),
    [
        ({"schemaVersion": 1}, "Docker's schema 1"),
        ({"schemaVersion": 3}, "its manifest is of schema 3; 2 is read"),
        ({"schemaVersion": "2"}, "its manifest cannot be read: schemaVersion: "),
        ({"manifests": []}, "its manifest is an index at the same time"),
        ({"mediaType": OCI["index"]}, "calls itself .*index.*, it was promised as .*manifest"),
        ({"layers": None}, "its manifest cannot be read: layers: "),
        ({"layers": [PLAIN] * 1001}, "its manifest cannot be read: layers: .* at most 1000 items"),
        ({"layers": []}, "it has 0 layers, its configuration speaks of 1"),
        ({"layers": [PLAIN, PLAIN]}, "it has 2 layers, its configuration speaks of 1"),
        ({"layers": [FOREIGN]}, "its layer sha256:e3b0c44298fc is not in the registry but elsewhere"),
        ({"layers": [{**PLAIN, "mediaType": OCI["layer"].replace(".v1", ".nondistributable.v1")}]}, "but elsewhere"),
        (
            {"layers": [{**PLAIN, "mediaType": f"{OCI['layer']}+encrypted"}]},
            "is of the kind .*encrypted', which is not",
        ),
        ({"layers": [{**PLAIN, "size": -1}]}, r"layers\.0\.size: Input should be greater than or equal to 0"),
        (
            {"layers": [{**PLAIN, "size": 64 * 1024**3 + 1}]},
            r"layers\.0\.size: Input should be less than or equal to 68719476736",
        ),
        ({"layers": [{**PLAIN, "size": "1"}]}, r"layers\.0\.size: "),
        ({"layers": [{**PLAIN, "size": 10**400}]}, "its manifest cannot be read"),
        ({"layers": [{**PLAIN, "digest": "sha512:" + "a" * 128}]}, "names a blob by sha512; only sha256 is read"),
        ({"layers": [{**PLAIN, "digest": "sha256:../../etc"}]}, "'sha256:../../etc' is no digest"),
        ({"layers": [{**PLAIN, "digest": digest_of(b"").upper()}]}, "is no digest"),
        ({"config": None}, "its manifest cannot be read: config: "),
        ({"config": {**PLAIN, "mediaType": "application/vnd.cncf.helm"}}, "no image of a container but holds .*helm"),
    ],
)
def test_a_manifest_that_is_wrong_is_refused(manifest: dict[str, Any], why: str) -> None:
    sample = Sample()
    top = sample.image(LAYER, manifest=manifest)
    with pytest.raises(ImageRefused, match=f"^the image is refused: .*{why}"):
        resolved(sample, top)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"rootfs": None}, "its configuration cannot be read: rootfs: "),
        ({"rootfs": {**ROOT, "diff_ids": []}}, "it has 1 layers, its configuration speaks of 0"),
        ({"rootfs": {**ROOT, "diff_ids": ["sha256:1"]}}, "'sha256:1' is no digest"),
        ({"rootfs": {**ROOT, "diff_ids": [1]}}, r"rootfs\.diff_ids\.0: "),
        ({"architecture": None}, "architecture: "),
        ({"os": "windows"}, "it is for windows/arm64, not for linux/arm64"),
        ({"history": "x" * 4 * 1024**2}, "its configuration is larger than 4 MiB"),
    ],
)
def test_a_configuration_that_is_wrong_is_refused(config: dict[str, Any], why: str) -> None:
    sample = Sample()
    top = sample.image(LAYER, config=config)
    with pytest.raises(ImageRefused, match=f"^the image is refused: .*{why}"):
        resolved(sample, top)


def test_a_thing_that_is_no_image_is_refused() -> None:
    sample = Sample()
    top = sample.add({"schemaVersion": 2, "mediaType": "application/vnd.oci.artifact"}, "application/vnd.oci.artifact")
    with pytest.raises(ImageRefused, match=r"it is of the kind 'application/vnd.oci.artifact', which is no image"):
        resolved(sample, top)


def test_an_index_that_is_a_manifest_is_refused() -> None:
    sample = Sample()
    top = sample.add({"schemaVersion": 2, "mediaType": OCI["index"], "layers": []}, "index")
    with pytest.raises(ImageRefused, match=r"calls itself .* and is none"):
        resolved(sample, top)


@pytest.mark.parametrize("text", [b"", b"\xff", b"[" * 100_000, b"null", b"[]", b'{"schemaVersion": 1e400}', b"{" * 9])
def test_what_is_no_document_is_refused(text: bytes) -> None:
    with pytest.raises(ImageRefused, match="its index cannot be read"):
        listed(text, "index")


KEYS = (
    "schemaVersion",
    "mediaType",
    "manifests",
    "layers",
    "config",
    "digest",
    "size",
    "platform",
    "os",
    "annotations",
)
LEAVES = st.none() | st.integers() | st.just(2) | st.sampled_from([*OCI.values(), digest_of(b""), "linux", "x"])
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=6)
)


@given(st.binary(max_size=100) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_document_is_an_image_or_refused(data: bytes) -> None:
    sample = Sample()
    for kind in ("index", "manifest"):
        top = sample.add(data, kind)
        with pytest.raises(ImageRefused):
            resolved(sample, top)


@given(st.text(max_size=80))
def test_a_text_is_no_digest(text: str) -> None:
    with pytest.raises(ImageRefused, match=r"no digest|only sha256"):
        check_digest(text)


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        ("oci:", "no path is named"),
        ("oci:/nowhere", "there is no /nowhere"),
        ("oci:/nowhere:tag", "there is no /nowhere"),
        ("oci:/dev/null", "/dev/null is no folder"),
        ("oci-archive:/", "/ is no file"),
        ("oci-archive:/nowhere.tar", "there is no /nowhere.tar"),
        ("vllm:25.11-py3", "names no image"),
        ("docker-archive:/x.tar", "names no image"),
    ],
)
def test_what_cannot_be_opened_is_said(reference: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=why) as caught, open_image(reference, print, work=tmp_path):
        pytest.fail("opened")
    assert "oci" in caught.value.next_move
