"""GPU architectures in libraries: fat binaries made by hand, and by nvcc where this host has it."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import BuildFailed
from core.process import run
from tests.unit.elf_builder import Library, Part, entry, fatbin, with_code
from wheels.fatbin import Code, codes_between, device_code, device_code_in, device_code_of_wheel, in_words, runs_on

NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
CUOBJDUMP = shutil.which("cuobjdump") or shutil.which("cuobjdump", path="/usr/local/cuda/bin")
PTX, SASS, ONLY, FAMILY = 1, 2, 0x100000, 0x200000
CAPTURED = json.loads((Path(__file__).parent / "tables" / "fatbin_headers.json").read_text(encoding="utf-8"))


def codes(library: Library) -> str:
    return in_words(device_code_in(io.BytesIO(library.build()), "x.so"))


def parsed(text: str) -> Code:
    kind, _, rest = text.partition("_")
    digits = rest.rstrip("af")
    return Code(int(digits), rest[len(digits) :], "sass" if kind == "sm" else "ptx")  # type: ignore[arg-type]


def test_codes_are_read_from_the_headers():
    library = with_code(
        fatbin(entry(SASS, 121), entry(PTX, 121, ONLY), entry(SASS, 120, FAMILY | 0x11, header=112)),
        bytes(24),
        fatbin(entry(SASS, 90, payload=b""), entry(8, 121), entry(PTX, 80)),
    )
    assert codes(library) == "sm_90, sm_120f, sm_121, compute_80, compute_121a"


def test_headers_of_nvcc_are_read():
    entries = [bytes.fromhex(one["header"]) + bytes(one["payload"]) for one in CAPTURED["entries"]]
    library = with_code(bytes.fromhex(CAPTURED["container"]) + b"".join(entries))
    found = device_code_in(io.BytesIO(library.build()), "x.so")
    assert {str(code) for code in found} == {one["code"] for one in CAPTURED["entries"]}


def test_code_that_is_linked_across_files_counts():
    assert codes(with_code(fatbin(entry(SASS, 121, ONLY)), section="__nv_relfatbin")) == "sm_121a"


def test_a_library_without_gpu_code_has_none(tmp_path: Path):
    (tmp_path / "x.so").write_bytes(Library(parts=(Part(".text", b"\xc3"),)).build())
    assert device_code(tmp_path / "x.so") == frozenset()


def test_magic_bytes_in_a_payload_are_no_container():
    assert codes(with_code(fatbin(entry(SASS, 121, payload=fatbin(entry(SASS, 90)))))) == "sm_121"


def test_containers_far_apart_are_found():
    for gap in (1, 4093, 4096, 10_000):
        assert codes(with_code(bytes(gap), fatbin(entry(SASS, 121)), bytes(gap), fatbin(entry(PTX, 90)))) == (
            "sm_121, compute_90"
        )


@pytest.mark.parametrize(
    ("container", "complaint"),
    [
        (fatbin(entry(SASS, 121), version=2), "a container of version 2"),
        (fatbin(entry(SASS, 121))[:-1], "a container of version 1, header 16, size 72"),
        (fatbin(entry(SASS, 121, header=64), bytes(100)), "an entry of kind 0, header 0"),
        (fatbin(entry(SASS, 121)[:-4]), "an entry of kind 2, header 64, size 8"),
    ],
)
def test_a_form_that_is_not_known_is_refused_not_overlooked(container: bytes, complaint: str):
    with pytest.raises(BuildFailed, match=f"x.so: its GPU code cannot be read: {complaint}"):
        codes(with_code(container))


@pytest.mark.parametrize(
    ("code", "runs"),
    [
        ("sm_121", True),
        ("sm_121a", True),
        ("sm_121f", True),
        ("sm_120", True),
        ("sm_120f", True),
        ("sm_120a", False),
        ("sm_100", False),
        ("sm_100f", False),
        ("sm_103a", False),
        ("sm_90", False),
        ("sm_90a", False),
        ("compute_121", True),
        ("compute_120", True),
        ("compute_90", True),
        ("compute_52", True),
        ("compute_120f", False),
        ("compute_121a", False),
        ("compute_90a", False),
        ("compute_130", False),
    ],
)
def test_what_runs_on_a_spark(code: str, *, runs: bool):
    assert runs_on([parsed(code)], "12.1") is runs
    assert str(parsed(code)) == code


@pytest.mark.parametrize(
    ("codes", "capability", "runs"),
    [
        ("sm_80", "8.6", True),
        ("sm_86", "8.0", False),
        ("sm_90a", "9.0", True),
        ("sm_90 compute_90", "10.0", True),
        ("sm_100f", "10.3", True),
        ("sm_103f", "10.0", False),
        ("sm_120a compute_90a", "12.1", False),
        ("sm_120a sm_120f", "12.1", True),
        ("", "12.1", False),
    ],
)
def test_what_runs_on_other_gpus(codes: str, capability: str, *, runs: bool):
    assert runs_on([parsed(code) for code in codes.split()], capability) is runs


def test_libraries_of_a_wheel_are_listed_with_their_code(tmp_path: Path):
    files = {
        "x/_C.abi3.so": with_code(fatbin(entry(SASS, 120, FAMILY))).build(),
        "x/lib/libx.so.2": with_code(fatbin(entry(PTX, 90))).build(),
        "x/cpu.so": Library().build(),
        "x/__init__.py": b"",
    }
    with zipfile.ZipFile(tmp_path / "x.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    found = device_code_of_wheel(tmp_path / "x.whl")
    assert {name: in_words(code) for name, code in found.items()} == {
        "x/_C.abi3.so": "sm_120f",
        "x/lib/libx.so.2": "compute_90",
    }


def test_a_wheel_that_cannot_be_read_is_named(tmp_path: Path):
    (tmp_path / "x.whl").write_text("<html>")
    with pytest.raises(BuildFailed, match=r"x\.whl cannot be read: File is not a zip file"):
        device_code_of_wheel(tmp_path / "x.whl")
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as archive:
        archive.writestr("x/_C.so", b"\x7fELF and no more")
    with pytest.raises(BuildFailed, match=r"x\.whl: x/_C\.so cannot be read"):
        device_code_of_wheel(tmp_path / "x.whl")


ENTRIES = st.lists(
    st.tuples(
        st.sampled_from([PTX, SASS]), st.integers(10, 999), st.sampled_from([0, ONLY, FAMILY]), st.binary(max_size=50)
    )
)


@given(entries=ENTRIES, padding=st.integers(0, 9))
def test_whatever_is_put_in_is_found(entries: list[tuple[int, int, int, bytes]], padding: int):
    made = [entry(kind, number, flags, payload) for kind, number, flags, payload in entries]
    content = bytes(padding) + b"".join(fatbin(one) + bytes(padding) for one in made) + fatbin(*made)
    suffixes = {0: "", ONLY: "a", FAMILY: "f"}
    expected = {f"{'sm' if kind == SASS else 'compute'}_{n}{suffixes[flags]}" for kind, n, flags, _ in entries}
    assert {str(code) for code in codes_between(io.BytesIO(content), 0, len(content), "x")} == expected


@given(content=st.binary(max_size=100), put=st.lists(st.integers(0, 300), max_size=3))
def test_arbitrary_bytes_give_nothing_or_a_named_error(content: bytes, put: list[int]):
    whole = bytearray(fatbin(entry(SASS, 121), entry(PTX, 90)) + content)
    for place in put:
        whole[place % len(whole)] ^= 0x81
    for some in (content, bytes(whole), b"\x50\xed\x55\xba" + content):
        with contextlib.suppress(BuildFailed):
            list(codes_between(io.BytesIO(some), 0, len(some), "x"))


MIXED = (
    "arch=compute_121,code=[sm_121,compute_121]",
    "arch=compute_121a,code=sm_121a",
    "arch=compute_120f,code=sm_120f",
)
CASES = {
    "one": (("arch=compute_121,code=sm_121",), ()),
    "many": ((*MIXED, "arch=compute_80,code=[sm_80,compute_80]", "arch=compute_90a,code=compute_90a"), ()),
    "not compressed": (MIXED, ("--no-compress",)),
}


@pytest.mark.processes
@pytest.mark.skipif(NVCC is None, reason="needs nvcc (CUDA toolkit), which this host does not have")
@pytest.mark.parametrize(("targets", "flags"), CASES.values(), ids=CASES)
def test_what_nvcc_was_asked_for_is_found(targets: tuple[str, ...], flags: tuple[str, ...], tmp_path: Path):
    assert NVCC is not None
    library = compiled(NVCC, tmp_path, targets, flags)
    asked = {code for target in targets for code in target.partition("code=")[2].strip("[]").split(",")}
    assert {str(code) for code in device_code(library)} == asked
    if CUOBJDUMP:
        assert said_by_cuobjdump(CUOBJDUMP, library) == asked


def compiled(nvcc: str, folder: Path, targets: tuple[str, ...], more: tuple[str, ...]) -> Path:
    kernel = "__global__ void add(float *a) { a[threadIdx.x] += 1; }\nvoid f(float *a) { add<<<1, 32>>>(a); }\n"
    (folder / "k.cu").write_text(kernel)
    flags = [word for target in targets for word in ("-gencode", target)]
    # cudart is left out: it has device code of its own for other architectures
    argv = [nvcc, "-shared", "-Xcompiler", "-fPIC", "-cudart", "none", *flags, *more, "-o", str(folder / "k.so")]
    run([*argv, str(folder / "k.cu")], cwd=folder)
    return folder / "k.so"


def said_by_cuobjdump(cuobjdump: str, library: Path) -> set[str]:
    """Return what NVIDIA's own tool finds. Its lists leave the suffix `f` out, its dump does not."""
    lines = run([cuobjdump, str(library)]).out.splitlines()
    kinds = [line.split()[1] for line in lines if line.startswith("Fatbin ")]
    names = [line.partition("sm_")[2] for line in lines if line.startswith("arch = ")]
    return {f"{'sm' if kind == 'elf' else 'compute'}_{name}" for kind, name in zip(kinds, names, strict=True)}
