"""Pages of our own files are forgotten: asked of the large ones in our folder, of no other."""

from __future__ import annotations

from pathlib import Path

from serve.onnode.pagecache import LARGE, forget


def test_the_large_files_of_our_folder_are_asked_for_and_stay_what_they_are(tmp_path: Path) -> None:
    for name, size in (("wheels/a.whl", LARGE), ("releases/r/venv/lib/b.so", LARGE + 1), ("models/m/config.json", 10)):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/large").write_bytes(b"x" * LARGE)
    assert forget(tmp_path) == 2
    assert (tmp_path / "wheels/a.whl").read_bytes() == b"x" * LARGE


def test_a_folder_that_is_not_there_and_a_link_are_passed_over(tmp_path: Path) -> None:
    assert forget(tmp_path / "absent") == 0
    (tmp_path / "store").mkdir()
    (tmp_path / "real").write_bytes(b"x" * LARGE)
    (tmp_path / "store/link").symlink_to(tmp_path / "real")
    assert forget(tmp_path) == 0
