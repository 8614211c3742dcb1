"""Facts of shared libraries, made by hand and by a real compiler."""

from __future__ import annotations

import contextlib
import hashlib
import io
import platform
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import BuildFailed
from core.process import run
from tests.unit.elf_builder import AARCH64, ALLOC, EXECUTE, NOBITS, WRITE, Library, Part
from wheels.elf import device_code_sections, elf_member, read_elf, read_path, section_bytes

LIBRARY = Library(
    parts=(
        Part(".text", b"\xc3" * 32, flags=ALLOC | EXECUTE),
        Part(".nv_fatbin", b"fat binary"),
        Part("__nv_relfatbin", b"another"),
        Part(".nvFatBinSegment", b"pointer", flags=ALLOC | WRITE),
        Part(".bss", bytes(1000), NOBITS, ALLOC | WRITE),
    ),
    machine=AARCH64,
    defined=("PyInit__C", "helper"),
    undefined=("_ZN3c1010TensorImplE", "PyLong_FromLong"),
    weak=("__gmon_start__",),
    needed=("libtorch.so", "libc.so.6"),
    rpath="/opt/x",
    runpath="$ORIGIN/../torch/lib:/srv/build",
    soname="_C.abi3.so",
    versions=(("libc.so.6", "GLIBC_2.34"), ("libstdc++.so.6", "GLIBCXX_3.4.30")),
).build()


def test_the_facts_of_a_library_are_read():
    elf = read_elf(io.BytesIO(LIBRARY), "_C.abi3.so")
    assert (elf.machine, elf.kind, elf.soname) == ("aarch64", "ET_DYN", "_C.abi3.so")
    assert elf.needed == ("libtorch.so", "libc.so.6")
    assert elf.rpath == ("/opt/x", "$ORIGIN/../torch/lib", "/srv/build")
    assert elf.defined == {"PyInit__C", "helper"}
    assert elf.undefined == {"_ZN3c1010TensorImplE", "PyLong_FromLong"}
    assert elf.versions == {("libc.so.6", "GLIBC_2.34"), ("libstdc++.so.6", "GLIBCXX_3.4.30")}
    assert [section.name for section in elf.sections if section.executable] == [".text"]


def test_sections_are_hashed_when_asked_for():
    plain, hashed = (read_elf(io.BytesIO(LIBRARY), "x", hashes=wanted) for wanted in (False, True))
    assert {section.sha256 for section in plain.sections} == {""}
    digests = {section.name: section.sha256 for section in hashed.sections}
    assert digests[".text"] == hashlib.sha256(b"\xc3" * 32).hexdigest()
    assert digests[".bss"] == hashlib.sha256(b"").hexdigest()


def test_sections_of_gpu_code_and_their_bytes_are_found():
    file = io.BytesIO(LIBRARY)
    elf = read_elf(file, "x")
    found = {section.name: section_bytes(file, section) for section in device_code_sections(elf)}
    assert found == {".nv_fatbin": b"fat binary", "__nv_relfatbin": b"another"}
    assert section_bytes(file, next(section for section in elf.sections if section.name == ".bss")) == b""


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "x cannot be read: Magic number does not match"),
        (b"#!/bin/sh\n", "x cannot be read: Magic number does not match"),
        (b"\x7fELF", "x cannot be read"),
        (LIBRARY[:100], "x cannot be read"),
        (LIBRARY[:40] + bytes(8) + LIBRARY[48:60] + bytes(4) + LIBRARY[64:], "x has no section headers"),
    ],
)
def test_what_cannot_be_read_is_refused(content: bytes, complaint: str):
    with pytest.raises(BuildFailed, match=complaint):
        read_elf(io.BytesIO(content), "x")


def test_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(BuildFailed, match=r"missing\.so cannot be read: .*No such file"):
        read_path(tmp_path / "missing.so")


@given(data=st.data())
def test_any_damage_is_refused_or_read(data: st.DataObject):
    content = bytearray(LIBRARY)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(BuildFailed):
        read_elf(io.BytesIO(content[: data.draw(st.integers(0, len(content)) | st.none())]), "x", hashes=True)


@given(content=st.binary(max_size=200))
def test_arbitrary_bytes_after_the_magic_are_refused(content: bytes):
    with contextlib.suppress(BuildFailed):
        read_elf(io.BytesIO(b"\x7fELF\x02\x01\x01" + content), "x", hashes=True)


def test_members_of_a_wheel_are_given_as_files(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "x.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/_C.so", LIBRARY)
        archive.writestr("x/__init__.py", "import x._C\n")
        archive.writestr("x/empty", "")
    with zipfile.ZipFile(tmp_path / "x.whl") as archive:
        for info in archive.infolist():
            with elf_member(archive, info) as file:
                assert (file.read() if file else None) == (LIBRARY if info.filename == "x/_C.so" else None)


@pytest.mark.processes
def test_a_library_of_a_real_compiler_is_read(tmp_path: Path):
    source = 'extern "C" { int outside(int); int inside(int x) { return outside(x) + 1; } }\n'
    (tmp_path / "x.cpp").write_text(source)
    flags = ("-shared", "-fPIC", "-Wl,-rpath,/srv/build/lib", "-Wl,-soname,libx.so.1", "-lm", "-Wl,--no-as-needed")
    run(["g++", "-o", str(tmp_path / "libx.so"), str(tmp_path / "x.cpp"), *flags])
    elf = read_path(tmp_path / "libx.so", hashes=True)
    assert elf.machine == platform.machine()
    assert elf.soname == "libx.so.1"
    assert elf.rpath == ("/srv/build/lib",)
    assert "libc.so.6" in elf.needed
    assert "inside" in elf.defined
    assert "outside" in elf.undefined
    assert not {"__gmon_start__", "__cxa_finalize"} & elf.undefined, "weak symbols may stay missing"
    assert any(version.startswith("GLIBC_") for _, version in elf.versions)
    text = next(section for section in elf.sections if section.name == ".text")
    content = (tmp_path / "libx.so").read_bytes()[text.offset : text.offset + text.size]
    assert text.executable
    assert text.sha256 == hashlib.sha256(content).hexdigest()
