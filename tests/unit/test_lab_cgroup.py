"""Control groups: v1, v2 and both; a made-up tree of files stands for the kernel's."""

from __future__ import annotations

from pathlib import Path

from lab.cgroup import (
    Hierarchy,
    folders,
    limits_memory,
    make,
    parse_membership,
    parse_mounts,
    processes,
    remove,
    set_limit,
)

HYBRID = """\
proc /proc proc rw 0 0
cgroup /sys/fs/cgroup/cpu cgroup rw,relatime,cpu 0 0
cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0
cgroup /sys/fs/cgroup/systemd cgroup rw,relatime,xattr,name=systemd 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0
"""
UNIFIED = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid,nodev,noexec,relatime,nsdelegate 0 0\n"
GIB = 1024**3


def test_a_hybrid_host_needs_a_group_in_three_hierarchies() -> None:
    found = {(str(h.mount), h.name) for h in parse_mounts(HYBRID)}
    assert found == {
        ("/sys/fs/cgroup/memory", "memory"),
        ("/sys/fs/cgroup/systemd", "name=systemd"),
        ("/sys/fs/cgroup/unified", ""),
    }


def test_a_unified_host_needs_one() -> None:
    assert parse_mounts(UNIFIED) == (Hierarchy(Path("/sys/fs/cgroup"), ""),)


def test_membership_is_read_by_controller() -> None:
    text = "9:name=systemd:/init.scope\n4:cpu,cpuacct:/a\n3:memory:/b:c\n0::/system.slice/x.service\n"
    assert parse_membership(text) == {
        "name=systemd": "/init.scope",
        "cpu": "/a",
        "cpuacct": "/a",
        "memory": "/b:c",
        "": "/system.slice/x.service",
    }


def test_under_systemd_the_machine_is_below_its_unit_and_on_a_bare_host_at_the_top() -> None:
    found = parse_mounts(UNIFIED)
    unit = folders(found, {"": "/system.slice/x.service"}, "spk-a", delegated=True)
    assert unit == (Path("/sys/fs/cgroup/system.slice/x.service/machine"),)
    assert folders(found, {"": "/"}, "spk-a", delegated=False) == (Path("/sys/fs/cgroup/sparkstack-lab-spk-a"),)


def test_the_limit_is_written_where_the_hierarchy_has_it(tmp_path: Path) -> None:
    old, new, other = tmp_path / "old", tmp_path / "new", tmp_path / "other"
    for group, files in ((old, ["memory.limit_in_bytes"]), (new, ["memory.max", "memory.swap.max"]), (other, [])):
        group.mkdir()
        for name in files:
            (group / name).write_text("max")
        set_limit(group, 2 * GIB)
    assert (old / "memory.limit_in_bytes").read_text() == str(2 * GIB)
    assert ((new / "memory.max").read_text(), (new / "memory.swap.max").read_text()) == (str(2 * GIB), "0")
    assert not list(other.iterdir())


def test_every_group_above_hands_the_memory_controller_down(tmp_path: Path) -> None:
    for group in (tmp_path, tmp_path / "unit"):
        group.mkdir(exist_ok=True)
        (group / "cgroup.procs").write_text("")
        (group / "cgroup.controllers").write_text("cpu memory")
        (group / "cgroup.subtree_control").write_text("cpu")
    make([tmp_path / "unit" / "machine"], GIB)
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+memory"
    assert (tmp_path / "unit" / "cgroup.subtree_control").read_text() == "+memory"
    assert (tmp_path / "unit" / "machine").is_dir()


def test_processes_are_found_in_groups_below_too_and_groups_that_are_gone_have_none(tmp_path: Path) -> None:
    below = tmp_path / "payload" / "system.slice"
    below.mkdir(parents=True)
    (tmp_path / "cgroup.procs").write_text("7\n")
    (below / "cgroup.procs").write_text("8\n9\n0\n")
    assert processes([tmp_path, tmp_path / "gone"]) == {7, 8, 9}


def test_groups_are_removed_deepest_first(tmp_path: Path) -> None:
    machine = tmp_path / "machine"
    (machine / "payload" / "system.slice").mkdir(parents=True)
    (machine / "supervisor").mkdir()
    remove([machine, tmp_path / "gone"])
    assert not machine.exists()


def test_a_host_without_a_memory_controller_is_known(tmp_path: Path) -> None:
    assert not limits_memory([Hierarchy(tmp_path, ""), Hierarchy(tmp_path, "name=systemd")])
    assert limits_memory([Hierarchy(tmp_path, "memory")])
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids")
    assert limits_memory([Hierarchy(tmp_path, "")])
