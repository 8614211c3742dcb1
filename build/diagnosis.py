"""What a build's log says: the first real error, how far it is, what was left out. Pure, standard library only.

A log ends with a hundred lines of consequences (ninja stopped, the backend's traceback, pip's summary). Here the first
cause is looked for, shown with the lines that explain it, and said in words where the log does not say what to do.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence

LINES_BEFORE = 4
LINES_AFTER = 8
LINES_OF_CMAKE = 20

_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_MEMORY = re.compile(
    r"Killed signal terminated program (?P<program>\S+)"
    r"|internal compiler error: Killed \(program (?P<other>\S+)\)"
    r"|^\s*Killed$|\*\*\* .*\bKilled$|died due to signal 9|(?i:virtual memory exhausted)|Cannot allocate memory"
    r"|std::bad_alloc|LLVM ERROR: out of memory"
)
_DISK = re.compile(r"No space left on device|Disk quota exceeded")
_NETWORK = re.compile(
    r"Could not resolve host|Could not resolve: |unable to resolve host address|Temporary failure in name resolution"
    r"|Name or service not known|Network is unreachable"
)
_COMPILER = re.compile(
    r"^\s*[^\s:][^:]*:\d+(:\d+)?: (fatal )?(?i:error): "  # gcc, and GNU as, which writes "Error:"
    r"|^\s*[^\s:][^:]*: Fatal error: "
    r"|^\s*\S*(cc1|cc1plus|gcc|g\+\+|c\+\+|cc|clang|clang\+\+)(-\d+)?: (fatal )?error: "
    r"|^\s*\S[^()]*\(\d+\): (catastrophic )?error( #[\w-]+)?: "  # nvcc's front end
    r"|^\s*(nvcc|ptxas|nvlink|fatbinary|cicc|cudafe\+\+)\s+(fatal|error)\s*:"
    r"|^\s*ptxas .*; (fatal|error)\s*: "
)
_LINKER = re.compile(
    r"undefined reference to |multiple definition of |relocation truncated to fit|\bld(\.\w+)?: (error: |cannot find )"
    r"|final link failed"
)
_CMAKE = re.compile(r"^\s*CMake Error\b")
_TRACEBACK = re.compile(r"^\s*Traceback \(most recent call last\):$")
_NINJA = re.compile(r"^\s*ninja: (error|fatal): |\*\*\* No rule to make target")
_CAUSES = (_MEMORY, _DISK, _NETWORK, _COMPILER, _LINKER, _CMAKE, _TRACEBACK, _NINJA)
_CONSEQUENCE = re.compile(
    r"^\s*(error|ERROR|fatal|collect2: error|make(\[\d+\])?: \*\*\*)\b|ninja: build stopped"
    r"|CalledProcessError: "
)
_PROCESS_FAILED = re.compile(r"^\s*([\w.]*(CalledProcessError|CompileError|LinkError|DistutilsExecError)|SystemExit)\b")
_ROUTE = re.compile(r"^\s*(In file included from|from |\S.*: (In |At )\S.*:|\S.*:   required from)|: in function ")
_EXPLAINS = re.compile(r"^\s*(\d+ )?\||^\s+\S|: note: |compilation terminated")
_PROJECT = re.compile(r"for '(?P<name>[^']+?)(-populate)?'$|Cloning into '(?:.*/)?(?P<clone>[^'/]+?)(-src)?'\.\.\.")
_ADDRESS = re.compile(r"(?:https?|git|ssh)://[^\s'\",;)]+|git@[^\s'\"]+")
_PIP_PAGE = re.compile(r": /simple/(?P<name>[\w.-]+)/")
_PROGRESS = re.compile(r"^\s*\[(?:(?P<done>\d+)/(?P<all>\d+)|\s{0,2}(?P<percent>\d{1,3})%)\]")
_SKIPPED = re.compile(
    r"Not building .{1,100}? (?:as|because|since) no compatible archs?\b.*"
    r"|\w[\w-]{0,60} will not compile: unsupported CUDA architecture.*"
)


def first_error(lines: Iterable[str]) -> str:
    """Return the first real error of a build with the lines that explain it; empty when the log has none.

    A lack of memory, of disk or of network comes with a first line that says so and what to change.
    """
    clean = [_COLOURS.sub("", line).rstrip() for line in lines]
    place = next((place for place, line in enumerate(clean) if _is_cause(clean, place, line)), None)
    if place is None:
        place = next((place for place, line in enumerate(clean) if _CONSEQUENCE.search(line)), None)
    return "" if place is None else _told(clean, place)


def _is_cause(lines: Sequence[str], place: int, line: str) -> bool:
    if _TRACEBACK.match(line):
        return not _PROCESS_FAILED.match(_traceback(lines, place)[-1])
    return any(cause.search(line) for cause in _CAUSES)


def _told(lines: Sequence[str], place: int) -> str:
    block = _block(lines, place)
    said = _in_words(lines, place, block)
    shown = textwrap.dedent("\n".join(block)).rstrip()
    return f"{said}\n{shown}" if said else shown


def _in_words(lines: Sequence[str], place: int, block: Sequence[str]) -> str:
    """Say what the log does not: why, and what to change; empty where the compiler's own words are the best."""
    text = "\n".join(block)
    if killed := _MEMORY.search(lines[place]):
        return _memory(killed["program"] or killed["other"] or "a process of the build")
    if _DISK.search(text):
        return "the disk is full where the build writes: make room, then run the same command again"
    if _NETWORK.search(text):
        return _download(lines[max(0, place - 30) : place], text)
    return ""


def _memory(program: str) -> str:
    return f"{program} was ended, most likely out of memory: use fewer jobs, or raise memory_per_job in the recipe"


def _download(before: Sequence[str], text: str) -> str:
    """Say what the build wanted to download, from the lines before the failure and those of it."""
    if page := _PIP_PAGE.search(text):
        return f"the build wanted {page['name']} from the package index and the network is off: name it in requires"
    names = [found["name"] or found["clone"] for line in before if (found := _PROJECT.search(line))]
    address = _ADDRESS.search(text) or _ADDRESS.search("\n".join(reversed(before)))
    where = f"from {address[0]}" if address else "(the log does not say from where)"
    what = f"{names[-1] if names else 'something'} {where}"
    return (
        f"the build wanted to download {what} and the network is off: "
        "the recipe needs a [[dependencies]] entry for it, with the variable that makes the build use that tree"
    )


def _block(lines: Sequence[str], place: int) -> list[str]:
    """Return the error's line with those before and after it that belong to it."""
    line = lines[place]
    if _TRACEBACK.match(line):
        return _shortened(_traceback(lines, place))
    if _CMAKE.match(line):
        return _until_blank_pair(lines[place : place + LINES_OF_CMAKE])
    if not (_COMPILER.search(line) or _LINKER.search(line)):
        return [line]
    before: list[str] = []
    for earlier in reversed(lines[max(0, place - LINES_BEFORE) : place]):
        if not _ROUTE.search(earlier):
            break
        before.insert(0, earlier)
    after: list[str] = []
    for later in lines[place + 1 : place + 1 + LINES_AFTER]:
        if not later.strip() or _COMPILER.search(later) or not _belongs(later, line):
            break
        after.append(later)
    return [*before, line, *after]


def _belongs(later: str, line: str) -> bool:
    """Whether a line explains the error before it: it is indented deeper, a note, or the source with its mark."""
    return bool(_EXPLAINS.search(later)) and (_indent(later) > _indent(line) or ": note: " in later or "|" in later)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _traceback(lines: Sequence[str], place: int) -> list[str]:
    """Return a traceback: what is indented deeper than its first line, and the exception."""
    found = [lines[place]]
    for line in lines[place + 1 :]:
        found.append(line)
        if line.strip() and _indent(line) <= _indent(lines[place]):
            break
    return found


def _shortened(traceback: list[str]) -> list[str]:
    """Leave the last frames of a traceback: the first ones are pip's and the backend's own."""
    frames = [place for place, line in enumerate(traceback) if line.lstrip().startswith('File "')]
    return [traceback[0], *traceback[frames[-2] :]] if len(frames) > 2 else traceback


def _until_blank_pair(lines: Sequence[str]) -> list[str]:
    """Return the lines of a CMake message, which ends with two empty ones."""
    for place in range(1, len(lines)):
        if not lines[place].strip() and not "".join(lines[place + 1 : place + 2]).strip():
            return list(lines[:place])
    return list(lines)


def skipped_architectures(lines: Iterable[str]) -> list[str]:
    """Return what CMake left out because no GPU architecture of the build fits it, each once, in its own words."""
    found = (_SKIPPED.search(_COLOURS.sub("", line)) for line in lines)
    return list(dict.fromkeys(one[0].rstrip(" .") for one in found if one))


def progress(line: str) -> tuple[int, int] | None:
    """Return (done, all) from Ninja's `[12/345]` or make's `[ 12%]` at a line's begin; None for other lines."""
    found = _PROGRESS.match(_COLOURS.sub("", line))
    if not found:
        return None
    done, whole = (int(found["done"]), int(found["all"])) if found["all"] else (int(found["percent"]), 100)
    return (done, whole) if 0 < whole >= done else None


def words(seconds: float) -> str:
    """Return a duration as people say it: 8 s, 3 min 20 s, 1 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min" + (f" {whole % 60} s" if whole % 60 else "")
    minutes = round(seconds / 60)
    return f"{minutes // 60} h" + (f" {minutes % 60} min" if minutes % 60 else "")
