"""Changes the network of this node, and takes the change back by itself unless it is confirmed; standard library only.

    guard.py arm       reads change.json beside this file, keeps what is there now, sets the timer and the boot's unit
    guard.py apply     writes the new files and has the network's manager read them
    guard.py check     the interface is as wanted, and large packets come back from the other nodes
    guard.py confirm   keeps the change and ends the guard
    guard.py back ID   takes the change ID back, confirmed or not (another node failed)
    guard.py revert    takes a change back that waits: its time is up
    guard.py boot      the same before the network starts: the power was lost meanwhile

`pending.json` is there from before the first file changes until the change is confirmed or taken back; renaming it to
`confirmed.json` confirms: whenever the power is lost, the boot finds the one or the other. Every file is synced before
it is renamed. What fails is said in the last line; the exit code is then 1.
"""

from __future__ import annotations

import fcntl
import ipaddress
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
UNITS = Path("/etc/systemd/system")
BOOT_UNIT = "fabric-guard.service"
BOOT_LINK = UNITS / "multi-user.target.wants" / BOOT_UNIT
TIMER = "fabric-guard-deadline"
BOOT = f"""[Unit]
Description=Take back a change of the network that nobody confirmed
DefaultDependencies=no
RequiresMountsFor={FOLDER} /etc /usr
After=local-fs.target
Before=network-pre.target systemd-networkd.service NetworkManager.service
Wants=network-pre.target
ConditionPathExists={FOLDER}/pending.json

[Service]
Type=oneshot
ExecStart=/usr/bin/python3 -I {FOLDER}/guard.py boot

[Install]
WantedBy=multi-user.target
"""
SETTLE, ANSWER, LARGE = 15.0, 23.0, 6.0
"""Seconds until an interface has to be as its files say; until another node, which may settle later, answers; and then
until it answers large packets."""
RETRY = 15
"""Seconds until a change that waits without a timer, because taking it back may have failed, is taken back again."""
PATIENCE = 60.0
"""Seconds that a command may take: one that hangs must not keep the change from being taken back."""


class Failed(Exception):
    """Something did not work; its text says what."""


def main(words: list[str]) -> int:
    """Do what the first word says; return the exit code."""
    os.umask(0o022)
    try:
        with _lock():
            COMMANDS[words[0]](*words[1:])
    except Failed as error:
        print(error, flush=True)
        return 1
    return 0


@contextmanager
def _lock() -> Iterator[None]:
    """Have one guard at work at a time: a confirmation and the end of the time may come together."""
    with os.fdopen(os.open(FOLDER / "lock", os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
        os.fchmod(file.fileno(), 0o600)  # who can open it can hold it
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def arm() -> None:
    """Keep what is there, then see to it that a reboot or the end of the time brings it back."""
    if (FOLDER / "pending.json").exists():
        raise Failed("a change of the network waits here to be confirmed already")
    change = _record("change")
    previous = _record("confirmed")
    before = {"how": change["how"], "files": _kept(change["files"]), "links": link_states(_addr(), change["links"])}
    record = {
        "change": change,
        "before": before,
        "original": _original(before, previous),
        "previous": {**previous, "previous": {}} if previous else {},
        "until": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + change["deadline"])),
    }
    # each of these does nothing without pending.json, and there is none before they are there
    _guard_boot()
    _stop_timer()
    _run(*timer_argv(change["deadline"]))
    _put(FOLDER / "pending.json", json.dumps(record))


def _guard_boot() -> None:
    """Have the next boot take back what waits then."""
    _put(UNITS / BOOT_UNIT, BOOT)
    _run("systemctl", "enable", "--quiet", BOOT_UNIT)
    _sync(BOOT_LINK.parent)
    _run("systemctl", "daemon-reload")


def timer_argv(seconds: int) -> tuple[str, ...]:
    """Return what has systemd run `revert` in so many seconds, and again when that fails."""
    return (
        *("systemd-run", f"--unit={TIMER}", f"--on-active={seconds}", "--timer-property=AccuracySec=100ms"),
        "--timer-property=DefaultDependencies=no",  # with them it would wait for a boot that may wait for us
        *("--collect", "--quiet", "--property=Restart=on-failure", "--property=RestartSec=10"),
        *("/usr/bin/python3", "-I", str(FOLDER / "guard.py"), "revert"),
    )


def _original(before: Mapping[str, Any], previous: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what was there before us: of files and links that an earlier change of ours touched, what it noted."""
    known = previous.get("original", {"files": {}, "links": {}})
    return {"how": before["how"], **{kind: {**before[kind], **known[kind]} for kind in ("files", "links")}}


def apply() -> None:
    """Write the new files; what the manager refuses is not kept for a moment."""
    change = _pending()["change"]
    _write(change["files"])
    try:
        if change["how"] == "netplan":
            _run("netplan", "generate")
    except Failed:
        _write(_pending()["before"]["files"])
        raise
    _reload(change["how"], change["links"])
    if change["by_hand"]:
        _by_hand(change["links"])


def check() -> None:
    """Wait until the interfaces are as wanted, then until the other nodes answer large packets."""
    change = _pending()["change"]
    _until(lambda: differences(_addr(), change["links"]), SETTLE)
    for name, address in change["others"].items():  # small packets first: a cable that loses large ones is soon known
        for size, seconds in ((84, ANSWER), (change["mtu"], LARGE)):
            _until(partial(_silent, name, address, change["source"], size), seconds)


def _silent(name: str, address: str, source: str, size: int) -> str:
    done = subprocess.run(ping_argv(source, address, size), capture_output=True, check=False)
    return f"packets of {size} bytes do not come back from {name} ({address})" if done.returncode else ""


def ping_argv(source: str, address: str, mtu: int) -> tuple[str, ...]:
    """Return a ping whose packet has ``mtu`` bytes and that nobody may divide."""
    size = str(mtu - 28)  # less the headers of IPv4 and ICMP
    return ("ping", "-n", "-q", "-c", "1", "-W", "1", "-M", "do", "-I", source, "-s", size, address)


def _until(wrong: Callable[[], str], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while said := wrong():
        if time.monotonic() > deadline:
            raise Failed(said)
        time.sleep(0.3)


def confirm() -> None:
    """Keep the change. The rename is what counts; what comes after it only tidies up."""
    record = _pending()
    _put(FOLDER / "pending.json", json.dumps({**record, "written": _states(record["change"]["files"])}))
    (FOLDER / "pending.json").rename(FOLDER / "confirmed.json")
    _sync(FOLDER)
    _disarm()
    if record["change"]["final"]:  # nothing of ours is left: neither is the guard
        shutil.rmtree(FOLDER)
        _sync(FOLDER.parent)


def back(change: str) -> None:
    """Take the change back, whether it waits or is confirmed; nothing to do for any other."""
    if _record("confirmed").get("change", {}).get("id") == change:
        _guard_boot()
        _stop_timer()
        _run(*timer_argv(RETRY))
        (FOLDER / "confirmed.json").rename(FOLDER / "pending.json")
        _sync(FOLDER)
    record = _record("pending")
    if record.get("change", {}).get("id") == change:
        _restore(record)
    if not _record("pending"):  # that of another change keeps its guard
        _disarm()


def revert() -> None:
    """Take a change back that waits; nothing to do when it was confirmed meanwhile."""
    if record := _record("pending"):
        print(f"nobody confirmed the change {record['change']['id']} of the network: it is taken back", flush=True)
        _restore(record)
    _disarm()  # also what a guard left that was killed before its change waited, or after it was decided


def boot() -> None:
    """Put the old files back before the network starts. Netplan has read the new ones then: it reads again."""
    record = _pending()
    try:
        _write(record["before"]["files"])
        if record["before"]["how"] == "netplan":
            _run("netplan", "generate")
        _undone(record)
    except (Failed, OSError):
        _run(*timer_argv(RETRY))  # the network starts with the new files meanwhile: `revert` tells its manager too
        raise
    _unlink(BOOT_LINK)
    _unlink(UNITS / BOOT_UNIT)
    print("a change of the network was not confirmed before the machine went down: it is taken back", flush=True)


def _restore(record: Mapping[str, Any]) -> None:
    before = record["before"]
    _write(before["files"])
    try:
        _reload(before["how"], before["links"])
    finally:
        _by_hand(before["links"])  # also when its manager fails: the way to the node may hang on it
    _undone(record)


def _undone(record: Mapping[str, Any]) -> None:
    """Nothing waits any more; what was confirmed before counts again."""
    if record["previous"]:
        _put(FOLDER / "confirmed.json", json.dumps(record["previous"]))
    _unlink(FOLDER / "pending.json")


def _reload(how: str, links: Mapping[str, Any]) -> None:
    """Have the manager read its files; networkd needs to be told which links they are for."""
    if how == "netplan":
        _run("netplan", "apply")
        return
    _run("networkctl", "reload")
    if there := [name for name in _addr() if name in links]:
        _run("networkctl", "reconfigure", *there)


def _by_hand(links: Mapping[str, Any]) -> None:
    """Bring links to where they were: no manager takes back an MTU that its files no longer name."""
    with suppress(Failed):
        _until(lambda: differences(_addr(), links), 2)
    for argv in corrections(_addr(), links):
        _run(*argv)


def link_states(links: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return MTU, lasting IPv4 addresses and whether it is up of each interface, out of `ip -j addr`. Pure."""
    return {name: _state(links[name]) for name in names if name in links}


def _state(link: Mapping[str, Any]) -> dict[str, Any]:
    return {"mtu": link["mtu"], "addresses": given(link), "up": "UP" in link.get("flags", [])}


def given(link: Mapping[str, Any]) -> list[str]:
    """Return the IPv4 addresses that somebody gave a link: no link-local ones, and none that DHCP renews. Pure."""
    found = (info for info in link.get("addr_info", []) if info.get("family") == "inet" and not info.get("dynamic"))
    addresses = (ipaddress.ip_interface(f"{info['local']}/{info['prefixlen']}") for info in found)
    return sorted(str(one) for one in addresses if not one.is_link_local)


def differences(links: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Say how the first link differs from what is wanted; empty when none does. Pure."""
    for name, want in wanted.items():
        if name not in links:
            return f"{name} is gone"
        has = _state(links[name])
        if want["up"] and not has["up"]:
            return f"{name} is down"
        if has["mtu"] != want["mtu"]:
            return f"the MTU of {name} is {has['mtu']}, not {want['mtu']}"
        if has["addresses"] != sorted(want["addresses"]):
            return f"{name} has {', '.join(has['addresses']) or 'no address'}, not {', '.join(want['addresses'])}"
    return ""


def corrections(links: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Give the commands that bring the links to what is wanted. Pure."""
    for name in (name for name in wanted if name in links):
        has, want = _state(links[name]), wanted[name]
        if want["up"] and not has["up"]:
            yield ("ip", "link", "set", name, "up")
        if has["mtu"] != want["mtu"]:
            yield ("ip", "link", "set", name, "mtu", str(want["mtu"]))
        yield from (("ip", "addr", "del", one, "dev", name) for one in has["addresses"] if one not in want["addresses"])
        yield from (("ip", "addr", "add", one, "dev", name) for one in want["addresses"] if one not in has["addresses"])


def _addr() -> dict[str, Any]:
    done = subprocess.run(("ip", "-j", "addr"), capture_output=True, text=True, check=True)
    return {link["ifname"]: link for link in json.loads(done.stdout) if "ifname" in link}


def _kept(files: Iterable[str]) -> dict[str, Any]:
    return {path: _file(Path(path)) for path in files}


def _file(path: Path) -> dict[str, Any] | None:
    """Return a file with its time of change: a record of what was confirmed before tells files by theirs."""
    if not path.exists():
        return None
    state = path.stat()
    return {"content": path.read_text(encoding="utf-8"), "mode": state.st_mode & 0o777, "mtime": state.st_mtime_ns}


def _states(files: Iterable[str]) -> dict[str, list[int]]:
    """Return size and time of change of those that are there: what anybody may see of a file that only root reads."""
    found = {path: Path(path).stat() for path in files if Path(path).exists()}
    return {path: [state.st_size, int(state.st_mtime)] for path, state in found.items()}


def _write(files: Mapping[str, Any]) -> None:
    for path, entry in files.items():
        _unlink(Path(path)) if entry is None else _put(Path(path), **entry)


def _put(path: Path, content: str, mode: int = 0o644, mtime: int | None = None) -> None:
    """Replace a file: synced, then renamed, then the folder synced. A dot in front hides it from who reads all."""
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        os.fchmod(descriptor, mode)
        file.write(content)
        file.flush()
        if mtime is not None:
            os.utime(descriptor, ns=(mtime, mtime))
        os.fsync(descriptor)
    beside.rename(path)
    _sync(path.parent)


def _unlink(path: Path) -> None:
    path.unlink(missing_ok=True)
    if path.parent.is_dir():
        _sync(path.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def _record(name: str) -> dict[str, Any]:
    """Return a record of ours; an empty one where there is none."""
    path = FOLDER / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def _pending() -> dict[str, Any]:
    if record := _record("pending"):
        return record
    raise Failed("no change waits here: it was taken back, because nobody confirmed it in time")


def _disarm() -> None:
    """End timer and boot's unit; not the timer's service: it may be what runs us, and then its timer is gone."""
    _unlink(BOOT_LINK)
    _unlink(UNITS / BOOT_UNIT)
    _run("systemctl", "daemon-reload")
    _stop_timer()


def _stop_timer() -> None:
    """Stop the timer; there is none where it has run out."""
    if subprocess.run(("systemctl", "is-active", "--quiet", f"{TIMER}.timer"), check=False).returncode == 0:
        _run("systemctl", "stop", f"{TIMER}.timer")


def _run(*argv: str) -> None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=PATIENCE)
    except subprocess.TimeoutExpired as error:
        raise Failed(f"`{' '.join(argv)}` has not ended after {PATIENCE:.0f} s") from error
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())[-400:]
        raise Failed(f"`{' '.join(argv)}` ended with {done.returncode}: {said}")


COMMANDS: dict[str, Any] = {one.__name__: one for one in (arm, apply, check, confirm, back, revert, boot)}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
