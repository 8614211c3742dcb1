"""What is written into a machine, how it is booted, and what a host must have."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from core.config import Cluster, Node, load_cluster
from core.errors import LabError
from lab import disk, host, lifecycle, machine, place, power, supervisor
from lab.place import Place

LOCAL = load_cluster("local")
A, B = LOCAL.nodes
NONE = [].append  # a report that nobody reads


def files(cluster: Cluster, node: Node) -> dict[str, machine.Entry]:
    return machine.files(cluster, node, "PRIVATE", "ssh-ed25519 AAAA host")


def changed(**changes: Any) -> Cluster:
    return LOCAL.model_copy(update=changes)


def test_the_firewall_lets_in_ssh_the_api_and_icmp_on_management_only() -> None:
    rules = files(LOCAL, A)["etc/nftables.conf"].text
    assert f"tcp dport {{ 22, {LOCAL.api.port} }} accept" in rules
    assert 'iifname != "host0" accept' in rules
    assert "reject with icmpx type admin-prohibited" in rules


def test_addresses_are_static_and_nothing_leads_out() -> None:
    found = files(LOCAL, B)
    assert "Name=host0\n" in found["etc/systemd/network/10-management.network"].text
    assert "Address=198.18.34.101/24" in found["etc/systemd/network/10-management.network"].text
    assert "Name=fab0\n" in found["etc/systemd/network/10-fabric.network"].text
    assert "Address=198.18.100.2/24" in found["etc/systemd/network/10-fabric.network"].text
    assert not [name for name, entry in found.items() if "Gateway" in entry.text or "nameserver" in entry.text]


def test_sudo_asks_where_the_configuration_says_so() -> None:
    assert files(LOCAL, A)["etc/sudoers.d/sparkstack"].text == "spark ALL=(ALL:ALL) NOPASSWD: ALL\n"
    assert files(LOCAL, B)["etc/sudoers.d/sparkstack"].text == "spark ALL=(ALL:ALL) ALL\n"


def test_secrets_are_not_readable_by_others() -> None:
    modes = {name: entry.mode for name, entry in files(LOCAL, A).items()}
    assert modes["etc/ssh/ssh_host_ed25519_key"] == 0o600
    assert modes["etc/sudoers.d/sparkstack"] == 0o440


def test_sshd_takes_keys_only_on_the_configured_port() -> None:
    node = A.model_copy(update={"ssh_port": 2222})
    found = files(changed(nodes=(node, B)), node)
    settings = found["etc/ssh/sshd_config.d/10-sparkstack.conf"].text
    assert {"Port 2222", "PermitRootLogin no", "PasswordAuthentication no"} < set(settings.splitlines())
    assert "2222" in found["etc/nftables.conf"].text


def test_the_machine_id_stays_as_long_as_the_host_key() -> None:
    assert machine.machine_id("key one") == machine.machine_id("key one") != machine.machine_id("key two")
    assert len(machine.machine_id("key one")) == 32


def test_a_supervisor_is_a_unit_under_systemd_and_a_detached_process_without() -> None:
    where = Place(LOCAL, A)
    bare = power.start_command(where, systemd=False)
    assert bare[:4] == ["unshare", "--mount", "--propagation", "private"]
    assert bare[-1] == "--detach"
    unit = power.start_command(where, systemd=True)
    assert unit[0] == "systemd-run"
    assert "--unit=sparkstack-lab-local-lab-a.service" in unit
    assert {"Delegate=yes", "KillMode=mixed", "TasksMax=infinity"} < set(unit)
    assert "--detach" not in unit
    assert unit[unit.index("unshare") :] == bare[:-1]


def test_the_machine_boots_inside_its_control_groups_with_both_links() -> None:
    where = Place(LOCAL, A)
    command = supervisor.boot_command(where, Path("/root"), [Path("/cg/one"), Path("/cg/two")])
    inner = command[command.index("--") + 1 :]
    assert command[:2] == ("sh", "-c")
    assert command[4:7] == (str(where.pid), "/cg/one", "/cg/two")
    assert inner[0] == "systemd-nspawn"
    assert {"--boot", "--register=no", "--keep-unit", "--hostname=lab-a"} < set(inner)
    assert f"--network-veth-extra={where.link('fabric')}:fab0" in inner
    assert f"--network-veth-extra={where.link('management')}:host0" in inner


def test_a_project_folder_with_commas_and_colons_cannot_break_the_overlay() -> None:
    work = Path("/home/x, y:z/.work")
    options = disk.layers(work / "lab/base", work / "clusters/local/machines/lab-a/disk", work)
    assert options == (
        "lowerdir=lab/base,upperdir=clusters/local/machines/lab-a/disk/upper,"
        "workdir=clusters/local/machines/lab-a/disk/work"
    )


def test_a_key_outside_of_the_clusters_state_is_refused() -> None:
    with pytest.raises(LabError, match="is outside"):
        place.identity(changed(identity=Path("/root/.ssh/id_ed25519")))
    with pytest.raises(LabError, match="names no SSH key"):
        place.identity(changed(identity=None))
    assert place.identity(LOCAL) == LOCAL.state / "id_ed25519"


def test_a_lock_is_seen_by_others_and_free_afterwards(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    assert not place.held(lock)
    with place.hold(lock) as ours:
        assert ours
        assert place.held(lock)
        with place.hold(lock, seconds=0) as again:
            assert not again
    assert not place.held(lock)


def test_machines_of_a_real_cluster_are_left_alone() -> None:
    real = changed(lab=None)
    for act in (lifecycle.up, lifecycle.down, lifecycle.purge):
        with pytest.raises(LabError, match="of real machines"):
            act(real, NONE)
    with pytest.raises(LabError, match="of real machines"):
        lifecycle.kill(real, "lab-a", NONE)


def test_root_cannot_be_the_machines_user() -> None:
    with pytest.raises(LabError, match="root cannot log"):
        lifecycle.up(changed(user="root"), NONE)


def test_without_root_the_reason_and_the_next_move_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(host.platform, "system", lambda: "Linux")
    assert "root" in (host.can_run() or "")
    with pytest.raises(LabError) as caught:
        lifecycle.down(LOCAL, NONE)
    assert caught.value.next_move == "run as root or with sudo"


def test_another_system_than_linux_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.platform, "system", lambda: "Darwin")
    assert host.can_run() == "local machines need Linux, this is Darwin"


def test_a_container_is_recognised_by_its_capabilities() -> None:
    assert host.parse_capabilities("Name:\tx\nCapEff:\t00000000a80425fb\n") >> 21 & 1 == 0
    assert host.parse_capabilities("CapEff:\t000001ffffffffff\n") >> 21 & 1 == 1
    assert host.parse_capabilities("") == 0


def test_what_a_host_needs_is_a_list_of_packages() -> None:
    assert {"systemd-container", "debootstrap", "e2fsprogs", "iproute2", "openssh-client"} < set(host.requirements())
