"""The index part of a stack: wheels fetched by hash for the nodes' own Python, architecture and glibc."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.utils import canonicalize_name

from core.config import ROOT, Index, Stack
from core.errors import UsageError
from core.host import CONTROLLER
from core.mistakes import nearest
from core.plan import Run
from wheels.lock import Locked, entries, for_target, read_lock
from wheels.target import Target

OLDEST_GLIBC = {"x86_64": 5, "aarch64": 17}
"""Minor version of glibc 2 from which manylinux tags exist (PEP 600)."""
FETCH_TIMEOUT = 3600


@dataclass(frozen=True)
class IndexPart:
    """What is to be fetched: from the default index, and by name from other ones."""

    default: tuple[Locked, ...]
    others: tuple[tuple[Index, tuple[Locked, ...]], ...]

    @property
    def all(self) -> tuple[Locked, ...]:
        """Every entry."""
        return self.default + tuple(item for _, locked in self.others for item in locked)

    def only(self, names: Collection[str]) -> IndexPart:
        """Return the part of these distributions."""
        others = ((index, tuple(item for item in locked if item.name in names)) for index, locked in self.others)
        return IndexPart(tuple(item for item in self.default if item.name in names), tuple(others))

    @property
    def groups(self) -> tuple[tuple[Locked, ...], ...]:
        """What is fetched together, an index each; none of them empty."""
        found = (*(locked for _, locked in self.others), self.default)
        return tuple(locked for locked in found if locked)


def index_part(stack: Stack, target: Target, urls: Mapping[str, str], *, fallback: bool) -> IndexPart:
    """Read the stack's lock for the target.

    ``urls`` gives another URL for a distribution of its own index (a mirror); with ``fallback`` such distributions
    come from the default index by the index's fallback lock. Raises UsageError for a URL that nothing would use.
    """
    _refuse_unknown(stack, urls)
    locked = {item.name: item for item in for_target(read_lock(ROOT / stack.lock), target)}
    others = []
    for index in stack.indexes:
        names = {canonicalize_name(name) for name in index.distributions}
        own = tuple(locked.pop(name) for name in sorted(names & locked.keys()))
        if fallback and index.fallback_lock:
            locked |= {item.name: item for item in for_target(read_lock(ROOT / index.fallback_lock), target)}
        else:
            url = next((urls[name] for name in sorted(names) if name in urls), index.url)
            others.append((index.model_copy(update={"url": url}), own))
    return IndexPart(tuple(locked.values()), tuple(others))


def _refuse_unknown(stack: Stack, urls: Mapping[str, str]) -> None:
    known: list[str] = sorted(canonicalize_name(name) for index in stack.indexes for name in index.distributions)
    for name in urls.keys() - set(known):
        raise UsageError(
            f"--index {name}: the stack {stack.name} takes it from the default index{nearest(name, known)}",
            next_move=f"an index of their own have: {', '.join(known) or 'none'}; for the default one configure pip",
        )


def identity(stack: Stack, *, fallback: bool) -> str:
    """Return the SHA-256 of what the locks of the index part say; comments in them do not count."""
    locks = [stack.lock, *(index.fallback_lock for index in stack.indexes if fallback and index.fallback_lock)]
    texts = ((ROOT / lock).read_text(encoding="utf-8") for lock in locks)
    return hashlib.sha256("\n".join(line for text in texts for line in entries(text)).encode()).hexdigest()


def fetch_steps(part: IndexPart, target: Target, place: Path) -> tuple[Run, ...]:
    """Return the downloads: first what only one index has, so that its absence shows before the long one begins."""
    special = tuple(
        _download(f"fetch {', '.join(item.name for item in locked)}", locked, target, place, index)
        for index, locked in part.others
        if locked
    )
    title = f"fetch {len(part.default)} wheels for {target.in_words}"
    return (*special, *((_download(title, part.default, target, place),) if part.default else ()))


def _download(title: str, locked: tuple[Locked, ...], target: Target, place: Path, index: Index | None = None) -> Run:
    requirements = requirements_file(locked)
    argv = (
        *(sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--progress-bar=off", "--no-deps"),
        *("--require-hashes", "--only-binary=:all:", f"--dest={place}", *platform_flags(target)),
        *(("--retries=1", f"--extra-index-url={index.url}") if index else ()),
        f"--requirement={requirements}",
    )
    hint = f"{index.fallback_note} To take that: --fallback" if index and index.fallback_lock else ""
    reason = f"by hash, from {index.url + ' or ' if index else ''}where pip is configured to look"
    return Run(node=CONTROLLER, title=title, reason=reason, argv=argv, timeout=FETCH_TIMEOUT, hint=hint)


def requirements_file(locked: tuple[Locked, ...]) -> Path:
    """Return the path of the requirements file that holds exactly these entries; a step of the plan writes it."""
    name = hashlib.sha256(requirements_text(locked).encode()).hexdigest()[:16]
    return ROOT / ".work" / "fetch" / f"{name}.txt"


def requirements_text(locked: tuple[Locked, ...]) -> str:
    """Return the entries as a requirements file; markers are left out, the choice is made already."""
    lines = (
        " ".join([f"{item.name}=={item.version}", *(f"--hash=sha256:{digest}" for digest in sorted(item.hashes))])
        for item in locked
    )
    return "\n".join(lines) + "\n"


def platform_flags(target: Target) -> tuple[str, ...]:
    """Return pip's flags for a target; pip matches the glibc in a tag exactly, so each one is named."""
    oldest = OLDEST_GLIBC.get(target.architecture, 17)
    tags = [f"manylinux_2_{minor}_{target.architecture}" for minor in range(target.glibc[1], oldest - 1, -1)]
    tags += [f"manylinux2014_{target.architecture}", f"linux_{target.architecture}"]
    if target.architecture == "x86_64":
        tags += ["manylinux2010_x86_64", "manylinux1_x86_64"]
    python = "{}{}".format(*target.python)
    abis = (f"--abi=cp{python}", "--abi=abi3", "--abi=none")
    return (f"--python-version={python}", "--implementation=cp", *abis, *(f"--platform={tag}" for tag in tags))
