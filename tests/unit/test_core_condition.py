"""Parsers of a node's condition on what Sparks printed, and on any text at all."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from core import condition
from core.condition import Condition, GpuProcess, Offset, Owner
from core.config import load_cluster
from core.errors import FactsError
from core.facts import parse
from tests.unit.samples import capture, lab_captures, spark_captures

LAB = lab_captures().nodes["lab-a"]
SPARK = spark_captures().nodes["gx10-beee"]
SYSFS = "/sys/class/infiniband"


def gid_files(text: str) -> dict[str, str]:
    """Return what `show_gids` printed as the files it read; the author of the capture masked link-local addresses."""
    files = {}
    for row in re.findall(r"^(\w+)\s+1\s+(\d+)\s+(\S+).*\s(v[12])\s", text, re.MULTILINE):
        device, index, address, version = row
        port = f"{SYSFS}/{device}/ports/1"
        files[f"{port}/gids/{index}"] = address.replace("xxxx", "00ff") + "\n"
        files[f"{port}/gid_attrs/types/{index}"] = "RoCE v2\n" if version == "v2" else "IB/RoCE v1\n"
    return files


def port_files(text: str) -> dict[str, str]:
    """Return what `ibstat` printed of the firmware as the files it read."""
    files = {}
    for block in text.split("CA '")[1:]:
        folder = f"{SYSFS}/{block.partition(chr(39))[0]}"
        values = dict(re.findall(r"^\s*([\w ]+): (.+)$", block, re.MULTILINE))
        files[f"{folder}/fw_ver"] = values["Firmware version"] + "\n"
    return files


def test_processes_on_the_gpu_are_read_with_their_memory() -> None:
    found = condition.gpu_processes(capture("nvidia-smi-query-compute-apps.gb10.txt"))
    assert [(one.pid, one.memory) for one in found] == [
        (168864, 24420 * 2**20),
        (169094, 19871 * 2**20),
        (169489, 9279 * 2**20),
    ]
    assert {one.name for one in found} == {"/usr/local/bin/llama-server"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        ("pid, process_name, used_gpu_memory [MiB]\n", ()),
        ("No running processes found\n", ()),
        ("7, a\x1b[2Jb\rc, [N/A]\n", (GpuProcess(7, "a [2Jb c", None),)),
        ("7, python3 -c a, b, [N/A]\n", (GpuProcess(7, "python3 -c a, b", None),)),
        ("577729, VLLM::EngineCore, 89093 MiB\n", (GpuProcess(577729, "VLLM::EngineCore", 89093 * 2**20),)),
    ],
    ids=["nothing", "header only", "none", "signs that move the cursor", "commas and no memory", "vLLM"],
)
def test_no_process_is_no_row_and_memory_may_be_unknown(text: str, expected: tuple[GpuProcess, ...]) -> None:
    assert condition.gpu_processes(text) == expected


def test_rdma_ports_are_read_with_their_firmware() -> None:
    found = condition.rdma_ports(port_files(capture("ibstat.gb10.first-three-cas.txt")), {})
    assert {name: port.firmware for name, port in found.items()} == dict.fromkeys(
        ("roceP2p1s0f0", "roceP2p1s0f1", "rocep1s0f0"), "28.45.4028"
    )


def test_the_rocev2_address_of_a_half_is_found_by_its_ipv4() -> None:
    files = gid_files(capture("show_gids.spark.txt"))
    ports = dict.fromkeys({f"{name.split('/ports')[0]}/fw_ver" for name in files}, "28.45.4028\n")
    found = condition.rdma_ports(ports, files)
    second = {name: [(gid.index, gid.ipv4) for gid in port.gids if gid.version == "v2"] for name, port in found.items()}
    assert second == {
        "rocep1s0f0": [(1, None), (3, IPv4Address("192.168.100.10"))],
        "rocep1s0f1": [(1, None)],
        "roceP2p1s0f0": [(1, None), (3, IPv4Address("192.168.100.14"))],
        "roceP2p1s0f1": [(1, None)],
    }


def test_entries_of_a_port_that_are_not_in_use_are_none() -> None:
    port = f"{SYSFS}/rocep1s0f0/ports/1"
    files = {f"{port}/gids/0": "0000:0000:0000:0000:0000:0000:0000:0000\n", f"{port}/gid_attrs/types/0": "RoCE v2\n"}
    assert condition.rdma_ports({f"{SYSFS}/rocep1s0f0/fw_ver": "28.45.4028\n"}, files)["rocep1s0f0"].gids == ()


def test_the_module_that_is_loaded_has_a_version() -> None:
    assert condition.module_version(capture("proc-driver-nvidia-version.gb10.txt")) == "580.142"
    assert condition.module_version("") is None
    proprietary = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\n"
    assert condition.module_version(proprietary) == "535.183.01"


def test_swap_is_what_free_says_too() -> None:
    used = re.findall(r"^Swap:\s+\d+\s+(\d+)", capture("free-b.gb10.txt"), re.MULTILINE)[0]
    assert parse("a", SPARK).condition.swapped == int(used)


def test_what_is_free_is_less_than_what_is_available() -> None:
    seen = parse("a", SPARK)
    assert seen.condition.memory_free == 89867196 * 1024 < seen.memory_available


def test_a_large_packet_is_as_long_as_the_mtu_that_a_fast_link_wants() -> None:
    assert condition.LARGE == "8972"
    asked = condition.request(load_cluster("local"), load_cluster("local").head, PurePosixPath("/m"))
    assert "8972" in asked["commands"]["large lab-b"]
    assert asked["files"]["rdma"] == ["/sys/class/infiniband/*/fw_ver"]


def test_a_clock_is_somewhere_between_two_offsets() -> None:
    found = condition.offset("100.5 101.0\n", "100.0 102.0\n")
    assert found == Offset(-1.0, 0.5), "the probe began half a second after it was asked, and ended one before"
    assert condition.offset("", "1 2") is condition.offset("1 2", "") is None
    with pytest.raises(ValueError, match="not enough values"):
        condition.offset("1", "1 2")


def test_owners_are_read_with_the_unit_that_holds_them() -> None:
    text = (
        "      1 root                             init.scope\n  394 spark    sparkstack-ray-head.service\n 9 root -\n"
    )
    assert condition.owners(text) == {
        1: Owner("root", "init.scope"),
        394: Owner("spark", "sparkstack-ray-head.service"),
        9: Owner("root", "-"),
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 packets transmitted, 1 received, 0% packet loss, time 0ms", True),
        ("1 packets transmitted, 0 received, +1 errors, 100% packet loss, time 0ms", False),
        ("", None),
        ("ping: connect: Network is unreachable", None),
    ],
)
def test_a_packet_came_back_or_not_or_was_not_sent(text: str, expected: bool | None) -> None:  # noqa: FBT001
    assert condition.came_back(text) is expected


def test_the_way_is_the_device_of_the_route() -> None:
    assert condition.route_device("10.20.3.4 dev enp1s0f0np0 src 10.20.3.3 uid 1000 \\    cache \n") == "enp1s0f0np0"
    assert condition.route_device("10.9.9.9 via 10.10.10.1 dev enP7s7 src 10.10.10.126 uid 0") == "enP7s7"
    assert condition.route_device(capture("ip-route.spark.no-default.txt")) == "enP7s7", "the first"
    assert condition.route_device("") is None


@pytest.mark.parametrize(
    ("text", "score"), [("      1 -1000\n   1213     0\n", -1000), ("    1     0\n", 0), ("  1213     0\n", None)]
)
def test_the_sshd_that_counts_is_the_one_that_listens(text: str, score: int | None) -> None:
    assert condition.sshd_oom(text) == score


def test_a_spark_has_a_release_of_its_own_whose_serial_number_never_leaves_it() -> None:
    found = parse("a", SPARK).condition.dgx
    assert (found["DGX_NAME"], found["DGX_OTA_VERSION"]) == ("DGX Spark", "7.5.0")
    assert "DGX_SERIAL_NUMBER" not in found


def test_the_shipped_sparks_have_a_whole_condition() -> None:
    found = parse("gx10-beee", SPARK).condition
    assert found.clock is not None
    assert found.clock.least <= 0 <= found.clock.most
    assert found.lanes["enp1s0f0np0"] == 4
    assert found.reach == found.reach_large == {"gx10-c6fb": True}
    assert found.routes == {"gx10-c6fb": "enp1s0f0np0"}
    assert (found.module, found.sshd_oom, found.gpu_processes) == ("580.159.03", -1000, ())
    assert found.rdma["rocep1s0f0"].gids[-1].ipv4 == IPv4Address("172.16.100.1")


def test_an_older_capture_knows_little_of_the_condition() -> None:
    found = parse("lab-a", LAB).condition
    memory = 22470600 * 1024
    assert found == Condition(memory_free=memory)


@pytest.mark.parametrize(
    ("fact", "answer"),
    [
        ("gids", {"files": {f"{SYSFS}/rocep1s0f0/ports/1/gids/0": "fe80:0000:0000:0000:xxxx:xxxx:xxxx:xxxx"}}),
        ("rdma", {"files": {"x": "y"}}),
        ("clock", {"out": "noon"}),
    ],
)
def test_what_cannot_be_read_is_named_with_its_node(fact: str, answer: dict[str, Any]) -> None:
    with pytest.raises(FactsError, match="cannot be read") as caught:
        parse("gx10-beee", {**SPARK, fact: answer})
    assert caught.value.node == "gx10-beee"


TEXT_PARSERS: dict[str, Callable[[str], Any]] = {
    "offset": lambda text: condition.offset(text, text),
    "gpu_processes": condition.gpu_processes,
    "owners": condition.owners,
    "rdma_ports": lambda text: condition.rdma_ports(
        {f"{SYSFS}/a/fw_ver": text, text: text},
        {f"{SYSFS}/a/ports/1/gids/0": text, f"{SYSFS}/a/ports/1/gid_attrs/types/0": "RoCE v2"},
    ),
    "lanes": lambda text: condition.lanes({"/sys/class/net/a/device/current_link_width": text}),
    "came_back": condition.came_back,
    "route_device": condition.route_device,
    "module_version": condition.module_version,
    "sshd_oom": condition.sshd_oom,
}


@pytest.mark.parametrize("name", TEXT_PARSERS)
@given(text=st.one_of(st.text(), st.text(alphabet="1 23:.,[]\n-devMiB²٣")))
@example(text="9" * 5000)
@example(text="1, a, " + "9" * 5000 + " MiB")
@example(text="1 packets, " + "9" * 5000 + " received")
@example(text="1 -" + "9" * 5000)
def test_any_text_is_read_or_refused_as_a_fact_can_be(name: str, text: str) -> None:
    """facts.parse turns these into an error that names node and fact."""
    with contextlib.suppress(ValueError, IndexError, KeyError):
        TEXT_PARSERS[name](text)


def test_every_parser_is_tried_with_any_text() -> None:
    public = {name for name, value in vars(condition).items() if callable(value) and name.islower() and name[0] != "_"}
    ours = {name for name in public if getattr(condition, name).__module__ == condition.__name__}
    assert ours - {"request", "condition"} <= set(TEXT_PARSERS)
