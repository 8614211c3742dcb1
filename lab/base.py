"""The root that all local machines share: made once by debootstrap from the host's own mirror, then only read.

It has the distribution and suite of the host and lies in `.work/lab/base-SUITE-HASH/`; the hash is over the package
list and the finishing steps, so that a change of either makes a new root.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from core.config import WORK
from core.errors import CommandFailed, LabError
from core.process import follow, run

SERVICES = ("caddy", "prometheus", "prometheus-node-exporter")
"""Debian packages whose programs the service runs in units of its own; a machine has no way out to install them.

39 MB to download; on disk 171 MB without MOMENT. Their own services are masked: machines are as bare as before.
"""
MOMENT = "/usr/share/javascript/moment-timezone/data"
"""213 MB of time zones in forty versions, for Prometheus's old pages that no test looks at."""
PACKAGES = (
    *SERVICES,
    "dbus",
    "g++",  # wheels are built on a machine too
    "iproute2",
    "iputils-ping",
    "libgomp1",
    "libnuma1",
    "libpam-systemd",
    "netbase",
    "nftables",
    "openssh-server",
    "procps",
    "python3-venv",
    "rsync",
    "sudo",
    "systemd-sysv",
)
MASKED = (
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "e2scrub_all.timer",
    "fstrim.timer",
    "systemd-networkd-wait-online.service",
    *(f"{name}.service" for name in SERVICES),
)
"""Units that only cost time in a machine without a way out, wait for a cable that a test has pulled, or listen."""
FINISH: tuple[tuple[str, ...], ...] = (
    ("systemctl", "enable", "systemd-networkd.service", "nftables.service", "ssh.service"),
    ("systemctl", "mask", *MASKED),
    ("rm", "-rf", MOMENT),
    ("apt-get", "clean"),
)
KEYRINGS = {"debian": "debian-archive-keyring.gpg", "ubuntu": "ubuntu-archive-keyring.gpg"}
_UBUNTU_FIRST_ARCHITECTURES = ("amd64", "i386")
_DEBIAN_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True)
class Distribution:
    """What the host runs: ``id`` (`debian`, `ubuntu`), ``suite`` (its code name), Debian's name of the architecture."""

    id: str
    suite: str
    architecture: str


@dataclass(frozen=True)
class Mirror:
    """Where debootstrap fetches from, and the components that apt uses there."""

    url: str
    components: tuple[str, ...] = ("main",)


def parse_os_release(text: str) -> dict[str, str]:
    """Return the fields of an os-release file, quotes removed."""
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    return {key.strip(): value.strip().strip("\"'") for key, value in pairs}


def distribution(os_release: Mapping[str, str], machine: str) -> Distribution:
    """Say what to bootstrap from os-release fields and `uname -m`; LabError for anything but Debian and Ubuntu."""
    name, suite = os_release.get("ID", ""), os_release.get("VERSION_CODENAME", "")
    if name not in KEYRINGS or not suite or machine not in _DEBIAN_ARCHITECTURES:
        raise LabError(
            f"local machines are made from Debian or Ubuntu on x86_64 or aarch64, not from {name or '?'} on {machine}",
            next_move="use a host with Debian or Ubuntu",
        )
    return Distribution(name, suite, _DEBIAN_ARCHITECTURES[machine])


def parse_index_targets(text: str) -> list[dict[str, str]]:
    """Return the stanzas that `apt-get indextargets` prints, each a dict of its fields."""
    stanzas = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        if fields:
            stanzas.append(fields)
    return stanzas


def choose_mirror(targets: list[dict[str, str]], wanted: Distribution, read: Callable[[Path], str]) -> Mirror:
    """Choose the mirror that apt itself uses for the suite; ``read`` opens a `mirror+file:` list.

    Without a configured one it is the distribution's own.
    """
    fitting = [target for target in targets if _suite(target) == wanted.suite]
    for target in fitting:
        url = _plain_url(target.get("Site", ""), read)
        if url:
            components = {t["Component"] for t in fitting if t.get("Site") == target["Site"] and "Component" in t}
            return Mirror(url, tuple(sorted(components & {"main", "universe"})) or ("main",))
    return _official(wanted)


def _suite(target: Mapping[str, str]) -> str:
    """Return the code name for `stable` and the like; updates keep their own name (Ubuntu's Codename does not)."""
    release = target.get("Release", "")
    return release if "-" in release else target.get("Codename", release)


def _plain_url(site: str, read: Callable[[Path], str]) -> str | None:
    """Return a URL that debootstrap can use; the first of a `mirror+file:` list (GitHub's runners have such)."""
    if site.startswith("mirror+file:"):
        lines = read(Path(site.removeprefix("mirror+file:"))).split("\n")
        sites = (line.split()[0] for line in lines if line.strip() and not line.startswith("#"))
        return next((found for found in sites if _plain_url(found, read)), None)
    return site if site.startswith(("http://", "https://", "file:/")) else None


def _official(wanted: Distribution) -> Mirror:
    if wanted.id == "debian":
        return Mirror("http://deb.debian.org/debian")
    if wanted.architecture in _UBUNTU_FIRST_ARCHITECTURES:
        return Mirror("http://archive.ubuntu.com/ubuntu", ("main", "universe"))
    return Mirror("http://ports.ubuntu.com/ubuntu-ports", ("main", "universe"))


def folder(wanted: Distribution) -> Path:
    """Return where the root for this distribution lies, made or not."""
    recipe = repr((wanted, PACKAGES, FINISH))
    return WORK / "lab" / f"base-{wanted.suite}-{hashlib.sha256(recipe.encode()).hexdigest()[:8]}"


def host_distribution() -> Distribution:
    """Read the host's os-release."""
    return distribution(parse_os_release(Path("/etc/os-release").read_text(encoding="utf-8")), platform.machine())


def host_mirror(wanted: Distribution) -> Mirror:
    """Ask the host's apt which mirror it uses."""
    text = run(["apt-get", "indextargets", "Created-By: Packages"]).out
    return choose_mirror(parse_index_targets(text), wanted, lambda path: path.read_text(encoding="utf-8"))


def bootstrap(wanted: Distribution, mirror: Mirror, keyring: Path, target: Path) -> tuple[str, ...]:
    """Return the debootstrap command; its own mounts end with it, whatever happens (a private mount namespace)."""
    return (
        *("unshare", "--mount", "--propagation", "private", "debootstrap", "--variant=minbase"),
        *("--force-check-gpg", f"--keyring={keyring}", f"--arch={wanted.architecture}"),
        f"--components={','.join(mirror.components)}",
        f"--include={','.join(PACKAGES)}",
        *(wanted.suite, str(target), mirror.url),
    )


def ensure(report: Callable[[str], None]) -> Path:
    """Return the root's folder; make it when it is not there (about two minutes, 700 MB).

    It is made in a `.partial` folder and renamed when whole. LabError when that fails, with the log's path.
    """
    wanted = host_distribution()
    target = folder(wanted)
    if target.is_dir():
        return target
    keyring = Path("/usr/share/keyrings") / KEYRINGS[wanted.id]
    if not keyring.is_file():
        package = "debian-archive-keyring" if wanted.id == "debian" else "ubuntu-keyring"
        raise LabError(f"{keyring} is missing", next_move=f"apt-get install {package}")
    mirror = host_mirror(wanted)
    report(f"making the root of the machines ({wanted.id} {wanted.suite}) from {mirror.url}: about two minutes, once")
    partial, log = target.with_suffix(".partial"), target.with_suffix(".log")
    _clear(partial)
    _make(bootstrap(wanted, mirror, keyring, partial), partial, log)
    partial.rename(target)
    return target


def cached() -> bool:
    """Say whether a root, or what an interrupted command left of one, is there."""
    return any((WORK / "lab").glob("base-*"))


def remove() -> list[str]:
    """Remove every root and log of this project's lab; return what was removed."""
    found = sorted((WORK / "lab").glob("base-*"))
    for path in found:
        _clear(path)
    return [f"root {path.name}" for path in found if path.suffix != ".log"]


def _clear(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def _make(command: tuple[str, ...], root: Path, log: Path) -> None:
    root.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    try:
        follow(command, lambda _: None, log=log, env=_proxies())
        for step in FINISH:
            follow(["chroot", str(root), *step], lambda _: None, log=log, env={"LC_ALL": "C.UTF-8"})
    except CommandFailed as error:
        raise LabError(
            "the root of the machines could not be made",
            next_move=f"read {log}; check that apt-get update works here, then run the same command again",
            evidence=error.evidence,
        ) from error
    for key in (root / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
    (root / "etc/machine-id").write_text("", encoding="utf-8")
    (root / "var/log/journal").mkdir(exist_ok=True)


def _proxies() -> dict[str, str]:
    """Return apt's proxies as the variables that debootstrap's wget reads."""
    found = run(["apt-config", "dump", "--format", "%f %v%n", "Acquire::http::Proxy", "Acquire::https::Proxy"]).out
    pairs = (line.split(" ", 1) for line in found.splitlines() if " " in line)
    return {f"{key.split('::')[1].lower()}_proxy": value for key, value in pairs if value not in ("", "DIRECT")}
