"""Installed distributions become the wheels that they were, or are refused by the name of the file that lies."""

from __future__ import annotations

import json
import os
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ImageRefused
from tests.unit.elf_builder import AARCH64, X86_64, Library
from tests.unit.installations import FILES, INFO, METADATA, SITE, WHEEL, Found, hashed, install, record_of, written
from wheels.canonical import NotAWheel
from wheels.installed import rebuild
from wheels.naming import identify
from wheels.record import parse_record
from wheels.scheme import Place, as_in_wheel, candidates, place_of, scheme_of

EPOCH = 1764547200
CUBIN = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\xbe\x00" + bytes(100)


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


PLAIN = Found()


def rebuilt(tmp_path: Path, files: dict[str, bytes], found: Found = PLAIN) -> dict[str, bytes]:
    """Install the files and return what the wheel made of them holds, RECORD left out."""
    install(tmp_path / "root", files, found)
    wheel = rebuild(tmp_path / "root", found, tmp_path / "out", epoch=EPOCH)
    held = contents(wheel)
    rows = {row.path: row for row in parse_record(held.pop(f"{found.info}/RECORD"))}
    assert rows.keys() == held.keys() | {f"{found.info}/RECORD"}
    return held


def test_a_plain_distribution_becomes_its_wheel(tmp_path: Path):
    install(tmp_path / "root", FILES)
    wheel = rebuild(tmp_path / "root", Found(), tmp_path / "out", epoch=EPOCH)
    assert wheel == tmp_path / "out" / "x-1-py3-none-any.whl"
    assert {name: content for name, content in contents(wheel).items() if name != f"{INFO}/RECORD"} == FILES
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "root"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == [wheel.name]


def test_the_root_is_left_as_it_was(tmp_path: Path):
    script = {"../../../bin/run": b"#!/usr/bin/python3\nprint()\n"}
    install(tmp_path / "root", {**FILES, **script})
    before = {path: path.read_bytes() for path in (tmp_path / "root").rglob("*") if path.is_file()}
    rebuild(tmp_path / "root", Found(), tmp_path / "out", epoch=EPOCH)
    assert {path: path.read_bytes() for path in (tmp_path / "root").rglob("*") if path.is_file()} == before


def test_what_the_installer_made_stays_behind(tmp_path: Path):
    made = {
        f"{INFO}/INSTALLER": b"pip\n",
        f"{INFO}/REQUESTED": b"",
        f"{INFO}/direct_url.json": b'{"url": "file:///x.whl", "archive_info": {}}',
        f"{INFO}/uv_cache.json": b"{}",
        f"{INFO}/uv_build.json": b"{}",
        f"{INFO}/RECORD.jws": b"{}",
        f"{INFO}/RECORD.p7s": b"",
        "x/__pycache__/__init__.cpython-312.pyc": b"code",
    }
    points = {f"{INFO}/entry_points.txt": b"[console_scripts]\nx = x:main\nX-Y=x:main [more]\n[gui_scripts]\ng = x:g\n"}
    scripts = {f"../../../bin/{name}": b"#!/usr/bin/python3\nmade\n" for name in ("x", "X-Y", "g")}
    assert rebuilt(tmp_path, {**FILES, **points, **made, **scripts}) == {**FILES, **points}


@pytest.mark.parametrize("name", ["INSTALLER", "direct_url.json", "../../../../bin/x", "../x/__pycache__/a.pyc"])
def test_what_stays_behind_may_be_changed_or_missing(name: str, tmp_path: Path):
    points = {f"{INFO}/entry_points.txt": b"[console_scripts]\nx = x:main\n"}
    rows = record_of({**FILES, **points, f"{INFO}/{name}": b"as it was"})
    install(tmp_path / "root", {**FILES, **points, f"{INFO}/RECORD": written(rows)})
    rebuild(tmp_path / "root", Found(), tmp_path / "out", epoch=EPOCH)
    changed = tmp_path / "root" / candidates(scheme_of(SITE), f"{INFO}/{name}")[0]
    changed.parent.mkdir(parents=True, exist_ok=True)
    changed.write_bytes(b"{}")
    rebuild(tmp_path / "root", Found(), tmp_path / "out", epoch=EPOCH)


def test_scripts_headers_and_data_go_back_where_they_came_from(tmp_path: Path):
    parts = {
        "../../../bin/run.sh": b"#!/bin/sh\n",
        "../../../bin/tool": b"#!/usr/bin/python3.12\nprint()\n",
        "../../../include/python3.12/X/x.h": b"1",
        "../../../include/other/o.h": b"2",
        "../../../share/x/a": b"3",
        "../../../etc/x.conf": b"4",
        "../../../lib/pkgconfig/x.pc": b"5",
    }
    assert rebuilt(tmp_path, {**FILES, **parts}) == {
        **FILES,
        "x-1.data/scripts/run.sh": b"#!/bin/sh\n",
        "x-1.data/scripts/tool": b"#!python\nprint()\n",
        "x-1.data/headers/x.h": b"1",
        "x-1.data/data/include/other/o.h": b"2",
        "x-1.data/data/share/x/a": b"3",
        "x-1.data/data/etc/x.conf": b"4",
        "x-1.data/data/lib/pkgconfig/x.pc": b"5",
    }


@pytest.mark.parametrize(("purelib", "other"), [(b"true", "platlib"), (b"false", "purelib")])
def test_files_of_the_other_library_folder_go_into_the_other_kind(purelib: bytes, other: str, tmp_path: Path):
    site = PurePosixPath("usr/lib/python3.12/site-packages")
    wheel = {f"{INFO}/WHEEL": WHEEL.replace(b"Purelib: true", b"Purelib: " + purelib)}
    twin = {"../../../lib64/python3.12/site-packages/x/_c.so": b"code"}
    held = rebuilt(tmp_path, {**FILES, **wheel, **twin}, Found(site=site))
    assert held == {**FILES, **wheel, f"x-1.data/{other}/x/_c.so": b"code"}


def test_executables_stay_executable(tmp_path: Path):
    files = {**FILES, "x/helper": b"\0", "../../../bin/tool": b"#!/usr/bin/python3\n", "../../../bin/text": b""}
    install(tmp_path / "root", files)
    for path in ("lib/python3.12/dist-packages/x/helper", "bin/tool"):
        (tmp_path / "root/usr/local" / path).chmod(0o775)
    wheel = rebuild(tmp_path / "root", Found(), tmp_path / "out", epoch=EPOCH)
    with zipfile.ZipFile(wheel) as archive:
        modes = {info.filename: stat.S_IMODE(info.external_attr >> 16) for info in archive.infolist()}
    assert {name for name, mode in modes.items() if mode == 0o755} == {"x/helper", "x-1.data/scripts/tool"}


def test_a_software_bill_goes_into_the_wheel(tmp_path: Path):
    install(tmp_path / "root", FILES)
    extra = {"sboms/image.cdx.json": b"{}"}
    wheel = rebuild(tmp_path / "root", Found(), tmp_path / "out", epoch=EPOCH, extra=extra)
    assert contents(wheel)[f"{INFO}/sboms/image.cdx.json"] == b"{}"
    for name in ("METADATA", "METADATA/x"):
        with pytest.raises(ImageRefused, match="exclude each other"):
            rebuild(tmp_path / "root", Found(), tmp_path / "out", epoch=EPOCH, extra={name: b""})


def test_the_same_distribution_gives_the_same_bytes_from_every_prefix(tmp_path: Path):
    forms = set()
    for number, site in enumerate(("usr/local/lib/python3.12/dist-packages", "venv/lib/python3.11/site-packages")):
        root = tmp_path / str(number)
        install(root, {**FILES, "../../../bin/a": f"#!/{site}/python\n".encode()}, Found(site=PurePosixPath(site)))
        wheel = rebuild(root, Found(site=PurePosixPath(site)), tmp_path / f"out{number}", epoch=EPOCH)
        forms.add(wheel.read_bytes())
    assert len(forms) == 1


def replaced(name: str, content: bytes | None) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        path = root / candidates(scheme_of(SITE), name)[0]
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)

    return change


def linked(name: str, target: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        path = root / SITE / name
        path.rename(root / "elsewhere")
        path.symlink_to(target.replace("ROOT", str(root)))

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (replaced("x/__init__.py", b"print('hellO')\n"), r"x/__init__\.py is not the file that its RECORD names"),
        (replaced("x/__init__.py", b"longer than before\n"), r"x/__init__\.py has 19 bytes, its RECORD says 15"),
        (replaced("x/__init__.py", None), r"dist-packages/x/__init__\.py is listed and missing"),
        (replaced(f"{INFO}/METADATA", METADATA + b"\n"), "METADATA has"),
        (replaced(f"{INFO}/RECORD", None), "RECORD is listed and missing"),
        (replaced(f"{INFO}/RECORD", b""), "does not name its METADATA"),
        (replaced(f"{INFO}/RECORD", b"\xff"), "its RECORD cannot be read"),
        (linked("x/__init__.py", "/etc/passwd"), r"x/__init__\.py is a link"),
        (linked("x/__init__.py", "ROOT/elsewhere"), r"x/__init__\.py is a link"),
        (linked("x", "ROOT/elsewhere"), r"dist-packages/x is a link"),
        (linked(INFO, "ROOT/elsewhere"), r"x-1\.dist-info is a link"),
        (
            replaced(f"{INFO}/direct_url.json", b'{"dir_info": {"editable": true}, "url": "file:///src"}'),
            "in file:///src",
        ),
        (replaced(f"{INFO}/direct_url.json", b"["), r"direct_url\.json cannot be read"),
        (replaced(f"{INFO}/direct_url.json", b"[]"), r"direct_url\.json cannot be read"),
        (replaced(f"{INFO}/direct_url.json", b"[" * 100_000), r"direct_url\.json cannot be read"),
    ],
)
def test_what_was_changed_is_refused_by_name(change: Callable[[Path], None], says: str, tmp_path: Path):
    install(tmp_path / "root", FILES)
    change(tmp_path / "root")
    with pytest.raises(ImageRefused, match=says) as refusal:
        rebuild(tmp_path / "root", Found(), tmp_path / "out", epoch=EPOCH)
    assert str(refusal.value).startswith(f"x 1 in /{SITE} of the image: ")
    assert list((tmp_path / "out").iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "root"]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (["../../../../../../../etc/passwd", hashed(b""), "0"], "which leads out of the root"),
        (["/etc/passwd", hashed(b""), "0"], "which lies outside /usr/local"),
        (["../../../../etc/passwd", hashed(b""), "0"], "which lies outside /usr/local"),
        (["../../../../../../../a/__pycache__/b.pyc", "", ""], "which leads out of the root"),
        (["a\\b", hashed(b""), "0"], "which is no path"),
        (["x/__init__.py", hashed(b""), "0"], "names x/__init__.py twice"),
        (["./x/__init__.py", hashed(FILES["x/__init__.py"]), "15"], "names ./x/__init__.py twice"),
        (["x", hashed(b""), "0"], "is no file"),
        ([".", hashed(b""), "0"], "is no file"),
        (["../../..", hashed(b""), "0"], "is no file"),
        (["x/extra.py", "", ""], "has no hash of x/extra.py"),
        (["x/extra.py", "md5=AAAA", "1"], "which proves nothing"),
        (["x/extra.py", hashed(b"").replace("=", "=A"), "0"], "extra.py is listed and missing"),
        (["x/__init__.py/y", hashed(b""), "0"], "is listed and missing"),
        (["../../../bin/run", hashed(b""), "0"], "bin/run is listed and missing"),
        (["x/" + "a" * 300, hashed(b""), "0"], "is listed and missing"),
        (["x/" * 3000 + "a", hashed(b""), "0"], "is listed and missing"),
    ],
)
def test_a_row_that_lies_or_leads_out_is_refused(row: list[str], says: str, tmp_path: Path):
    rows = [*record_of(FILES), row]
    install(tmp_path / "root", {**FILES, f"{INFO}/RECORD": written(rows)})
    with pytest.raises(ImageRefused, match=says):
        rebuild(tmp_path / "root", Found(), tmp_path / "out", epoch=EPOCH)


@pytest.mark.parametrize(
    "name", ["__editable__.x-1.pth", "__editable___x_1_finder.py", "_editable_impl_x.pth", "_x_editable.pth"]
)
def test_a_trace_of_an_editable_installation_is_enough(name: str, tmp_path: Path):
    install(tmp_path / "root", {**FILES, name: b"/src"})
    with pytest.raises(ImageRefused, match=f"installed as editable, its files lie where {name} leads"):
        rebuild(tmp_path / "root", Found(), tmp_path / "out", epoch=EPOCH)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("WHEEL", WHEEL.replace(b"Tag: py3-none-any\n", b""), "its WHEEL has no tags"),
        ("WHEEL", WHEEL.replace(b"py3-none-any", b"py3-none"), "a tag that is none: 'py3-none'"),
        ("WHEEL", WHEEL.replace(b"py3-none-any", b"../../x-none-any"), "a tag that is none: '../../x-none-any'"),
        ("WHEEL", WHEEL + b"Tag: cp311-cp311-linux_x86_64\n", "no file name says its tags"),
        ("WHEEL", WHEEL + b"Build: ../1\n", "a build number that is none: '../1'"),
        ("WHEEL", WHEEL + b"Build: x\n", "a build number that is none: 'x'"),
        ("WHEEL", WHEEL.replace(b"Version: 1.0", b"Version: 2.0"), "a version that nobody knows yet"),
        ("WHEEL", WHEEL.replace(b"Root-Is-Purelib: true\n", b""), "says 0 times what its Root-Is-Purelib is"),
        ("WHEEL", b"", "says 0 times what its Wheel-Version is"),
        ("METADATA", METADATA.replace(b"Name: x", b"Name: y"), "it calls itself 'x-1', and 'y-1'"),
        ("METADATA", METADATA.replace(b"Version: 1", b"Version: 1.0.1"), r"it calls itself 'x-1', and 'x-1\.0\.1'"),
        ("METADATA", METADATA.replace(b"Version: 1\n", b"Version: one\n"), "'one' is no version"),
        ("METADATA", METADATA.replace(b"Name: x", b"Name: x\nName: y"), "says 2 times what its Name is"),
        ("METADATA", b"\xff\xfe\0", "says 0 times what its Name is"),
        ("entry_points.txt", b"[console_scripts\nx = y", r"entry_points\.txt cannot be read"),
        ("entry_points.txt", b"\xff", r"entry_points\.txt cannot be read"),
        ("entry_points.txt", b"[console_scripts]\nx\n", r"entry_points\.txt cannot be read"),
        ("../y-2.dist-info/METADATA", b"Name: y", "a wheel has one .dist-info folder"),
        ("a\nb", b"", "control characters in its name"),
    ],
)
def test_what_does_not_say_what_it_is_is_refused(name: str, content: bytes, says: str, tmp_path: Path):
    site_name = str(candidates(scheme_of(SITE), f"{INFO}/{name}")[0].relative_to(SITE))
    install(tmp_path / "root", {**FILES, site_name: content})
    with pytest.raises(ImageRefused, match=says):
        rebuild(tmp_path / "root", Found(), tmp_path / "out", epoch=EPOCH)


@pytest.mark.parametrize("other", [Found(name="y"), Found(version="2")])
def test_another_distribution_than_the_one_that_was_looked_for_is_refused(other: Found, tmp_path: Path):
    install(tmp_path / "root", FILES)
    with pytest.raises(ImageRefused, match="it calls itself"):
        rebuild(tmp_path / "root", other, tmp_path / "out", epoch=EPOCH)


@pytest.mark.parametrize(
    ("tags", "filename"),
    [
        (["py2-none-any", "py3-none-any"], "x-1-py2.py3-none-any.whl"),
        (["py2.py3-none-any"], "x-1-py2.py3-none-any.whl"),
        (
            ["cp312-cp312-manylinux_2_17_aarch64", "cp312-cp312-manylinux2014_aarch64"],
            "x-1-cp312-cp312-manylinux2014_aarch64.manylinux_2_17_aarch64.whl",
        ),
        (["cp312-abi3-linux_aarch64"], "x-1-cp312-abi3-linux_aarch64.whl"),
    ],
)
def test_the_file_name_says_all_tags(tags: list[str], filename: str, tmp_path: Path):
    wheel = WHEEL.replace(b"Tag: py3-none-any\n", b"".join(f"Tag: {tag}\n".encode() for tag in tags))
    install(tmp_path / "root", {**FILES, f"{INFO}/WHEEL": wheel})
    assert rebuild(tmp_path / "root", Found(), tmp_path / "out", epoch=EPOCH).name == filename


@pytest.mark.parametrize(
    ("info", "metadata", "build", "filename"),
    [
        ("Py_X.Y-1.0+cu130.dist-info", "Name: Py-X.Y\nVersion: 1.0+CU130", "", "py_x_y-1.0+cu130-py3-none-any.whl"),
        ("a-1.0_1.dist-info", "Name: A\nVersion: 1.0-1", "", "a-1.0.post1-py3-none-any.whl"),
        ("a-2025.01.02.dist-info", "Name: a\nVersion: 2025.1.2", "Build: 3b\n", "a-2025.1.2-3b-py3-none-any.whl"),
    ],
)
def test_the_file_name_is_normalised_and_has_the_build_number(info: str, metadata: str, build: str, filename: str):
    found = identify(f"{metadata}\n".encode(), WHEEL + build.encode(), info)
    assert found.filename == filename


@pytest.mark.parametrize(
    ("tag", "content", "says"),
    [
        (b"py3-none-any", Library(machine=X86_64).build(), "runs anywhere, and x/_C.so is for x86_64 only"),
        (b"cp312-cp312-linux_aarch64", Library(machine=X86_64).build(), "say linux_aarch64, and x/_C.so is for x86_64"),
        (b"cp312-cp312-manylinux_2_28_x86_64", Library(machine=AARCH64).build(), "x/_C.so is for aarch64"),
        (b"cp312-cp312-win_amd64", Library(machine=X86_64).build(), "say win_amd64, and x/_C.so is for x86_64"),
        (b"cp312-cp312-manylinux2014_aarch64", Library(machine=AARCH64).build(), ""),
        (b"cp312-cp312-musllinux_1_2_x86_64", Library(machine=X86_64).build(), ""),
        (b"py3-none-any", CUBIN, ""),
        (b"py3-none-any", b"\x7fELF", ""),
    ],
)
def test_tags_say_what_machine_the_libraries_are_for(tag: bytes, content: bytes, says: str, tmp_path: Path):
    files = {**FILES, "x/_C.so": content, f"{INFO}/WHEEL": WHEEL.replace(b"py3-none-any", tag)}
    install(tmp_path / "root", files)
    if not says:
        rebuild(tmp_path / "root", Found(), tmp_path / "out", epoch=EPOCH)
        return
    with pytest.raises(ImageRefused, match=says):
        rebuild(tmp_path / "root", Found(), tmp_path / "out", epoch=EPOCH)


@given(data=st.data())
def test_no_byte_of_a_file_can_be_changed(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory):
    tmp_path = tmp_path_factory.mktemp("changed")
    install(tmp_path / "root", FILES)
    name = data.draw(st.sampled_from(sorted(FILES)))
    path = tmp_path / "root" / SITE / name
    place = data.draw(st.integers(0, len(FILES[name]) - 1))
    content = bytearray(FILES[name])
    content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(content))
    with pytest.raises(ImageRefused, match=name):
        rebuild(tmp_path / "root", Found(), tmp_path / "out", epoch=EPOCH)


@given(record=st.one_of(st.binary(max_size=60), st.text(alphabet='x/.,"=\n_', max_size=60).map(str.encode)))
def test_whatever_record_says_nothing_is_written_outside(record: bytes, tmp_path_factory: pytest.TempPathFactory):
    tmp_path = tmp_path_factory.mktemp("any")
    install(tmp_path / "root", {**FILES, f"{INFO}/RECORD": record})
    with pytest.raises(ImageRefused):
        rebuild(tmp_path / "root", Found(), tmp_path / "out", epoch=EPOCH)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "root"]
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("site", "installer", "path", "place"),
    [
        ("usr/local/lib/python3.12/dist-packages", "pip", "../../../bin/a", Place("scripts", "a")),
        ("usr/lib/python3/dist-packages", "pip", "../../../bin/a/b", Place("scripts", "a/b")),
        ("venv/lib/python3.11/site-packages", "uv", "../../../include/site/python3.11/x/h.h", Place("headers", "h.h")),
        (
            "venv/lib/python3.13t/site-packages",
            "pip",
            "../../../include/python3.13t/x/a/h.h",
            Place("headers", "a/h.h"),
        ),
        ("venv/lib/python3.11/site-packages", "pip", "../../../include/site/python3.11/y/h.h", None),
        ("venv/lib/python3.11/site-packages", "pip", "../../../include/x/h.h", Place("data", "include/x/h.h")),
        ("usr/lib64/python3.12/site-packages", "pip", "../../../lib/python3.12/site-packages/a", Place("twin", "a")),
        ("home/lib/python", "pip", "../../bin/a", Place("scripts", "a")),
        ("home/lib/python", "pip", "../../include/python/x/h.h", Place("headers", "h.h")),
        ("app", "pip", "../../bin/a", Place("scripts", "a")),
        ("app", "pip", "../../share/a", Place("data", "share/a")),
        ("app", "pip", "bin/a", Place("root", "bin/a")),
        ("app", "uv", "bin/a", Place("scripts", "a")),
        ("app", "uv\n", "include/x/h.h", Place("headers", "h.h")),
        ("app", "uv", "share/a", Place("data", "share/a")),
        ("app", "uv", "x/a.py", Place("root", "x/a.py")),
    ],
)
def test_the_site_folder_tells_what_a_file_is(site: str, installer: str, path: str, place: Place | None):
    expected = place or Place("data", path.removeprefix("../../../"))
    assert place_of(scheme_of(PurePosixPath(site), installer), path, "X") == expected


@pytest.mark.parametrize(
    ("site", "path"),
    [
        ("usr/lib/python3/dist-packages", "../../../../etc/a"),
        ("home/lib/python", "../../../a"),
        ("app", "../a"),
        ("opt/app/here", "../../../a"),
    ],
)
def test_a_file_outside_the_prefix_is_refused(site: str, path: str):
    with pytest.raises(NotAWheel, match=r"which lies outside|leads out"):
        place_of(scheme_of(PurePosixPath(site)), path, "x")


def test_what_pip_moved_into_a_folder_of_its_own_is_found_there(tmp_path: Path):
    """`pip install --target` writes RECORD for `lib/python` and moves everything into one folder afterwards."""
    found = Found(site=PurePosixPath("app"))
    rows = record_of({**FILES, "../../bin/tool": b"#!/opt/python\n", "../../share/a": b"data"})
    moved = {"bin/tool": b"#!/opt/python\n", "share/a": b"data"}
    install(tmp_path / "root", {**FILES, **moved, f"{INFO}/RECORD": written(rows)}, found)
    held = contents(rebuild(tmp_path / "root", found, tmp_path / "out", epoch=EPOCH))
    assert held["x-1.data/scripts/tool"] == b"#!python\n"
    assert held["x-1.data/data/share/a"] == b"data"


@pytest.mark.parametrize("where", ["home/bin/tool", "home/lib/python/bin/tool"])
def test_a_folder_lib_python_may_be_a_home_or_a_target(where: str, tmp_path: Path):
    found = Found(site=PurePosixPath("home/lib/python"))
    rows = record_of({**FILES, "../../bin/tool": b"#!/bin/sh\n"})
    install(tmp_path / "root", {**FILES, f"{INFO}/RECORD": written(rows)}, found)
    (tmp_path / "root/home/bin").mkdir()
    (tmp_path / "root/home/bin/tool").write_bytes(b"another")
    (tmp_path / "root" / where).parent.mkdir(exist_ok=True)
    (tmp_path / "root" / where).write_bytes(b"#!/bin/sh\n")
    held = contents(rebuild(tmp_path / "root", found, tmp_path / "out", epoch=EPOCH))
    assert held["x-1.data/scripts/tool"] == b"#!/bin/sh\n"


def test_pip_has_scripts_with_the_version_of_its_python_in_their_names(tmp_path: Path):
    points = {f"{INFO}/entry_points.txt": b"[console_scripts]\npip = pip:main\n"}
    scripts = {f"../../../bin/pip{version}": b"made" for version in ("", "3", "3.12", "-3.12")}
    kept = {"../../../bin/pipe": b"", "../../../bin/pip3.12x": b""}
    held = rebuilt(tmp_path, {**FILES, **points, **scripts, **kept})
    assert {name for name in held if "scripts" in name} == {"x-1.data/scripts/pipe", "x-1.data/scripts/pip3.12x"}


@pytest.mark.parametrize(
    ("installed", "original"),
    [
        (b"#!/usr/bin/python3\nx", b"#!python\nx"),
        (b"#!/opt/venv/bin/python\n", b"#!python\n"),
        (b"#!/usr/local/bin/python3.12", b"#!python"),
        (b"#!/opt/bin/python3.13t -E\nx", b"#!python -E\nx"),
        (b"#!/usr/bin/python3w\nx", b"#!pythonw\nx"),
        (b"#!/bin/sh\n'''exec' '/opt/my app/bin/python3' \"$0\" \"$@\"\n' '''\nx", b"#!python\nx"),
        (b"#!/bin/sh\n'''exec' /long/bin/python \"$0\" \"$@\"\n' '''\nx", b"#!python\nx"),
        (
            b"#!/bin/sh\n'''exec' \"$(dirname -- \"$(realpath -- \"$0\")\")\"/'python' \"$0\" \"$@\"\n' '''\nx",
            b"#!python\nx",
        ),
        (b"#!/usr/bin/env python3\n", None),
        (b"#!/bin/sh\nexec python\n", None),
        (b"#!/usr/bin/pythonista\n", None),
        (b"#!/usr/bin/perl\n", None),
        (b"#!python\n", None),
        (b"\x7fELF\x02", None),
        (b"", None),
    ],
)
def test_the_interpreter_that_an_installer_put_into_a_script_is_taken_out(installed: bytes, original: bytes | None):
    assert as_in_wheel(installed) == (installed if original is None else original)


@given(
    folder=st.text(alphabet="ab/._-", max_size=20).map(lambda text: f"/{text}".rstrip("/")), rest=st.binary(max_size=60)
)
def test_whatever_follows_the_interpreter_stays(folder: str, rest: bytes):
    assert as_in_wheel(f"#!{folder}/python3.12\n".encode() + rest) == b"#!python\n" + rest


def test_a_file_that_may_not_be_read_whole_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    install(tmp_path / "root", FILES)
    monkeypatch.setattr("wheels.installed.MOST", 10)
    with pytest.raises(ImageRefused, match="RECORD has more than 0 MiB"):
        rebuild(tmp_path / "root", Found(), tmp_path / "out", epoch=EPOCH)


def test_a_device_is_refused(tmp_path: Path):
    install(tmp_path / "root", FILES)
    (tmp_path / "root" / SITE / "x/__init__.py").unlink()
    os.mkfifo(tmp_path / "root" / SITE / "x/__init__.py")
    with pytest.raises(ImageRefused, match="is no file"):
        rebuild(tmp_path / "root", Found(), tmp_path / "out", epoch=EPOCH)


def test_a_name_that_no_wheel_may_have_is_refused(tmp_path: Path):
    name = "../../../" + "/".join(["a" * 200] * 10) + "/" + "b" * 60
    install(tmp_path / "root", {**FILES, name: b""})
    with pytest.raises(ImageRefused, match="is too long a name"):
        rebuild(tmp_path / "root", Found(), tmp_path / "out", epoch=EPOCH)


def test_an_installation_from_a_folder_that_is_not_editable_is_a_wheel(tmp_path: Path):
    note = json.dumps({"url": "file:///src", "dir_info": {}}).encode()
    assert rebuilt(tmp_path, {**FILES, f"{INFO}/direct_url.json": note}) == FILES
