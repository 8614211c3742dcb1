"""Releases on two machines: back to an older one on both or on none, and what nothing needs goes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from lab import lifecycle
from tests.machines.command_line import CommandLine, assert_interrupted, assert_refused
from tests.machines.harness import Lab, eventually
from tests.machines.small import FOLDER as ROOT
from tests.machines.small import A, B, Small

pytestmark = pytest.mark.machines

OLDER = "small-older"

SLOW_CHECK = """#!/bin/sh
[ "$1" = -I ] && sleep 300
exec "$0.real" "$@"
"""
"""A Python that is slow when a release is checked after the switch, and at no other time."""
MODULES = "attr, certifi, idna, mpmath"
END_SLOW_CHECK = "pkill -f '[s]leep 300'"


def copy_release(lab: Lab, name: str, release: str, copy: str) -> None:
    """Give a machine another complete release: the same files under another name, by hard links."""
    place = f"{ROOT}/releases/{copy}"
    lab.output(name, f"rm -rf {place} && cp -al {ROOT}/releases/{release} {place}")
    lab.output(name, f"sed -i s/{release}/{copy}/ {place}/complete.json")


def forget(lab: Lab, name: str, *releases: str) -> None:
    """Take copies away again, and their lines out of the history."""
    for release in releases:
        lab.output(name, f"rm -rf {ROOT}/releases/{release}; sed -i /{release}/d {ROOT}/history.jsonl")


@pytest.fixture
def invoke(small_made: Small) -> CommandLine:
    """The command line for the same machines and a folder in which a release has a few wheels."""
    return small_made.old


@pytest.fixture
def older(lab: Lab, small_made: Small, invoke: CommandLine) -> Iterator[str]:
    """Both machines have another complete release beside the one in use; afterwards they are as they were."""
    lab.each(lambda name: copy_release(lab, name, small_made.before, OLDER))
    yield small_made.before
    lab.up()
    lab.ssh(B, END_SLOW_CHECK)
    invoke.works("deploy")
    lab.each(lambda name: forget(lab, name, OLDER))


def current(lab: Lab, name: str) -> str:
    return lab.output(name, f"readlink {ROOT}/current")


def in_use(lab: Lab) -> list[str]:
    return [current(lab, name).removeprefix("releases/") for name in (A, B)]


def noted(lab: Lab, name: str) -> list[str]:
    return [json.loads(line)["release"] for line in lab.output(name, f"cat {ROOT}/history.jsonl").splitlines()]


def inventory(invoke: CommandLine) -> dict[tuple[str, str], dict[str, Any]]:
    data = json.loads(invoke.works("releases", "--json").out)
    return {(row["node"], row["release"]): row for row in data["releases"]}


def test_back_to_an_older_release_on_both_machines_and_there_again(lab: Lab, older: str, invoke: CommandLine) -> None:
    invoke.works("rollback", f"--to={OLDER}")
    assert in_use(lab) == [OLDER] * 2
    rows = inventory(invoke)
    for name in (A, B):
        assert rows[name, OLDER]["state"] == "in use"
        assert rows[name, older]["state"] == "previous"
        assert "@" in rows[name, OLDER]["by"]
        assert rows[name, OLDER]["size"] > 10**7
    assert invoke.works("rollback", f"--to={OLDER}").out == "nothing to do\n"
    invoke.works("rollback")
    assert in_use(lab) == [older] * 2
    assert noted(lab, A)[-2:] == noted(lab, B)[-2:] == [OLDER, older]


def test_a_release_that_is_not_whole_on_one_machine_is_switched_back_on_both(
    lab: Lab, older: str, invoke: CommandLine
) -> None:
    site = f"{ROOT}/releases/{OLDER}/venv/lib/python3*/site-packages"
    lab.output(B, f"rm -r {site}/idna-*.dist-info")
    before = noted(lab, A)
    done = invoke("rollback", f"--to={OLDER}")
    says = [f"{name}: switch back to {older}: done" for name in (A, B)]
    assert_refused(done, 25, f"{B}: the release {OLDER} is not whole", "idna", *says)
    assert in_use(lab) == [older] * 2
    assert noted(lab, A) == before
    assert inventory(invoke)[B, OLDER]["state"] == "unfinished"
    assert_refused(invoke("rollback", f"--to={OLDER}"), 25, f"{B}: ", "not complete there")


def slow_check(lab: Lab, name: str) -> None:
    """Have the check of the older release take its time on a machine."""
    python = f"{ROOT}/releases/{OLDER}/venv/bin/python"
    lab.output(name, f"mv {python} {python}.real && cat > {python} <<'END'\n{SLOW_CHECK}END\nchmod 755 {python}")


def test_ctrl_c_after_the_switch_switches_back_on_both_machines(lab: Lab, older: str, invoke: CommandLine) -> None:
    slow_check(lab, B)
    with invoke.begin("rollback", f"--to={OLDER}") as started:
        started.says("check what is in use")
        started.reaches(lambda: in_use(lab) == [OLDER] * 2, "it was never switched")
        started.interrupt()
        done = started.ended()
    assert_interrupted(done)
    assert f"{B}: switch back to {older}: done" in done.error
    assert in_use(lab) == [older] * 2


def test_a_power_loss_after_the_switch_switches_the_other_machine_back_and_the_next_deployment_mends_the_first(
    lab: Lab, older: str, invoke: CommandLine
) -> None:
    slow_check(lab, B)
    with invoke.begin("rollback", f"--to={OLDER}") as started:
        started.says("check what is in use")
        started.reaches(lambda: in_use(lab) == [OLDER] * 2, "it was never switched")
        lifecycle.kill(lab.cluster, B, lab.said.append)
        done = started.ended(120)
    assert_refused(done, 20, f"{A}: switch back to {older}: done", f"{B}: it could not switch back to {older}")
    assert current(lab, A) == f"releases/{older}"
    lifecycle.boot(lab.cluster, B, lab.said.append)
    assert in_use(lab) == [older, OLDER]
    assert "the nodes are not on one release" in invoke.works("releases").out
    invoke.works("deploy")
    assert in_use(lab) == [older] * 2


def test_a_controller_that_was_killed_after_the_switch_leaves_a_rollback_that_goes_on(
    lab: Lab, older: str, invoke: CommandLine
) -> None:
    invoke.works("rollback", f"--to={OLDER}")
    invoke.works("rollback")
    slow_check(lab, B)
    with invoke.begin("rollback") as started:
        started.says("check what is in use")
        started.reaches(lambda: in_use(lab) == [OLDER] * 2, "it was never switched")
        started.kill()
    lab.ssh(B, END_SLOW_CHECK)
    python = f"{ROOT}/releases/{OLDER}/venv/bin/python"
    lab.output(B, f"mv {python}.real {python}")
    assert eventually(lambda: invoke("rollback").code == 0, 60)
    assert in_use(lab) == [OLDER] * 2
    assert noted(lab, A)[-2:] == [older, OLDER]


def test_what_nothing_needs_is_collected_and_the_release_in_use_and_the_one_before_stay(
    lab: Lab, older: str, invoke: CommandLine
) -> None:
    invoke.works("rollback", f"--to={OLDER}")
    invoke.works("rollback")
    lab.each(lambda name: copy_release(lab, name, older, "small-never-used"))
    lab.output(A, f"mkdir {ROOT}/releases/small-unfinished && touch {ROOT}/wheels/nothing-1.0-py3-none-any.whl")
    plan = invoke.works("releases", "--collect", "--dry-run").out
    assert f"{A}: remove small-unfinished — it was never finished" in plan.replace(", 4 kB", "")
    invoke.works("releases", "--collect")
    for name in (A, B):
        assert set(lab.output(name, f"ls {ROOT}/releases").split()) == {older, OLDER}
    assert "nothing-1.0" not in lab.output(A, f"ls {ROOT}/wheels")
    assert invoke.works("releases", "--collect").out == "nothing to do\n"
    assert invoke.works("deploy").out == "nothing to do\n"
    lab.output(B, f"{ROOT}/current/venv/bin/python -c 'import {MODULES}'")


def test_a_release_that_is_made_after_a_collection_is_whole(lab: Lab, older: str, invoke: CommandLine) -> None:
    """The cache has lost what only removed releases had: uv unpacks it again from the wheels."""
    unpacked = f"ls {ROOT}/cache/archive-v* | wc -l"
    assert lab.output(A, unpacked) != "0"
    lab.output(A, f"rm -rf {ROOT}/releases/* && mkdir {ROOT}/releases/small-unfinished")
    invoke.works("releases", "--collect")
    assert lab.output(A, unpacked) == "0"
    invoke.works("deploy")
    assert current(lab, A) == f"releases/{older}"
    lab.output(A, f"{ROOT}/current/venv/bin/python -c 'import {MODULES}'")
