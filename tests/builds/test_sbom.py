"""A wheel that was really built says what it is made of, inside and in its provenance."""

from __future__ import annotations

import platform
from collections.abc import Iterator

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from tests.builds.workshop import Workshop
from tests.unit.test_wheels_provenance import Statement
from wheels.manifest import Manifest
from wheels.provenance import statement
from wheels.sbom import release_sbom, sbom_in, wheel_sbom

pytestmark = pytest.mark.builds

MACHINE = platform.machine()


@pytest.fixture(scope="module")
def built(workshop: Workshop) -> Iterator[Manifest]:
    """Build the probe with a CUDA toolkit of wheels, twice; what was made goes at the end."""
    workshop.forget("probe-only")
    workshop.builds("probe-only", MACHINE, "--toolkit", "--verify")
    (path,) = (workshop.folder / "dist" / "probe-only").glob(f"{MACHINE}-*/manifest.json")
    yield Manifest.model_validate_json(path.read_bytes())
    workshop.forget("probe-only")


def test_its_sbom_is_valid_and_says_what_the_manifest_says(workshop: Workshop, built: Manifest) -> None:
    (probe,) = built.wheels
    text = sbom_in(workshop.wheel("probe-only", MACHINE, "sparkstack_probe"))
    assert text is not None
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text.decode()) is None
    assert probe.made_of is not None
    assert text == wheel_sbom(probe.name, probe.version, probe.made_of)
    assert {"pip", "cmake"} <= {one.name for one in probe.made_of.requirements}
    assert "nvidia-cuda-nvcc" in {one.name for one in probe.made_of.toolkit}


def test_with_the_sbom_in_it_a_second_build_gives_the_same_bytes(built: Manifest) -> None:
    assert [wheel.level for wheel in built.wheels] == [1]


def test_its_provenance_names_the_compilers(built: Manifest) -> None:
    (probe,) = built.wheels
    found = Statement.model_validate_json(statement(built, probe))
    tools = {one.name: one for one in found.dependencies("tool")}
    assert {"gcc", "g++", "ld", "nvcc", "python"} <= set(tools)
    assert "release 13.0" in tools["nvcc"].annotations["version"]
    assert all(one.digest for one in tools.values())


def test_the_sbom_of_the_release_is_valid(workshop: Workshop, built: Manifest) -> None:
    place = workshop.wheel("probe-only", MACHINE, "sparkstack_probe").parent
    text = release_sbom(built, place).decode()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
