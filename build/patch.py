"""Patches with no fuzz: every line of context must be there, or the patch is refused by file and hunk."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from build.gitcommand import LOCAL, git
from core.errors import BuildFailed
from core.plan import Report
from core.store import full_disk

_FAILED = re.compile(r"^error: patch failed: (?P<file>.*):(?P<line>\d+)$", re.MULTILINE)
_OTHER = re.compile(r"^error: (?P<file>.*): (?P<why>[^:]*)$", re.MULTILINE)


def apply_patch(tree: Path, patch: Path, report: Report) -> None:
    """Change the tree as the patch says, whole or not at all; lines may have moved, but none may differ.

    Raises BuildFailed naming the patch, the file and the hunk.
    """
    # the tree may lie within a repository, this project's: git would look for the patch's files from that one's top
    place = {**LOCAL, "GIT_CEILING_DIRECTORIES": str(tree.resolve().parent)}
    argv = ["apply", "--verbose", "--whitespace=nowarn", "-p1", str(patch.resolve())]
    done = git(argv, env=place, cwd=tree, check=False)
    output = done.out + done.err
    if done.code or "Skipped patch" in output:
        raise full_disk(tree) if "No space left" in output else _refused(patch, output)
    moved = [line for line in output.splitlines() if line.startswith("Hunk #")]
    report(f"patch {patch.name} applied{''.join(f'; {line}' for line in moved)}")


def _refused(patch: Path, output: str) -> BuildFailed:
    failed = _FAILED.search(output)
    other = _OTHER.search(output)
    if failed:
        hunk = hunk_number(patch.read_text(encoding="utf-8", errors="replace"), failed["file"], int(failed["line"]))
        where = f"{failed['file']}, hunk {hunk} (line {failed['line']}): its context is not in the source"
    elif other:
        where = f"{other['file']}: {other['why']}"
    else:
        where = "it is no patch, or changes nothing"
    return BuildFailed(
        f"patch {patch.name} does not apply: {where}",
        next_move="make the patch again for the pinned source, or leave it out of the recipe",
        evidence=output,
    )


def hunk_number(patch: str, file: str, line: int) -> int:
    """Return which hunk of a file begins at that line of the old file, from 1; 0 where none does."""
    lines = [start for name, start in _hunks(patch) if name == file]
    return lines.index(line) + 1 if line in lines else 0


def _hunks(patch: str) -> Iterator[tuple[str, int]]:
    """Yield (file, first line in the old file) of every hunk."""
    old = name = ""
    for line in patch.splitlines():
        if line.startswith("--- "):
            old = _stripped(line)
        elif line.startswith("+++ "):
            name = _stripped(line) or old
        elif found := re.match(r"@@ -(\d+)", line):
            yield name, int(found[1])


def _stripped(line: str) -> str:
    """Return the path of a `---` or `+++` line without its first folder; empty for /dev/null."""
    path = line[4:].partition("\t")[0].strip().strip('"')
    return "" if path == "/dev/null" else path.partition("/")[2]
