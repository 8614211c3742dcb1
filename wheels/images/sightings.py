"""What in an image shows a distribution: its .dist-info, a wheel that was left over, an .egg-info of older ways."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal

from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

MOST_NAMES = 20_000
"""Names of distributions that are remembered, for what was misspelt."""
MOST_TO_COMPARE = 20
"""Installations of one version whose RECORDs are compared."""
_DIST, _EGG, _WHEEL = ".dist-info", ".egg-info", ".whl"


@dataclass(frozen=True)
class Wanted:
    """A distribution that is asked for, ``name`` in its canonical form.

    ``site`` is the folder that is meant where an image has it in several, relative to the image's root.
    """

    name: str
    version: str | None = None
    site: PurePosixPath | None = None

    def fits(self, sighting: Sighting) -> bool:
        """Say whether it is this version, in this place, as far as they are asked for."""
        return self.site in {None, sighting.site} and (self.version is None or same(self.version, sighting.version))


@dataclass(frozen=True)
class Sighting:
    """A file that shows a distribution: its RECORD, METADATA alone, a wheel, or an .egg-info.

    ``path`` is that file; ``site`` and ``info`` the folder and the name in it of what it belongs to.
    """

    kind: Literal["installed", "metadata", "wheel", "egg"]
    name: str
    version: str
    site: PurePosixPath
    info: str
    path: str

    @property
    def shown(self) -> str:
        """What it is and where, for people."""
        how = {
            "installed": "",
            "wheel": f" as {self.info}",
            "metadata": " without RECORD, which a wheel cannot be made of",
            "egg": f" as {self.info}, which a wheel cannot be made of",
        }
        return f"{self.name}{f' {self.version}' if self.version else ''} in /{self.site}{how[self.kind]}"


@dataclass
class Lookout:
    """Looks at names in layers for those that show a wanted distribution; ``seen`` are all that came by."""

    wanted: frozenset[str]
    seen: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def may_concern(path: str) -> bool:
        """Say quickly whether see() has to look at this one."""
        return ".dist-info/" in path or path.endswith((_WHEEL, _EGG, ".egg-info/PKG-INFO"))

    def see(self, path: str) -> Sighting | None:
        """Return what the file shows, if that is wanted. Paths that cannot be shown to people show nothing."""
        found = _sighting(PurePosixPath(path)) if path.isprintable() else None
        if found is None:
            return None
        if len(self.seen) < MOST_NAMES:
            self.seen.setdefault(found.name, str(found.site))
        return found if found.name in self.wanted else None


def _sighting(path: PurePosixPath) -> Sighting | None:
    folder = path.parent
    if folder.suffix == _DIST and path.name in {"RECORD", "METADATA"}:
        name, _, version = folder.name.removesuffix(_DIST).rpartition("-")
        kind: Literal["installed", "metadata"] = "installed" if path.name == "RECORD" else "metadata"
        version = version.replace("_", "-")
        return Sighting(kind, canonicalize_name(name), version, folder.parent, folder.name, str(path)) if name else None
    if path.suffix == _WHEEL:
        return _wheel(path)
    if path.suffix == _EGG or (folder.suffix == _EGG and path.name == "PKG-INFO"):
        place = path if path.suffix == _EGG else folder
        name, _, rest = place.name.removesuffix(_EGG).partition("-")
        version = rest.partition("-")[0]
        return Sighting("egg", canonicalize_name(name), version, place.parent, place.name, str(path))
    return None


def _wheel(path: PurePosixPath) -> Sighting | None:
    try:
        name, version, _, _ = parse_wheel_filename(path.name)
    except ValueError:
        return None
    return Sighting("wheel", name, str(version), path.parent, path.name, str(path))


def same(one: str, other: str) -> bool:
    """Say whether two versions are the same, however they are written."""
    try:
        return Version(one) == Version(other)
    except InvalidVersion:
        return one == other


class Ambiguous(ValueError):
    """Several of a distribution are in the image, and nothing says which is meant."""


def choose(
    want: Wanted, found: Iterable[Sighting], record: Callable[[Sighting], frozenset[tuple[str, bytes]]]
) -> Sighting | None:
    """Return the one that is meant of all in a layer, a left-over wheel before what is installed; None of none.

    ``record`` gives what an installed one consists of: the same in two folders may come from either. Raises Ambiguous.
    """
    fitting = sorted((one for one in found if want.fits(one)), key=lambda one: one.path)
    if any(not same(one.version, fitting[0].version) for one in fitting):
        raise Ambiguous(_listed(fitting))
    wheels = [one for one in fitting if one.kind == "wheel"]
    installed = [one for one in fitting if one.kind == "installed"]
    if wheels and (len({one.info for one in wheels}) == 1 or not installed):
        return _only(wheels, {one.info for one in wheels})
    if len(installed) > MOST_TO_COMPARE:
        raise Ambiguous(_listed(installed))
    return _only(installed, {record(one) for one in installed}) if len(installed) > 1 else next(iter(installed), None)


def _only(same_or_not: Sequence[Sighting], contents: set[object]) -> Sighting:
    if len(contents) > 1:
        raise Ambiguous(_listed(same_or_not))
    return same_or_not[0]


def _listed(several: Sequence[Sighting]) -> str:
    return "\n".join(one.shown for one in several[:10])
