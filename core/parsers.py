"""Pure parsers: what a command printed or a file holds, to values. No parser touches a machine."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

UNIT_PROPERTIES = (
    "Id",
    "LoadState",
    "ActiveState",
    "SubState",
    "Result",
    "MainPID",
    "NRestarts",
    "ActiveEnterTimestamp",
    "UnitFileState",
)

TOOLS = ("g++", "git", "ccache", "sccache")
"""Programs that a build uses, or finds and must not use."""


@dataclass(frozen=True)
class Uname:
    """`uname -a` in its parts."""

    hostname: str
    kernel: str
    architecture: str


@dataclass(frozen=True)
class Interface:
    """A network interface with its addresses; ``speed`` in Mb/s where the driver says one."""

    name: str
    up: bool
    ipv4: tuple[ipaddress.IPv4Address, ...]
    mtu: int | None = None
    speed: int | None = None


@dataclass(frozen=True)
class Gpu:
    """A GPU as nvidia-smi lists it; ``capability`` is e.g. "12.1"."""

    name: str
    capability: str
    driver: str


@dataclass(frozen=True)
class Hca:
    """An RDMA device and the network interface of its port."""

    device: str
    interface: str
    up: bool


@dataclass(frozen=True)
class Memory:
    """Bytes in all and available without swapping."""

    total: int
    available: int
    free: int | None = None
    """Bytes that hold nothing at all, page cache neither."""
    swapped: int = 0
    """Bytes that lie in swap."""


@dataclass(frozen=True)
class Unit:
    """A systemd unit's state."""

    name: str
    loaded: bool
    active: str
    sub: str
    result: str
    pid: int
    restarts: int
    since: str
    enabled: bool = False
    """Whether it starts with the machine."""


@dataclass(frozen=True)
class Process:
    """A process of ours on a node."""

    pid: int
    user: str
    command: str


@dataclass(frozen=True)
class Listener:
    """A listening TCP socket."""

    address: str
    port: int


@dataclass(frozen=True)
class Taken:
    """A release that was taken into use: when (ISO 8601, UTC) and by whom (user@host of the controller)."""

    release: str
    at: str
    by: str


@dataclass(frozen=True)
class Toolchain:
    """What builds wheels on a machine. None: it was not asked; empty or False: it is not there."""

    gcc: str | None = None
    """Its full version, like "13.3.0"."""
    programs: frozenset[str] | None = None
    """Those of TOOLS that are there."""
    cuda_folder: str | None = None
    """The CUDA toolkit, links followed."""
    nvcc_codes: frozenset[str] | None = None
    """GPU code that nvcc makes (`sm_121`); it names no variants (`sm_121a`)."""
    ptxas_codes: frozenset[str] | None = None
    """GPU code that ptxas makes, with variants."""
    headers: bool | None = None
    """Whether python3 has its C headers."""

    @property
    def ccache(self) -> bool:
        """Whether ccache is known to be there."""
        return "ccache" in (self.programs or ())


def uname(text: str) -> Uname:
    """Parse `uname -a`: name, release and machine stand second, third and last but one."""
    words = text.split()
    return Uname(hostname=words[1], kernel=words[2], architecture=words[-2])


def os_release(text: str) -> dict[str, str]:
    """Parse /etc/os-release: KEY=value lines, values perhaps quoted."""
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    return {key.strip(): value.strip().strip("\"'") for key, value in pairs}


def glibc(text: str) -> tuple[int, int]:
    """Parse `getconf GNU_LIBC_VERSION`: "glibc 2.39"."""
    return _two_numbers(text)


def python_version(text: str) -> tuple[int, int]:
    """Parse `python3 --version`: "Python 3.12.3"."""
    return _two_numbers(text)


def _two_numbers(text: str) -> tuple[int, int]:
    match = re.search(r"(\d+)\.(\d+)", text)
    if match is None:
        raise ValueError("no version in it")
    return int(match[1]), int(match[2])


def disk_free(text: str) -> int:
    """Parse `df -PB1`: bytes available in the first row, the deepest folder that exists."""
    return int(text.splitlines()[1].split()[3])


def interfaces(addresses: str, mtus: Mapping[str, str], speeds: Mapping[str, str]) -> dict[str, Interface]:
    """Parse `ip -br addr` and the files /sys/class/net/*/mtu and speed (in Mb/s, -1 where unknown)."""
    found = {}
    for line in addresses.splitlines():
        words = line.split()
        if len(words) < 2:
            continue
        name = words[0].partition("@")[0]
        ipv4 = tuple(ipaddress.IPv4Address(word.partition("/")[0]) for word in words[2:] if re.match(r"[\d.]+/", word))
        mtu, speed = (_number_of(files, name, kind) for files, kind in ((mtus, "mtu"), (speeds, "speed")))
        found[name] = Interface(name, words[1] in ("UP", "UNKNOWN"), ipv4, mtu, speed)
    return found


def _number_of(files: Mapping[str, str], interface: str, kind: str) -> int | None:
    text = files.get(f"/sys/class/net/{interface}/{kind}", "").strip()
    return int(text) if text.isdecimal() else None


def gpus(text: str) -> tuple[Gpu, ...]:
    """Parse `nvidia-smi --query-gpu=name,compute_cap,driver_version --format=csv,noheader`."""
    rows = ([cell.strip() for cell in line.split(",")] for line in text.splitlines())
    return tuple(Gpu(*row[:3]) for row in rows if len(row) >= 3)


def cuda_release(text: str) -> str | None:
    """Parse `nvcc --version`: the "13.0" of "release 13.0, V13.0.88"."""
    match = re.search(r"release (\d+\.\d+)", text)
    return match[1] if match else None


def gpu_codes(text: str) -> frozenset[str]:
    """Parse `nvcc --list-gpu-code` (a name a line) or `ptxas --help` (names in quotes): the "sm_121" and "sm_121a"."""
    return frozenset(re.findall(r"(?m)(?:^|')(sm_\d+[af]?)(?:'|\s*$)", text))


def program_names(text: str) -> frozenset[str]:
    """Parse `which NAME...`: the path of each program that was found."""
    return frozenset(PurePosixPath(line.strip()).name for line in text.splitlines() if line.strip())


def yes(text: str) -> bool:
    """Parse what Python prints of a truth: "True"."""
    return text.strip() == "True"


def ended_builds(text: str) -> frozenset[str]:
    """Parse `find ROOT/build -path '*/out/result.json'`: the names of the builds' folders."""
    return frozenset(PurePosixPath(line).parts[-3] for line in text.splitlines() if line.count("/") >= 3)


def hcas(text: str) -> tuple[Hca, ...]:
    """Parse `ibdev2netdev`: "rocep1s0f0 port 1 ==> enp1s0f0np0 (Up)"."""
    rows = re.findall(r"^(\S+) port \d+ ==> (\S+) \((\w+)\)", text, re.MULTILINE)
    return tuple(Hca(device, interface, state == "Up") for device, interface, state in rows)


def hcas_in_sysfs(files: Mapping[str, str]) -> tuple[Hca, ...]:
    """Parse /sys/class/infiniband/DEVICE/device/net/INTERFACE/operstate: the same where there is no ibdev2netdev."""
    rows = ((path.split("/"), text.strip()) for path, text in sorted(files.items()))
    return tuple(Hca(path[4], path[7], state == "up") for path, state in rows)


def installed_packages(text: str) -> frozenset[str]:
    """Parse `dpkg-query -W -f '${Package} ${db:Status-Status}'`."""
    rows = (line.split() for line in text.splitlines())
    return frozenset(row[0] for row in rows if len(row) == 2 and row[1] == "installed")


def names_and_sizes(text: str) -> dict[str, int]:
    """Parse `find -printf '%f %s'`: file name to bytes."""
    rows = (line.rpartition(" ") for line in text.splitlines() if " " in line)
    return {name: int(size) for name, _, size in rows}


def release_of_link(text: str) -> str | None:
    """Parse `readlink current`: the release's id."""
    return PurePosixPath(text.strip()).name or None


def history(text: str) -> tuple[Taken, ...]:
    """Parse ROOT/history.jsonl: a JSON object a line, the oldest first."""
    rows = (record(line) for line in text.split("\n") if line.strip())
    return tuple(Taken(str(row["release"]), str(row["at"]), str(row["by"])) for row in rows)


def disk_used(text: str) -> dict[str, int]:
    """Parse `du --block-size=1`: path to bytes."""
    rows = (line.split("\t", 1) for line in text.splitlines() if "\t" in line)
    return {path: int(size) for size, path in rows}


def meminfo(text: str) -> Memory:
    """Parse /proc/meminfo (kB) to bytes."""
    fields = dict(re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE))
    if missing := {"MemTotal", "MemAvailable"} - fields.keys():
        raise ValueError(f"no {' and no '.join(sorted(missing))} in it")
    sizes = {name: int(size) * 1024 for name, size in fields.items()}
    swapped = max(0, sizes.get("SwapTotal", 0) - sizes.get("SwapFree", 0))
    return Memory(sizes["MemTotal"], sizes["MemAvailable"], sizes.get("MemFree"), swapped)


def smaller_memory(host: Memory, limits: Iterable[str], usage: str, stat: str) -> Memory:
    """Return the host's memory or the machine's own cgroup limit, whichever is smaller.

    Page cache counts as available in a cgroup as it does in MemAvailable: usage less inactive_file and active_file
    (https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files).
    """
    numbers = [int(text) for text in limits if text.strip().isdecimal()]
    limit = min((number for number in numbers if number < host.total), default=None)
    if limit is None:
        return host
    counts = dict(re.findall(r"^(\w+) (\d+)", stat, re.MULTILINE))
    whole = "total_" if "total_active_file" in counts else ""  # cgroup v1 counts the children under names of their own
    cache = sum(int(counts.get(f"{whole}{kind}_file", 0)) for kind in ("active", "inactive"))
    used = max(0, int(usage.strip() or 0) - cache)
    return replace(host, total=limit, available=min(host.available, max(0, limit - used)))


def units(text: str) -> dict[str, Unit]:
    """Parse `systemctl show` of several units: blocks of KEY=value, a blank line between them."""
    found = {}
    for block in re.split(r"\n\s*\n", text.strip()):
        fields = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if fields.get("Id") and fields.get("LoadState") != "not-found":
            name = fields["Id"].removesuffix(".service")
            found[name] = Unit(
                name=name,
                loaded=fields.get("LoadState") == "loaded",
                active=fields.get("ActiveState", ""),
                sub=fields.get("SubState", ""),
                result=fields.get("Result", ""),
                pid=int(fields.get("MainPID") or 0),
                restarts=int(fields.get("NRestarts") or 0),
                since=fields.get("ActiveEnterTimestamp", ""),
                enabled=fields.get("UnitFileState", "").startswith("enabled"),
            )
    return found


def processes(text: str) -> tuple[Process, ...]:
    """Parse `ps -o pid=,user=,args=` (the probe keeps what belongs to a service of the suite)."""
    rows = (line.split(None, 2) for line in text.split("\n"))  # a command line may hold other line separators
    return tuple(Process(int(row[0]), row[1], row[2]) for row in rows if len(row) == 3)


def listeners(text: str) -> tuple[Listener, ...]:
    """Parse `ss -Hltn`: the fourth column is ADDRESS:PORT."""
    rows = (line.split() for line in text.splitlines())
    pairs = (row[3].rpartition(":") for row in rows if len(row) >= 4)
    return tuple(Listener(address.strip("[]"), int(port)) for address, _, port in pairs if port.isdecimal())


def port_range(text: str) -> tuple[int, int]:
    """Parse /proc/sys/net/ipv4/ip_local_port_range: the first and the last port that the kernel chooses from.

    Linux's own where nothing was read (https://docs.kernel.org/networking/ip-sysctl.html).
    """
    first, last = text.split() or (32768, 60999)
    return int(first), int(last)


def record(text: str) -> dict[str, Any]:
    """Parse a JSON object."""
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")
    return found


def record_or_none(text: str) -> dict[str, Any]:
    """Parse a JSON object that may be damaged, and is an empty one then."""
    try:
        return record(text)
    except (ValueError, RecursionError):
        return {}


def shown(text: str) -> str:
    """Return what somebody else wrote as it may be shown: no line breaks, no signs that move a terminal's cursor."""
    return "".join(sign if sign.isprintable() else " " for sign in text)
