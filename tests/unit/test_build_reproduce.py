"""How alike two builds are: each level is reached by causing it, by hand and with a real compiler."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from build.reproduce import ZIP_FORM, Verdict, compare
from core.errors import BuildFailed
from core.process import run
from tests.unit.elf_builder import AARCH64, ALLOC, EXECUTE, NOBITS, STRTAB, SYMTAB, WRITE, Library, Part, entry, fatbin
from wheels.canonical import canonicalize

LIBRARY = Library(
    parts=(
        Part(".note.gnu.build-id", b"GNU\0first build", flags=ALLOC),
        Part(".text", b"\xc3" * 64, flags=ALLOC | EXECUTE),
        Part(".rodata", b"/srv/a", flags=ALLOC),
        Part(".nv_fatbin", fatbin(entry(2, 121))),
        Part(".data", b"12345678", flags=ALLOC | WRITE),
        Part(".bss", bytes(64), NOBITS, ALLOC | WRITE),
        Part(".comment", b"GCC: 12", flags=0),
        Part(".debug_info", b"/srv/a/x.cpp", flags=0),
        Part(".symtab", bytes(24), SYMTAB, 0, link=1, entry_size=24),
        Part(".strtab", b"\0tmpxft_00001_a.cpp\0", STRTAB, 0),
    ),
    defined=("PyInit__C",),
    undefined=("outside",),
)
FILES = {
    "x/__init__.py": b"import x._C\n",
    "x/config.json": b"{}",
    "x/csrc/kernel.cu": b"__global__ void f();\n",
    "x/kernel.cubin": LIBRARY.build(),
    "x/secret.pyc": b"code",
    "x/_C.abi3.so": LIBRARY.build(),
    "x-1.data/scripts/x": b"#!python\n",
    "x-1.dist-info/METADATA": b"Name: x\nVersion: 1\n",
    "x-1.dist-info/WHEEL": b"Wheel-Version: 1.0\n",
    "x-1.dist-info/entry_points.txt": b"[console_scripts]\nx = x:main\n",
    "x-1.dist-info/RECORD": b"",
}
NAME = "x/_C.abi3.so"


def wheel(path: Path, changes: Mapping[str, bytes | None], second: int = 0) -> Path:
    """Write FILES with changes; None leaves a file out."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**FILES, **changes}.items():
            if content is not None:
                archive.writestr(zipfile.ZipInfo(name, (2025, 1, 1, 0, 0, second)), content)
    return path


def section(name: str, content: bytes | None) -> bytes:
    """Return the library with another section; None leaves it out."""
    parts = (replace(p, content=content) if p.name == name and content is not None else p for p in LIBRARY.parts)
    return other(parts=tuple(p for p in parts if content is not None or p.name != name))


def other(**changes: object) -> bytes:
    fields = {name: getattr(LIBRARY, name) for name in vars(LIBRARY) if name != "strings"}
    return Library(**{**fields, **changes}).build()


LEVELS: dict[str, tuple[Mapping[str, bytes | None], int, str]] = {
    "build id": ({NAME: section(".note.gnu.build-id", b"GNU\0other build")}, 2, f"{NAME}: .note.gnu.build-id"),
    "compiler's comment": ({NAME: section(".comment", b"GCC: 13")}, 2, f"{NAME}: .comment"),
    "path in debug information": ({NAME: section(".debug_info", b"/srv/b/x.cpp")}, 2, f"{NAME}: .debug_info"),
    "longer debug information": ({NAME: section(".debug_info", b"/a/long/path")}, 2, f"{NAME}: .debug_info"),
    "process id of nvcc": ({NAME: section(".strtab", b"\0tmpxft_00002_a.cpp\0")}, 2, f"{NAME}: .strtab"),
    "not stripped": ({NAME: section(".symtab", None)}, 2, f"{NAME}: .symtab"),
    "byte code": ({"x/__pycache__/__init__.cpython-312.pyc": b"code"}, 2, ZIP_FORM),
    "record": ({"x-1.dist-info/RECORD": b"x,,\n"}, 2, ZIP_FORM),
    "path in read-only data": ({NAME: section(".rodata", b"/srv/b")}, 3, f"{NAME}: .rodata"),
    "data": ({NAME: section(".data", b"87654321")}, 3, f"{NAME}: .data"),
    "zeros": ({NAME: section(".bss", bytes(128))}, 3, f"{NAME}: .bss"),
    "alignment": ({NAME: other(alignment=0x10000)}, 3, f"{NAME}: program headers"),
    "data file": ({"x/config.json": b"{1}"}, 3, "x/config.json"),
    "metadata": ({"x-1.dist-info/METADATA": b"Name: x\nVersion: 2\n"}, 3, "x-1.dist-info/METADATA"),
    "code": ({NAME: section(".text", b"\x90" * 64)}, 0, f"{NAME}: .text"),
    "gpu code": ({NAME: section(".nv_fatbin", fatbin(entry(2, 120)))}, 0, f"{NAME}: .nv_fatbin"),
    "no gpu code": ({NAME: section(".nv_fatbin", None)}, 0, f"{NAME}: .nv_fatbin"),
    "exported symbol": ({NAME: other(defined=("PyInit__X",))}, 0, f"{NAME}: dynamic symbols (PyInit__C)"),
    "missing symbol": ({NAME: other(undefined=())}, 0, f"{NAME}: dynamic symbols (outside)"),
    "machine": ({NAME: other(machine=AARCH64)}, 0, f"{NAME}: the machine it is for"),
    "no library": ({NAME: None}, 0, f"{NAME}: only in one of the two"),
    "python file": ({"x/__init__.py": b"import x._D\n"}, 0, "x/__init__.py"),
    "kernel compiled at run time": ({"x/csrc/kernel.cu": b"__global__ void g();\n"}, 0, "x/csrc/kernel.cu"),
    "cubin": ({"x/kernel.cubin": section(".rodata", b"/srv/b")}, 0, "x/kernel.cubin"),
    "byte code without a source": ({"x/secret.pyc": b"other"}, 0, "x/secret.pyc"),
    "script": ({"x-1.data/scripts/x": b"#!python\n1\n"}, 0, "x-1.data/scripts/x"),
    "entry point": ({"x-1.dist-info/entry_points.txt": b""}, 0, "x-1.dist-info/entry_points.txt"),
    "another file": ({"x/more.json": b""}, 0, "x/more.json: only in one of the two"),
    "text instead of a library": ({NAME: b"none"}, 0, f"{NAME}"),
    "the worst counts": (
        {NAME: section(".text", b"\x90" * 64), "x/config.json": b"{1}", "x-1.dist-info/METADATA": b""},
        0,
        f"{NAME}: .text",
    ),
    "the first of the worst is named": (
        {"x/config.json": b"{1}", NAME: section(".rodata", b"/srv/b")},
        3,
        f"{NAME}: .rodata",
    ),
}


@pytest.mark.parametrize(("changes", "level", "differs"), LEVELS.values(), ids=LEVELS)
def test_a_difference_leaves_a_level(changes: Mapping[str, bytes | None], level: int, differs: str, tmp_path: Path):
    first, second = wheel(tmp_path / "a.whl", {}), wheel(tmp_path / "b.whl", changes)
    assert compare(first, second) == Verdict(level, differs)
    assert compare(second, first).level == level


def test_the_same_bytes_are_level_1(tmp_path: Path):
    assert compare(wheel(tmp_path / "a.whl", {}), wheel(tmp_path / "b.whl", {})) == Verdict(1)


def test_times_in_the_zip_are_level_2_and_the_canonical_form_makes_them_level_1(tmp_path: Path):
    first, second = wheel(tmp_path / "a.whl", {}), wheel(tmp_path / "b.whl", {}, second=10)
    assert compare(first, second) == Verdict(2, ZIP_FORM)
    for path in (first, second):
        canonicalize(path, path, 0)
    assert compare(first, second) == Verdict(1)


def test_an_executable_bit_counts(tmp_path: Path):
    first, second = wheel(tmp_path / "a.whl", {}), tmp_path / "b.whl"
    with zipfile.ZipFile(first) as source, zipfile.ZipFile(second, "w") as archive:
        for info in source.infolist():
            content = source.read(info)
            info.external_attr = 0o100755 << 16 if info.filename == "x/config.json" else info.external_attr
            archive.writestr(info, content)
    assert compare(first, second) == Verdict(3, "x/config.json: its mode")


@pytest.mark.parametrize("content", [b"", b"<html>", b"PK\x05\x06" + bytes(18)])
def test_what_is_no_wheel_is_refused(content: bytes, tmp_path: Path):
    (tmp_path / "b.whl").write_bytes(content)
    with pytest.raises(BuildFailed, match=r"b\.whl"):
        compare(wheel(tmp_path / "a.whl", {}), tmp_path / "b.whl")
    with pytest.raises(BuildFailed, match=r"b\.whl"):
        compare(tmp_path / "b.whl", wheel(tmp_path / "a.whl", {}))


def test_a_missing_wheel_is_refused(tmp_path: Path):
    with pytest.raises(BuildFailed, match=r"No such file"):
        compare(wheel(tmp_path / "a.whl", {}), tmp_path / "b.whl")


SOURCE = """
#include <cstdio>
extern "C" int outside(int);
char buffer[64] = DATA;
extern "C" int inside(int x) { std::puts(PATH); buffer[0] = char(x); return outside(x) CODE; }
#ifdef MORE
extern "C" int more(int x) { return x; }
#endif
"""
USUAL = (
    "-g",
    "-ffile-prefix-map=FOLDER=.",
    "-O2",
    "-Wl,--build-id=sha1",
    '-DDATA="data"',
    '-DPATH="/srv/a"',
    "-DCODE=+1",
)
REAL: dict[str, tuple[tuple[str, ...], int, str]] = {
    "the same": ((), 1, ""),
    "build id": (("-Wl,--build-id=0x0123456789abcdef0123456789abcdef01234567",), 2, ".note.gnu.build-id"),
    "debug information": (("-g0",), 2, ""),
    "folder in debug information": (("-ffile-prefix-map=FOLDER=/elsewhere",), 2, ""),
    "string in read-only data": (('-DPATH="/srv/b"',), 3, ".rodata"),
    "data": (('-DDATA="dato"',), 3, ".data"),
    "code": (("-DCODE=-1",), 0, ".text"),
    "symbol": (("-DMORE",), 0, "dynamic symbols (more)"),
}


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return compiled(tmp_path_factory.mktemp("usual"), ())


def compiled(folder: Path, flags: tuple[str, ...]) -> bytes:
    (folder / "x.cpp").write_text(SOURCE)
    names = {flag.partition("=")[0] for flag in flags if flag.startswith("-D")}
    kept = [flag for flag in USUAL if flag.partition("=")[0] not in names]
    every = [flag.replace("FOLDER", str(folder)) for flag in (*kept, *flags)]
    run(["g++", "-shared", "-fPIC", "-o", "x.so", "x.cpp", *every], cwd=folder)
    return (folder / "x.so").read_bytes()


@pytest.mark.processes
@pytest.mark.parametrize(("flags", "level", "section"), REAL.values(), ids=REAL)
def test_libraries_of_a_real_compiler_reach_their_level(
    flags: tuple[str, ...], level: int, section: str, usual: bytes, tmp_path: Path
):
    first = wheel(tmp_path / "a.whl", {NAME: usual})
    second = wheel(tmp_path / "b.whl", {NAME: compiled(tmp_path, flags)})
    verdict = compare(first, second)
    assert verdict.level == level, verdict
    assert section in verdict.differs
    assert hashlib.sha256(first.read_bytes()).digest() != hashlib.sha256(second.read_bytes()).digest() or level == 1
