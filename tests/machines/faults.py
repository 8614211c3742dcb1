"""What can happen to a service, as blocks: it happens on entry, and is undone on leaving where it can be."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

from core.config import WORK
from lab import lifecycle, power
from tests.machines.clients import SILENT, WRONG, Asked, Traffic
from tests.machines.harness import Lab, eventually
from tests.machines.serving import OVERHEAD, Service, as_root_python, pids
from tests.machines.test_release import filled_disk

Fault = Callable[[Lab], AbstractContextManager[None]]
ENDS = 30
"""Seconds within which a request that was in flight has ended."""
SLACK = 1.0
"""Seconds that our own clocks and threads may take on a host with two cores."""


def killed(name: str, kind: str) -> Fault:
    """SIGKILL to every process of a kind."""

    @contextmanager
    def fault(lab: Lab) -> Iterator[None]:
        _signal(lab, name, kind, "KILL")
        yield

    return fault


def frozen(name: str, kind: str) -> Fault:
    """SIGSTOP to every process of a kind; somebody has to end them."""

    @contextmanager
    def fault(lab: Lab) -> Iterator[None]:
        stopped = _signal(lab, name, kind, "STOP")
        try:
            yield
            gone = partial(_gone, lab, name, stopped)
            assert eventually(gone, 60), f"{name}: {stopped} are frozen, and nobody ends them"
        finally:
            if not _gone(lab, name, stopped):
                lab.ssh(name, f"kill -CONT {' '.join(map(str, stopped))}")

    return fault


def _signal(lab: Lab, name: str, kind: str, signal: str) -> list[int]:
    found = pids(lab, name, kind)
    assert found, f"{name} has no {kind}"
    lab.output(name, f"kill -{signal} {' '.join(map(str, found))}")
    return found


def _gone(lab: Lab, name: str, processes: list[int]) -> bool:
    return lab.ssh(name, f"ps --no-headers --pid {','.join(map(str, processes))}").code != 0


def cut(name: str) -> Fault:
    """Pull the cable of the fabric; put it back on leaving."""

    @contextmanager
    def fault(lab: Lab) -> Iterator[None]:
        lifecycle.cut(lab.cluster, name, lab.said.append)
        try:
            yield
        finally:
            lifecycle.heal(lab.cluster, name, lab.said.append)

    return fault


def rebooted(*names: str) -> Fault:
    """Reboot machines in order, all at once; on leaving wait until they have come up."""

    @contextmanager
    def fault(lab: Lab) -> Iterator[None]:
        before = {name: lab.status(name).since for name in names}
        time.sleep(1.1)  # `since` has whole seconds
        # a timer, so that the command has an end before its machine has
        later = "systemd-run --quiet --collect --on-active=500ms --timer-property=AccuracySec=1ms systemctl reboot"
        with ThreadPoolExecutor(len(names)) as pool:
            list(pool.map(lambda name: lab.as_root(name, later), names))
        yield
        for name in names:
            again = partial(_runs_anew, lab, name, before[name])
            assert eventually(again, 90), f"{name} did not start again"
        for name in names:
            power.wait_ready(lab.place(name), lab.said.append)

    return fault


def _runs_anew(lab: Lab, name: str, before: object) -> bool:
    return lab.status(name).since not in (before, None)


def powerless(*names: str) -> Fault:
    """Cut the power of machines; on leaving switch them on, in the order of their names here."""

    @contextmanager
    def fault(lab: Lab) -> Iterator[None]:
        with ThreadPoolExecutor(len(names)) as pool:
            list(pool.map(lambda name: lifecycle.kill(lab.cluster, name, lab.said.append), names))
        try:
            yield
        finally:
            for name in names:
                lifecycle.boot(lab.cluster, name, lab.said.append)

    return fault


_EAT = """
import os, sys
held, ranks = [], sys.argv[1:]
def lives(pid):
    try:
        os.readlink("/proc/" + pid + "/exe")
    except OSError:
        return False
    return True
open("/proc/self/oom_score_adj", "w").write("-900")
while all(map(lives, ranks)):
    held.append(b"x" * (32 << 20))
    if len(held) > 300:
        sys.exit("nobody was killed for 9.4 GiB")
print(len(held) * 32, "MiB")
"""


def starved(name: str) -> Fault:
    """Take all memory that the machine has left, until the kernel has killed a rank for it."""

    @contextmanager
    def fault(lab: Lab) -> Iterator[None]:
        ranks = [str(pid) for kind in ("rank", "headless") for pid in pids(lab, name, kind)]
        lab.said.append(f"{name}: a rank was killed after {as_root_python(lab, name, _EAT, *ranks)}")
        yield

    return fault


def filled(*names: str) -> Fault:
    """Leave no space on the disks."""

    @contextmanager
    def fault(lab: Lab) -> Iterator[None]:
        with ExitStack() as stack:
            for name in names:
                stack.enter_context(filled_disk(lab, name, leave=1))
            yield

    return fault


@dataclass(frozen=True)
class Struck:
    """What a fault did; seconds. ``moment`` is when it had happened, ``mended`` when what can be undone was."""

    moment: float
    mended: float
    caught: tuple[Asked, ...]
    """The requests that were in flight."""
    restarted: bool
    ended_within: float
    """From the fault to the end of the last of them."""
    back_within: float
    """From the fault, or from its undoing, to the end of the first right answer that the service gave after it."""


def strike(service: Service, traffic: Traffic, fault: Fault, *, lasts: float, stays: bool | None) -> Struck:
    """Let a fault happen under traffic for ``lasts`` seconds, and wait until the service is back.

    ``stays``: whether it must go on without a restart, or (False) must restart; None where both are right.
    """
    before, began = service.since(), time.time()
    with fault(service.lab):
        moment = time.time()
        time.sleep(lasts)
        mended = time.time()
    since = _settled(service, before, stays=stays)
    left = service.bare + OVERHEAD
    anew = since if since != before else mended
    assert eventually(lambda: traffic.answer_since(anew) is not None, left), f"no right answer: {traffic.asked[-4:]}"
    first = traffic.answer_since(anew)
    caught = tuple(traffic.in_flight(began, moment))
    assert eventually(lambda: all(one.ended for one in caught), 2 * ENDS), [one for one in caught if not one.ended]
    assert first is not None
    return Struck(
        moment=moment,
        mended=mended,
        caught=caught,
        restarted=since != before,
        ended_within=round(max((one.ended or 0.0) - moment for one in caught), 1) if caught else 0.0,
        back_within=round((first.ended or 0.0) - mended, 1),
    )


def _settled(service: Service, before: float, *, stays: bool | None) -> float:
    """Return since when it serves, once it is clear whether it was started anew."""
    if stays is None:
        time.sleep(20)  # longer than a node may be silent: by then it would have been noticed
    found = service.state()
    if stays is not False and found.get("phase") == "serving" and found["since"] == before:
        return before
    assert not stays, f"it did not stay: {found}"
    return float(service.waits_until_back(before, service.bare + 2 * OVERHEAD)["since"])


def judge(struck: Struck, traffic: Traffic, service: Service, *, head_vanishes: bool) -> None:
    """Nothing wrong was said; every request in flight has ended in time; the service was back in time."""
    assert traffic.of(WRONG) == []
    assert struck.caught, "nothing was in flight at the fault: the row says nothing"
    late = [one for one in struck.caught if (one.ended or 0.0) - struck.moment > ENDS + SLACK]
    assert late == [], f"in flight for more than {ENDS} s after the fault"
    if not head_vanishes:
        assert [one for one in struck.caught if one.outcome == SILENT] == [], "a client had to give up by itself"
    limit = service.bare + OVERHEAD
    assert struck.back_within <= limit, f"back after {struck.back_within} s; a bare start takes {service.bare:.0f} s"


def note(name: str, executor: str, struck: Struck, service: Service) -> None:
    """Add a row to .work/faults.json, for who wants to see the table as it was measured."""
    path = WORK / "faults.json"
    rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    row = {
        "name": name,
        "executor": executor,
        "restarted": struck.restarted,
        "in_flight": len(struck.caught),
        "outcomes": sorted({one.outcome for one in struck.caught}),
        "ended_within_s": struck.ended_within,
        "back_within_s": struck.back_within,
        "bare_start_s": round(service.bare, 1),
    }
    path.write_text(json.dumps([*rows, row], indent=1) + "\n", encoding="utf-8")
