"""Provenance: each field as in-toto and SLSA say it, the same bytes again, and written from the manifest alone."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

import pytest
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from tests.unit.samples import SPARK, manifest, wheel
from tests.unit.test_wheels_sbom import COMMIT, LAYERS, MADE, SHA, TAKEN
from wheels.ingredients import Tool
from wheels.manifest import Manifest, Wheel
from wheels.provenance import statement

Uri = Annotated[str, Field(pattern=r"^[a-z][a-z0-9+.-]*:[^\s<>\"{}|\\^`]+$")]
"""RFC 3986, its scheme in lower case as in-toto asks:
https://github.com/in-toto/attestation/blob/main/spec/v1/field_types.md"""


class Strict(BaseModel):
    """Refuses fields that the specification does not have."""

    model_config = ConfigDict(extra="forbid", strict=True)


def _plain(digests: dict[str, str]) -> dict[str, str]:
    """https://github.com/in-toto/attestation/blob/main/spec/v1/digest_set.md"""
    lengths = {"sha256": 64, "gitCommit": 40}
    assert digests
    assert all(len(value) == lengths[name] and int(value, 16) >= 0 for name, value in digests.items())
    return digests


DigestSet = Annotated[dict[str, str], AfterValidator(_plain)]


class Descriptor(Strict):
    """https://github.com/in-toto/attestation/blob/main/spec/v1/resource_descriptor.md"""

    name: str | None = None
    uri: Uri | None = None
    digest: DigestSet | None = None
    content: str | None = None
    downloadLocation: Uri | None = None  # noqa: N815
    mediaType: str | None = None  # noqa: N815
    annotations: dict[str, Any] = {}

    @model_validator(mode="after")
    def _identifies_something(self) -> Self:
        assert self.uri or self.digest or self.content, "one of the three is needed"
        return self


class Subject(Descriptor):
    """https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md: a subject has a digest."""

    digest: DigestSet


class BuildDefinition(Strict):
    """https://slsa.dev/spec/v1.1/provenance#builddefinition"""

    buildType: Uri  # noqa: N815
    externalParameters: dict[str, Any]  # noqa: N815
    internalParameters: dict[str, Any] = {}  # noqa: N815
    resolvedDependencies: list[Descriptor] = []  # noqa: N815


class Builder(Strict):
    """https://slsa.dev/spec/v1.1/provenance#builder"""

    id: Uri
    version: dict[str, str] = {}
    builderDependencies: list[Descriptor] = []  # noqa: N815


class BuildMetadata(Strict):
    """https://slsa.dev/spec/v1.1/provenance#buildmetadata"""

    invocationId: str | None = None  # noqa: N815
    startedOn: str | None = None  # noqa: N815
    finishedOn: str | None = None  # noqa: N815


class RunDetails(Strict):
    """https://slsa.dev/spec/v1.1/provenance#rundetails"""

    builder: Builder
    metadata: BuildMetadata | None = None
    byproducts: list[Descriptor] = []


class Provenance(Strict):
    """https://slsa.dev/spec/v1.1/provenance#provenance"""

    buildDefinition: BuildDefinition  # noqa: N815
    runDetails: RunDetails  # noqa: N815


class Statement(Strict):
    """https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md"""

    type_: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: Annotated[list[Subject], Field(min_length=1)]
    predicateType: Literal["https://slsa.dev/provenance/v1"]  # noqa: N815
    predicate: Provenance

    def dependencies(self, role: str) -> list[Descriptor]:
        found = self.predicate.buildDefinition.resolvedDependencies
        return [one for one in found if one.annotations["role"] == role]


TOOLS = (Tool(name="gcc", version="gcc 13.3.0", sha256=SHA), Tool(name="nvcc", version="release 13.0"))
BUILT = wheel("vllm", "0.11.2", origin="source", recipe="f" * 64).model_copy(
    update={"made_of": MADE, "toolchain": TOOLS, "tree": "9" * 64}
)
IMAGE = f"nvcr.io/nvidia/vllm@{TAKEN.digest}"
EXTRACTED = wheel("flash-attn", origin="image").model_copy(update={"image": IMAGE, "layers": LAYERS})
ALL = manifest(BUILT, EXTRACTED, wheel("uv"), stack="guide", target=SPARK)


def told(made: Wheel, of: Manifest = ALL) -> Statement:
    return Statement.model_validate_json(statement(of, made))


def test_a_built_wheel_is_told_with_all_that_was_asked_for() -> None:
    found = told(BUILT)
    (subject,) = found.subject
    assert (subject.name, subject.digest) == (BUILT.filename, {"sha256": BUILT.sha256})
    definition = found.predicate.buildDefinition
    assert definition.buildType == "urn:sparkstack:build:v1"
    assert definition.externalParameters == {
        "stack": "guide",
        "component": "vllm",
        "target": "aarch64-cp312",
        "recipe": "vllm",
        "variant": "cuda",
        "architectures": ["121"],
    }
    assert found.predicate.runDetails.metadata == BuildMetadata(invocationId="f" * 64)


def test_a_built_wheel_is_told_with_all_that_went_into_it() -> None:
    found = told(BUILT)
    sources = {one.annotations["place"]: one for one in found.dependencies("source")}
    assert sources["source"].digest == {"gitCommit": COMMIT}
    assert sources["source"].uri == f"git+https://github.com/vllm-project/vllm.git@{COMMIT}"
    assert sources["deps/FLASH"].uri == "pkg:pypi/flash-attn@2.7.4.post1"
    assert sources["deps/OWN"].digest == {"sha256": SHA}
    (pip,) = found.dependencies("build requirement")
    assert pip.digest == {"sha256": "d" * 64}
    assert [one.name for one in found.dependencies("CUDA toolkit")] == ["nvidia_nvvm-13.0-py3-none-any.whl"]
    assert [one.annotations["link"] for one in found.dependencies("patch")] == ["https://example.org/1"]
    assert [(one.name, one.annotations["version"]) for one in found.dependencies("tool")] == [
        ("gcc", "gcc 13.3.0"),
        ("nvcc", "release 13.0"),
    ]


def test_a_wheel_with_a_compiler_cache_is_told_as_such() -> None:
    made = BUILT.model_copy(update={"development": True})
    assert told(made).predicate.buildDefinition.externalParameters["development"] is True


def test_an_extracted_wheel_is_told_with_its_image_and_layers() -> None:
    found = told(EXTRACTED)
    definition = found.predicate.buildDefinition
    assert definition.buildType == "urn:sparkstack:extraction:v1"
    assert definition.externalParameters["image"] == IMAGE
    (image,) = found.dependencies("image")
    assert (image.name, image.digest) == (IMAGE, {"sha256": "e" * 64})
    assert [one.digest for one in found.dependencies("layer")] == [{"sha256": "2" * 64}, {"sha256": "1" * 64}]


def test_where_an_older_record_has_kept_less_the_rest_is_told() -> None:
    found = told(BUILT.model_copy(update={"made_of": None, "toolchain": ()}))
    assert [one.digest for one in found.dependencies("tree")] == [{"sha256": "9" * 64}]
    assert len(found.predicate.buildDefinition.resolvedDependencies) == 1


def test_what_an_index_had_has_no_provenance_of_ours() -> None:
    with pytest.raises(ValueError, match="was not made here"):
        statement(ALL, wheel("uv"))


@pytest.mark.parametrize("made", [BUILT, EXTRACTED], ids=lambda made: made.name)
def test_it_is_the_same_again_from_a_manifest_that_was_read_back(made: Wheel) -> None:
    again = Manifest.model_validate_json(json.dumps(ALL.model_dump(mode="json")))
    (same,) = [one for one in again.wheels if one.name == made.name]
    assert statement(again, same) == statement(ALL, made)
