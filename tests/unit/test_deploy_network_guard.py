"""The guard of a node's network: what it compares, and the files that it brings back after a power loss."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.network import guard

NAMES = ["a.network", "b.network"]
ENTRY = st.none() | st.fixed_dictionaries({"content": st.text(max_size=20), "mode": st.sampled_from([0o600, 0o644])})
FILES = st.fixed_dictionaries(dict.fromkeys(NAMES, ENTRY))

ADDRESSES = st.lists(st.sampled_from(["172.16.100.1/24", "172.16.100.1/16", "10.0.0.1/8"]), unique=True)
STATE = st.fixed_dictionaries({"mtu": st.sampled_from([1500, 9000]), "addresses": ADDRESSES, "up": st.booleans()})
STATES = st.dictionaries(st.sampled_from(["a", "b"]), STATE)


def link(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a link in the form of `ip -j addr`."""
    parts = (address.split("/") for address in state["addresses"])
    info = [{"family": "inet", "local": local, "prefixlen": int(length)} for local, length in parts]
    return {"mtu": state["mtu"], "flags": ["UP"] if state["up"] else [], "addr_info": info}


def links(states: Mapping[str, Any]) -> dict[str, Any]:
    return {name: link(state) for name, state in states.items()}


def done(states: dict[str, Any], commands: Iterator[tuple[str, ...]]) -> dict[str, Any]:
    """Return what comes of commands of `ip`: a small model of it."""
    for argv in commands:
        match argv[1:]:
            case ("link", "set", name, "up"):
                states[name] = {**states[name], "up": True}
            case ("link", "set", name, "mtu", mtu):
                states[name] = {**states[name], "mtu": int(mtu)}
            case ("addr", "del", address, "dev", name):
                left = [one for one in states[name]["addresses"] if one != address]
                states[name] = {**states[name], "addresses": left}
            case ("addr", "add", address, "dev", name):
                states[name] = {**states[name], "addresses": [*states[name]["addresses"], address]}
            case other:
                pytest.fail(f"no command of ours: {other}")
    return states


@given(STATES, STATES)
def test_corrections_leave_no_difference_on_the_links_that_are_there(
    now: dict[str, Any], wanted: dict[str, Any]
) -> None:
    after = done(dict(now), guard.corrections(links(now), wanted))
    there = {name: state for name, state in wanted.items() if name in now}
    assert guard.differences(links(after), there) == ""
    assert list(guard.corrections(links(after), wanted)) == []


@given(STATES)
def test_links_that_are_as_wanted_differ_in_nothing(states: dict[str, Any]) -> None:
    assert guard.differences(links(states), states) == ""
    assert guard.differences(links(states), guard.link_states(links(states), states)) == ""


@pytest.mark.parametrize(
    ("now", "says"),
    [
        ({}, "a is gone"),
        ({"a": {"mtu": 9000, "addresses": ["10.0.0.1/8"], "up": False}}, "a is down"),
        ({"a": {"mtu": 1500, "addresses": ["10.0.0.1/8"], "up": True}}, "the MTU of a is 1500, not 9000"),
        ({"a": {"mtu": 9000, "addresses": [], "up": True}}, "a has no address, not 10.0.0.1/8"),
        ({"a": {"mtu": 9000, "addresses": ["10.0.0.2/8"], "up": True}}, "a has 10.0.0.2/8, not 10.0.0.1/8"),
    ],
)
def test_a_difference_is_said_in_words(now: dict[str, Any], says: str) -> None:
    assert guard.differences(links(now), {"a": {"mtu": 9000, "addresses": ["10.0.0.1/8"], "up": True}}) == says


def test_addresses_of_dhcp_and_link_local_ones_are_not_ours_to_judge() -> None:
    info = [
        {"family": "inet", "local": "169.254.1.1", "prefixlen": 16},
        {"family": "inet", "local": "192.168.1.5", "prefixlen": 24, "dynamic": True},
        {"family": "inet6", "local": "fd00::1", "prefixlen": 64},
        {"family": "inet", "local": "10.0.0.1", "prefixlen": 8},
    ]
    assert guard.given({"addr_info": info}) == ["10.0.0.1/8"]


def test_a_ping_makes_a_packet_of_the_mtu_that_nobody_may_divide() -> None:
    argv = guard.ping_argv("10.0.0.1", "10.0.0.2", 9000)
    assert argv[-3:] == ("-s", "8972", "10.0.0.2")
    assert argv[argv.index("-M") + 1] == "do"
    assert argv[argv.index("-I") + 1] == "10.0.0.1"


def test_the_timer_is_exact_and_tries_again() -> None:
    argv = guard.timer_argv(120)
    assert {"--on-active=120", "--timer-property=AccuracySec=100ms", "--property=Restart=on-failure"} <= set(argv)
    assert argv[-1] == "revert"


def test_the_unit_of_the_boot_comes_before_the_network_and_only_where_a_change_waits() -> None:
    lines = guard.BOOT.splitlines()
    assert "Before=network-pre.target systemd-networkd.service NetworkManager.service" in lines
    assert f"ConditionPathExists={guard.FOLDER}/pending.json" in lines
    assert lines[lines.index("[Install]") + 1] == "WantedBy=multi-user.target"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have the guard's files, and its unit, in a folder of the test."""
    at_home(tmp_path, monkeypatch)
    return tmp_path


@dataclass
class System:
    """What the guard's commands do to a node: the timer, the boot's unit, links; all else only ends well or not."""

    links: dict[str, Any]
    timer: bool = False
    broken: set[str] = field(default_factory=set)
    asked: list[tuple[str, ...]] = field(default_factory=list)
    seconds: float = 0.0
    answers_from: float = 0.0

    def run(self, argv: tuple[str, ...], **_: object) -> subprocess.CompletedProcess[str]:
        """Do as subprocess.run does."""
        self.asked.append(argv)
        bad = argv[0] in self.broken
        match argv:
            case ("systemd-run", *_):
                self.timer = True
            case ("systemctl", "stop", _):
                self.timer = False
            case ("systemctl", "is-active", *_):
                bad = not self.timer
            case ("systemctl", "enable", *_):
                guard.BOOT_LINK.touch()
            case ("ping", *_):
                bad = self.seconds < self.answers_from
        said = json.dumps([{"ifname": name, **one} for name, one in self.links.items()]) if argv[0] == "ip" else ""
        return subprocess.CompletedProcess(argv, int(bad), said, "it is broken" if bad else "")

    def sleep(self, seconds: float) -> None:
        """Have the time pass."""
        self.seconds += seconds


@pytest.fixture
def system(folder: Path, monkeypatch: pytest.MonkeyPatch) -> System:
    """Have the guard's commands, and its time, be those of a system of the test."""
    (folder / "units" / "wants").mkdir(parents=True)
    made = System(links({"fab0": {"mtu": 1500, "addresses": [], "up": True}}))
    monkeypatch.setattr(guard, "subprocess", SimpleNamespace(run=made.run, TimeoutExpired=subprocess.TimeoutExpired))
    clock = SimpleNamespace(monotonic=lambda: made.seconds, sleep=made.sleep, time=time.time)
    monkeypatch.setattr(guard, "time", SimpleNamespace(**vars(clock), strftime=time.strftime, gmtime=time.gmtime))
    return made


def change(folder: Path, name: str = "x", *, how: str = "networkd", mtu: int = 9000) -> dict[str, Any]:
    """Return a change of one file and one link, as change.json says it."""
    return {
        "id": name,
        "how": how,
        "files": {str(folder / NAMES[0]): {"content": f"new of {name}", "mode": 0o644}},
        "links": {"fab0": {"mtu": mtu, "addresses": [], "up": True}},
        "source": "10.0.0.1",
        "others": {"b": "10.0.0.2"},
        "mtu": mtu,
        "by_hand": False,
        "final": False,
        "deadline": 120,
    }


def make(folder: Path, data: dict[str, Any], *words: str) -> None:
    """Have the guard told of a change, and do as the words say."""
    (folder / "change.json").write_text(json.dumps(data))
    for word in words:
        assert guard.main([word]) == 0


def guarded(folder: Path) -> bool:
    return guard.BOOT_LINK.exists() and (folder / "units" / guard.BOOT_UNIT).exists()


def at_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "FOLDER", folder)
    monkeypatch.setattr(guard, "UNITS", folder / "units")
    monkeypatch.setattr(guard, "BOOT_LINK", folder / "units" / "wants" / guard.BOOT_UNIT)


def state_of(folder: Path) -> dict[str, Any]:
    return {name: guard._file(folder / name) for name in NAMES}


def in_folder(folder: Path, files: Mapping[str, Any]) -> dict[str, Any]:
    return {str(folder / name): entry for name, entry in files.items()}


PREVIOUS = st.sampled_from([{}, {"change": {"id": "x"}}])


@given(before=FILES, after=FILES, previous=PREVIOUS, written=st.integers(0, 2), torn=st.booleans())
def test_at_whatever_write_the_power_is_lost_the_boot_brings_back_the_old_files(
    before: dict[str, Any], after: dict[str, Any], previous: dict[str, Any], written: int, torn: object
) -> None:
    with TemporaryDirectory() as name, pytest.MonkeyPatch.context() as monkeypatch:
        folder = Path(name)
        at_home(folder, monkeypatch)
        (folder / "units" / "wants").mkdir(parents=True)
        (folder / "units" / guard.BOOT_UNIT).touch()
        guard.BOOT_LINK.touch()
        guard._write(in_folder(folder, before))
        old = state_of(folder)
        kept = {"how": "networkd", "files": guard._kept(in_folder(folder, before))}
        record = {"change": {}, "before": kept, "previous": previous}
        (folder / "pending.json").write_text(json.dumps(record))
        guard._write(dict(list(in_folder(folder, after).items())[:written]))
        if torn:
            (folder / f".{NAMES[0]}.new").write_text("half a fi")
        assert guard.main(["boot"]) == 0
        assert state_of(folder) == old
        left = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {"lock", *NAMES}
        assert left - {f".{NAMES[0]}.new"} == ({"confirmed.json"} if previous else set()), "no unit, nothing that waits"
        assert guard._record("confirmed") == previous


def test_a_file_takes_the_place_of_another_whole_and_with_its_mode(folder: Path) -> None:
    path = folder / "x"
    path.write_text("old")
    guard._put(path, "new", 0o600)
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("new", 0o600)
    assert [one.name for one in folder.iterdir()] == ["x"]


def test_files_are_told_by_size_and_time(folder: Path) -> None:
    path = folder / "x"
    path.write_text("four")
    assert guard._states([str(path), str(folder / "y")]) == {str(path): [4, int(path.stat().st_mtime)]}


@pytest.mark.parametrize("word", ["confirm", "apply", "check", "boot"])
def test_without_a_change_that_waits_there_is_nothing_to_confirm(
    word: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guard.main([word]) == 1
    assert capsys.readouterr().out.startswith("no change waits here: it was taken back")
    assert {path.name for path in folder.iterdir()} == {"lock"}


def test_a_second_change_is_not_begun_before_the_first_is_decided(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "pending.json").write_text("{}")
    assert guard.main(["arm"]) == 1
    assert "waits here to be confirmed already" in capsys.readouterr().out


def test_at_the_end_of_the_time_a_confirmed_change_is_left_and_what_guarded_it_goes(
    folder: Path, system: System
) -> None:
    make(folder, change(folder), "arm", "apply", "confirm")
    guard._guard_boot()
    system.timer = True
    assert guarded(folder)
    assert guard.main(["revert"]) == 0
    assert (folder / "confirmed.json").exists()
    assert (guarded(folder), system.timer) == (False, False)


def test_a_confirmed_change_that_cannot_be_taken_back_at_once_is_taken_back_by_the_timer(
    folder: Path, system: System
) -> None:
    make(folder, change(folder), "arm", "apply", "confirm")
    assert (guarded(folder), system.timer) == (False, False)
    system.broken.add("networkctl")
    assert guard.main(["back", "x"]) == 1
    assert (guarded(folder), system.timer) == (True, True)
    assert guard.timer_argv(guard.RETRY) in system.asked
    system.broken.clear()
    assert guard.main(["revert"]) == 0
    assert (guarded(folder), system.timer, state_of(folder)) == (False, False, dict.fromkeys(NAMES))
    assert not guard._record("pending")


def test_a_confirmed_change_that_is_taken_back_leaves_no_timer(folder: Path, system: System) -> None:
    make(folder, change(folder), "arm", "apply", "confirm")
    assert guard.main(["back", "x"]) == 0
    assert (guarded(folder), system.timer, state_of(folder)) == (False, False, dict.fromkeys(NAMES))


def test_a_boot_that_cannot_take_a_change_back_leaves_it_to_the_timer(folder: Path, system: System) -> None:
    make(folder, change(folder, how="netplan"), "arm", "apply")
    system.timer = False
    system.broken.add("netplan")
    assert guard.main(["boot"]) == 1
    assert (guarded(folder), system.timer) == (True, True)
    system.broken.clear()
    assert guard.main(["revert"]) == 0
    assert (guarded(folder), system.timer, state_of(folder)) == (False, False, dict.fromkeys(NAMES))


def test_the_timer_of_a_boot_does_not_wait_for_the_boot() -> None:
    assert "--timer-property=DefaultDependencies=no" in guard.timer_argv(guard.RETRY)


@pytest.mark.parametrize("words", [("revert",), ("boot",), ("back", "y")])
def test_after_a_second_change_was_taken_back_the_first_is_as_it_was_left(
    words: tuple[str, ...], folder: Path, system: System
) -> None:
    path = folder / NAMES[0]
    make(folder, change(folder), "arm", "apply")
    os.utime(path, ns=(1_700_000_000_000_000_123, 1_700_000_000_000_000_123))
    make(folder, {}, "confirm")
    make(folder, change(folder, "y"), "arm", "apply")
    assert path.read_text() == "new of y"
    assert guard.main(list(words)) == 0
    assert path.read_text() == "new of x"
    assert system.asked
    assert guard._states([str(path)]) == guard._record("confirmed")["written"]


def test_only_root_can_hold_the_lock(folder: Path) -> None:
    (folder / "lock").touch(0o644)
    for _ in range(2):
        guard.main(["check"])
        assert (folder / "lock").stat().st_mode & 0o777 == 0o600
        (folder / "lock").unlink()


@pytest.mark.parametrize(("answers_from", "code"), [(0.0, 0), (guard.SETTLE + 7, 0), (guard.SETTLE + 10, 1)])
def test_a_node_that_is_ready_at_once_waits_for_one_that_still_settles(
    answers_from: float, code: int, folder: Path, system: System
) -> None:
    make(folder, change(folder, mtu=1500), "arm", "apply")
    system.answers_from = answers_from
    assert guard.main(["check"]) == code


def test_links_are_looked_at_once_and_only_those_that_are_there_are_configured_anew(system: System) -> None:
    guard._reload("networkd", {"fab0": {}, "fab1": {}, "fab2": {}})
    assert system.asked == [
        ("networkctl", "reload"),
        ("ip", "-j", "addr"),
        ("networkctl", "reconfigure", "fab0"),
    ]


def test_what_was_there_before_us_is_what_the_first_change_found() -> None:
    first = {"files": {"/a": None}, "links": {"x": {"mtu": 1500}}}
    now = {"how": "netplan", "files": {"/a": {"content": "ours"}, "/b": None}, "links": {"x": {"mtu": 9000}}}
    assert guard._original(now, {"original": {"how": "networkd", **first}}) == {
        "how": "netplan",
        "files": {"/a": None, "/b": None},
        "links": {"x": {"mtu": 1500}},
    }
    assert guard._original(now, {}) == now
