"""The guard of a node's network: what it compares, and the files that it brings back after a power loss."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
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


def test_at_the_end_of_the_time_a_confirmed_change_is_left(folder: Path) -> None:
    (folder / "confirmed.json").write_text('{"change": {"id": "x"}}')
    assert guard.main(["revert"]) == 0
    assert (folder / "confirmed.json").exists()


def test_what_was_there_before_us_is_what_the_first_change_found() -> None:
    first = {"files": {"/a": None}, "links": {"x": {"mtu": 1500}}}
    now = {"how": "netplan", "files": {"/a": {"content": "ours"}, "/b": None}, "links": {"x": {"mtu": 9000}}}
    assert guard._original(now, {"original": {"how": "networkd", **first}}) == {
        "how": "netplan",
        "files": {"/a": None, "/b": None},
        "links": {"x": {"mtu": 1500}},
    }
    assert guard._original(now, {}) == now
