"""Git at a commit: bare mirrors in `.work/mirrors/HOST/PATH.git`, each with a reference `refs/pins/COMMIT` a pin.

A pin is there only when all of its objects are. Objects are checked as they come in (`fetch.fsckObjects`); what old
repositories are known for, like a zero before a file's mode, is let pass: the commit's hash covers it all the same.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

from build.gitcommand import LOCAL, NETWORK, git, program
from build.tree import remove_tree
from core.config import WORK, shown
from core.download import public
from core.errors import BuildFailed
from core.plan import Report
from core.process import Completed, follow
from core.store import Slowly, full_disk, held

SCHEMES = frozenset({"https", "ssh", "git"})
"""Of repositories and submodules; `file` where the recipe's own repository is one."""

_HARMLESS = ("badTimezone", "missingSpaceBeforeDate", "missingSpaceBeforeEmail", "zeroPaddedDate", "zeroPaddedFilemode")
FETCH = (
    *("-c", "fetch.fsckObjects=true"),
    *(word for name in _HARMLESS for word in ("-c", f"fetch.fsck.{name}=ignore")),
    *("-c", "gc.auto=0", "-c", "maintenance.auto=false", "-c", "core.hooksPath=/dev/null"),
    *("-c", "http.lowSpeedLimit=1000", "-c", "http.lowSpeedTime=60"),
)
_PLAIN = "* -text -ident -filter -working-tree-encoding\n"
"""For info/attributes: files come out as they were committed, whatever the repository's own attributes say."""
NEARLY_FULL = 64 * 1024**2
"""Free bytes below which a failed write is laid to the disk."""
_REFUSED = "does not allow request for unadvertised object"
_UNKNOWN = "not our ref"


@dataclass(frozen=True)
class Mirror:
    """A repository and our copy of what was pinned of it."""

    url: str
    folder: Path

    def git(self, *argv: str, check: bool = True, stdin: str | None = None) -> Completed:
        """Run git in the copy, without the network."""
        return git(["--git-dir", str(self.folder), *argv], check=check, stdin=stdin)

    def has(self, commit: str) -> bool:
        """Say whether the commit was fetched whole."""
        if not (self.folder / "HEAD").is_file():
            return False
        return self.commit_of(pin_of(commit)) == commit

    def commit_of(self, name: str) -> str:
        """Return the commit that a name stands for; empty where there is none."""
        done = self.git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}", check=False)
        return done.out.strip() if done.code == 0 else ""

    def held(self, report: Report) -> AbstractContextManager[None]:
        """Return the context in which nobody else changes this mirror."""
        return held(self.folder.with_name(f".{self.folder.name}.lock"), f"fetches {public(self.url)}", report)


def pin_of(commit: str) -> str:
    """Return the reference that keeps a commit."""
    return f"refs/pins/{commit}"


def mirror(url: str, *, work: Path = WORK) -> Mirror:
    """Return the mirror of a repository, which need not be there yet. Raises BuildFailed for a URL that is none."""
    _, host, path = split_url(url)
    parts = [quote(part, safe="~+@") for part in path.removesuffix("/").removesuffix(".git").split("/") if part]
    if not parts or ".." in parts or "." in parts:
        raise _not_a_url(url)
    return Mirror(url, work.joinpath("mirrors", host, *parts[:-1], f"{parts[-1]}.git"))


def split_url(url: str) -> tuple[str, str, str]:
    """Return scheme, host (with its port as HOST_PORT) and path of a repository's URL, also of `git@host:path`."""
    if url.startswith("/"):
        return "file", "localhost", url
    if found := re.fullmatch(r"(?:[\w.-]+@)?([A-Za-z0-9][\w.-]*):(?!//)([^:]+)", url):
        return "ssh", found[1].lower(), found[2]
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2].replace(":", "_").lower() or ("localhost" if parts.scheme == "file" else "")
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", host) or not parts.scheme or ".." in host:
        raise _not_a_url(url)
    return parts.scheme, host, parts.path


def _not_a_url(url: str) -> BuildFailed:
    return BuildFailed(f"{public(url)!r} is no URL of a repository", next_move="write https://HOST/PATH.git")


def schemes_for(url: str) -> frozenset[str]:
    """Return the protocols that a recipe's repository and its submodules may use."""
    return SCHEMES | {"file"} if split_url(url)[0] == "file" else SCHEMES


def allow(url: str, schemes: Iterable[str], whose: str) -> None:
    """Refuse a URL whose protocol is none of ``schemes``."""
    scheme, _, _ = split_url(url)
    if scheme not in schemes:
        raise BuildFailed(
            f"{whose} is at {public(url)}: the protocol {scheme} is not allowed",
            next_move=f"use one of: {', '.join(sorted(schemes))}",
        )


def fetch(source: Mirror, commit: str, reference: str | None, report: Report) -> None:
    """Have the commit, its tree and its files in the mirror; does nothing, and asks nobody, when they are there.

    ``reference`` is the tag or branch that it was found under: a tag that names another commit by now is refused, and
    it is the way to a commit that the server does not give by its hash. Raises BuildFailed.
    """
    if source.has(commit):
        return
    with source.held(report):
        if not source.has(commit):
            prepare(source)
            _fetch(source, commit, reference, report)


def prepare(source: Mirror) -> None:
    """Make the mirror, or clear away what an interrupted fetch left in it; the caller holds its lock."""
    if not (source.folder / "HEAD").is_file():
        remove_tree(source.folder)
        source.folder.mkdir(parents=True)
        git(["init", "--quiet", "--bare", "--template=", "--initial-branch=none", str(source.folder)])
    leftovers = [*source.folder.glob("*.lock"), *source.folder.glob("objects/pack/tmp_*")]
    for leftover in [*leftovers, *source.folder.glob("refs/**/*.lock")]:
        leftover.unlink()
    attributes = source.folder / "info" / "attributes"
    attributes.parent.mkdir(exist_ok=True)
    attributes.write_text(_PLAIN, encoding="utf-8")


def _fetch(source: Mirror, commit: str, reference: str | None, report: Report) -> None:
    report(f"fetch {public(source.url)} at {commit[:12]}{f' ({reference})' if reference else ''}")
    names = named(source, reference) if reference and not commit.startswith(reference) else {}
    _refuse_moved(source, commit, names)
    problem = _try(source, [commit], report)
    if problem is None:
        _pin(source, commit)
        return
    if _REFUSED not in problem and _UNKNOWN not in problem:
        raise unfetched(source, problem)
    if _REFUSED in problem:
        report(f"{public(source.url)} gives no commit by its hash")
        _fetch_around(source, commit, names, report)
    _pin(source, commit, names)


def named(source: Mirror, reference: str) -> dict[str, str]:
    """Ask the server what a tag or branch names: full reference to commit; a tag's object is looked through."""
    wanted = [f"refs/tags/{reference}", f"refs/tags/{reference}^{{}}", f"refs/heads/{reference}"]
    argv = (*program(NETWORK), *FETCH, "ls-remote", "--", source.url, *wanted)
    done = follow(argv, lambda _: None, env=NETWORK, check=False)  # a session of its own: ssh finds nobody to ask
    if done.code:
        raise unfetched(source, done.out)
    found = re.findall(r"^([0-9a-f]{40})\t(refs/.+)$", done.out, re.MULTILINE)
    return {name.removesuffix("^{}"): commit for commit, name in found}


def _refuse_moved(source: Mirror, commit: str, names: dict[str, str]) -> None:
    for name, found in names.items():
        if name.startswith("refs/tags/") and found != commit:
            tag = name.removeprefix("refs/tags/")
            raise BuildFailed(
                f"the tag {tag} of {public(source.url)} has moved: pinned is {commit}, it names {found}",
                next_move="find out why; then `invoke build.lock` shows the new commit, "
                "or take `reference` out of the recipe to stay with the pinned one",
            )


def _try(source: Mirror, refspecs: Sequence[str], report: Report, depth: Sequence[str] = ("--depth=1",)) -> str | None:
    """Fetch commits or references, without history; return git's message where the server does not give them."""
    say = Slowly(report)
    words = (*program(NETWORK), "--git-dir", str(source.folder), *FETCH, "fetch", "--progress", "--no-tags", "--force")
    argv = (*words, "--no-write-fetch-head", "--no-recurse-submodules", *depth, "--", source.url, *refspecs)
    done = follow(argv, lambda line: say(line.strip().removeprefix("remote: ")), env=NETWORK, check=False)
    if done.code == 0:
        return None
    if "No space left on device" in done.out:
        raise full_disk(source.folder)
    return done.out


def _fetch_around(source: Mirror, commit: str, names: dict[str, str], report: Report) -> None:
    """Get a commit that has to be found by a name: first the reference alone, then all there is."""
    for name in names:
        if _try(source, [f"+{name}:refs/seen/reference"], report) is None and source.commit_of(commit):
            return
    report(f"{commit[:12]} is not where its reference is now; all of {public(source.url)} is fetched")
    everything = ["+refs/heads/*:refs/seen/heads/*", "+refs/tags/*:refs/seen/tags/*"]
    history = ["--unshallow"] if (source.folder / "shallow").is_file() else []
    problem = _try(source, everything, report, history)
    if problem is not None:
        raise unfetched(source, problem)


def _pin(source: Mirror, commit: str, names: dict[str, str] | None = None) -> None:
    found = source.commit_of(commit)
    if found != commit:
        now = "".join(f"; {name} names {other}" for name, other in (names or {}).items())
        what = f"is a tag's object, its commit is {found}" if found else f"does not exist there{now}"
        raise BuildFailed(
            f"{public(source.url)}: the pinned commit {commit} {what}",
            next_move="correct the pin in the recipe; `invoke build.lock` resolves tags to commits",
        )
    source.git("update-ref", pin_of(commit), commit)


def unfetched(source: Mirror, problem: str) -> BuildFailed:
    """Return the error for a repository that git cannot fetch from; ``problem`` is what git printed."""
    said = re.search(r"^(fatal|error|ssh|ERR): .*", problem, re.MULTILINE | re.DOTALL)
    evidence = "\n".join((said[0] if said else problem).splitlines()[-6:])
    if "fsck error" in problem:
        return BuildFailed(
            f"{public(source.url)} holds an object that git refuses",
            next_move="do not build it; look at the object that is named",
            evidence=evidence,
        )
    return BuildFailed(
        f"{public(source.url)} cannot be fetched",
        next_move="look at network, proxy and access, run the same command again: what is fetched stays",
        evidence=evidence,
    )


def check_out(source: Mirror, commit: str, destination: Path) -> None:
    """Write the files of a fetched commit, byte by byte as committed; submodules are empty folders.

    Raises BuildFailed when the mirror turns out to be damaged; it is removed, so that the next run fetches it again.
    """
    destination.mkdir(parents=True, exist_ok=True)
    with _index() as index:
        env = {**LOCAL, "GIT_INDEX_FILE": str(index), "GIT_WORK_TREE": str(destination)}
        words = ["--git-dir", str(source.folder), "-c", "core.autocrlf=false", "-c", "core.symlinks=true"]
        words += ["-c", "core.fileMode=true", "-c", "checkout.workers=0"]
        for last in (["read-tree", pin_of(commit)], ["checkout-index", "--all", "--force", "--quiet"]):
            done = git([*words, *last], env=env, check=False)
            if done.code:
                raise _not_written(source, commit, destination, done)


@contextmanager
def _index() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sparkstack-") as folder:
        yield Path(folder) / "index"


def _not_written(source: Mirror, commit: str, destination: Path, done: Completed) -> BuildFailed:
    # of a file that it cannot write git does not say why
    if "No space left on device" in done.err or shutil.disk_usage(destination).free < NEARLY_FULL:
        raise full_disk(destination)
    if is_whole(source, commit):
        return BuildFailed(
            f"{public(source.url)} at {commit} cannot be written to {shown(destination)}",
            next_move="look at the disk, run the same command again",
            evidence=done.tail(6),
        )
    with source.held(lambda _: None):
        remove_tree(source.folder)
    return BuildFailed(
        f"the mirror {shown(source.folder)} is damaged; it was removed",
        next_move="run the same command again: it is fetched anew",
        evidence=done.tail(6),
    )


def is_whole(source: Mirror, commit: str) -> bool:
    """Say whether every object of the commit is there and hashes to its name."""
    done = source.git("rev-list", "--verify-objects", "--no-walk", "--quiet", commit, check=False)
    return done.code == 0
