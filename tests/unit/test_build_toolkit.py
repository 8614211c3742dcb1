"""A CUDA toolkit from wheels: what is fetched, how it is laid out, and what becomes of damaged and half-made ones."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import pytest

from build.toolkit import (
    HOST_ONLY,
    LOCKS,
    Toolkit,
    assemble,
    is_whole,
    known_releases,
    toolkit_folder,
    toolkit_lists,
    toolkit_steps,
)
from core.errors import BuildFailed, ConfigError
from core.plan import Call, Run, Step, Write
from core.store import digest
from wheels.lock import entries, read_lock

FILES = {
    "nvidia-cuda-nvcc": ("bin/nvcc", "bin/crt/link.stub", "include/fatbinary_section.h"),
    "nvidia-cuda-runtime": ("include/cuda_runtime.h", "lib/libcudart.so.13", "lib/libcudart_static.a"),
    "nvidia-nvvm": ("nvvm/bin/cicc", "lib/libnvvm.so.4"),
}
MACHINES = ("x86_64", "aarch64")
CROSS = Toolkit("13.0", "x86_64", "aarch64")


def a_wheel(folder: Path, name: str, machine: str) -> Path:
    path = folder / f"{name.replace('-', '_')}-13.0-py3-none-manylinux_2_17_{machine}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file in FILES[name]:
            archive.writestr(f"nvidia/cu13/{file}", f"{file} of {machine}")
        archive.writestr("nvidia/cu13/.metadata/note.txt", "NVIDIA's own")
        archive.writestr("nvidia/cu13/include/../../../../outside", "no")
        archive.writestr(f"{name}-13.0.dist-info/METADATA", "Name: x")
    return path


@pytest.fixture
def arrived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lock three small wheels for both machines, and put them where pip would."""
    locks, work = tmp_path / "locks", tmp_path / "work"
    locks.mkdir()
    monkeypatch.setattr("build.toolkit.LOCKS", locks)
    monkeypatch.setattr("build.toolkit.platform.machine", lambda: "riscv64")  # or their nvcc would be asked
    (tmp_path / "made").mkdir()
    made = {name: [a_wheel(tmp_path / "made", name, machine) for machine in MACHINES] for name in FILES}
    lines = (f"{name}==13.0 {' '.join(f'--hash=sha256:{digest(one)}' for one in both)}" for name, both in made.items())
    (locks / "cuda-13.0.lock").write_text("\n".join(lines) + "\n")
    place = toolkit_folder(CROSS, work)
    place = place.with_name(f"{place.name}.wheels")
    place.parent.mkdir(parents=True)
    (tmp_path / "made").rename(place)
    return work


def kinds(steps: tuple[Step, ...]) -> list[type]:
    return [type(step) for step in steps]


def made(work: Path) -> Path:
    return assemble(CROSS, lambda _: None, work=work)


def test_a_toolkit_looks_as_the_installer_leaves_it(arrived: Path) -> None:
    folder = made(arrived)
    both = [folder / "targets" / name for name in ("x86_64-linux", "sbsa-linux")]
    for place, machine in zip(both, MACHINES, strict=True):
        assert (place / "include/cuda_runtime.h").read_text() == f"include/cuda_runtime.h of {machine}"
        assert (place / "include/fatbinary_section.h").read_text().endswith("x86_64"), "programs' headers are for all"
        assert (place / "lib/libcudart.so").readlink() == Path("libcudart.so.13")
    assert (folder / "include/cuda_runtime.h").samefile(both[0] / "include/cuda_runtime.h")
    assert (folder / "lib64/libcudart.so").samefile(both[0] / "lib/libcudart.so.13")
    assert (folder / "nvvm/lib64/libnvvm.so").samefile(both[0] / "lib/libnvvm.so.4")
    modes = {
        name: (folder / name).stat().st_mode & 0o777 for name in ("bin/nvcc", "nvvm/bin/cicc", "bin/crt/link.stub")
    }
    assert modes == {"bin/nvcc": 0o755, "nvvm/bin/cicc": 0o755, "bin/crt/link.stub": 0o644}
    assert not list(folder.rglob("note.txt"))
    assert not list(arrived.rglob("outside"))


def test_it_says_which_wheels_it_is_made_of_and_programs_of_the_other_machine_are_not_among_them(arrived: Path) -> None:
    record = json.loads((made(arrived) / "complete.json").read_text())
    assert record["identity"] == CROSS.identity
    assert len(record["wheels"]) == 4
    assert sorted(name.partition("-")[0] for name in record["wheels"] if "aarch64" in name) == ["nvidia_cuda_runtime"]
    for name, sha256 in record["wheels"].items():
        assert digest(arrived / "files" / sha256 / name) == sha256, "they are kept for the next one"


def test_a_toolkit_that_is_there_needs_nothing(arrived: Path) -> None:
    assert kinds(toolkit_steps(CROSS, arrived)) == [Run, Write, Run, Write, Run, Call]
    folder = made(arrived)
    assert is_whole(CROSS, arrived)
    assert toolkit_steps(CROSS, arrived) == ()
    before = (folder / "complete.json").stat().st_mtime_ns
    assert made(arrived) == folder
    assert (folder / "complete.json").stat().st_mtime_ns == before


def test_what_one_toolkit_fetched_the_other_need_not(arrived: Path) -> None:
    made(arrived)
    own = Toolkit("13.0", "x86_64", "x86_64")
    assert toolkit_folder(own, arrived) != toolkit_folder(CROSS, arrived)
    assert kinds(toolkit_steps(own, arrived)) == [Call]


def test_an_interrupted_one_is_made_anew(arrived: Path) -> None:
    folder = toolkit_folder(CROSS, arrived)
    partial = folder.with_name(f"{folder.name}.partial")
    (partial / "bin").mkdir(parents=True)
    (partial / "bin" / "stale").touch()
    assert not is_whole(CROSS, arrived)
    made(arrived)
    assert not (folder / "bin" / "stale").exists()
    assert not partial.exists()


def test_a_damaged_wheel_is_removed_and_it_alone_fetched_again(arrived: Path) -> None:
    folder = made(arrived)
    (kept,) = (arrived / "files").glob("*/nvidia_nvvm-*_x86_64.whl")
    kept.write_bytes(b"damaged")
    folder.rename(arrived / "aside")
    said: list[str] = []
    with pytest.raises(BuildFailed, match=r"the wheel of nvidia-nvvm==13\.0 for x86_64 is not there, or not as locked"):
        assemble(CROSS, said.append, work=arrived)
    assert "is damaged" in said[0]
    assert not is_whole(CROSS, arrived)
    steps = toolkit_steps(CROSS, arrived)
    (listed,) = (step.content for step in steps if isinstance(step, Write))
    assert [line.split("==")[0] for line in listed.splitlines()] == ["nvidia-nvvm"]


def test_a_wheel_that_no_lock_names_is_not_kept(arrived: Path) -> None:
    place = toolkit_folder(CROSS, arrived)
    stray = place.with_name(f"{place.name}.wheels") / "nvidia_nvvm-13.0-py3-none-manylinux_2_28_x86_64.whl"
    stray.write_bytes(b"another")
    made(arrived)
    assert not list((arrived / "files").glob(f"*/{stray.name}"))


def test_another_lock_makes_another_toolkit(arrived: Path, tmp_path: Path) -> None:
    before = toolkit_folder(CROSS, arrived)
    lock = tmp_path / "locks" / "cuda-13.0.lock"
    lock.write_text(lock.read_text() + f"nvidia-nvtx==13.0 --hash=sha256:{hashlib.sha256(b'').hexdigest()}\n")
    assert toolkit_folder(CROSS, arrived) != before


def test_fetching_is_by_hash_and_for_the_machine() -> None:
    steps = toolkit_steps(CROSS, Path("/nowhere"))
    fetches = [step.argv for step in steps if isinstance(step, Run) and "download" in step.argv]
    assert ["--require-hashes" in argv and "--only-binary=:all:" in argv for argv in fetches] == [True, True]
    assert "--platform=manylinux2014_x86_64" in fetches[0]
    assert "--platform=manylinux2014_aarch64" in fetches[1]
    lists = [step.content for step in steps if isinstance(step, Write)]
    assert "nvidia-nvvm==" in lists[0]
    assert not any(f"{name}==" in lists[1] for name in HOST_ONLY), "90 MB that nothing here could run"


def test_a_release_without_a_lock_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no CUDA toolkit 12\.4 can be made from wheels") as caught:
        toolkit_steps(Toolkit("12.4", "x86_64", "x86_64"))
    assert "13.0" in caught.value.next_move
    assert known_releases() == ["13.0"]


@pytest.mark.parametrize("name", ["cuda-13.0", "cuda-13.0-libraries"])
def test_the_locks_hold_what_their_lists_name_for_both_machines(name: str) -> None:
    wanted = entries((LOCKS / f"{name}.in").read_text())
    locked = read_lock(LOCKS / f"{name}.lock")
    assert sorted(f"{item.name}=={item.version}" for item in locked) == sorted(wanted)
    assert all(len(item.hashes) >= 2 for item in locked)


def test_a_release_has_its_lists_and_another_has_none() -> None:
    assert [path.name for path in toolkit_lists("13.0")] == ["cuda-13.0-libraries.in", "cuda-13.0.in"]
    assert toolkit_lists("12.4") == toolkit_lists(None) == ()
