"""A commit of a mirror as one pack file, and back: how git objects travel in a bundle.

`git bundle` cannot hold a commit whose history is not there.
"""

from __future__ import annotations

from pathlib import Path

from build.git import Mirror, is_whole, pin_of, prepare
from core.config import shown
from core.errors import BuildFailed
from core.plan import Report
from core.store import full_disk

_STEADY = ("-c", "pack.threads=1", "-c", "core.compression=6", "-c", "core.bigFileThreshold=512m")


def pack(source: Mirror, commit: str, target: Path) -> None:
    """Write the commit, its tree and its files to a pack file, the same bytes from the same git."""
    target.parent.mkdir(parents=True, exist_ok=True)
    objects = source.git("rev-list", "--objects", "--no-object-names", "--no-walk", pin_of(commit)).out
    # no deltas: one commit has few files that are alike, and looking for them depends on what was packed before
    plain = ("--window=0", "--no-reuse-delta", "--no-reuse-object", "--quiet")
    made = source.git(*_STEADY, "pack-objects", *plain, str(target.with_suffix("")), stdin=objects).out.strip()
    target.with_name(f"{target.stem}-{made}.idx").unlink()
    target.with_name(f"{target.stem}-{made}.pack").rename(target)


def add_pack(target: Mirror, commit: str, file: Path, report: Report) -> None:
    """Add a pack file to a mirror; every object is hashed again, and the commit must be whole.

    Raises BuildFailed when the pack does not hold the commit that it is named for.
    """
    if target.has(commit):
        return
    with target.held(report):
        prepare(target)
        place = target.folder / "objects" / "pack" / f"pack-{commit}.pack"
        place.parent.mkdir(parents=True, exist_ok=True)
        file.replace(place)
        done = target.git("index-pack", str(place), check=False)
        if done.code or target.commit_of(commit) != commit or not is_whole(target, commit):
            _discard(place)
            raise _not_it(target, commit, done.err)
        _without_history(target, commit)
        target.git("update-ref", pin_of(commit), commit)


def _without_history(target: Mirror, commit: str) -> None:
    """Tell git that the commit's parents are not there on purpose."""
    shallow = target.folder / "shallow"
    known = set(shallow.read_text(encoding="ascii").split()) if shallow.exists() else set()
    shallow.write_text("".join(f"{name}\n" for name in sorted(known | {commit})), encoding="ascii")


def _discard(place: Path) -> None:
    for path in place.parent.glob(f"{place.stem}.*"):
        path.unlink()


def _not_it(target: Mirror, commit: str, problem: str) -> Exception:
    if "No space left on device" in problem:
        return full_disk(target.folder)
    return BuildFailed(
        f"the pack for {shown(target.folder)} does not hold {commit} whole",
        next_move="write the bundle again with `invoke build.bundle`",
        evidence=problem,
    )
