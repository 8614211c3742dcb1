"""All gates over all wheels of a set: refused together, with every reason, or let in with warnings."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from packaging.utils import canonicalize_name

from core.config import WORK, Stack
from core.errors import WheelRefused
from core.plan import Report, megabytes
from wheels.gates import GATES, Candidate, Case, Origin, Verdict, candidate, judged
from wheels.manifest import Wheel
from wheels.requirements import Change, Conflict, Member, Rules, conflicts, cure
from wheels.sheet import Sheet, sheet_of
from wheels.target import Target

LARGE = 50 * 1024**2
"""Bytes of a wheel from which on it is said that it is being read."""
UNREADABLE_GATE = "wheel"
"""Named where a wheel could not even be read."""


def judge(
    wheels: Iterable[Wheel], stack: Stack, target: Target, place: Path, report: Report, *, work: Path = WORK
) -> tuple[Verdict, ...]:
    """Ask every gate about every wheel of a whole set and return the warnings.

    The wheels lie in ``place``; their hashes have just been compared. What is read of them is kept in ``work`` and
    read once. Raises one WheelRefused that names every refusal with its gate, cause and next move, and the smallest
    cure where wheels do not fit each other.
    """
    known, unread = _candidates(wheels, place, report, work)
    rules = Rules.of(stack.without, stack.overrides)
    verdicts = [*unread, *verdicts_of(known, stack, target, rules)]
    refused = [verdict for verdict in verdicts if verdict.severity == "refused"]
    if refused:
        raise _refusal(refused, cure(members_of(known), target, rules) if _is_about_the_set(refused) else ())
    report(f"{len(known)} wheels pass {len(GATES)} gates, {len(verdicts)} warnings")
    return tuple(verdicts)


def _candidates(
    wheels: Iterable[Wheel], place: Path, report: Report, work: Path
) -> tuple[list[Candidate], list[Verdict]]:
    known, unread = [], []
    for wheel in wheels:
        if wheel.size > LARGE and not (work / "sheets" / f"{wheel.sha256}.json").exists():
            report(f"reading {wheel.filename} ({megabytes(wheel.size)})")
        try:
            sheet = sheet_of(place / wheel.filename, wheel.sha256, work=work)
            known.append(candidate(wheel.filename, wheel.origin, sheet))
        except WheelRefused as error:
            unread.append(Verdict(wheel.filename, UNREADABLE_GATE, "refused", error.cause, error.next_move))
    return known, unread


def verdicts_of(
    known: Collection[Candidate],
    stack: Stack | None,
    target: Target,
    rules: Rules,
    *,
    torch: tuple[str, Sheet] | None = None,
) -> tuple[Verdict, ...]:
    """Ask every gate about every wheel.

    ``torch`` is version and sheet of the one that they are to run with, where it is not among them.
    """
    gpus = tuple(capability(one) for one in stack.architectures) if stack else ()
    own = next(((str(one.version), one.sheet) for one in known if one.name == "torch"), torch)
    if own and not own[1].libraries:
        own = None  # a name for the torch that the nodes have already: what that one gives shows when it is imported
    version, exports = (own[0], frozenset(own[1].exports)) if own else ("", frozenset())
    unmet: Mapping[str, list[Conflict]] = defaultdict(list)
    for conflict in conflicts(members_of(known), target, rules):
        unmet[conflict.wish.by].append(conflict)
    return tuple(
        verdict
        for one in known
        for verdict in judged(Case(one, target, gpus, version, exports, tuple(unmet[one.name])))
    )


def members_of(known: Iterable[Candidate]) -> tuple[Member, ...]:
    """Return the wheels as members of a set."""
    return tuple(Member(canonicalize_name(one.name), str(one.version), one.sheet.requires) for one in known)


def capability(architecture: str) -> str:
    """Return the compute capability, "12.1", of an architecture as nvcc names it: "121", "121a"."""
    digits = architecture.rstrip("af")
    return f"{digits[:-1]}.{digits[-1]}"


def origin_of(name: str, stack: Stack | None) -> Origin:
    """Return where the stack takes a distribution from; what is no component comes from an index."""
    components = stack.components.items() if stack else ()
    return next((one.origin for key, one in components if canonicalize_name(key) == name), "index")


def _is_about_the_set(refused: Iterable[Verdict]) -> bool:
    return any(verdict.gate == "requirements" for verdict in refused)


def _refusal(refused: Sequence[Verdict], changes: Iterable[Change]) -> WheelRefused:
    lines = [f"{verdict}; next: {verdict.next_move}" for verdict in refused[1:]]
    lines += [f"smallest cure: {change}" for change in changes]
    more = f", and {len(refused) - 1} more" if len(refused) > 1 else ""
    return WheelRefused(f"{refused[0]}{more}", next_move=refused[0].next_move, evidence="\n".join(lines))
