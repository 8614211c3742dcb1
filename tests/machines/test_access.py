"""Machines behind a jump host, with the user's SSH configuration and agent; and the keys between machines.

Both are given second addresses over the fabric's cable, where this host cannot reach them: the way leads through the
first one.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from core.process import run
from tests.machines.checkout import Checkout
from tests.machines.command_line import CommandLine, Ended, assert_refused, left_of
from tests.machines.harness import Lab
from tests.unit.peers import peer_ssh

pytestmark = pytest.mark.machines

A, B = "test-a", "test-b"
HIDDEN = "198.18.117"
SUITE = "/opt/sparkstack"


@dataclass(frozen=True)
class Behind:
    """The command line for both machines at their hidden addresses, and the home of the user who runs it."""

    invoke: CommandLine
    state: Path
    home: Path
    key: Path

    def __call__(self, *words: str, environment: Mapping[str, str] | None = None) -> Ended:
        """Run a command; no agent but one that is given."""
        done = self.invoke(*words, environment={"HOME": str(self.home), "SSH_AUTH_SOCK": "", **(environment or {})})
        assert left_of(done.mark) == []
        return done

    def works(self, *words: str, environment: Mapping[str, str] | None = None) -> Ended:
        """Run a command that must end with 0."""
        done = self(*words, environment=environment)
        assert done.code == 0, str(done)
        return done

    def configure(self, lab: Lab, more: str = "") -> None:
        """Have the configuration lead through the first machine; ``more`` is said of this door."""
        door = f"Host door\n HostName {lab.cluster.node(A).management}\n User {lab.cluster.user}\n{more}"
        text = f"{door}Host {A} {HIDDEN}.*\n ProxyJump door\nHost *\n StrictHostKeyChecking no\n ForwardAgent yes\n"
        (self.home / ".ssh" / "config").write_text(text, encoding="utf-8")


@pytest.fixture
def behind(lab: Lab, checkout: Checkout, wheels: Path, tmp_path: Path) -> Iterator[Behind]:
    checkout.share_wheels(wheels.parents[3], lab.cluster.stack)
    (tmp_path / ".ssh").mkdir()
    prefix = str(lab.cluster.management.subnet.network_address).rsplit(".", 1)[0]
    key = lab.cluster.state / "id_ed25519"
    invoke = checkout.variant("behind", (f"{prefix}.", f"{HIDDEN}."), (f'identity = "{key}"\n', ""), known=False)
    made = Behind(invoke, checkout.state("behind"), tmp_path, key)
    made.configure(lab, f" IdentityFile {key}\n")
    addresses = {name: f"{HIDDEN}.{str(lab.cluster.node(name).management).rsplit('.', 1)[1]}" for name in (A, B)}
    for name, address in addresses.items():
        lab.as_root(name, "ip link add link fab0 name hidden0 type macvlan mode bridge")
        lab.as_root(name, f"ip address add {address}/24 dev hidden0 && ip link set hidden0 up")
    yield made
    for name in (A, B):
        lab.as_root(name, "ip link delete hidden0")


def known(behind: Behind) -> list[str]:
    return [line.split()[0] for line in (behind.state / "known_hosts").read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def agent(behind: Behind) -> Iterator[dict[str, str]]:
    """An agent that holds the only key there is, which lies encrypted in the user's home."""
    copy = behind.home / ".ssh" / "id_ed25519"
    copy.write_bytes(behind.key.read_bytes())
    copy.chmod(0o600)
    copy.with_suffix(".pub").write_bytes(behind.key.with_suffix(".pub").read_bytes())
    run(["ssh-keygen", "-q", "-p", "-N", "secret", "-f", str(copy)])
    answers = behind.home / "answers"
    answers.write_text("#!/bin/sh\necho secret\n", encoding="utf-8")
    answers.chmod(0o755)
    environment = {"SSH_AUTH_SOCK": str(behind.home / "agent")}
    pid = run(["ssh-agent", "-a", environment["SSH_AUTH_SOCK"]]).out.split("SSH_AGENT_PID=")[1].split(";")[0]
    run(
        ["ssh-add", "-q", str(copy)],
        env={**environment, "SSH_ASKPASS": str(answers), "SSH_ASKPASS_REQUIRE": "force"},
    )
    yield environment
    run(["ssh-agent", "-k"], env={**environment, "SSH_AGENT_PID": pid})


def pushes(behind: Behind, lab: Lab, environment: Mapping[str, str] | None = None) -> None:
    """Facts over our own connection, a wheel by ssh, scripts by rsync, sudo with a password: all through the door."""
    assert lab.cluster.node(B).name in behind.works("facts", environment=environment).out
    wheel = lab.output(B, f"ls {SUITE}/wheels/*.whl | head -1")
    lab.output(B, f"find {SUITE}/store -samefile {wheel} -delete && rm {wheel}")
    behind.works("deploy", environment=environment)
    lab.output(B, f"test -f {wheel}")
    lab.output(A, "mkdir -p /tmp/small-model && echo {} > /tmp/small-model/config.json")
    behind.works("model.fetch", "small/model", "--from=/tmp/small-model", environment=environment)
    lab.output(B, f"test -f {SUITE}/models/small/model/config.json")
    behind.works("model.remove", "small/model", environment=environment)


@pytest.mark.usefixtures("deployed")
def test_a_machine_behind_a_jump_host_is_enrolled_and_deployed_to_with_a_key_of_the_configuration(
    lab: Lab, behind: Behind
) -> None:
    behind.configure(lab, f"Host *\n IdentityFile {behind.key}\n")
    door = str(lab.cluster.node(A).management)
    assert_refused(
        behind("facts"), 21, f"{A}: the host key of a jump host is not known", "invoke trust --cluster behind"
    )
    assert "can be seen once that is enrolled" in behind.works("trust", "--dry-run").out
    shown = behind.works("trust", "--yes").out
    assert f"{A}: jump host {door} shows SHA256:" in shown
    assert known(behind)[0] == door
    assert len(known(behind)) == 3
    assert behind.works("trust").out.count("is enrolled already") == 3
    pushes(behind, lab)


@pytest.mark.usefixtures("deployed")
def test_an_agent_holds_the_key_for_the_jump_host_and_for_the_machines(
    lab: Lab, behind: Behind, agent: dict[str, str]
) -> None:
    behind.configure(lab)
    behind.works("trust", "--yes", environment=agent)
    assert_refused(behind("facts"), 22, "a jump host does not accept our keys", "Permission denied")
    pushes(behind, lab, agent)


def test_an_encrypted_key_without_its_agent_is_named(lab: Lab, behind: Behind, agent: dict[str, str]) -> None:
    behind.configure(lab, f" IdentityFile {behind.key}\n")
    behind.works("trust", "--yes", environment=agent)
    encrypted = behind.home / ".ssh" / "id_ed25519"
    assert_refused(behind("facts"), 22, f"{encrypted} is encrypted and in no agent", f"ssh-add {encrypted}")


def test_a_jump_host_with_another_key_than_the_enrolled_one_is_refused(lab: Lab, behind: Behind) -> None:
    behind.works("trust", "--yes")
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(behind.home / "other")])
    other = (behind.home / "other.pub").read_text(encoding="utf-8").split()[1]
    door = str(lab.cluster.node(A).management)
    lines = (behind.state / "known_hosts").read_text(encoding="utf-8").splitlines()
    changed = [f"{door} ssh-ed25519 {other}" if line.startswith(f"{door} ") else line for line in lines]
    (behind.state / "known_hosts").write_text("\n".join(changed) + "\n", encoding="utf-8")
    assert_refused(behind("facts"), 21, "the host key of a jump host has CHANGED", "--replace")
    assert_refused(behind("trust", "--yes"), 21, f"jump host {door}", "--replace")
    behind.works("trust", "--replace", "--yes")
    assert (behind.state / "known_hosts").read_text(encoding="utf-8").count(other) == 0


def test_a_machine_with_another_port_and_another_kind_of_key_is_enrolled_so(lab: Lab, checkout: Checkout) -> None:
    make = 'rm -f /run/rsa /run/rsa.pub; ssh-keygen -q -t rsa -b 2048 -N "" -f /run/rsa'
    lab.as_root(A, f"{make} && /usr/sbin/sshd -f /dev/null -p 2222 -o HostKey=/run/rsa -o PidFile=/run/sshd-2222.pid")
    lab.as_root(A, "nft insert rule inet sparkstack input tcp dport 2222 accept")
    address = lab.cluster.node(A).management
    try:
        invoke = checkout.variant("port", (f'management = "{address}"', f'management = "{address}"\nssh_port = 2222'))
        done = invoke.works("trust", "--yes", "--node", A)
        assert "(ssh-rsa)" in done.out
        assert f"[{address}]:2222 ssh-rsa " in (checkout.state("port") / "known_hosts").read_text(encoding="utf-8")
        assert A in invoke.works("facts").out
    finally:
        lab.as_root(A, "kill $(cat /run/sshd-2222.pid); nft -f /etc/nftables.conf")


def rsync(lab: Lab, *words: str) -> tuple[int, str]:
    """Run rsync on the first machine, towards the second one's fabric address; `PEER` is that."""
    peer = lab.cluster.node(B)
    address = f"{lab.cluster.user}@{peer.fabric}"
    argv = ["rsync", "-e", " ".join(peer_ssh(lab.cluster, peer)), *words]
    done = lab.ssh(A, shlex.join(word.replace("PEER", address) for word in argv))
    return done.code, done.out + done.err


def ssh(lab: Lab, address: object, *words: str, command: str = "") -> tuple[int, str]:
    """Run ssh on the first machine with its own key; options come first, so that they count."""
    program, *rest = peer_ssh(lab.cluster, lab.cluster.node(B))
    done = lab.ssh(A, shlex.join([program, *words, *rest, f"{lab.cluster.user}@{address}", *command.split()]))
    return done.code, done.out + done.err


@pytest.fixture
def let_in(lab: Lab, deployed: str, invoke: CommandLine) -> Iterator[str]:
    """The machines let each other in; afterwards no file is another than before."""
    before = {name: lab.output(name, LOOKS) for name in (A, B)}
    invoke.works("trust", "--nodes")
    yield deployed
    invoke.works("trust", "--nodes", "--undo")
    assert {name: lab.output(name, LOOKS) for name in (A, B)} == before


LOOKS = "cd ~/.ssh && ls -A && stat -c '%n %a %U' * && cat authorized_keys"
FORWARDED = "-oExitOnForwardFailure=yes"


def test_a_machine_reads_the_suite_s_folder_on_another_over_the_fabric_and_can_do_nothing_else(
    lab: Lab, let_in: str
) -> None:
    peer = lab.cluster.node(B)
    code, said = rsync(lab, "-r", f"PEER:releases/{let_in}/complete.json", "/tmp/from-b")
    assert code == 0, said
    assert let_in in lab.output(A, "cat /tmp/from-b && rm /tmp/from-b")
    for path in ("/etc/hostname", "../../etc/hostname", f"{SUITE}/../../etc/hostname"):
        code, said = rsync(lab, "-L", f"PEER:{path}", "/tmp/stolen")
        assert code != 0, said
        assert lab.ssh(A, "ls /tmp/stolen").code != 0
    code, said = rsync(lab, "/etc/hostname", "PEER:written")
    assert code != 0
    assert "read-only" in said or "not allowed" in said, said
    assert lab.ssh(B, f"ls {SUITE}/written").code != 0
    assert rsync(lab, "-r", "--remove-source-files", f"PEER:releases/{let_in}/complete.json", "/tmp/moved")[0] != 0
    lab.output(B, f"test -f {SUITE}/releases/{let_in}/complete.json")
    code, said = ssh(lab, peer.fabric, command="id")
    assert code not in (0, 255), said  # it is let in, and only to rsync
    assert "uid=" not in said
    code, said = ssh(lab, peer.fabric, FORWARDED, f"-W{peer.fabric}:22")
    assert code != 0
    assert "SSH-2.0" not in said
    code, said = ssh(lab, peer.management, "-oStrictHostKeyChecking=no", "-oUserKnownHostsFile=/dev/null")
    assert code == 255
    assert "Permission denied" in said, "from another address than that of the fabric the key is of no use"


def test_keys_between_machines_are_made_once_and_taken_back(lab: Lab, let_in: str, invoke: CommandLine) -> None:
    assert let_in
    assert invoke.works("trust", "--nodes").out == "nothing to do\n"
    assert lab.output(A, f"stat -c %a ~/.ssh/sparkstack-{lab.cluster.name}") == "600"
    assert f"{B}: shut out {A} in ~/.ssh/authorized_keys" in invoke.works("remove", "--stop", "--dry-run").out
    invoke.works("trust", "--nodes", "--undo")
    assert rsync(lab, "PEER:releases/", "/tmp/")[0] != 0
    assert invoke.works("trust", "--nodes", "--undo").out == "nothing to do\n"
