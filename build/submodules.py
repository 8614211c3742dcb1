"""A repository at a commit with all that its tree pins in turn: submodules, and theirs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from build.git import Mirror, allow, check_out, fetch, mirror, schemes_for
from core.config import WORK
from core.download import public
from core.errors import BuildFailed
from core.plan import Report

DEEPEST = 12
"""Submodules within submodules; more is a repository that contains itself."""


@dataclass(frozen=True)
class Pinned:
    """A repository that belongs to a tree: where in it, and at which commit."""

    place: str
    """Relative to the tree; empty for the tree's own."""
    mirror: Mirror
    commit: str


def gather(
    url: str, commit: str, reference: str | None, report: Report, *, submodules: bool, work: Path = WORK
) -> list[Pinned]:
    """Have a commit in its mirror, and those of its submodules in theirs; return them all, the tree's own first.

    Raises BuildFailed when one cannot be had, or a submodule uses a protocol that the recipe's repository does not.
    """
    schemes = schemes_for(url)
    allow(url, schemes, "the recipe's repository")
    first = Pinned("", mirror(url, work=work), commit)
    fetch(first.mirror, commit, reference, report)
    return [first, *(_below(first, schemes, report, work, 1) if submodules else ())]


def _below(parent: Pinned, schemes: frozenset[str], report: Report, work: Path, depth: int) -> Iterator[Pinned]:
    urls = _urls(parent)
    for path, commit in _gitlinks(parent):
        place = f"{parent.place}/{path}".lstrip("/")
        url = _url(parent, path, urls)
        allow(url, schemes, f"the submodule {place}")
        _refuse_endless(place, depth)
        found = Pinned(place, mirror(url, work=work), commit)
        fetch(found.mirror, commit, None, report)
        yield found
        yield from _below(found, schemes, report, work, depth + 1)


def _refuse_endless(place: str, depth: int) -> None:
    if depth > DEEPEST:
        raise BuildFailed(f"the submodule {place} is too deep", next_move="set `submodules = false` in the recipe")


def _gitlinks(parent: Pinned) -> list[tuple[str, str]]:
    """Return (path, commit) of every submodule that the tree pins."""
    listing = parent.mirror.git("ls-tree", "-r", "-z", "--full-tree", parent.commit).out
    rows = (entry.partition("\t") for entry in listing.split("\0") if entry.startswith("160000 "))
    return [(path, row.split()[2]) for row, _, path in rows]


def _urls(parent: Pinned) -> dict[str, str]:
    """Return the URLs in the tree's .gitmodules, by path."""
    blob = f"{parent.commit}:.gitmodules"
    question = ("config", "--blob", blob, "-z", "--get-regexp", r"^submodule\..*\.(path|url)$")
    entries = [entry.partition("\n") for entry in parent.mirror.git(*question, check=False).out.split("\0") if entry]
    values = {key: value for key, _, value in entries}
    paths = {key.removesuffix(".path"): value for key, value in values.items() if key.endswith(".path")}
    return {path: values.get(f"{name}.url", "") for name, path in paths.items()}


def _url(parent: Pinned, path: str, urls: dict[str, str]) -> str:
    url = urls.get(path)
    if not url:
        raise BuildFailed(
            f"{public(parent.mirror.url)} at {parent.commit[:12]} has a submodule {path}, "
            "and its .gitmodules does not say where that is",
            next_move="set `submodules = false` in the recipe, and name what is needed as a dependency",
        )
    return resolved(parent.mirror.url, url)


def resolved(parent: str, url: str) -> str:
    """Return a submodule's URL: one that begins with ./ or ../ is relative to the repository that it stands in."""
    if not url.startswith(("./", "../")):
        return url
    base, sign = parent.rstrip("/"), "/"
    while url.startswith(("./", "../")):
        dots, _, url = url.partition("/")
        if dots == "..":
            cut = max(base.rfind("/"), base.rfind(":"), 0)  # of git@host:group stays git@host, and the colon
            base, sign = base[:cut], base[cut : cut + 1]
    return f"{base}{sign}{url}"


def write(pins: list[Pinned], destination: Path) -> None:
    """Write the files of all pins to one tree."""
    for pin in pins:
        check_out(pin.mirror, pin.commit, destination / pin.place if pin.place else destination)
