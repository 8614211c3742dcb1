"""Bills of materials: valid CycloneDX, the same bytes again, and everything in them that a wheel was made of."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from hypothesis import given
from hypothesis import strategies as st
from packaging.metadata import parse_email

from core.errors import WheelRefused
from tests.unit.samples import X86, manifest, wheel
from wheels.images.documents import Image
from wheels.ingredients import Container, Ingredients, Patch, Pinned, Source
from wheels.manifest import Manifest
from wheels.sbom import PLACE, image_files, licenses, release_sbom, sbom_in, wheel_sbom

COMMIT, SHA = "a" * 40, "b" * 64
SOURCES = (
    Source(place="source", origin="https://github.com/vllm-project/vllm.git", digest=f"gitCommit:{COMMIT}"),
    Source(place="deps/FLASH", origin="flash-attn==2.7.4.post1", digest=f"sha256:{SHA}"),
    Source(place="deps/TARBALL", origin="https://example.org/lib-1.tar.gz", digest=f"sha256:{SHA}"),
    Source(place="deps/OWN", origin="build/sources/probe", digest=f"sha256:{SHA}"),
)
MADE = Ingredients(
    recipe="vllm",
    variant="cuda",
    architectures=("121",),
    sources=SOURCES,
    patches=(Patch(file="a.patch", sha256="c" * 64, link="https://example.org/1"),),
    requirements=(Pinned(name="pip", version="26.3", filename="pip-26.3-py3-none-any.whl", sha256="d" * 64),),
    toolkit=(Pinned(name="nvidia-nvvm", version="13.0", filename="nvidia_nvvm-13.0-py3-none-any.whl", sha256=SHA),),
)
LAYERS = tuple(f"sha256:{digit * 64}" for digit in "21")
TAKEN = Container(
    reference="nvcr.io/nvidia/vllm:25.11-py3", digest=f"sha256:{'e' * 64}", platform="linux/arm64", layers=LAYERS
)


def valid(text: bytes) -> dict[str, Any]:
    """Return a BOM that the validator has nothing against."""
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text.decode()) is None
    data: dict[str, Any] = json.loads(text)
    return data


def properties(component: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(one["name"].removeprefix("sparkstack:"), one["value"]) for one in component.get("properties", [])]


def parts(text: bytes, role: str) -> list[dict[str, Any]]:
    return [one for one in valid(text)["components"] if ("role", role) in properties(one)]


class TestOfAWheel:
    text = wheel_sbom("vLLM", "0.11.2", MADE)

    def test_it_names_the_wheel_and_what_was_asked_for(self) -> None:
        root = valid(self.text)["metadata"]["component"]
        assert (root["name"], root["version"], root["purl"]) == ("vllm", "0.11.2", "pkg:pypi/vllm@0.11.2")
        assert properties(root) == [("architectures", "121"), ("recipe", "vllm"), ("variant", "cuda")]

    def test_it_names_every_origin_of_the_source(self) -> None:
        found = {dict(properties(one))["place"]: one for one in parts(self.text, "source")}
        assert set(found) == {one.place for one in SOURCES}
        assert (found["source"]["name"], found["source"]["version"]) == ("vllm", COMMIT)
        (link,) = found["source"]["externalReferences"]
        assert link == {"type": "vcs", "url": f"git+https://github.com/vllm-project/vllm.git@{COMMIT}"}
        assert found["deps/FLASH"]["purl"] == "pkg:pypi/flash-attn@2.7.4.post1"
        assert found["deps/FLASH"]["hashes"] == [{"alg": "SHA-256", "content": SHA}]
        assert found["deps/TARBALL"]["externalReferences"][0]["url"] == "https://example.org/lib-1.tar.gz"
        assert "purl" not in found["deps/OWN"]

    def test_it_names_what_was_there_only_while_it_was_built_by_its_hash(self) -> None:
        (pip,) = parts(self.text, "build-requirement")
        assert (pip["name"], pip["version"], pip["scope"]) == ("pip", "26.3", "excluded")
        assert pip["hashes"] == [{"alg": "SHA-256", "content": "d" * 64}]
        assert [one["name"] for one in parts(self.text, "cuda-toolkit")] == ["nvidia-nvvm"]
        assert [one["name"] for one in parts(self.text, "patch")] == ["a.patch"]

    def test_it_has_no_time_and_is_the_same_again(self) -> None:
        assert b"timestamp" not in self.text
        assert wheel_sbom("vllm", "0.11.2", MADE) == self.text

    def test_another_content_has_another_serial_number(self) -> None:
        numbers = {
            valid(wheel_sbom("vllm", version, made))["serialNumber"]
            for version in ("1", "2")
            for made in (MADE, MADE.model_copy(update={"variant": "cpu"}))
        }
        assert len(numbers) == 4

    def test_the_one_in_a_wheel_is_found(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "x.whl", "w") as archive:
            archive.writestr(f"vendored/y-1.dist-info/{PLACE}", b"another's")
            archive.writestr(f"x-1.dist-info/{PLACE}", self.text)
        with zipfile.ZipFile(tmp_path / "none.whl", "w") as archive:
            archive.writestr("x-1.dist-info/METADATA", b"")
        assert sbom_in(tmp_path / "x.whl") == self.text
        assert sbom_in(tmp_path / "none.whl") is None


class TestOfAWheelFromAnImage:
    def test_it_names_the_image_and_the_layers(self) -> None:
        (image,) = parts(wheel_sbom("vllm", "0.11.2", Ingredients(image=TAKEN)), "image")
        assert (image["type"], image["name"], image["version"]) == ("container", "nvcr.io/nvidia/vllm", TAKEN.digest)
        assert image["purl"] == f"pkg:oci/vllm@{TAKEN.digest}?repository_url=nvcr.io/nvidia/vllm"
        assert {value for name, value in properties(image) if name == "layer"} == set(LAYERS)

    @pytest.mark.parametrize("folder", ["/home/me/images/vllm", "/srv/vllm"])
    def test_it_does_not_say_in_which_folder_an_image_lay(self, folder: str) -> None:
        image = Image(f"oci:{folder}:tag", TAKEN.digest, "linux/arm64", (), f"oci:{folder}@{TAKEN.digest}")
        (text,) = image_files("vllm", "1.0", image, LAYERS).values()
        assert ("reference", f"oci:vllm@{TAKEN.digest}") in properties(parts(text, "image")[0])
        assert b"/home" not in text


words = st.text(st.characters(codec="ascii", categories=["Ll", "Nd"]), min_size=1, max_size=8)
digests = st.text("0123456789abcdef", min_size=64, max_size=64)
origins = st.builds(
    Source,
    place=st.builds("deps/{}".format, words),
    origin=st.one_of(
        st.builds("https://{}.org/{}".format, words, words),
        st.builds("{}=={}".format, words, words),
        st.builds("build/sources/{}".format, words),
    ),
    digest=digests.map("sha256:{}".format),
)
pins = st.builds(
    Pinned, name=words, version=words, filename=st.builds("{}-1-py3-none-any.whl".format, words), sha256=digests
)


@given(st.builds(Ingredients, sources=st.tuples(origins, origins), requirements=st.lists(pins, max_size=3).map(tuple)))
def test_whatever_a_wheel_is_made_of_its_sbom_is_valid_and_the_same_again(made: Ingredients) -> None:
    text = wheel_sbom("x", "1", made)
    valid(text)
    assert wheel_sbom("x", "1", made) == text


METADATA = {
    "app": ["Requires-Dist: engine[fast]>=1", "Requires-Dist: gone", 'Requires-Dist: mac; sys_platform == "darwin"'],
    "engine": ['Requires-Dist: turbo; extra == "fast"', 'Requires-Dist: slow; extra == "slow"', "Requires-Dist: app"],
    "turbo": [],
    "slow": [],
    "mac": ["License-Expression: MIT"],
}


@pytest.fixture
def release(tmp_path: Path) -> Manifest:
    found = manifest(*(wheel(name) for name in METADATA))
    for one in found.wheels:
        with zipfile.ZipFile(tmp_path / one.filename, "w") as archive:
            lines = ["Metadata-Version: 2.4", f"Name: {one.name}", "Version: 1.0", *METADATA[one.name]]
            archive.writestr(f"{one.name}-1.0.dist-info/METADATA", "\n".join(lines) + "\n")
    return found


class TestOfARelease:
    def test_it_names_every_wheel_with_hash_and_origin(self, release: Manifest, tmp_path: Path) -> None:
        data = valid(release_sbom(release, tmp_path))
        found = {one["name"]: one for one in data["components"]}
        assert set(found) == set(METADATA)
        for one in release.wheels:
            assert found[one.name]["purl"] == f"pkg:pypi/{one.name}@1.0"
            assert found[one.name]["hashes"] == [{"alg": "SHA-256", "content": one.sha256}]
            assert ("origin", "index") in properties(found[one.name])
        assert found["mac"]["licenses"] == [{"license": {"id": "MIT", "acknowledgement": "declared"}}]
        assert data["metadata"]["component"]["name"] == release.release
        assert ("lock-sha256", release.lock_sha256) in properties(data["metadata"]["component"])
        assert X86.in_words in dict(properties(data["metadata"]["component"])).values()

    def test_it_says_what_requires_what_of_the_release_on_its_target(self, release: Manifest, tmp_path: Path) -> None:
        graph = {one["ref"]: one.get("dependsOn", []) for one in valid(release_sbom(release, tmp_path))["dependencies"]}
        short = {name: graph[f"pkg:pypi/{name}@1.0"] for name in METADATA}
        assert short["app"] == ["pkg:pypi/engine@1.0"]
        assert short["engine"] == ["pkg:pypi/app@1.0", "pkg:pypi/turbo@1.0"], "the extra that app asks for, no other"
        assert len(graph[release.release]) == len(METADATA)

    def test_it_is_the_same_again(self, release: Manifest, tmp_path: Path) -> None:
        assert release_sbom(release, tmp_path) == release_sbom(release, tmp_path)

    def test_a_requirement_that_is_none_is_named(
        self, release: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(METADATA, "turbo", ["Requires-Dist: ???"])
        with zipfile.ZipFile(tmp_path / wheel("turbo").filename, "w") as archive:
            archive.writestr("turbo-1.0.dist-info/METADATA", "Name: turbo\nVersion: 1.0\nRequires-Dist: ???\n")
        with pytest.raises(WheelRefused, match=r"METADATA of turbo requires '\?\?\?'"):
            release_sbom(release, tmp_path)


LICENSES: dict[str, tuple[list[str], list[dict[str, str]]]] = {
    "an expression": (["License-Expression: MIT OR Apache-2.0"], [{"expression": "MIT OR Apache-2.0"}]),
    "one of SPDX": (["License-Expression: apache-2.0"], [{"id": "Apache-2.0"}]),
    "the old field with an identifier": (
        ["License: BSD-3-Clause", "Classifier: License :: x"],
        [{"id": "BSD-3-Clause"}],
    ),
    "the old field in words": (
        ["License: BSD", "Classifier: License :: OSI Approved :: BSD License"],
        [{"name": "BSD"}, {"name": "BSD License"}],
    ),
    "classifiers alone": (["Classifier: License :: OSI Approved :: MIT License"], [{"name": "MIT License"}]),
    "a whole licence": (["License: Some licence", "        Permission is granted"], [{"name": "Some licence"}]),
    "what setuptools wrote for none": (["License: UNKNOWN"], []),
    "none": (["Classifier: Topic :: x"], []),
}


@pytest.mark.parametrize("case", LICENSES)
def test_a_licence_is_told_as_it_was_declared(case: str) -> None:
    lines, told = LICENSES[case]
    metadata = parse_email("\n".join(["Metadata-Version: 2.4", "Name: x", *lines, "", ""]))[0]
    found = [
        {key: str(getattr(one, key)) for key in ("expression", "id", "name") if getattr(one, key, None)}
        or {"expression": one.value}
        for one in licenses(metadata)
    ]  # type: ignore[union-attr]
    assert found == told
