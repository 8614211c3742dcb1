"""The one byte form of a wheel: the same bytes whatever they came from, and nothing hostile gets in."""

from __future__ import annotations

import base64
import contextlib
import csv
import hashlib
import io
import os
import stat
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.process import run
from wheels import canonical
from wheels.canonical import NotAWheel, canonicalize, pack, unpack

EPOCH = 1764547200
FILES = {
    "x/__init__.py": b"print('hello')\n" * 20,
    "x/_C.so": b"\x7fELF" + bytes(100),
    "x/data, with comma.txt": "Zürich".encode(),
    "x-1.data/scripts/x": b"#!python\n",
    "z.pth": b"",
    "x-1.dist-info/METADATA": b"Metadata-Version: 2.4\r\nName: x\r\nVersion: 1\r\n",
    "x-1.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: false\nTag: py3-none-any\n",
    "x-1.dist-info/licenses/LICENSE": b"free",
    "x-1.dist-info/RECORD": b"wrong,sha256=x,1\r\n",
}
EXECUTABLE = {"x-1.data/scripts/x"}
GOLDEN = "ea42c49978fe199306d9fbbd7775571a91d1eeb388e345b0137fbf2052413c5e"
"""SHA-256 of FILES in the one form: the same for every Python, on every machine."""


def write(path: Path, files: dict[str, bytes], **how: Any) -> Path:
    """Write a zip file the way that backends do, each in its own."""
    with zipfile.ZipFile(path, "w", how.get("compression", zipfile.ZIP_DEFLATED)) as archive:
        for name in how.get("order", files):
            info = zipfile.ZipInfo(name, how.get("moment", (2024, 2, 3, 4, 5, 6)))
            mode = how.get("mode", 0o644) | (0o100 if name in EXECUTABLE else 0)
            info.external_attr = (how.get("kind", stat.S_IFREG) | mode) << 16
            info.create_system = how.get("system", 3)
            info.extra = how.get("extra", b"")
            info.comment = how.get("comment", b"")
            archive.writestr(info, files[name], how.get("compression", zipfile.ZIP_DEFLATED))
    return path


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    return write(tmp_path / "x-1-py3-none-any.whl", FILES)


def names(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def test_the_form_is_as_documented(wheel: Path, tmp_path: Path):
    canonicalize(wheel, tmp_path / "out.whl", EPOCH)
    with zipfile.ZipFile(tmp_path / "out.whl") as archive:
        infos = archive.infolist()
        assert archive.comment == b""
    assert [info.filename for info in infos] == [
        "x-1.data/scripts/x",
        "x/_C.so",
        "x/__init__.py",
        "x/data, with comma.txt",
        "z.pth",
        "x-1.dist-info/METADATA",
        "x-1.dist-info/WHEEL",
        "x-1.dist-info/licenses/LICENSE",
        "x-1.dist-info/RECORD",
    ]
    assert {info.date_time for info in infos} == {(2025, 12, 1, 0, 0, 0)}
    assert {oct(info.external_attr >> 16) for info in infos if info.filename not in EXECUTABLE} == {"0o100644"}
    assert {oct(info.external_attr >> 16) for info in infos if info.filename in EXECUTABLE} == {"0o100755"}
    assert {(info.compress_type, info.extra, info.comment, info.create_system) for info in infos} == {(0, b"", b"", 3)}


def test_its_bytes_are_the_same_for_every_python_on_every_machine(wheel: Path, tmp_path: Path):
    canonicalize(wheel, tmp_path / "out.whl", EPOCH)
    assert hashlib.sha256((tmp_path / "out.whl").read_bytes()).hexdigest() == GOLDEN


def test_record_is_made_anew_and_contents_are_untouched(wheel: Path, tmp_path: Path):
    canonicalize(wheel, tmp_path / "out.whl", EPOCH)
    with zipfile.ZipFile(tmp_path / "out.whl") as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    record = contents.pop("x-1.dist-info/RECORD").decode()
    assert contents == {name: content for name, content in FILES.items() if not name.endswith("RECORD")}
    rows = list(csv.reader(io.StringIO(record)))
    assert "\r" not in record
    assert [row[0] for row in rows] == [*contents, "x-1.dist-info/RECORD"]
    assert rows[-1][1:] == ["", ""]
    for name, digest, size in rows[:-1]:
        expected = base64.urlsafe_b64encode(hashlib.sha256(contents[name]).digest()).rstrip(b"=").decode()
        assert (digest, size) == (f"sha256={expected}", str(len(contents[name])))


CONTENTS = st.dictionaries(
    st.from_regex(r"[a-z]{1,3}(/[a-zé_. ,]{1,3}[a-z]){0,2}", fullmatch=True), st.binary(max_size=200), max_size=6
).filter(lambda found: not any(f"{name}/" in other for name in found for other in found))
DIST_INFO = {name: content for name, content in FILES.items() if name.startswith("x-1.dist-info/")}


@given(data=st.data(), contents=CONTENTS)
def test_how_a_wheel_was_packed_does_not_matter(
    data: st.DataObject, contents: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
):
    folder, files = tmp_path_factory.mktemp("any"), {**contents, **DIST_INFO}
    write(folder / "plain.whl", files)
    write(
        folder / "odd.whl",
        files,
        order=data.draw(st.permutations(sorted(files))),
        moment=data.draw(st.tuples(st.integers(1980, 2107), st.integers(1, 12), st.integers(1, 28), *[st.just(1)] * 3)),
        mode=data.draw(st.integers(0, 0o777)) & ~0o100,
        compression=data.draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])),
        extra=data.draw(st.sampled_from([b"", b"UT\x05\x00\x01abcd"])),
        comment=data.draw(st.binary(max_size=5)),
        system=data.draw(st.sampled_from([0, 3])),
    )
    for name in ("plain", "odd"):
        canonicalize(folder / f"{name}.whl", folder / f"{name}.once", EPOCH)
    canonicalize(folder / "odd.once", folder / "odd.twice", EPOCH)
    unpack(folder / "odd.whl", folder / "tree")
    pack(folder / "tree", folder / "odd.packed", EPOCH)
    forms = {(folder / name).read_bytes() for name in ("plain.once", "odd.once", "odd.twice", "odd.packed")}
    assert len(forms) == 1


def test_a_wheel_may_be_replaced_by_its_own_form(wheel: Path, tmp_path: Path):
    canonicalize(wheel, tmp_path / "out.whl", EPOCH)
    canonicalize(wheel, wheel, EPOCH)
    assert wheel.read_bytes() == (tmp_path / "out.whl").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.whl", wheel.name]


@pytest.mark.parametrize(
    ("epoch", "moment"),
    [(0, (1980, 1, 1, 0, 0, 0)), (EPOCH + 1, (2025, 12, 1, 0, 0, 0)), (2**40, (2107, 12, 31, 23, 59, 58))],
)
def test_times_that_a_zip_cannot_say_become_the_nearest(wheel: Path, epoch: int, moment: tuple[int, ...]):
    canonicalize(wheel, wheel, epoch)
    with zipfile.ZipFile(wheel) as archive:
        assert {info.date_time for info in archive.infolist()} == {moment}


def test_byte_code_folders_and_signatures_are_left_out(tmp_path: Path):
    more = {"x/__pycache__/a.cpython-312.pyc": b"code", "x-1.dist-info/RECORD.jws": b"{}", "x/": b"", "empty/": b""}
    write(tmp_path / "more.whl", {**FILES, **more})
    write(tmp_path / "less.whl", FILES)
    for name in ("more.whl", "less.whl"):
        canonicalize(tmp_path / name, tmp_path / name, EPOCH)
    assert (tmp_path / "more.whl").read_bytes() == (tmp_path / "less.whl").read_bytes()


def test_a_tree_of_an_owner_with_another_umask_gives_the_same(wheel: Path, tmp_path: Path):
    unpack(wheel, tmp_path / "tree")
    pack(tmp_path / "tree", tmp_path / "one.whl", EPOCH)
    for path in (tmp_path / "tree").rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(path.stat().st_mode & ~0o077 if path.is_file() else 0o700)
    pack(tmp_path / "tree", tmp_path / "other.whl", EPOCH)
    assert (tmp_path / "one.whl").read_bytes() == (tmp_path / "other.whl").read_bytes()


def test_what_is_unpacked_keeps_its_contents_and_its_executables(wheel: Path, tmp_path: Path):
    unpack(wheel, tmp_path / "tree")
    found = {p.relative_to(tmp_path / "tree").as_posix(): p for p in (tmp_path / "tree").rglob("*") if p.is_file()}
    assert {name: path.read_bytes() for name, path in found.items()} == FILES
    assert {
        name for name, path in found.items() if os.access(path, os.X_OK) and path.stat().st_mode & 0o100
    } == EXECUTABLE


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("/etc/passwd", "leads out of the wheel"),
        ("../x", "leads out of the wheel"),
        ("x/../../y", "leads out of the wheel"),
        ("x/./y", "leads out of the wheel"),
        ("x//y", "leads out of the wheel"),
        ("../", "leads out of the wheel"),
        ("..\\x", "leads out of the wheel"),
        ("C:\\x", "leads out of the wheel"),
        ("x/a\nb", "control characters"),
        ("x/" + "a" * 300, "too long a name"),
        ("x/__init__.py/y", "is a file and a folder"),
        ("y-2.dist-info/METADATA", "one .dist-info folder, this has x-1.dist-info, y-2.dist-info"),
    ],
)
@pytest.mark.parametrize("act", [canonicalize, unpack])
def test_hostile_names_are_refused(act: Any, name: str, complaint: str, tmp_path: Path):
    write(tmp_path / "bad.whl", {**FILES, name: b"bad"} if not name.endswith("/") else {**FILES, name: b""})
    with pytest.raises(NotAWheel, match=complaint):
        act(*((tmp_path / "bad.whl", tmp_path / "out" / "tree", EPOCH)[: 3 if act is canonicalize else 2]))
    assert [path.name for path in tmp_path.iterdir()] == ["bad.whl"]


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [(stat.S_IFLNK, "link or a device"), (stat.S_IFIFO, "link or a device"), (stat.S_IFCHR, "link or a device")],
)
def test_links_and_devices_are_refused(kind: int, complaint: str, tmp_path: Path):
    write(tmp_path / "bad.whl", FILES, kind=kind)
    with pytest.raises(NotAWheel, match=complaint):
        canonicalize(tmp_path / "bad.whl", tmp_path / "out.whl", EPOCH)


def test_a_link_or_a_pipe_in_a_tree_is_refused(wheel: Path, tmp_path: Path):
    unpack(wheel, tmp_path / "tree")
    (tmp_path / "tree" / "link").symlink_to("/etc")
    with pytest.raises(NotAWheel, match="link is a link or a device"):
        pack(tmp_path / "tree", tmp_path / "out.whl", EPOCH)
    (tmp_path / "tree" / "link").unlink()
    os.mkfifo(tmp_path / "tree" / "pipe")
    with pytest.raises(NotAWheel, match="pipe is a link or a device"):
        pack(tmp_path / "tree", tmp_path / "out.whl", EPOCH)


def test_a_name_that_is_there_twice_is_refused(tmp_path: Path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        write(tmp_path / "bad.whl", FILES, order=[*FILES, "x/_C.so"])
    with pytest.raises(NotAWheel, match=r"x/_C\.so is there twice"):
        canonicalize(tmp_path / "bad.whl", tmp_path / "out.whl", EPOCH)


def test_a_name_that_hides_another_is_refused(tmp_path: Path):
    write(tmp_path / "bad.whl", {**FILES, "x/a_b": b""})
    content = (tmp_path / "bad.whl").read_bytes().replace(b"x/a_b", b"x/a\0b")
    (tmp_path / "bad.whl").write_bytes(content)
    with pytest.raises(NotAWheel, match="hides another"):
        canonicalize(tmp_path / "bad.whl", tmp_path / "out.whl", EPOCH)


def test_bombs_are_refused_before_they_are_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path / "bomb.whl", {**FILES, "zeros": bytes(10_000_000)})
    assert (tmp_path / "bomb.whl").stat().st_size < 20_000
    monkeypatch.setattr(canonical, "MAX_BYTES", 9_000_000)
    with pytest.raises(NotAWheel, match="it holds more than"):
        unpack(tmp_path / "bomb.whl", tmp_path / "tree")
    assert not (tmp_path / "tree").exists()
    monkeypatch.setattr(canonical, "MAX_FILES", 3)
    with pytest.raises(NotAWheel, match="it holds more than 3 files"):
        canonicalize(tmp_path / "bomb.whl", tmp_path / "out.whl", EPOCH)


def test_a_bomb_that_lies_about_its_size_is_refused(tmp_path: Path):
    write(tmp_path / "bomb.whl", {**FILES, "zeros": bytes(10_000_000)})
    size = (10_000_000).to_bytes(4, "little")
    (tmp_path / "bomb.whl").write_bytes((tmp_path / "bomb.whl").read_bytes().replace(size, (100).to_bytes(4, "little")))
    with pytest.raises(NotAWheel, match="Bad CRC-32"):
        canonicalize(tmp_path / "bomb.whl", tmp_path / "out.whl", EPOCH)


@pytest.mark.parametrize(
    ("lacks", "complaint"),
    [
        (("METADATA",), r"x-1\.dist-info lacks METADATA"),
        (("WHEEL", "METADATA"), "lacks METADATA, WHEEL"),
        (("METADATA", "WHEEL", "RECORD", "LICENSE"), "this has none"),
    ],
)
def test_what_is_no_wheel_is_refused(lacks: tuple[str, ...], complaint: str, tmp_path: Path):
    write(tmp_path / "bad.whl", {name: content for name, content in FILES.items() if not name.endswith(lacks)})
    with pytest.raises(NotAWheel, match=complaint):
        canonicalize(tmp_path / "bad.whl", tmp_path / "out.whl", EPOCH)


def test_wheels_are_unpacked_into_empty_folders_only(wheel: Path, tmp_path: Path):
    with pytest.raises(NotAWheel, match="is not empty"):
        unpack(wheel, tmp_path)


def test_a_failure_leaves_the_target_as_it_was(wheel: Path, tmp_path: Path):
    (tmp_path / "out.whl").write_text("the old one")
    damaged = bytearray(wheel.read_bytes())
    damaged[60] ^= 0xFF
    wheel.write_bytes(bytes(damaged))
    with pytest.raises(NotAWheel):
        canonicalize(wheel, tmp_path / "out.whl", EPOCH)
    assert (tmp_path / "out.whl").read_text() == "the old one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.whl", wheel.name]


@pytest.mark.parametrize("path", ["missing.whl", "missing/out.whl"])
def test_a_missing_file_or_folder_stays_what_it_is(path: str, wheel: Path, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="missing"):
        canonicalize(*((wheel, tmp_path / path) if "/" in path else (tmp_path / path, wheel)), EPOCH)


@given(data=st.data())
def test_any_damage_is_refused_or_harmless(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.getbasetemp() / "damaged.whl"
    content = bytearray(write(path, FILES).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)) | st.none())]))
    with contextlib.suppress(NotAWheel):
        canonicalize(path, path, EPOCH)
        assert "x-1.dist-info/RECORD" in names(path)


@given(content=st.binary(max_size=300))
def test_arbitrary_bytes_are_refused(content: bytes, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.getbasetemp() / "arbitrary.whl"
    path.write_bytes(content)
    with pytest.raises(NotAWheel):
        canonicalize(path, path, EPOCH)


@pytest.mark.processes
def test_it_packs_alone_on_a_build_machine(wheel: Path, tmp_path: Path):
    (tmp_path / "canonical.py").write_text(Path(canonical.__file__).read_text(encoding="utf-8"))
    program = f"import canonical, pathlib; p = pathlib.Path({str(wheel)!r}); canonical.canonicalize(p, p, {EPOCH})"
    run(["python3", "-S", "-c", program], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() == GOLDEN
