"""The service that the tests share: brought up under one executor, looked at, and what it leaves on its machines."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from core.config import ROOT, WORK
from serve.view.status import KINDS
from tests.machines.clients import Door
from tests.machines.command_line import CommandLine
from tests.machines.harness import Lab, eventually

A, B = "test-a", "test-b"
NODES = (A, B)
RAY, MP = "ray", "mp"
ANY = ""
"""The executor that serves now, whichever it is."""
UNITS = {
    RAY: {A: {"supervisor", "ray-head", "vllm"}, B: {"supervisor", "ray-worker"}},
    MP: {A: {"supervisor", "vllm"}, B: {"supervisor", "rank"}},
}
OURS = re.compile(r"/opt/sparkstack/|ray::|raylet|gcs_server|VLLM::")
BARE: dict[str, float] = {}
"""Executor to the seconds of a start that nothing disturbed, the first one of this run."""
NAMES = {RAY: "tiny", MP: "tiny-mp"}
"""Executor to the name of its profile."""
OVERHEAD = 90
"""Seconds beyond a bare start within which the service has to be back (issue: the fault table)."""


def profile(name: str, *changes: tuple[str, str]) -> str:
    """Write a copy of the tiny profile with changes of its text; return the flag that names it."""
    text = (ROOT / "config" / "profiles" / "tiny.toml").read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text, f"{old!r} is not in the tiny profile"
        text = text.replace(old, new)
    path = WORK / "test-profiles" / f"{name}.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return f"--profile={path}"


def executed(executor: str) -> tuple[str, str]:
    """Return the change of the tiny profile that names another executor."""
    return ('executor = "ray"', f'executor = "{executor}"')


def profile_of(executor: str) -> str:
    """Return the flag for the profile that the tests serve under an executor."""
    return profile(NAMES[executor], executed(executor))


@dataclass(frozen=True)
class Service:
    """What serves: under which executor, and the seconds of its bare start."""

    lab: Lab
    invoke: CommandLine
    executor: str

    @property
    def flag(self) -> str:
        """The profile, as `invoke serve` takes it."""
        return profile_of(self.executor)

    @property
    def bare(self) -> float:
        """Seconds from the beginning of an undisturbed attempt until it served."""
        return BARE[self.executor]

    @property
    def door(self) -> Door:
        """The API, and its key as it is now."""
        return door(self.lab)

    def state(self) -> dict[str, Any]:
        """Return what the head's supervisor says."""
        return state(self.lab)

    def since(self) -> float:
        """Return since when it serves, by the head's word; it must."""
        found = self.state()
        assert found.get("phase") == "serving", found
        return float(found["since"])

    def engine(self) -> dict[str, str]:
        """Return the main process of each unit of the engine: one that has been started anew has another."""
        return {
            f"{name}: {unit}": main_process(self.lab, name, f"sparkstack-{unit}")
            for name, units in UNITS[self.executor].items()
            for unit in sorted(units - {"supervisor"})
        }

    def waits_until_back(self, after: float, seconds: float) -> dict[str, Any]:
        """Wait until it serves since a time after ``after``; return the state that says so."""
        seen: dict[str, Any] = {}

        def back() -> bool:
            seen.update(state(self.lab))
            given_up = seen.get("phase") == "given-up" and seen["since"] > after
            assert not given_up, f"given up: {seen['reason']}"
            time.sleep(1)  # each look is a connection, on cores that the start needs
            return bool(seen.get("phase") == "serving" and seen["since"] > after)

        assert eventually(back, seconds), f"not back within {seconds:.0f} s: {seen}"
        return seen


def bring_up(lab: Lab, invoke: CommandLine, executor: str, prepare: Callable[[], object]) -> Service:
    """Serve under an executor, whatever serves now; ``prepare`` sees to release and model where it does not."""
    now = served(lab)
    wanted = executor or now or RAY
    if now != wanted:
        prepare()
        invoke.works("serve", profile_of(wanted))
        assert served(lab) == wanted
    if wanted not in BARE:
        BARE[wanted] = last_start(lab)
    return Service(lab, invoke, wanted)


def served(lab: Lab) -> str | None:
    """Return the executor that serves now, as these tests serve it; None where something else does, or nothing."""
    found = state(lab)
    made = lab.ssh(A, "cat /etc/sparkstack/service.json")
    if found.get("phase") != "serving" or time.time() - found["at"] > 10 or made.code != 0:
        return None
    wanted = json.loads(made.out)
    ours = (wanted["generation"], wanted["cluster"]) == (found["generation"], lab.cluster.name)
    return next((executor for executor, name in NAMES.items() if ours and wanted["profile"] == name), None)


def state(lab: Lab, name: str = A) -> dict[str, Any]:
    """Return what a node's supervisor has written down; empty while there is none, or no answer."""
    done = lab.ssh(name, "cat /run/sparkstack/state.json")
    found: dict[str, Any] = json.loads(done.out) if done.code == 0 and done.out.strip() else {}
    return found


def last_start(lab: Lab) -> float:
    """Return the seconds from the last attempt's beginning until it served, out of the head's journal."""
    journal = "journalctl --unit=sparkstack-supervisor --output=short-unix --no-pager --quiet --lines=1000"
    lines = [line.partition(": ") for line in lab.output(A, journal).splitlines()]
    said = [(float(head.split()[0]), text) for head, _, text in lines if head[:1].isdigit()]
    ended = max(at for at, text in said if text.startswith("serving: "))
    return ended - max(at for at, text in said if text.startswith("starting: ") and at < ended)


def door(lab: Lab) -> Door:
    """Return the API and its key as it is now."""
    return Door(lab.cluster.api_url, lab.as_root(A, "cat /etc/sparkstack/credentials/api-key"))


def active(lab: Lab, name: str) -> set[str]:
    """Return our units that run on a machine."""
    lines = lab.output(name, "systemctl list-units --plain --no-legend --state=active 'sparkstack-*'").splitlines()
    return {line.split()[0].removeprefix("sparkstack-").removesuffix(".service") for line in lines}


def main_process(lab: Lab, name: str, unit: str) -> str:
    """Return the main process of a unit, "0" where it has none."""
    return lab.output(name, f"systemctl show --property=MainPID --value {unit}")


def processes(lab: Lab, name: str) -> list[str]:
    """Return the command lines of our processes on a machine."""
    return [line for line in lab.output(name, "ps -eww -o args=").splitlines() if OURS.search(line)]


def pids(lab: Lab, name: str, kind: str) -> list[int]:
    """Return the processes of a kind, as the status counts them."""
    rows = (line.split(None, 1) for line in lab.output(name, "ps -eww -o pid=,args=").splitlines())
    kinds = {
        int(row[0]): next((kind for kind, pattern in KINDS if re.search(pattern, row[1])), "")
        for row in rows
        if len(row) == 2
    }
    return [pid for pid, found in kinds.items() if found == kind]


def as_root_python(lab: Lab, name: str, script: str, *words: str) -> str:
    """Return what a Python script prints as root on a machine."""
    return lab.as_root(name, _python(script, *words))


def _python(script: str, *words: str) -> str:
    """Return the shell line for a script; it travels as base64, so that nothing needs quotes."""
    text = base64.b64encode(script.encode()).decode()
    return f"echo {text} | base64 --decode | python3 - {' '.join(words)}"


# the pattern is put in here: on a command line it would find itself
_FOOTPRINT = f"""
import json, pathlib, re, sys
ours = re.compile({OURS.pattern!r})
sys.path.insert(0, "/usr/local/lib/sparkstack")
from serve.onnode import memory
shm, orphans = [], []
for path in pathlib.Path("/dev/shm").iterdir():
    try:
        shm.append(path.stat().st_blocks * 512)
    except FileNotFoundError:
        continue
for folder in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        command = (folder / "cmdline").read_bytes().replace(b"\\0", b" ").decode(errors="replace")
        group = (folder / "cgroup").read_text()
    except OSError:
        continue
    if ours.search(command) and "/sparkstack-" not in group:
        orphans.append(folder.name + " " + command[:200])
found = dict(memory=memory.available(), segments=len(shm), shared=sum(shm), orphans=orphans)
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Footprint:
    """What is taken on a node: bytes of memory still available, shared memory, processes of ours outside our units."""

    memory: int
    segments: int
    shared: int
    orphans: tuple[str, ...]


def footprint(lab: Lab, name: str) -> Footprint:
    """Look at a node; its own code says how much memory is available, which counts a container's limit."""
    found = json.loads(lab.output(name, _python(_FOOTPRINT)))
    return Footprint(found["memory"], found["segments"], found["shared"], tuple(found["orphans"]))


HELD = 384 * 2**20
"""Bytes that a node may have less of after a fault than before it: no two starts take the same."""


def nothing_left_behind(lab: Lab, before: dict[str, Footprint]) -> None:
    """No process of ours outside our units, no memory held, no shared memory that grows from start to start."""
    for name, then in before.items():
        clean = partial(_is_clean, lab, name, then)
        assert eventually(clean, 20), f"{name}: before {then}, after {footprint(lab, name)}"


def _is_clean(lab: Lab, name: str, before: Footprint) -> bool:
    after = footprint(lab, name)
    return (
        not after.orphans
        and after.memory > before.memory - HELD
        and after.segments <= before.segments + 4
        and after.shared <= before.shared + 64 * 2**20
    )
