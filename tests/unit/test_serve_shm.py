"""Shared memory of killed ranks: removed where nobody maps it, left alone where it is another's or in use."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from serve.onnode import shm

NAMES = ["psm_0a1b2c3d", "sem.mp-x1y2", "nccl-AbC123", "torch_9_1_0", "plasmaXyZ", "__KMP_REGISTERED_LIB_77_0"]
MAPS = """\
7f1c00000000-7f1c10000000 rw-s 00000000 00:1a 41   /dev/shm/psm_used
7f1c20000000-7f1c30000000 rw-s 00000000 00:1a 42   /dev/shm/plasmaGone (deleted)
7f1c40000000-7f1c50000000 r-xp 00000000 08:01 43   /usr/lib/x86_64-linux-gnu/libc.so.6
7f1c60000000-7f1c70000000 rw-p 00000000 00:00 0
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(shm, "FOLDER", tmp_path)
    return tmp_path


def test_what_is_mapped_is_read_out_of_the_kernels_own_list() -> None:
    assert list(shm.mapped_names([MAPS, "", MAPS])) == ["psm_used", "plasmaGone"] * 2


def test_what_ranks_left_is_removed_and_named(folder: Path) -> None:
    for name in NAMES:
        (folder / name).write_bytes(b"x")
    assert shm.sweep(os.getuid()) == tuple(sorted(NAMES))
    assert not list(folder.iterdir())


@pytest.mark.parametrize("name", ["pulse-shm-1", "my_psm_0a1b", "lttng-ust", "xpsm_0"])
def test_what_is_called_otherwise_is_left_alone(name: str, folder: Path) -> None:
    (folder / name).write_bytes(b"x")
    assert shm.sweep(os.getuid()) == ()
    assert (folder / name).exists()


def test_what_belongs_to_another_user_is_left_alone(folder: Path) -> None:
    (folder / "psm_0a1b").write_bytes(b"x")
    assert shm.sweep(os.getuid() + 1) == ()
    assert (folder / "psm_0a1b").exists()


def test_a_folder_and_a_link_to_nothing_are_no_segments(folder: Path) -> None:
    (folder / "psm_folder").mkdir()
    (folder / "psm_link").symlink_to("gone")
    assert shm.sweep(os.getuid()) == ()


def test_a_segment_that_a_process_maps_is_left_alone() -> None:
    """A real one, in the real folder: its name is this test's own."""
    path = Path(f"/dev/shm/psm_sparkstack_test_{os.getpid()}")
    if not os.access(path.parent, os.W_OK):
        pytest.skip("no shared memory on this host")
    path.write_bytes(bytes(4096))
    try:
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 4096):
            mapped = set(shm.mapped_names(shm.texts(Path("/proc").glob("self/maps"))))
            assert path.name in mapped
        mapped = set(shm.mapped_names(shm.texts(Path("/proc").glob("self/maps"))))
        assert path.name not in mapped
    finally:
        path.unlink()


def test_a_segment_that_came_while_the_maps_were_read_is_left_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be in use by now: nobody has looked for who maps it."""

    def meanwhile(_: object) -> list[str]:
        (folder / "psm_new").write_bytes(b"x")
        return []

    (folder / "psm_old").write_bytes(b"x")
    monkeypatch.setattr(shm, "texts", meanwhile)
    assert shm.sweep(os.getuid()) == ("psm_old",)


def test_a_process_that_ends_while_it_is_read_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "maps").write_text(MAPS)
    assert list(shm.texts([tmp_path / "gone", tmp_path / "maps"])) == [MAPS]
