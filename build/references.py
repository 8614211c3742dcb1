"""Do the names that recipes were pinned by still stand for the pinned commits? The repositories are asked each time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from build.git import FETCH, mirror, named, unfetched
from build.gitcommand import NETWORK, git, program
from build.recipe import Recipe
from build.resolve import resolve
from core.download import public
from core.errors import BuildFailed
from core.plan import Report
from core.process import follow

_ABSENT = ("not our ref", "couldn't find remote ref")
_HIDDEN = "does not allow request for unadvertised object"


@dataclass(frozen=True)
class Pin:
    """A commit that a recipe names, and the tag, branch or beginning of a commit that it was found under."""

    recipe: str
    url: str
    commit: str
    reference: str | None


def pins(recipes: Iterable[Recipe]) -> tuple[Pin, ...]:
    """Return every commit that the recipes name, each once."""
    found = (
        Pin(recipe.name, origin.repository, origin.commit, origin.reference)
        for recipe in recipes
        for origin in (recipe.source, *recipe.dependencies)
        if origin.repository and origin.commit
    )
    return tuple(dict.fromkeys(found))


def problems(recipes: Iterable[Recipe], report: Report) -> Iterator[str]:
    """Ask for every pin of the recipes; give a sentence for each that has moved, is not there or gets no answer."""
    for pin in pins(recipes):
        report(f"ask {public(pin.url)} for {pin.reference or pin.commit[:12]}")
        try:
            problem = _problem(pin, report)
        except BuildFailed as error:
            problem = "\n".join(filter(None, (error.cause, error.evidence)))
        if problem:
            yield f"{pin.recipe}: {problem}"


def _problem(pin: Pin, report: Report) -> str:
    """Return what is wrong with a pin; empty when it is as it was. Raises BuildFailed for a name that is not there."""
    if pin.reference is None or pin.commit.startswith(pin.reference):
        return "" if _has(pin.url, pin.commit, report) else f"{public(pin.url)} has no commit {pin.commit}"
    names = named(mirror(pin.url), pin.reference)
    tag, branch = (names.get(f"refs/{kind}/{pin.reference}") for kind in ("tags", "heads"))
    found = tag or branch or resolve(pin.url, pin.reference, report)
    if found == pin.commit or (not tag and branch and _has(pin.url, pin.commit, report)):
        return ""  # a branch goes on, that is what it is for; the pinned commit stays
    return (
        f"{pin.reference} of {public(pin.url)} is {found}, the recipe says {pin.commit}\n"
        f"see what changed between the two; then write the new commit into build/recipes/{pin.recipe}.toml, "
        "or take `reference` out of it to stay with the pinned one"
    )


def _has(url: str, commit: str, report: Report) -> bool:
    """Ask for the one commit, without its files; where a server gives none by its hash, look through its history."""
    with tempfile.TemporaryDirectory(prefix="sparkstack-") as folder:
        git(["init", "--quiet", "--bare", "--template=", folder])
        argv = (*program(NETWORK), "--git-dir", folder, *FETCH, "fetch", "--no-tags", "--depth=1", "--filter=tree:0")
        done = follow((*argv, "--", url, commit), lambda _: None, env=NETWORK, check=False)
    if done.code == 0:
        return True
    if _HIDDEN in done.out:
        return resolve(url, commit[:39], report) == commit
    if any(word in done.out for word in _ABSENT):
        return False
    raise unfetched(mirror(url), done.out)
