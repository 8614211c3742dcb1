"""Patches with no fuzz, by the real git."""

from __future__ import annotations

from pathlib import Path

import pytest

from build.patch import apply_patch, hunk_number
from core.errors import BuildFailed
from core.process import run

pytestmark = pytest.mark.processes

LINES = "".join(f"line {number}\n" for number in range(1, 41))
PATCH = """\
Why it is needed.

--- a/dir/file.txt
+++ b/dir/file.txt
@@ -3,5 +3,5 @@
 line 3
 line 4
-line 5
+line five
 line 6
 line 7
@@ -28,5 +28,5 @@
 line 28
 line 29
-line 30
+line thirty
 line 31
 line 32
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "tree"
    (folder / "dir").mkdir(parents=True)
    (folder / "dir" / "file.txt").write_text(LINES)
    return folder


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "0001-change.patch"
    path.write_text(text)
    return path


def test_a_patch_changes_the_tree_and_says_so(tree: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    apply_patch(tree, written(tmp_path, PATCH), lines.append)
    text = (tree / "dir" / "file.txt").read_text()
    assert "line five\n" in text
    assert "line thirty\n" in text
    assert lines == ["patch 0001-change.patch applied"]


def test_lines_that_moved_are_found_and_that_is_said(tree: Path, tmp_path: Path) -> None:
    (tree / "dir" / "file.txt").write_text("new\n" + LINES)
    lines: list[str] = []
    apply_patch(tree, written(tmp_path, PATCH), lines.append)
    assert "Hunk #1 succeeded at 4 (offset 1 line)" in lines[0]


def test_one_line_of_context_that_differs_is_refused_by_file_and_hunk(tree: Path, tmp_path: Path) -> None:
    """GNU patch applies this with fuzz 1."""
    changed = LINES.replace("line 32\n", "line thirty-two\n")
    (tree / "dir" / "file.txt").write_text(changed)
    patch = written(tmp_path, PATCH)
    with pytest.raises(BuildFailed, match=r"patch 0001-change\.patch does not apply: dir/file\.txt, hunk 2 ") as caught:
        apply_patch(tree, patch, print)
    assert "line 30" in caught.value.evidence
    assert (tree / "dir" / "file.txt").read_text() == changed, "whole or not at all"
    assert run(["patch", "-p1", f"--input={patch}"], cwd=tree).code == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PATCH.replace("dir/file.txt", "dir/none.txt"), "dir/none.txt: No such file or directory"),
        ("no patch at all\n", "it is no patch, or changes nothing"),
        ("", "it is no patch, or changes nothing"),
        (PATCH.replace("a/dir/", "a/../").replace("b/dir/", "b/../"), "0001-change.patch does not apply"),
        (PATCH[:-20], "0001-change.patch does not apply"),
    ],
)
def test_what_cannot_be_applied_is_named(tree: Path, tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BuildFailed, match=message):
        apply_patch(tree, written(tmp_path, text), print)
    assert (tree / "dir" / "file.txt").read_text() == LINES


def test_a_patch_does_not_write_through_a_link(tree: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file.txt").write_text(LINES)
    (tree / "link").symlink_to(outside)
    with pytest.raises(BuildFailed, match="beyond a symbolic link"):
        apply_patch(tree, written(tmp_path, PATCH.replace("dir/", "link/")), print)
    assert (outside / "file.txt").read_text() == LINES


def test_a_tree_within_a_repository_is_patched_all_the_same(tree: Path, tmp_path: Path) -> None:
    run(["git", "init", "--quiet", str(tmp_path)])
    apply_patch(tree, written(tmp_path, PATCH), print)
    assert "line five\n" in (tree / "dir" / "file.txt").read_text()


def test_files_are_made_and_removed(tree: Path, tmp_path: Path) -> None:
    new = "--- /dev/null\n+++ b/new.txt\n@@ -0,0 +1 @@\n+new\n"
    apply_patch(tree, written(tmp_path, new), print)
    assert (tree / "new.txt").read_text() == "new\n"
    gone = "--- a/new.txt\n+++ /dev/null\n@@ -1 +0,0 @@\n-new\n"
    apply_patch(tree, written(tmp_path, gone), print)
    assert not (tree / "new.txt").exists()


def test_a_hunk_is_numbered_within_its_file() -> None:
    two = PATCH + PATCH.replace("file.txt", "other.txt").replace("-28,5", "-27,5")
    assert hunk_number(two, "dir/file.txt", 28) == 2
    assert hunk_number(two, "dir/other.txt", 27) == 2
    assert hunk_number(two, "dir/other.txt", 28) == 0
