"""Evidence for a bug report, as one file here: what the nodes said, what the doctor says, plans, journals, manifests.

Works with nodes that do not answer. Every text passes the redactor; what is in the file is listed for who sends it.
"""

from __future__ import annotations

import importlib.metadata
import io
import ipaddress
import json
import os
import platform
import re
import socket
import tarfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from core import hand, process
from core.config import DIST, ROOT, WORK, Cluster, Profile, Stack
from core.errors import CommandFailed, ConfigError, SparkstackError
from core.facts import Captures, gather_each
from core.plan import megabytes
from core.question import Question
from core.remote import Hosts
from core.units import MONITOR, SERVICE
from deploy.care.redact import NAMED, Redactor, secrets_in, secrets_of
from deploy.doctor import diagnose
from deploy.page import as_data, case_of, page

UNITS = (*SERVICE, *MONITOR, "sparkstack-install")
LINES = 2000
"""Lines of a node's journal."""
MOST = 512 * 1024
"""Bytes of one text; of a longer one the end is taken."""
JOURNALS, LOGS = 20, 10
"""How many journals of plans, and logs of errors, the newest ones."""
LIBRARIES = ("invoke", "fabric", "paramiko", "pydantic", "rich")


@dataclass(frozen=True)
class Part:
    """A file of the report: text, JSON lines where its name ends so, or data."""

    path: str
    content: Any

    def secrets(self) -> set[str]:
        """Return what looks like a secret in it."""
        if not isinstance(self.content, str):
            return secrets_of(self.content)
        found = secrets_in(self.content)
        for line in self.content.splitlines() if self.path.endswith(".jsonl") else ():
            found |= _secrets_of_line(line)
        return found

    def redacted(self, redactor: Redactor) -> bytes:
        """Return it as it goes into the file."""
        if self.path.endswith(".jsonl"):
            return redactor.lines(self.content).encode()
        if isinstance(self.content, str):
            return redactor.text(self.content).encode()
        return (json.dumps(redactor.data(self.content), indent=1) + "\n").encode()


def _secrets_of_line(line: str) -> set[str]:
    try:
        return secrets_of(json.loads(line))
    except ValueError:
        return set()


@dataclass(frozen=True)
class Listed:
    """A file of the report, its bytes, and how many things were replaced in it."""

    path: str
    size: int
    replaced: int


@dataclass(frozen=True)
class Report:
    """The file that was written, and what is in it."""

    path: Path
    size: int
    files: tuple[Listed, ...]
    private: bool

    def as_text(self) -> str:
        """Return the listing for people."""
        rows = [f"  {one.size:>9,}  {one.path}{_taken(one.replaced)}" for one in self.files]
        kept = "" if self.private else "; addresses and names are in it: --private replaces them"
        total = sum(one.replaced for one in self.files)
        head = f"{self.path} ({megabytes(self.size)}, {len(self.files)} files)"
        return "\n".join([head, *rows, f"{total} replaced{kept}", "look through it before you send it"])

    def as_data(self) -> dict[str, object]:
        """Return the listing for programs."""
        return {"path": str(self.path), "private": self.private, "files": [vars(one) for one in self.files]}


def _taken(count: int) -> str:
    return f"  ({count} replaced)" if count else ""


def make(
    cluster: Cluster,
    stack: Stack,
    profile: Profile,
    to: Path | None,
    *,
    private: bool,
    say: Callable[[str], None],
) -> Report:
    """Gather, redact and write. Raises ConfigError when the file cannot be written."""
    say("asking the nodes")
    with Hosts(cluster) as hosts:
        question = Question(profile, stack.packages, whole=True, wiring=True)
        captures, silent = gather_each(hosts, cluster, question)
        say("reading the journals of our units")
        journals = _node_journals(cluster, hosts, captures)
    parts = [
        Part("versions.json", _versions()),
        Part(
            "config.json", {kind: one.model_dump(mode="json") for kind, one in _configuration(cluster, stack, profile)}
        ),
        Part("facts.json", {"nodes": captures.nodes}),
        *(Part(f"nodes/{name}/unreachable.txt", str(error)) for name, error in silent.items()),
        *_judgement(cluster, stack, profile, captures, silent),
        *journals,
        *_local_files(stack),
    ]
    redactor = redactor_for(cluster, captures, parts, private=private)
    folder = WORK / "reports"
    path = to or folder / f"sparkstack-{'report' if private else cluster.name}-{datetime.now(UTC):%Y%m%dT%H%M%S}.tar.gz"
    return write(path, parts, redactor)


def _configuration(cluster: Cluster, stack: Stack, profile: Profile) -> Iterator[tuple[str, Cluster | Stack | Profile]]:
    yield from (("cluster", cluster), ("stack", stack), ("profile", profile))


def _git(*words: str) -> str:
    """Return what git says of this project; nothing where there is no git."""
    try:
        return process.run(["git", *words], cwd=ROOT, check=False).out
    except CommandFailed:
        return ""


def _versions() -> dict[str, Any]:
    system = os.uname()
    return {
        "commit": _git("rev-parse", "HEAD").strip() or None,
        "changed": _git("status", "--porcelain").splitlines(),
        "python": platform.python_version(),
        "platform": f"{system.sysname} {system.release} {system.machine}",
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "made": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
    }


def _judgement(
    cluster: Cluster, stack: Stack, profile: Profile, captures: Captures, silent: Mapping[str, SparkstackError]
) -> list[Part]:
    """Return the doctor's page and data; or why there is none: a report is made of what went wrong."""
    try:
        facts, unread = captures.parsed_each()
        case = case_of(cluster, stack, profile, facts, silent={**silent, **unread})
        found = diagnose(case)
        return [Part("doctor.txt", page(case, found) + "\n"), Part("doctor.json", as_data(case, found))]
    except SparkstackError as error:
        return [Part("doctor.txt", f"the doctor could not judge: {error}\n")]


def _node_journals(cluster: Cluster, hosts: Hosts, captures: Captures) -> list[Part]:
    """Read the journals of our units on all nodes that answered, at once."""
    names = [node.name for node in cluster.nodes if node.name in captures.nodes]

    def read(name: str) -> Part:
        units = {
            *UNITS,
            *re.findall(r"(?m)^Id=(sparkstack-\S+)$", captures.nodes[name].get("units", {}).get("out", "")),
        }
        argv = ("journalctl", *(f"--unit={unit}" for unit in sorted(units)), "-n", str(LINES), "--no-pager", "-o")
        try:
            done = hosts[name].run((*argv, "short-iso-precise"), privileged=True, timeout=60)
        except SparkstackError as error:
            return Part(f"nodes/{name}/journal.txt", f"the journal could not be read: {error}\n")
        return Part(f"nodes/{name}/journal.txt", end_of(done.out))

    with ThreadPoolExecutor(max(1, len(names))) as pool:
        return list(pool.map(read, names))


def _local_files(stack: Stack) -> Iterator[Part]:
    journals = _newest((WORK / "journal").glob("*.jsonl"), JOURNALS)
    outputs = [path.with_suffix(".log") for path in journals if path.with_suffix(".log").is_file()]
    for path in (*journals, *outputs, *_newest((WORK / "logs").glob("*.log"), LOGS)):
        yield Part(f"here/{path.parent.name}/{path.name}", end_of(path.read_text(encoding="utf-8", errors="replace")))
    for path in sorted((DIST / stack.name).glob("*/manifest.json")):
        yield Part(f"dist/{path.parent.name}/manifest.json", path.read_text(encoding="utf-8", errors="replace"))


def _newest(paths: Iterator[Path], count: int) -> list[Path]:
    return sorted(paths, key=lambda path: path.stat().st_mtime)[-count:]


def end_of(text: str, most: int = MOST) -> str:
    """Return the end of a long text, from a line's beginning on."""
    if len(text) <= most:
        return text
    kept = text[-most:].partition("\n")[2] or text[-most:]
    return f"({len(text) - len(kept)} characters before this are left out)\n{kept}"


def redactor_for(cluster: Cluster, captures: Captures, parts: list[Part], *, private: bool) -> Redactor:
    """Return what takes out of the parts all that looks like a secret in any of them, or in our own environment."""
    ours = {value for name, value in os.environ.items() if NAMED.fullmatch(name) and value.strip()}
    found = ours.union(*(part.secrets() for part in parts))
    names = _names(cluster, captures) if private else {}
    known = {cluster.name, cluster.user, cluster.stack, cluster.profile, *(node.name for node in cluster.nodes)}
    return Redactor(
        frozenset(found - known),
        frozenset() if private else frozenset({cluster.user}),
        names,
        _networks(cluster, captures) if private else (),
        private=private,
    )


def _names(cluster: Cluster, captures: Captures) -> dict[str, str]:
    """Return what stands for the names of machines and people."""
    hostnames = [capture.get("uname", {}).get("out", "").split()[1:2] for capture in captures.nodes.values()]
    machines = [node.name for node in cluster.nodes]
    machines += [name for one in hostnames for name in one if name not in machines]
    people = [name for name in dict.fromkeys((cluster.user, hand.user())) if name != "root"]
    return {
        socket.gethostname(): "controller",
        **{name: f"user-{letter}" for letter, name in zip("ab", people, strict=False)},
        **{name: f"machine-{number}" for number, name in enumerate(machines, 1)},
        cluster.name: "the-cluster",
    }


def _networks(cluster: Cluster, captures: Captures) -> tuple[ipaddress.IPv4Network, ...]:
    """Return the /24 networks of every address that the nodes have, route to or listen at."""
    texts = [str(address) for node in cluster.nodes for address in (node.management, node.fabric)]
    texts += [
        str(raw.get("out", ""))
        for capture in captures.nodes.values()
        for fact, raw in capture.items()
        if fact in ("addresses", "listening", "sockets") or fact.startswith(("route ", "reach ", "large "))
    ]
    found = {
        ipaddress.IPv4Network(f"{prefix}.0/24")
        for text in texts
        for prefix in re.findall(
            r"(?<![\d.])((?:\d{1,2}|1\d\d|2[0-4]\d|25[0-5])(?:\.(?:\d{1,2}|1\d\d|2[0-4]\d|25[0-5])){2})\.\d", text
        )
    }
    return tuple(sorted(one for one in found if not (one.is_loopback or str(one).startswith("0."))))


def write(path: Path, parts: list[Part], redactor: Redactor) -> Report:
    """Write the file, readable by its owner only, whole or not at all. Raises ConfigError."""
    listed: list[Listed] = []
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        for part in parts:
            before = redactor.replaced
            content, name = part.redacted(redactor), redactor.text(part.path)
            entry = tarfile.TarInfo(f"sparkstack-report/{name}")
            entry.size, entry.mode, entry.mtime = len(content), 0o644, int(datetime.now(UTC).timestamp())
            archive.addfile(entry, io.BytesIO(content))
            listed.append(Listed(name, len(content), redactor.replaced - before))
    beside = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.unlink(missing_ok=True)
        beside.touch(0o600, exist_ok=False)
        beside.write_bytes(data.getvalue())
        beside.rename(path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise ConfigError(f"{path} cannot be written: {error.strerror}", next_move="name another file: --to") from error
    return Report(path, len(data.getvalue()), tuple(listed), redactor.private)
