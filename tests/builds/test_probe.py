"""The probe, compiled for a Spark's GPU: the same bytes twice, here and cross-built, and what is in them."""

from __future__ import annotations

import platform
import zipfile
from pathlib import Path

import pytest

from build.emulate import import_wheel
from tests.builds.workshop import Workshop
from wheels.elf import read_elf
from wheels.fatbin import device_code_of_wheel
from wheels.manifest import sha256_of

pytestmark = pytest.mark.builds

DEVICE = "sparkstack_probe/libprobe_device.so"
X86 = platform.machine()


@pytest.mark.parametrize("target", [X86, "aarch64"])
def test_two_builds_in_two_folders_give_the_same_bytes(workshops: tuple[Workshop, Workshop], target: str) -> None:
    first, second = workshops
    done = first.builds("probe-only", target, "--toolkit", "--verify")
    assert "level 1: the same bytes" in done.err
    assert first.manifest("probe-only", target)["sparkstack-probe"]["level"] == 1
    second.builds("probe-only", target, "--toolkit")
    hashes = {sha256_of(shop.wheel("probe-only", target, "sparkstack_probe")) for shop in workshops}
    assert len(hashes) == 1


@pytest.mark.parametrize("target", [X86, "aarch64"])
def test_its_libraries_are_for_the_target_and_hold_code_for_the_gpu(workshop: Workshop, target: str) -> None:
    workshop.builds("probe-only", target, "--toolkit")
    wheel = workshop.wheel("probe-only", target, "sparkstack_probe")
    assert {str(code) for code in device_code_of_wheel(wheel)[DEVICE]} == {"sm_121", "compute_121"}
    assert machines(wheel) == {target}


def machines(wheel: Path) -> set[str]:
    """Return what the libraries of a wheel are compiled for."""
    found = set()
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.endswith(".so"):
                with archive.open(name) as library:
                    found.add(read_elf(library, name).machine)
    return found


@pytest.mark.skipif(X86 == "aarch64", reason="this host needs no emulator")
def test_the_one_for_aarch64_imports_under_emulation(workshop: Workshop) -> None:
    workshop.builds("probe-only", "aarch64", "--toolkit")
    said: list[str] = []
    import_wheel(workshop.wheel("probe-only", "aarch64", "sparkstack_probe"), ["sparkstack_probe"], said.append)
    assert "sparkstack_probe" in said[-1]
