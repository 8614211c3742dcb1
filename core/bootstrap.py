"""Make this host ready: Debian packages first, then `.venv` from the hashed lock.

Run as `python3 -m core.bootstrap GROUP...` by the host's own Python, before anything is installed: only the standard
library here, and words that an older Python can read, so that it can say it is too old. Groups are those of
config/packages.toml; `GROUP?` is left out where nobody could install it (neither root nor sudo).
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import HostNotReady, Interrupted, SparkstackError, UsageError
from core.process import follow, run

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ROOT / "config" / "packages.toml"
LOCK = ROOT / "requirements-controller.lock"
VENV = ROOT / ".venv"
LOG = ROOT / ".work" / "logs" / "bootstrap.log"
OLDEST = (3, 11)

if TYPE_CHECKING:
    Say = Callable[[str], None]


class Decision(Enum):
    """What to do about Debian packages that are missing."""

    NOTHING = "nothing is missing"
    INSTALL = "install them"
    ASK = "ask on the terminal, once"
    STOP = "say which, and stop"


@dataclass(frozen=True)
class Host:
    """What decides whether packages may be installed here."""

    root: bool
    sudo: bool
    terminal: bool
    ci: bool

    @classmethod
    def here(cls) -> Host:
        """Look at this host and at the environment we were called in."""
        return cls(
            root=os.geteuid() == 0,
            sudo=shutil.which("sudo") is not None,
            terminal=sys.stdin.isatty() and sys.stdout.isatty(),
            ci=os.environ.get("CI", "").lower() in {"1", "true"},
        )


def read_groups(path: Path, system: str = "") -> dict[str, list[str]]:
    """Read the groups of Debian packages: name of the group to names of packages, with those of a ``system`` alone.

    It is named as /etc/os-release names it (ID): "debian", "ubuntu".
    """
    import tomllib  # noqa: PLC0415 (an older Python has none, and must come as far as saying so)

    with path.open("rb") as file:
        data = tomllib.load(file)
    own = data.get(system, {})
    return {name: [*found, *own.get(name, [])] for name, found in data.items() if isinstance(found, list)}


def system_id() -> str:
    """Return what /etc/os-release calls this system; nothing where it does not say so."""
    try:
        return platform.freedesktop_os_release()["ID"]
    except (OSError, KeyError):
        return ""


def possible(names: Iterable[str], host: Host) -> list[str]:
    """Return ``names`` of groups without their question mark, or without those that have one and cannot be had."""
    able = host.root or host.sudo
    return [name.rstrip("?") for name in names if able or not name.endswith("?")]


def wanted(groups: Mapping[str, Sequence[str]], names: Iterable[str], extra: Iterable[str] = ()) -> list[str]:
    """Return the packages of the named groups and ``extra``, sorted; raise UsageError for an unknown group."""
    packages = set(extra)
    for name in names:
        if name not in groups:
            raise UsageError(f"no group of packages is called {name!r}", next_move=f"use one of: {', '.join(groups)}")
        packages.update(groups[name])
    return sorted(packages)


def missing(packages: Iterable[str], listing: str) -> list[str]:
    """Return those of ``packages`` that are not in ``listing``, lines of `package status` from dpkg-query."""
    installed = {line.split()[0] for line in listing.splitlines() if line.split()[1:] == ["installed"]}
    return [package for package in packages if package not in installed]


def decide(packages: Sequence[str], host: Host) -> Decision:
    """Decide what to do about missing packages: CI goes on, a terminal is asked, anything else is told."""
    if not packages:
        return Decision.NOTHING
    if not (host.root or host.sudo):
        return Decision.STOP
    if host.ci:
        return Decision.INSTALL
    return Decision.ASK if host.terminal else Decision.STOP


def apt_install(packages: Sequence[str], *, root: bool) -> list[str]:
    """Return the command that installs ``packages``, as we run it and as a user may."""
    return [*([] if root else ["sudo"]), "apt-get", "install", "-y", "--no-install-recommends", *packages]


def stamp(lock: bytes, *, python: str, home: str, venv: Path) -> str:
    """Return the text that says which lock, which Python and which folder an environment was made from.

    A virtual environment names its own folder and its Python's by absolute path, so both are part of it.
    """
    return f"lock sha256 {hashlib.sha256(lock).hexdigest()}\npython {python} in {home}\nvenv {venv}\n"


def venv_package() -> list[str]:
    """Return the Debian package without which this Python makes no environments; none where it can.

    Raises HostNotReady when this Python is not Debian's and no package would help.
    """
    if importlib.util.find_spec("ensurepip") and importlib.util.find_spec("venv"):
        return []
    if sys.base_prefix != "/usr":
        raise HostNotReady(
            f"{sys.executable} has no ensurepip and is not Debian's Python",
            next_move="put /usr/bin first on PATH, or install a complete Python",
        )
    return [f"python3.{sys.version_info.minor}-venv"]


def ensure_packages(packages: Sequence[str], host: Host, say: Say) -> None:
    """Install what is missing of ``packages``, after asking where somebody can answer; raise HostNotReady if not."""
    if shutil.which("dpkg-query") is None:
        say(f"not a Debian host, so nothing is checked; these Debian packages are needed: {' '.join(packages)}")
        return
    lacking = missing(packages, _listing(packages))
    decision = decide(lacking, host)
    if decision is Decision.NOTHING:
        return
    command = apt_install(lacking, root=host.root)
    say(f"{len(lacking)} Debian packages are missing: {' '.join(lacking)}")
    if decision is Decision.STOP or (decision is Decision.ASK and not _agreed()):
        raise HostNotReady(f"Debian packages are missing: {' '.join(lacking)}", next_move=" ".join(command))
    _install(command, say)
    still = missing(lacking, _listing(lacking))
    if still:
        raise HostNotReady(f"apt-get left out {' '.join(still)}", next_move=f"read {LOG}")
    say(f"{len(lacking)} Debian packages installed")


def ensure_venv(venv: Path, lock: Path, say: Say) -> None:
    """Make ``venv`` hold exactly what ``lock`` names, by hash; pip's own settings (mirror, proxy) hold.

    The stamp is written last, so whatever was interrupted, or made by another Python, is made anew.
    """
    home = str(Path(sys.base_prefix).resolve())
    mark = stamp(lock.read_bytes(), python="{}.{}".format(*sys.version_info[:2]), home=home, venv=venv)
    seal = venv / "sparkstack.stamp"
    if seal.is_file() and seal.read_text() == mark:
        return
    say("making .venv from requirements-controller.lock")
    base = getattr(sys, "_base_executable", sys.executable)  # not the one in the .venv that is about to go
    follow([base, "-m", "venv", "--clear", str(venv)], _quiet, log=LOG)
    pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "--no-input", "--progress-bar", "off"]
    # wheels only: a bare host has no compiler, and an sdist would run code to build
    follow([*pip, "--require-hashes", "--only-binary", ":all:", "-r", str(lock)], _quiet, log=LOG)
    seal.write_text(mark)
    say(".venv is ready")


def main(names: Sequence[str]) -> int:
    """Make the host ready for the groups ``names``; return the exit code."""
    say = _clock()
    try:
        _right_python(names)
        with _alone(say):
            host = Host.here()
            packages = wanted(
                read_groups(PACKAGES, system_id()), ["controller", *possible(names, host)], venv_package()
            )
            ensure_packages(packages, host, say)
            ensure_venv(VENV, LOCK, say)
    except SparkstackError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command goes on from here\n")
        return Interrupted.exit_code
    return 0


def _right_python(names: Sequence[str]) -> None:
    """Go on with Debian's Python where the first one on PATH is too old; raise HostNotReady where that is too."""
    if sys.version_info[:2] >= OLDEST:
        return
    other = "/usr/bin/python3"
    probe = "import sys; sys.exit(sys.version_info[:2] < {})".format(OLDEST)  # noqa: UP032 (read by an older Python)
    if Path(other).exists() and run([other, "-c", probe], check=False).code == 0:
        os.execv(other, [other, "-m", "core.bootstrap", *names])  # noqa: S606
    raise HostNotReady(
        "Python {}.{} ({}) is too old".format(*sys.version_info[:2], sys.executable),
        next_move="install Python 3.11 or newer (Debian 12 and Ubuntu 24.04 have it) and put it first on PATH",
    )


@contextmanager
def _alone(say: Say) -> Iterator[None]:
    """Let one at a time through: two `make` in one folder would make the same .venv."""
    with LOCK.open() as file:  # only read, so that a run with all in place writes nothing
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another `make` in this folder")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _listing(packages: Sequence[str]) -> str:
    # ends with 1 when it does not know one of them; that one is simply not in the list
    return run(["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *packages], check=False).out


def _agreed() -> bool:
    try:
        return input("Install them now? [Y/n] ").strip().lower() in {"", "y", "yes"}
    except EOFError:
        return False


def _install(command: Sequence[str], say: Say) -> None:
    # Ubuntu's needrestart would restart services of this host; unattended-upgrades may hold dpkg's lock
    quiet = ["env", "DEBIAN_FRONTEND=noninteractive", "NEEDRESTART_SUSPEND=1"]
    wait = ["-o", "DPkg::Lock::Timeout=300"]
    sudo, apt = ["sudo"] * (command[0] == "sudo"), command[command.index("apt-get") + 1 :]
    say(f"apt-get update (log: {LOG.relative_to(ROOT)})")
    follow([*sudo, *quiet, "apt-get", *wait, "update"], _quiet, log=LOG, own_session=not sudo)
    say(" ".join(command))
    follow([*sudo, *quiet, "apt-get", *wait, *apt], _quiet, log=LOG, own_session=not sudo)


def _quiet(line: str) -> None:
    """Leave the line to the log."""


def _clock() -> Say:
    start = time.monotonic()

    def say(text: str) -> None:
        sys.stdout.write(f"[{time.monotonic() - start:4.0f} s] {text}\n")
        sys.stdout.flush()

    return say


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
