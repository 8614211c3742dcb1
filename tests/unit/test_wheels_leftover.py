"""A wheel that was left over in an image is taken as it is, if it is what it says."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import ImageRefused
from tests.unit.elf_builder import X86_64, Library
from tests.unit.installations import FILES, INFO, METADATA, WHEEL, Found, hashed, record_of, written
from wheels.canonical import NotAWheel
from wheels.installed import rebuild
from wheels.leftover import prove

NAME = "x-1-py3-none-any.whl"
LEFT = Found(kind="wheel", site=PurePosixPath("opt/wheels"), info=NAME)


def leave(root: Path, files: Mapping[str, bytes], record: bytes | None = None, name: str = NAME) -> Path:
    path = root / LEFT.site / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in files.items():
            archive.writestr(member, content)
        archive.writestr(f"{INFO}/RECORD", written(record_of(files)) if record is None else record)
    return path


def test_it_is_taken_byte_for_byte_and_nothing_is_added(tmp_path: Path):
    left = leave(tmp_path / "root", FILES)
    wheel = rebuild(tmp_path / "root", LEFT, tmp_path / "out", epoch=0, extra={"sboms/x": b""})
    assert wheel == tmp_path / "out" / NAME
    assert wheel.read_bytes() == left.read_bytes()
    assert [path.name for path in (tmp_path / "out").iterdir()] == [NAME]


def test_signatures_and_byte_code_need_not_be_named(tmp_path: Path):
    leave(tmp_path / "root", {**FILES, "x/": b""}, written(record_of({**FILES, "x/__pycache__/a.pyc": b"code"})))
    rebuild(tmp_path / "root", LEFT, tmp_path / "out", epoch=0)
    signed = {**FILES, f"{INFO}/RECORD.jws": b"{}", "x/__pycache__/b.pyc": b"code"}
    leave(tmp_path / "root", signed, written(record_of(FILES)))
    rebuild(tmp_path / "root", LEFT, tmp_path / "out", epoch=0)


@pytest.mark.parametrize(
    ("files", "record", "says"),
    [
        ({**FILES, "x/more.py": b""}, record_of(FILES), r"does not name x/more\.py"),
        (FILES, record_of({**FILES, "x/more.py": b""}), r"names x/more\.py, which is not in it"),
        ({**FILES, "x/__init__.py": b"print('hellO')\n"}, record_of(FILES), r"x/__init__\.py is not the file"),
        ({**FILES, "x/__init__.py": b""}, record_of(FILES), r"x/__init__\.py has 0 bytes, its RECORD says 15"),
        (FILES, [["x/__init__.py", "", ""], *record_of(FILES)[1:]], r"has no hash of x/__init__\.py"),
        (FILES, [*record_of(FILES), ["x/__init__.py", hashed(b""), "0"]], "twice"),
        (FILES, [*record_of(FILES), ["../x", hashed(b""), "0"]], r"names \.\./x, which is not in it"),
        ({**FILES, "../x": b""}, record_of({**FILES, "../x": b""}), "leads out of the wheel"),
        ({f"{INFO}/WHEEL": WHEEL}, record_of({f"{INFO}/WHEEL": WHEEL}), "lacks METADATA"),
    ],
)
def test_a_record_that_lies_is_refused(files: dict[str, bytes], record: list[list[str]], says: str, tmp_path: Path):
    leave(tmp_path / "root", files, written(record))
    with pytest.raises(ImageRefused, match=says) as refusal:
        rebuild(tmp_path / "root", LEFT, tmp_path / "out", epoch=0)
    assert str(refusal.value).startswith(f"x 1 in /opt/wheels of the image: {NAME}: ")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("y-1-py3-none-any.whl", {}, "it calls itself 'y-1', and 'x-1'"),
        ("x-2-py3-none-any.whl", {}, "it calls itself 'x-2', and 'x-1'"),
        ("x-1.whl", {}, "is not a wheel that can be read: Invalid wheel filename"),
        (NAME, {"METADATA": METADATA.replace(b"Name: x", b"Name: y")}, "it calls itself 'x-1', and 'y-1'"),
        (NAME, {"WHEEL": b""}, "says 0 times what its Wheel-Version is"),
        (NAME, {"_C.so": Library(machine=X86_64).build()}, "runs anywhere, and x-1.dist-info/_C.so is for x86_64 only"),
    ],
)
def test_names_and_tags_that_do_not_agree_are_refused(name: str, changes: dict[str, bytes], says: str, tmp_path: Path):
    path = leave(tmp_path, {**FILES, **{f"{INFO}/{key}": changes[key] for key in changes}}, name=name)
    with pytest.raises(NotAWheel, match=says):
        prove(path, "x", "1")


def test_a_link_in_the_place_of_a_wheel_is_refused(tmp_path: Path):
    left = leave(tmp_path / "root", FILES)
    left.rename(tmp_path / NAME)
    left.symlink_to(tmp_path / NAME)
    with pytest.raises(ImageRefused, match=r"x-1-py3-none-any\.whl is a link"):
        rebuild(tmp_path / "root", LEFT, tmp_path / "out", epoch=0)


def test_a_record_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("wheels.leftover.MOST", 10)
    with pytest.raises(NotAWheel, match="RECORD has more than 0 MiB"):
        prove(leave(tmp_path, FILES), "x", "1")


@settings(max_examples=300)
@given(data=st.data())
def test_no_byte_that_matters_can_be_changed(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory):
    """Bytes that no reader looks at (times, attributes) may be; whatever is read is either the same or refused."""
    path = leave(tmp_path_factory.mktemp("changed"), FILES)
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(content))
    try:
        prove(path, "x", "1")
    except NotAWheel:
        return
    with zipfile.ZipFile(path) as archive:
        held = {name: archive.read(name) for name in archive.namelist() if not name.endswith("RECORD")}
    assert held == FILES
