"""How processes of a node are ended: by number and start time, so that it is them and no later ones."""

from __future__ import annotations

from collections.abc import Sequence

from core.surroundings import OurProcess

# Runs on the node. A descriptor of the process is opened first and its start time read then, so that what is signalled
# is that process even when its number is given to another one in between.
_END = """
import os, select, signal, sys, time
grace, code, open_ones = float(sys.argv[1]), 0, {}
def start(pid):
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[19]
def send(pid, number):
    try:
        signal.pidfd_send_signal(open_ones[pid], number)
    except ProcessLookupError:
        pass
def wait(seconds):
    until = time.monotonic() + seconds
    while open_ones:
        ready = select.select(list(open_ones.values()), [], [], max(0, until - time.monotonic()))[0]
        for pid in [pid for pid, handle in open_ones.items() if handle in ready]:
            os.close(open_ones.pop(pid))
            print(f"process {pid} has ended", flush=True)
        if not ready:
            return
for word in sys.argv[2:]:
    pid, _, began = word.partition(":")
    try:
        handle = os.pidfd_open(int(pid))
        if start(pid) != began:
            os.close(handle)
            print(f"process {pid} is another one now: left alone", flush=True)
            continue
        open_ones[pid] = handle
    except (ProcessLookupError, FileNotFoundError):
        print(f"process {pid} had ended already", flush=True)
for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, 5)):
    for pid in list(open_ones):
        try:
            send(pid, number)
        except PermissionError as error:
            sys.exit(f"process {pid}: {error}")
    wait(seconds)
if open_ones:
    sys.exit("these do not end: " + ", ".join(open_ones))
"""
GRACE = 10
"""Seconds between SIGTERM and SIGKILL."""


def end_argv(processes: Sequence[OurProcess], grace: float = GRACE) -> tuple[str, ...]:
    """Return the argv that ends these processes on their node; it fails when one of them stays."""
    return ("python3", "-I", "-c", _END, str(grace), *(f"{process.pid}:{process.start}" for process in processes))
