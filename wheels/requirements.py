"""The wheels of a set and what they require of each other: where that does not hold, and the smallest cure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from wheels.lock import marker_environment
from wheels.target import Target

MOST_ASKERS = 12
"""Members that dispute and of which the fewest are found by trying; of more, all are named."""


@dataclass(frozen=True)
class Member:
    """One distribution of a set: canonical name, version, and Requires-Dist as METADATA has it."""

    name: str
    version: str
    requires: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True, order=True)
class Wish:
    """What one member requires of another distribution; ``specifier`` as in ">=2,<3", empty for any version."""

    by: str
    of: str
    specifier: str = ""

    def accepts(self, version: str) -> bool:
        """Say whether the version is one of those that are wished for; pre-releases count."""
        return SpecifierSet(self.specifier).contains(version, prereleases=True)

    def __str__(self) -> str:
        return f"{self.by} requires {self.of}{self.specifier}"


@dataclass(frozen=True, order=True)
class Conflict:
    """A wish that the set does not fulfil; ``found`` is the version in the set, empty where it has none."""

    wish: Wish
    found: str

    def __str__(self) -> str:
        return f"{self.wish}, the set has {self.found or 'none'}"


@dataclass(frozen=True)
class Change:
    """What a component has to become: ``specifier`` of its new version, and the wishes that it follows from.

    Without ``found`` the set has none yet. Without ``specifier`` any version does when it is added; one that is there
    has to be another version, which one is not known: one that has not the wishes named.
    """

    name: str
    found: str
    specifier: str
    because: tuple[Wish, ...]

    def __str__(self) -> str:
        asked = "; ".join(str(wish) for wish in self.because)
        if self.found and not self.specifier:
            return f"{self.name} {self.found} must be another version, or overridden: what it asks cannot be ({asked})"
        what = "must be" if self.found else "must be added:"
        return f"{self.name} {self.found} {what} {self.specifier or 'any version'} ({asked})".replace("  ", " ")


@dataclass(frozen=True)
class Rules:
    """What a set has on purpose: ``without`` are names left out, ``overrides`` take the place of every wish on theirs.

    ``complete``: the set is all that there will be, and what is not in it is missing.
    """

    without: frozenset[str] = frozenset()
    overrides: Mapping[str, str] = field(default_factory=dict)
    complete: bool = True

    @classmethod
    def of(cls, without: Iterable[str], overrides: Iterable[str], *, complete: bool = True) -> Rules:
        """Read them as a stack has them: names, and requirements."""
        read = [Requirement(text) for text in overrides]
        return cls(
            frozenset(canonicalize_name(name) for name in without),
            {canonicalize_name(one.name): str(one.specifier) for one in read},
            complete=complete,
        )


def wishes(members: Collection[Member], target: Target, rules: Rules) -> tuple[Wish, ...]:
    """Return what the members require on the target, of extras only those that another member asks for.

    What cannot be read as a requirement is left to the gate for metadata.
    """
    by_name = {member.name: member for member in members}
    extras: dict[str, set[str]] = defaultdict(lambda: {""})
    found: set[Wish] = set()
    waiting = list(by_name)
    while waiting:
        member = by_name[waiting.pop()]
        for requirement in _active(member, extras[member.name], target):
            name = canonicalize_name(requirement.name)
            found.add(Wish(member.name, name, rules.overrides.get(name, str(requirement.specifier))))
            new = {canonicalize_name(extra) for extra in requirement.extras} - extras[name]
            if new and name in by_name:
                extras[name] |= new
                waiting.append(name)
    return tuple(sorted(found))


def _active(member: Member, extras: Collection[str], target: Target) -> Iterator[Requirement]:
    environment = dict(marker_environment(target))
    for line in member.requires:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        if requirement.marker is None or any(
            requirement.marker.evaluate({**environment, "extra": extra}) for extra in extras
        ):
            yield requirement


def conflicts(members: Collection[Member], target: Target, rules: Rules) -> tuple[Conflict, ...]:
    """Return every wish that the set does not fulfil, sorted."""
    return tuple(_unmet(wishes(members, target, rules), {one.name: one.version for one in members}, rules))


def _unmet(wanted: Iterable[Wish], versions: Mapping[str, str], rules: Rules) -> Iterator[Conflict]:
    for wish in wanted:
        version = versions.get(wish.of)
        if version is None:
            if rules.complete and wish.of not in rules.without:
                yield Conflict(wish, "")
        elif not wish.accepts(version):
            yield Conflict(wish, version)


def cure(members: Collection[Member], target: Target, rules: Rules) -> tuple[Change, ...]:
    """Return the fewest components that have to change so that no conflict is left, each with what it must become.

    Other versions of the members are not known here: of one that changes is assumed that it requires what it did. So
    a distribution takes the version that all who ask for it agree on. Only where they do not agree, as few of them as
    possible have to be others.
    """
    wanted = wishes(members, target, rules)
    versions = {one.name: one.version for one in members}
    asked_for = sorted({one.wish.of for one in _unmet(wanted, versions, rules)})
    disputed = [name for name in asked_for if _agreed(name, wanted) is None]
    dropped = _fewest(disputed, wanted, versions)
    kept = [wish for wish in wanted if not (wish.of in disputed and wish.by in dropped)]
    changed = sorted({one.wish.of for one in _unmet(kept, versions, rules)})
    found = [Change(name, versions.get(name, ""), _agreed(name, kept) or "", _asked(name, kept)) for name in changed]
    for name in sorted(dropped):
        because = tuple(wish for wish in wanted if wish.by == name and wish.of in disputed)
        found.append(Change(name, versions[name], "", because))
    return tuple(found)


def _agreed(name: str, wanted: Iterable[Wish]) -> str | None:
    """Return what all wishes on a distribution leave, None when nothing. An exact version says it alone."""
    whole = SpecifierSet(",".join(wish.specifier for wish in wanted if wish.of == name and wish.specifier))
    if whole.is_unsatisfiable():
        return None
    exact = [str(one) for one in whole if one.operator in {"==", "==="} and not one.version.endswith(".*")]
    return min(exact, default=str(whole))


def _asked(name: str, wanted: Iterable[Wish]) -> tuple[Wish, ...]:
    """Return the wishes on a distribution; those for any version only where there is no other."""
    found = tuple(wish for wish in wanted if wish.of == name)
    return tuple(wish for wish in found if wish.specifier) or found


def _fewest(disputed: Collection[str], wanted: Collection[Wish], versions: Mapping[str, str]) -> frozenset[str]:
    """Return the fewest members without whose wishes the others agree, and of these what changes the fewest others."""
    askers = sorted({wish.by for wish in wanted if wish.of in disputed and wish.specifier})
    if len(askers) > MOST_ASKERS:
        return frozenset(askers)
    for count in range(len(askers) + 1):
        found = [
            (sum(not all(wish.accepts(versions.get(wish.of, "0")) for wish in left) for left in rest), chosen)
            for chosen in combinations(askers, count)
            if (rest := _rest(disputed, wanted, chosen)) is not None
        ]
        if found:
            return frozenset(min(found)[1])
    return frozenset(askers)


def _rest(disputed: Iterable[str], wanted: Collection[Wish], chosen: Collection[str]) -> list[list[Wish]] | None:
    """Return the wishes on each disputed distribution without those of the chosen; None if they do not agree."""
    rest = [[wish for wish in wanted if wish.of == name and wish.by not in chosen] for name in disputed]
    return rest if all(_agreed(name, left) is not None for name, left in zip(disputed, rest, strict=True)) else None
