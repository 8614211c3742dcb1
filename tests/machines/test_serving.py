"""The service under Ray on two machines: its answers, network and logs, and deployments that leave it alone."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable

import pytest

from core.config import ROOT
from core.facts import gather
from core.question import Question
from core.remote import Hosts
from lab.demo import QUESTION
from lab.model import expected_answer
from serve.files import closed_ports
from tests.machines.checkout import Checkout
from tests.machines.command_line import CommandLine, assert_refused
from tests.machines.harness import Lab
from tests.machines.serving import RAY, UNITS, A, B, Service, active, processes
from tests.machines.test_release import filled_disk

pytestmark = pytest.mark.machines


@pytest.fixture
def serving(serving_with: Callable[[str], Service]) -> CommandLine:
    """The command line, with Ray's service up, whatever the test before did to it."""
    return serving_with(RAY).invoke


def test_the_answer_is_the_one_that_was_taught(serving: CommandLine) -> None:
    expected = expected_answer(QUESTION)
    assert expected
    assert serving.works("chat", QUESTION).out == f"{expected}\n"
    assert json.loads(serving.works("chat", QUESTION, "--json").out)["answer"] == expected


@pytest.mark.parametrize(
    "words", [("build-wheels", "--stack=cpu"), ("lab.model",), ("serve",)], ids=lambda words: words[0]
)
def test_a_second_run_has_nothing_to_do_and_says_so_in_seconds(serving: CommandLine, words: tuple[str, ...]) -> None:
    done = serving.works(*words)
    assert done.out == "nothing to do\n"
    assert done.seconds < 30


def test_what_the_ranks_say_to_each_other_is_shown_to_be_on_the_fabric(serving: CommandLine) -> None:
    done = serving.works("status", "--probe", "--json")
    proof = json.loads(done.out)["probe"]
    assert proof["good"], done.out
    assert proof["strays"] == []
    assert {one["node"] for one in proof["moved"] if one["fabric"] and one["more"] > 0} == {A, B}
    assert min(proof["sockets"].values()) > 0


def test_status_shows_two_nodes_whose_ray_is_up_and_that_it_serves(lab: Lab, serving: CommandLine) -> None:
    seen = json.loads(serving.works("status", "--json").out)
    assert seen["serving"] is True
    assert seen["api"] == lab.cluster.api_url
    assert [(node["name"], node["role"], node["ray"]) for node in seen["nodes"]] == [
        (A, "head", "up"),
        (B, "worker", "up"),
    ]
    assert {
        node["name"]: {unit.removeprefix("sparkstack-") for unit, state in node["units"].items() if state == "active"}
        for node in seen["nodes"]
    } == UNITS[RAY]
    table = serving.works("status").out
    assert "\nserving since " in table
    assert [name for name in (A, B) if name not in table] == []


ENVIRONMENTS = """\
for process in /proc/[0-9]*; do
    found=$(tr "\\0" "\\n" < $process/environ) || continue
    case "$found" in *VLLM_HOST_IP=*) printf "process:%s\\n%s\\n" $(cat $process/comm) "$found";; esac
done 2> /dev/null; true"""
"""Prints the environment of every process of the service, read once, behind a line `process:` and its name."""


def whole(environment: list[str]) -> bool:
    """False where a title has overwritten it: setproctitle writes zeros over arguments and environment, from the left.

    https://github.com/dvarrazzo/py-setproctitle/blob/master/src/spt_status.c
    """
    return "" not in environment


def test_every_process_has_the_fabric_address_of_its_own_node(lab: Lab, serving: CommandLine) -> None:
    assert serving
    for name in (A, B):
        blocks = [block.splitlines() for block in lab.output(name, ENVIRONMENTS).split("process:")[1:]]
        found = {block[0]: dict(line.partition("=")[::2] for line in block[1:]) for block in blocks if whole(block)}
        assert len(found) >= 4, blocks
        node = lab.cluster.node(name)
        for process, variables in found.items():
            assert variables["VLLM_HOST_IP"] == str(node.fabric), process
            for key in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME"):
                assert variables.get(key) == "fab0", (process, key, variables)


def test_ray_knows_both_nodes_by_their_fabric_addresses(lab: Lab, serving: CommandLine) -> None:
    assert serving
    for name in (A, B):
        node = lab.cluster.node(name)
        raylet = next(line for line in processes(lab, name) if "raylet/raylet " in line)
        assert f"--node_ip_address={node.fabric}" in raylet
        assert f"--gcs-address={lab.cluster.head.fabric}:{lab.cluster.ray_port}" in raylet


def test_only_ssh_and_the_api_can_be_reached_over_management(lab: Lab, serving: CommandLine) -> None:
    """What docs/ports.md says: a few of Ray's ports listen on every interface, and the firewall keeps them closed."""
    assert serving
    cluster = lab.cluster
    with Hosts(cluster) as hosts:
        facts = gather(hosts, cluster, Question()).parsed()
    for name in (A, B):
        node = cluster.node(name)
        closed = {
            port
            for word in closed_ports(cluster, facts[name])
            for first, _, last in [word.partition("-")]
            for port in range(int(first), int(last or first) + 1)
        }
        listeners = {tuple(line.split()[3].rsplit(":", 1)) for line in lab.output(name, "ss -Hltn").splitlines()}
        plain = {(address.strip("[]").removeprefix("::ffff:"), int(port)) for address, port in listeners}
        on_management = {port for address, port in plain if address == str(node.management)}
        everywhere = {port for address, port in plain if address in ("*", "0.0.0.0", "::")} - {node.ssh_port}
        assert on_management == ({cluster.api.port} if node == cluster.head else set())
        assert {address for address, _ in plain} <= {
            "*",
            "0.0.0.0",
            "::",
            "127.0.0.1",
            str(node.fabric),
            str(node.management),
        }
        assert everywhere <= closed, f"{name}: {sorted(everywhere - closed)} are open to all, and nothing closes them"
        assert [port for port in sorted(everywhere) if opens(str(node.management), port)] == []
        assert everywhere, "Ray listens on the fabric address only: docs/ports.md has to say so"


def opens(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=5).close()
    except OSError:
        return False
    return True


def test_systemd_finds_no_fault_in_our_units(lab: Lab, serving: CommandLine) -> None:
    assert serving
    for name in (A, B):
        done = lab.ssh(name, "systemd-analyze verify /etc/systemd/system/sparkstack-*.service")
        assert (done.code, done.out + done.err) == (0, "")


def test_logs_are_of_both_nodes_in_the_order_of_their_time(serving: CommandLine) -> None:
    lines = serving.works("logs", "--lines=2000").out.splitlines()
    found = [re.match(r"(\d\d:\d\d:\d\d\.\d{3}) (\S+) (\S+): ", line) for line in lines]
    heads = [match.groups() for match in found if match]
    assert {(A, "ray-head"), (A, "vllm"), (B, "ray-worker")} <= {(name, unit) for _, name, unit in heads}
    times = [stamp for stamp, _, _ in heads]
    assert times == sorted(times) or times[0] > times[-1]  # over midnight


def test_deployments_that_fail_leave_the_service_serving(lab: Lab, serving: CommandLine, checkout: Checkout) -> None:
    before = json.loads(serving.works("status", "--json").out)
    another = another_release(checkout, lab)
    with filled_disk(lab, A, leave=200):
        assert_refused(another("deploy"), 25, f"{A}: the disk is full")
    damage = "import sys; f = open(sys.argv[1], 'r+b'); f.seek(5000); f.write(b'damaged'); f.close()"
    lab.output(B, f'python3 -c "{damage}" /opt/sparkstack/wheels/torch-*.whl')
    assert serving.works("chat", QUESTION).out == f"{expected_answer(QUESTION)}\n"
    assert json.loads(serving.works("status", "--json").out)["nodes"][0]["release"] == before["nodes"][0]["release"]
    done = another.works("deploy")
    assert "is damaged there and comes again" in done.err
    assert serving.works("chat", QUESTION).out == f"{expected_answer(QUESTION)}\n"
    assert {name: active(lab, name) for name in (A, B)} == UNITS[RAY]


def another_release(checkout: Checkout, lab: Lab) -> CommandLine:
    """Build the wheels of a copy whose source of one wheel differs, so that its release is another one."""
    invoke = checkout.variant("another-release")
    checkout.share_wheels(ROOT, lab.cluster.stack)
    source = checkout.folder / "build/sources/vllm-ray-cpu/sparkstack_vllm_ray_cpu/platform.py"
    source.write_text(source.read_text(encoding="utf-8") + "\n# another build\n", encoding="utf-8")
    invoke.works("build-wheels", f"--stack={lab.cluster.stack}")
    return invoke
