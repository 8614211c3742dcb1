"""From a tag, a branch or a short hash to the full commit: what `invoke build.lock` pins."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from build.git import FETCH, Mirror, allow, fetch, mirror, named, schemes_for, unfetched
from build.gitcommand import NETWORK, git, program
from core.config import WORK
from core.download import public
from core.errors import BuildFailed
from core.plan import Report
from core.process import follow
from core.store import Slowly


def resolve(url: str, reference: str, report: Report, *, work: Path = WORK) -> str:
    """Return the commit that a reference of a repository names now: a tag before a branch, then a hash.

    A short hash has to be looked for in all of the history. Raises BuildFailed when nothing has that name.
    """
    allow(url, schemes_for(url), "the recipe's repository")
    source = mirror(url, work=work)
    names = named(source, reference)
    for full in (f"refs/tags/{reference}", f"refs/heads/{reference}"):
        if full in names:
            return names[full]
    if re.fullmatch(r"[0-9a-f]{40}", reference):
        fetch(source, reference, None, report)
        return reference
    found = _search(source, reference, report) if re.fullmatch(r"[0-9a-f]{7,39}", reference) else ""
    if not found:
        raise BuildFailed(
            f"{public(url)} has no tag, branch or commit {reference!r}",
            next_move=f"look at what there is: git ls-remote --tags {public(url)}",
        )
    return found


def _search(source: Mirror, short: str, report: Report) -> str:
    """Look for a short hash in all commits, without their files where the server can leave them out."""
    report(f"look for {short} in the history of {public(source.url)}")
    say = Slowly(report)
    with tempfile.TemporaryDirectory(prefix="sparkstack-") as folder:
        git(["init", "--quiet", "--bare", "--template=", folder])
        argv = (*program(NETWORK), "--git-dir", folder, *FETCH, "fetch", "--progress", "--no-tags", "--filter=tree:0")
        everything = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
        done = follow((*argv, "--", source.url, *everything), say, env=NETWORK, check=False)
        if done.code:
            raise unfetched(source, done.out)
        return Mirror(source.url, Path(folder)).commit_of(short)
