"""A node that cannot be reached, is not the one that was enrolled, or does not let us in: one clear error each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from core.config import WORK, Cluster
from core.process import run
from lab import lifecycle, machine
from tests.machines.checkout import Checkout
from tests.machines.command_line import CommandLine, assert_refused, left_of
from tests.machines.harness import Lab, eventually

pytestmark = pytest.mark.machines

A, B = "test-a", "test-b"
STATE = "ls -d /opt/sparkstack /opt/sparkstack/wheels/* 2>/dev/null | sort | sha256sum"


def password(cluster: Cluster) -> str:
    return machine.password_file(cluster).read_text(encoding="utf-8").strip()


def test_a_key_that_the_nodes_do_not_know_is_refused(lab: Lab, checkout: Checkout, tmp_path: Path) -> None:
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")])
    invoke = checkout.variant("wrong-key", (f"{lab.cluster.state}/id_ed25519", str(tmp_path / "other")))
    assert_refused(invoke("deploy"), 22, f"{A}: ", str(tmp_path / "other"), "ssh-copy-id")


@pytest.mark.usefixtures("lab")
def test_an_unknown_host_key_is_refused_and_the_command_in_the_message_enrols_it(checkout: Checkout) -> None:
    invoke = checkout.variant("unknown-host", known=False)
    refused = invoke("deploy")
    assert_refused(refused, 21, f"{A}: ", "is not known", f"invoke trust --cluster unknown-host --node {A}")
    asked = invoke("trust", "--node", A)
    assert_refused(asked, 11, "no terminal", "--yes")
    for name in (A, B):
        invoke.works("trust", "--node", name, "--yes")
    assert A in invoke.works("facts").out


def test_a_changed_host_key_is_refused_and_replaced_by_a_word_of_its_own(lab: Lab, checkout: Checkout) -> None:
    invoke = checkout.variant("changed-host")
    known = checkout.state("changed-host") / "known_hosts"
    keys = dict(line.split(" ", 1) for line in known.read_text(encoding="utf-8").splitlines())
    a, b = (str(lab.cluster.node(name).management) for name in (A, B))
    known.write_text(f"{a} {keys[b]}\n{b} {keys[b]}\n", encoding="utf-8")
    said = f"invoke trust --cluster changed-host --node {A} --replace"
    assert_refused(invoke("deploy"), 21, f"{A}: ", "CHANGED", said)
    assert_refused(invoke("trust", "--node", A, "--yes"), 21, "--replace")
    invoke.works("trust", "--node", A, "--replace", "--yes")
    assert A in invoke.works("facts").out


def test_a_wrong_address_is_told_with_the_address(lab: Lab, checkout: Checkout) -> None:
    right = lab.cluster.node(B).management
    wrong = right + 50
    done = checkout.variant("wrong-address", (f'"{right}"', f'"{wrong}"'))("deploy")
    assert_refused(done, 20, f"{B}: ", str(wrong), "check power, cable and address")
    assert done.seconds < 30


def test_a_node_that_is_off_is_told_by_name(lab: Lab, invoke: CommandLine) -> None:
    lifecycle.kill(lab.cluster, B, lab.said.append)
    assert_refused(invoke("deploy"), 20, f"{B}: ", str(lab.cluster.node(B).management))
    lifecycle.boot(lab.cluster, B, lab.said.append)
    assert B in invoke.works("facts").out


def test_one_network_named_twice_is_a_mistake_of_the_file(lab: Lab, checkout: Checkout) -> None:
    cluster = lab.cluster
    changes = [(str(node.fabric), str(node.management)) for node in cluster.nodes]
    same = checkout.variant("one-network", *changes, (str(cluster.fabric.subnet), str(cluster.management.subnet)))
    assert_refused(same("deploy"), 10, "one-network.toml", "the same network")


def test_a_fabric_address_on_the_management_interface_is_refused_before_anything_is_pushed(
    lab: Lab, checkout: Checkout
) -> None:
    before = [lab.output(name, STATE) for name in (A, B)]
    other = "198.18.109"
    fabric = str(lab.cluster.fabric.subnet.network_address).rsplit(".", 1)[0]
    invoke = checkout.variant("fabric-is-management", (f"{fabric}.", f"{other}."))
    with second_address(lab, A, f"{other}.1"), second_address(lab, B, f"{other}.2"):
        done = invoke("deploy")
    assert_refused(done, 25, f"{A}: ", f"{other}.1 is on host0", "management", "in cluster fabric-is-management")
    assert f"also {B}: " in done.error
    assert [lab.output(name, STATE) for name in (A, B)] == before


def test_a_fabric_address_that_no_interface_has_is_refused_before_anything_is_pushed(
    lab: Lab, checkout: Checkout
) -> None:
    before = [lab.output(name, STATE) for name in (A, B)]
    right = lab.cluster.node(B).fabric
    done = checkout.variant("no-fabric", (f'"{right}"', f'"{right + 7}"'))("deploy")
    assert_refused(done, 25, f"{B}: ", f"no interface has the fabric address {right + 7}", f"fab0 has {right}")
    assert [lab.output(name, STATE) for name in (A, B)] == before


@contextmanager
def second_address(lab: Lab, name: str, address: str) -> Iterator[None]:
    lab.as_root(name, f"ip address add {address}/24 dev host0")
    try:
        yield
    finally:
        lab.as_root(name, f"ip address del {address}/24 dev host0")


def test_a_wrong_sudo_password_is_told_once(lab: Lab, checkout: Checkout, tmp_path: Path) -> None:
    nonsense = tmp_path / "askpass"
    nonsense.write_text("#!/bin/sh\necho nonsense\n", encoding="utf-8")
    nonsense.chmod(0o755)
    invoke = checkout.variant("wrong-sudo", (f"{lab.cluster.state}/askpass", str(nonsense)))
    assert_refused(invoke("logs"), 22, f"{B}: ", "sudo", lab.cluster.user)


def test_an_askpass_that_fails_is_told_with_its_path(lab: Lab, checkout: Checkout) -> None:
    invoke = checkout.variant("no-askpass", (f"{lab.cluster.state}/askpass", "/bin/false"))
    assert_refused(invoke("logs"), 22, f"{B}: ", "/bin/false")


def test_without_a_terminal_and_without_askpass_the_sudo_password_is_not_waited_for(
    lab: Lab, checkout: Checkout
) -> None:
    invoke = checkout.variant("ask-nobody", (f'askpass = "{lab.cluster.state}/askpass"\n', ""))
    assert_refused(invoke("logs"), 22, f"{B}: ", "no terminal", "SUDO_ASKPASS")


def written_since_and_holds(secret: str, birth: Path) -> list[Path]:
    """Return the files of ours that were written when ``birth`` was or later (nothing sets a ctime back) with a word.

    Older ones, gigabytes that were fetched by hash, cannot have it.
    """
    left_out = ("*.img", "base-*", "checkout-*")
    unseen = [word for name in left_out for word in ("-name", name, "-prune", "-o")]
    look = ["-type", "f", "(", "-cnewer", str(birth), "-o", "-samefile", str(birth), ")"]
    found = run(["find", str(WORK), *unseen, *look, "-exec", "grep", "-lF", secret, "{}", "+"], check=False)
    return [Path(line) for line in found.out.splitlines()]


def test_the_sudo_password_is_in_no_command_line_and_in_no_file_but_its_own(lab: Lab, invoke: CommandLine) -> None:
    secret = password(lab.cluster)
    with invoke.begin("logs", "--follow") as started:
        started.reaches(lambda: bool(lab.pgrep(B, "journalctl")), "it follows no journal")
        seen = lab.output(B, "ps -eww -o args=") + run(["ps", "-eww", "-o", "args="]).out
        environments = lab.as_root(B, 'cat /proc/[0-9]*/environ 2>/dev/null | tr "\\\\0" "\\\\n"')
        started.interrupt()
        done = started.ended()
    assert done.code == 0, str(done)  # Ctrl-C is how following ends
    assert left_of(done.mark) == []
    assert eventually(lambda: not lab.pgrep(B, "journalctl"), 10)
    assert secret not in seen
    assert "PATH=" in environments, "none could be read"
    assert secret not in environments
    assert secret not in done.out + done.err
    assert written_since_and_holds(secret, machine.password_file(lab.cluster)) == [machine.password_file(lab.cluster)]
