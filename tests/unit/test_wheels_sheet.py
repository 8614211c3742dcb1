"""What is read of a wheel, once: made by hand, with libraries, kept and read again; and names, tags and members."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.tags import parse_tag

from core.errors import WheelRefused
from tests.unit.elf_builder import AARCH64, Library, Part, entry, fatbin
from tests.unit.samples import SPARK, X86
from wheels import elf, sheet
from wheels.canonical import canonicalize
from wheels.manifest import sha256_of
from wheels.members import of_each
from wheels.sheet import FORM, MOST_PROBLEMS, read_sheet, sheet_of
from wheels.symbols import of_python, of_torch, readable_name, stable_abi
from wheels.tags import fits, promised_glibc, stable_abi_since

METADATA = """Metadata-Version: 2.4
Name: Small-Thing
Version: 1.0
Requires-Python: >=3.9
License-Expression: MIT
License: UNKNOWN
Classifier: License :: OSI Approved :: MIT License
Classifier: Topic :: Test
Requires-Dist: numpy>=2
Requires-Dist: ray[cgraph];
  python_version >= "3.10"

Requires-Dist: not-this-one
"""
WHEEL = "Wheel-Version: 1.0\nGenerator: test 2\nRoot-Is-Purelib: false\nTag: cp312-abi3-linux_aarch64\n"
INFO = "small_thing-1.0.dist-info"
EXTENSION = Library(
    parts=(Part(".nv_fatbin", fatbin(entry(2, 121), entry(1, 90))),),
    machine=AARCH64,
    defined=("PyInit__C", "_ZN3c103OwnE"),
    undefined=("_ZN3c105ErrorC2Ev", "_ZN3c105GivenE", "aoti_torch_new", "PyLong_FromLong", "PyOfUs", "memcpy"),
    weak=("_ZN2at4weakE", "_Py_weak"),
    needed=("libgiven.so", "libc.so.6"),
    runpath="$ORIGIN/lib:/srv/build",
    soname="_C.so",
    versions=(("libc.so.6", "GLIBC_2.34"), ("libm.so.6", "GLIBC_2.17"), ("libstdc++.so.6", "GLIBCXX_3.4.30")),
).build()
GIVES = Library(machine=AARCH64, defined=("_ZN3c105GivenE", "PyOfUs"), soname="libgiven.so").build()
CUBIN = EXTENSION[:18] + (190).to_bytes(2, "little") + EXTENSION[20:]
FILES: dict[str, bytes] = {
    "small_thing/__init__.py": b"VALUE = 1\n",
    "small_thing/_C.abi3.so": EXTENSION,
    "small_thing/libgiven.so": GIVES,
    "small_thing/kernel.cubin": CUBIN,
    "small_thing/empty": b"",
    f"{INFO}/METADATA": METADATA.encode(),
    f"{INFO}/WHEEL": WHEEL.encode(),
    f"{INFO}/licenses/LICENSE": b"free",
    f"{INFO}/COPYING.txt": b"free",
}


def make(path: Path, changes: Mapping[str, bytes | None] | None = None) -> Path:
    """Write FILES with changes (None leaves a file out) as a wheel with a true RECORD."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {**FILES, **(changes or {})}.items():
            if content is not None:
                archive.writestr(name, content)
    canonicalize(path, path, 0)
    return path


def changed_after(path: Path, changes: Mapping[str, bytes | None]) -> Path:
    """Change files of a wheel and leave its RECORD as it was."""
    with zipfile.ZipFile(path) as archive:
        files: dict[str, bytes | None] = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**files, **changes}.items():
            if content is not None:
                archive.writestr(name, content)
    return path


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    return make(tmp_path / "small_thing-1.0-cp312-abi3-linux_aarch64.whl")


def test_everything_that_a_gate_asks_is_read(wheel: Path):
    found = read_sheet(wheel, sha256_of(wheel))
    assert (found.form, found.info, found.name, found.version) == (FORM, INFO, "Small-Thing", "1.0")
    assert (found.size, found.files) == (wheel.stat().st_size, len(FILES) + 1)
    assert found.unpacked > sum(map(len, FILES.values()))
    assert (found.requires_python, found.wheel_version, found.generator) == (">=3.9", "1.0", "test 2")
    assert found.requires == ("numpy>=2", 'ray[cgraph]; python_version >= "3.10"')
    assert found.tags == ("cp312-abi3-linux_aarch64",)
    assert found.problems == ()
    assert found.licence.expression == found.licence.in_words == "MIT"
    assert found.licence.text == ""
    assert found.licence.classifiers == ("License :: OSI Approved :: MIT License",)
    assert found.licence.files == ("COPYING.txt", "licenses/LICENSE")
    assert found.exports == ()


def test_libraries_are_read_and_what_one_gives_to_another_is_no_open_end(wheel: Path):
    first, second = read_sheet(wheel, "0" * 64).libraries
    assert (first.name, first.machine, first.soname) == ("small_thing/_C.abi3.so", "aarch64", "_C.so")
    assert (first.needed, first.rpath) == (("libgiven.so", "libc.so.6"), ("$ORIGIN/lib", "/srv/build"))
    assert (first.versions, first.glibc) == (("GLIBC_2.17", "GLIBC_2.34"), (2, 34))
    assert first.torch == ("_ZN3c105ErrorC2Ev", "aoti_torch_new")
    assert first.python == ("PyLong_FromLong",)
    assert [str(code) for code in first.code] == ["compute_90", "sm_121"]
    assert first.code_size == len(fatbin(entry(2, 121), entry(1, 90)))
    assert (second.name, second.torch, second.code, second.glibc) == ("small_thing/libgiven.so", (), (), None)


def test_code_of_gpus_that_is_a_file_of_its_own_is_no_library(wheel: Path):
    assert not [one.name for one in read_sheet(wheel, "0" * 64).libraries if one.name.endswith(".cubin")]


def test_torch_itself_has_the_names_that_it_gives(tmp_path: Path):
    metadata = METADATA.replace("Small-Thing", "Torch").encode()
    path = make(tmp_path / "torch-1.0-py3-none-any.whl", {f"{INFO}/METADATA": metadata})
    assert read_sheet(path, "0" * 64).exports == ("_ZN3c103OwnE", "_ZN3c105GivenE")


def test_a_library_that_cannot_be_read_says_why(tmp_path: Path):
    path = make(tmp_path / "x.whl", {"small_thing/_C.abi3.so": EXTENSION[:300]})
    broken, _ = read_sheet(path, "0" * 64).libraries
    assert "small_thing/_C.abi3.so cannot be read" in broken.unreadable
    assert broken.machine == ""


def test_libraries_too_large_for_memory_are_read_from_disk(wheel: Path, monkeypatch: pytest.MonkeyPatch):
    expected = read_sheet(wheel, "0" * 64)
    monkeypatch.setattr(elf, "IN_MEMORY", 100)
    assert read_sheet(wheel, "0" * 64) == expected


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"small_thing/__init__.py": b"VALUE = 2\n"}, "small_thing/__init__.py is not the file that its RECORD names"),
        ({"small_thing/__init__.py": b"VALUE\n"}, "small_thing/__init__.py has 6 bytes, its RECORD says 10"),
        ({"small_thing/libgiven.so": GIVES + b"x"}, "small_thing/libgiven.so has"),
        ({"small_thing/more.py": b""}, "small_thing/more.py is not in its RECORD"),
        ({"small_thing/empty": None}, "its RECORD names small_thing/empty, which is not there"),
        ({f"{INFO}/RECORD": b"small_thing/empty,,\n"}, "its RECORD has no hash of small_thing/empty"),
    ],
)
def test_a_record_that_is_not_true_is_told(changes: dict[str, bytes | None], says: str, wheel: Path):
    problems = read_sheet(changed_after(wheel, changes), "0" * 64).problems
    assert any(problem.startswith(says) for problem in problems), problems


def test_of_many_problems_the_first_are_told(wheel: Path):
    changed_after(wheel, {f"more/{number}": b"" for number in range(100)})
    assert len(read_sheet(wheel, "0" * 64).problems) == MOST_PROBLEMS


def test_signatures_of_a_record_need_no_row(wheel: Path):
    assert read_sheet(changed_after(wheel, {f"{INFO}/RECORD.jws": b"{}"}), "0" * 64).problems == ()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({f"{INFO}/RECORD": None}, "it has no small_thing-1.0.dist-info/RECORD"),
        ({f"{INFO}/METADATA": None}, "small_thing-1.0.dist-info lacks METADATA"),
        ({f"{INFO}/RECORD": b"a,b\n"}, "a line of its RECORD has not path, hash and size"),
        ({"../out": b""}, "leads out of the wheel"),
        ({"other-1.dist-info/METADATA": b""}, "a wheel has one .dist-info folder"),
    ],
)
def test_what_is_no_wheel_is_refused(changes: dict[str, bytes | None], says: str, wheel: Path):
    with pytest.raises(WheelRefused) as caught:
        read_sheet(changed_after(wheel, changes), "0" * 64)
    assert caught.value.cause.startswith(f"{wheel.name} is no wheel to use: ")
    assert says in caught.value.cause


def test_metadata_without_end_is_refused(wheel: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sheet, "MOST_METADATA", 100)
    with pytest.raises(WheelRefused, match="METADATA has more than 100 bytes"):
        read_sheet(wheel, "0" * 64)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(WheelRefused, match="cannot be read: No such file"):
        sheet_of(tmp_path / "x.whl", work=tmp_path)


def test_a_sheet_is_kept_by_the_hash_of_its_wheel_and_not_read_again(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = sheet_of(wheel, work=tmp_path)
    assert [path.name for path in (tmp_path / "sheets").iterdir()] == [f"{sha256_of(wheel)}.json"]
    monkeypatch.setattr(sheet, "read_sheet", lambda *_: pytest.fail("read again"))
    assert sheet_of(wheel, work=tmp_path) == first
    assert sheet_of(wheel.rename(tmp_path / "other.whl"), first.sha256, work=tmp_path) == first


@pytest.mark.parametrize("damage", ["", "{", '{"form": 1}', "another form"])
def test_a_kept_sheet_that_is_damaged_or_of_another_form_is_made_again(damage: str, wheel: Path, tmp_path: Path):
    first = sheet_of(wheel, work=tmp_path)
    (kept,) = (tmp_path / "sheets").iterdir()
    old = first.model_copy(update={"form": FORM - 1, "name": "old"}).model_dump_json()
    kept.write_text(old if damage == "another form" else damage)
    assert sheet_of(wheel, work=tmp_path) == first
    assert sheet_of(wheel, work=tmp_path) == first


@given(data=st.data())
def test_any_damage_is_refused_or_told_or_harmless(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.getbasetemp() / "damaged.whl"
    content = bytearray(make(path).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)) | st.none())]))
    with contextlib.suppress(WheelRefused):
        read_sheet(path, "0" * 64)


@pytest.mark.parametrize(
    ("name", "kind", "reads"),
    [
        ("_ZN3c105ErrorC2Ev", "torch", "c10::Error"),
        ("_ZNK2at6Tensor4sizeEl", "torch", "at::Tensor::size"),
        ("_ZNKR5torch3jit6ObjectE", "torch", "torch::jit::Object"),
        ("_ZTVN3c1011StorageImplE", "torch", "c10::StorageImpl"),
        ("_ZTIN6caffe28TypeMetaE", "torch", "caffe2::TypeMeta"),
        ("_ZN3c10lsERSoNS_10DeviceTypeE", "torch", "_ZN3c10lsERSoNS_10DeviceTypeE"),
        ("_ZGVZN2at6detailEvE1x", "torch", "_ZGVZN2at6detailEvE1x"),
        ("_ZZN3c104testEvE1x", "torch", "_ZZN3c104testEvE1x"),
        ("_Z16THPVariable_WrapN2at10TensorBaseE", "torch", "THPVariable_Wrap"),
        ("THPVariableClass", "torch", "THPVariableClass"),
        ("aoti_torch_empty_strided", "torch", "aoti_torch_empty_strided"),
        ("torch_library_impl", "torch", "torch_library_impl"),
        ("_ZN4at3x1yE", "", "at3x::y"),
        ("_ZN8notc10_x1yE", "", "notc10_x::y"),
        ("_ZNSt6vectorIN2at6TensorEE9push_backE", "", "_ZNSt6vectorIN2at6TensorEE9push_backE"),
        ("PyLong_FromLong", "python", "PyLong_FromLong"),
        ("_Py_NoneStruct", "python", "_Py_NoneStruct"),
        ("Pyramid", "", "Pyramid"),
        ("memcpy", "", "memcpy"),
    ],
)
def test_names_are_known_by_whose_they_are(name: str, kind: str, reads: str):
    assert (bool(of_torch([name])), bool(of_python([name]))) == (kind == "torch", kind == "python")
    assert readable_name(name) == reads


def test_the_stable_abi_is_known_with_its_versions():
    known = stable_abi()
    assert known["PyLong_FromLong"] <= (3, 2)
    assert known["PyBuffer_Release"] == (3, 11)
    assert known["_Py_NoneStruct"] <= (3, 2)
    assert "_PyObject_GetDictPtr" not in known


@pytest.mark.parametrize(
    ("tags", "spark", "x86"),
    [
        ("py3-none-any", True, True),
        ("py2.py3-none-any", True, True),
        ("cp312-cp312-manylinux_2_28_aarch64", True, False),
        ("cp311-cp311-manylinux2010_x86_64", False, True),
        ("cp311-cp311-manylinux1_x86_64.manylinux_2_5_x86_64", False, True),
        ("cp311-cp311-manylinux_2_37_x86_64", False, False),
        ("cp38-abi3-linux_x86_64.linux_aarch64", True, True),
        ("cp312-none-manylinux2014_aarch64", True, False),
        ("py312-none-any", True, False),
        ("py313-none-any", False, False),
    ],
)
def test_tags_fit_a_target_or_not(tags: str, *, spark: bool, x86: bool):
    assert (fits(parse_tag(tags), SPARK), fits(parse_tag(tags), X86)) == (spark, x86)


@pytest.mark.parametrize(
    ("tags", "glibc", "since"),
    [
        ("cp38-abi3-manylinux_2_28_aarch64", (2, 28), (3, 8)),
        ("cp311-cp311-manylinux1_x86_64.manylinux_2_28_x86_64", (2, 5), None),
        ("cp39.cp312-abi3-manylinux2014_x86_64", (2, 17), (3, 9)),
        ("py3-none-any", None, None),
        ("cp312-cp312-linux_aarch64", None, None),
    ],
)
def test_tags_promise_a_glibc_and_a_stable_abi(tags: str, glibc: tuple[int, int] | None, since: tuple[int, int] | None):
    assert (promised_glibc(parse_tag(tags)), stable_abi_since(parse_tag(tags))) == (glibc, since)


def test_members_are_worked_on_at_once_and_come_in_their_order(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        members = archive.infolist()
        assert of_each(members, archive.read) == [archive.read(one) for one in members]


def test_the_first_error_of_a_member_ends_all(wheel: Path):
    def fails(info: zipfile.ZipInfo) -> None:
        raise OSError(info.filename)

    with zipfile.ZipFile(wheel) as archive, pytest.raises(OSError, match="small_thing"):
        of_each(archive.infolist(), fails)
