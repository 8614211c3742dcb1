"""Parsers on what commands printed on real machines, and on any text at all."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from core import parsers
from core.parsers import Gpu, Hca, Listener, Memory
from tests.unit.samples import capture, lab_captures

LAB = lab_captures().nodes["lab-a"]
GIB = 1024**3


def out(fact: str) -> str:
    return str(LAB[fact]["out"])


def file(fact: str) -> str:
    return str(next(iter(LAB[fact]["files"].values())))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (capture("uname-a.spark.txt"), ("spark-0001", "6.17.0-1014-nvidia", "aarch64")),
        (capture("uname-a.thinkstation-pgx.txt"), ("thinkstationpgx-0000", "6.17.0-1021-nvidia", "aarch64")),
        (out("uname"), ("lab-a", "6.1.0-41-amd64", "x86_64")),
    ],
    ids=["Spark", "ThinkStation", "local machine"],
)
def test_uname_gives_name_kernel_and_architecture(text: str, expected: tuple[str, str, str]) -> None:
    found = parsers.uname(text)
    assert (found.hostname, found.kernel, found.architecture) == expected


def test_os_release_loses_its_quotes() -> None:
    spark, debian = parsers.os_release(capture("os-release.dgx-os.txt")), parsers.os_release(file("os"))
    assert (spark["PRETTY_NAME"], spark["ID"], spark["LOGO"]) == ("Ubuntu 24.04.4 LTS", "ubuntu", "ubuntu-logo")
    assert debian["VERSION_ID"] == "12"


def test_versions_are_two_numbers() -> None:
    assert parsers.glibc(out("glibc")) == (2, 36)
    assert parsers.python_version("Python 3.12.3\n") == (3, 12)
    assert parsers.python_version("Python 3.14.0rc2\n") == (3, 14)


def test_free_disk_space_is_that_of_the_deepest_folder() -> None:
    assert parsers.disk_free(out("disk")) == 5019074560


def test_a_link_without_a_cable_is_down_and_half_a_port_has_no_address() -> None:
    found = parsers.interfaces(capture("ip-br-addr.spark.txt"), {}, {})
    assert [name for name, interface in found.items() if interface.up] == [
        "lo",
        "enP7s7",
        "enp1s0f1np1",
        "enP2p1s0f1np1",
    ]
    assert found["enP7s7"].ipv4 == (IPv4Address("192.0.2.163"),)
    assert found["enP2p1s0f1np1"].ipv4 == ()
    assert found["enp1s0f0np0"].mtu is None


def test_the_peer_of_a_veth_is_no_part_of_its_name() -> None:
    found = parsers.interfaces(out("addresses"), LAB["mtu"]["files"], LAB["speed"]["files"])
    assert list(found) == ["lo", "host0", "fab0"]
    assert found["fab0"].ipv4 == (IPv4Address("198.18.100.1"),)
    assert (found["fab0"].mtu, found["fab0"].speed, found["lo"].speed) == (1500, 10000, None)


def test_an_unknown_speed_is_none() -> None:
    found = parsers.interfaces("eth0 UP", {"/sys/class/net/eth0/mtu": "9000\n"}, {"/sys/class/net/eth0/speed": "-1\n"})
    assert (found["eth0"].mtu, found["eth0"].speed) == (9000, None)


def test_a_gb10_is_read_with_its_capability_and_driver() -> None:
    text = capture("nvidia-smi-query-gpu.gb10.name-cc-driver-memory.csv.txt")
    assert parsers.gpus(text) == (Gpu("NVIDIA GB10", "12.1", "580.159.03"),)


@pytest.mark.parametrize("text", ["", "No devices were found\n", "NVIDIA-SMI has failed because it couldn't\n"])
def test_no_gpu_is_no_row(text: str) -> None:
    assert parsers.gpus(text) == ()


def test_the_cuda_release_is_without_its_patch() -> None:
    assert parsers.cuda_release(capture("nvcc-version.13.0.txt")) == "13.0"
    assert parsers.cuda_release("") is None


@pytest.mark.parametrize(
    ("name", "up"),
    [
        ("ibdev2netdev.one-port-up.txt", ["rocep1s0f0", "roceP2p1s0f0"]),
        ("ibdev2netdev.one-port-up.f1.p2-first.txt", ["roceP2p1s0f1", "rocep1s0f1"]),
        ("ibdev2netdev.two-ports-up.txt", ["rocep1s0f0", "rocep1s0f1", "roceP2p1s0f0", "roceP2p1s0f1"]),
    ],
)
def test_rdma_devices_are_read_with_their_interfaces_in_any_order(name: str, up: list[str]) -> None:
    found = parsers.hcas(capture(name))
    assert len(found) == 4
    assert [hca.device for hca in found if hca.up] == up
    assert Hca("rocep1s0f0", "enp1s0f0np0", "rocep1s0f0" in up) in found


@pytest.mark.parametrize("name", ["one-port-up", "one-port-up.f1.p2-first", "two-ports-up"])
def test_rdma_devices_are_the_same_in_sysfs(name: str) -> None:
    printed = parsers.hcas(capture(f"ibdev2netdev.{name}.txt"))
    files = {
        f"/sys/class/infiniband/{hca.device}/device/net/{hca.interface}/operstate": "up\n" if hca.up else "down\n"
        for hca in printed
    }
    assert set(parsers.hcas_in_sysfs(files)) == set(printed)
    assert parsers.hcas_in_sysfs({}) == ()


def test_a_package_that_was_removed_is_not_installed() -> None:
    text = out("packages") + "gcc config-files\nnvidia-driver \n"
    assert parsers.installed_packages(text) == {"libgomp1", "libnuma1"}


def test_a_file_name_may_hold_spaces() -> None:
    assert parsers.names_and_sizes("a b.whl 12\nc.whl 0\n") == {"a b.whl": 12, "c.whl": 0}
    assert len(parsers.names_and_sizes(out("wheels"))) == 5


def test_the_link_gives_the_release() -> None:
    assert parsers.release_of_link(out("current")) == "cpu-x86_64-cp311-c8ffbb91f3"
    assert parsers.release_of_link("") is None


def test_memory_is_read_in_bytes() -> None:
    found = parsers.meminfo(capture("proc-meminfo.gb10.partial.txt"))
    assert (found.total, found.available, found.free) == (127600816 * 1024, 40174336 * 1024, 3139656 * 1024)


@pytest.mark.parametrize(
    ("more", "free", "swapped"),
    [("", None, 0), ("MemFree: 4 kB\nSwapTotal: 9 kB\nSwapFree: 2 kB\n", 4096, 7168), ("SwapFree: 2 kB\n", None, 0)],
)
def test_what_is_free_and_what_lies_in_swap_is_read_beside_it(more: str, free: int | None, swapped: int) -> None:
    host = parsers.meminfo(f"MemTotal: 20 kB\nMemAvailable: 10 kB\n{more}")
    assert (host.free, host.swapped) == (free, swapped)
    smaller = parsers.smaller_memory(host, ["4096"], "0", "")
    assert smaller == Memory(4096, 4096, free, swapped), "a cgroup limits neither"


def test_memory_without_its_lines_is_refused() -> None:
    with pytest.raises(ValueError, match="no MemAvailable in it"):
        parsers.meminfo("MemTotal:       127600816 kB\n")


HOST = Memory(24 * GIB, 20 * GIB)


@pytest.mark.parametrize(
    ("limits", "usage", "stat", "expected"),
    [
        ([], "", "", HOST),
        (["max\n"], "1000\n", "", HOST),
        (["9223372036854771712\n"], "1000\n", "", HOST),
        ([f"{5 * GIB}\n"], f"{2 * GIB}\n", "", Memory(5 * GIB, 3 * GIB)),
        ([f"{5 * GIB}\n"], f"{2 * GIB}\n", f"active_file {GIB}\ninactive_file 0\n", Memory(5 * GIB, 4 * GIB)),
        ([f"{5 * GIB}\n"], f"{6 * GIB}\n", "", Memory(5 * GIB, 0)),
        ([f"{23 * GIB}\n"], "0\n", "", Memory(23 * GIB, 20 * GIB)),
    ],
    ids=[
        "no cgroup",
        "v2 without limit",
        "v1 without limit",
        "limit",
        "page cache is free",
        "over it",
        "host is fuller",
    ],
)
def test_a_smaller_cgroup_is_the_machines_memory(limits: list[str], usage: str, stat: str, expected: Memory) -> None:
    assert parsers.smaller_memory(HOST, limits, usage, stat) == expected


def test_page_cache_of_cgroup_v1_is_counted_once() -> None:
    host, limits = parsers.meminfo(file("meminfo")), LAB["cgroup"]["files"].values()
    found = parsers.smaller_memory(host, limits, file("cgroup_usage"), file("cgroup_stat"))
    assert found == Memory(5368709120, 5368709120 - (890724352 - 71938048 - 131297280), 22470600 * 1024)


def test_a_unit_that_does_not_exist_is_none() -> None:
    assert parsers.units(out("install")) == {}
    assert parsers.units("") == {}


STATES = ("enabled", "enabled-runtime", "disabled", "")


def test_units_are_read_with_state_and_process() -> None:
    second = (
        out("units").replace("ray-head", "vllm").replace("=active", "=failed").replace("NRestarts=0", "NRestarts=2")
    )
    found = parsers.units(out("units") + "\n" + second)
    assert list(found) == ["sparkstack-ray-head", "sparkstack-vllm"]
    head, vllm = found.values()
    assert (head.loaded, head.active, head.sub, head.pid) == (True, "active", "running", 394)
    assert head.since == "Mon 2026-11-23 08:43:35 UTC"
    assert (vllm.active, vllm.restarts) == ("failed", 2)
    assert [
        parsers.units(out("units") + f"UnitFileState={word}\n")["sparkstack-ray-head"].enabled for word in STATES
    ] == [
        True,
        True,
        False,
        False,
    ]


def test_processes_keep_their_whole_command() -> None:
    head, agent, idle = parsers.processes(out("processes"))
    assert (head.pid, head.user) == (394, "spark")
    assert head.command.endswith("--object-store-memory=268435456")
    assert (agent.command, idle.command) == ("ray::DashboardAgent", "ray::IDLE")


def test_a_command_line_may_hold_strange_separators() -> None:
    (found,) = parsers.processes("  12 spark  /opt/sparkstack/x a\u2028b\x0bc\n")
    assert found.command == "/opt/sparkstack/x a\u2028b\x0bc"


def test_listeners_are_read_on_both_families() -> None:
    found = parsers.listeners(capture("ss-tlnp.spark.txt"))
    assert Listener("0.0.0.0", 22) in found
    assert Listener("::1", 631) in found
    assert Listener("127.0.0.53%lo", 53) in found
    assert len(found) == 7, "its header is no listener"
    assert Listener("*", 6379) in parsers.listeners(out("listening"))


def test_the_range_of_chosen_ports_is_linuxs_own_where_nobody_says() -> None:
    assert parsers.port_range("1024\t65535\n") == (1024, 65535)
    assert parsers.port_range("") == (32768, 60999)


def test_what_somebody_else_wrote_is_shown_on_one_line() -> None:
    assert parsers.shown("a\nproblem: b\x1b[2J\u2028c\u202ed é") == "a problem: b [2J c d é"


def test_a_record_is_a_json_object() -> None:
    assert parsers.record('{"a": 1}') == {"a": 1}
    with pytest.raises(ValueError, match="no JSON object"):
        parsers.record("[1]")


TEXT_PARSERS: dict[str, Callable[[str], Any]] = {
    "uname": parsers.uname,
    "os_release": parsers.os_release,
    "glibc": parsers.glibc,
    "disk_free": parsers.disk_free,
    "port_range": parsers.port_range,
    "interfaces": lambda text: parsers.interfaces(
        text, {"/sys/class/net/a/mtu": text}, {"/sys/class/net/a/speed": text}
    ),
    "gpus": parsers.gpus,
    "cuda_release": parsers.cuda_release,
    "gpu_codes": parsers.gpu_codes,
    "program_names": parsers.program_names,
    "yes": parsers.yes,
    "ended_builds": parsers.ended_builds,
    "hcas": parsers.hcas,
    "hcas_in_sysfs": lambda text: parsers.hcas_in_sysfs({text: text, f"/sys/class/{text}": text}),
    "installed_packages": parsers.installed_packages,
    "names_and_sizes": parsers.names_and_sizes,
    "release_of_link": parsers.release_of_link,
    "meminfo": parsers.meminfo,
    "cgroup": lambda text: parsers.smaller_memory(HOST, [text, "1"], text, text),
    "units": parsers.units,
    "processes": parsers.processes,
    "listeners": parsers.listeners,
    "history": parsers.history,
    "disk_used": parsers.disk_used,
    "record": parsers.record,
    "record_or_none": parsers.record_or_none,
    "shown": parsers.shown,
}
NEARLY = st.lists(
    st.sampled_from(
        [*out("addresses").split(), *out("units").split(), *out("listening").split(), "", "\n", "=", "²", "٣"]
    )
).map(" ".join)


@pytest.mark.parametrize("name", TEXT_PARSERS)
@given(text=st.one_of(st.text(), NEARLY, st.text(alphabet="aUP0123456789.:/= \n²")))
@example(text="9" * 5000)
@example(text="eth0 UP 1.2.3.4.5/24")
@example(text="Id=x\nMainPID=x")
def test_any_text_is_read_or_refused_as_a_fact_can_be(name: str, text: str) -> None:
    """facts.parse turns these into an error that names node and fact."""
    with contextlib.suppress(ValueError, IndexError, KeyError):
        TEXT_PARSERS[name](text)


def test_every_parser_is_tried_with_any_text() -> None:
    public = {name for name, value in vars(parsers).items() if callable(value) and name.islower() and name[0] != "_"}
    tried = {*TEXT_PARSERS, "python_version", "smaller_memory"}
    assert {name for name in public if getattr(parsers, name).__module__ == parsers.__name__} <= tried


def test_the_codes_of_a_gpu_are_those_that_the_tools_name() -> None:
    spark, older = (parsers.gpu_codes(capture(f"nvcc-list-gpu-code.{one}.not-spark.txt")) for one in ("13.0", "12.4"))
    assert {"sm_75", "sm_120", "sm_121"} < spark
    assert older == {f"sm_{one}" for one in (50, 52, 53, 60, 61, 62, 70, 72, 75, 80, 86, 87, 89, 90)}
    ptxas, triton = (parsers.gpu_codes(capture(f"ptxas-help.{one}.not-spark.txt")) for one in ("13.0", "12.8"))
    assert {"sm_121", "sm_121a", "sm_121f", "sm_90a"} < ptxas
    assert {"sm_120", "sm_120a"} < triton
    assert not any(code.startswith("sm_121") for code in triton)
    assert parsers.cuda_release(capture("nvcc-version.12.4.not-spark.txt")) == "12.4"


@pytest.mark.parametrize(
    ("text", "programs"),
    [("/usr/bin/g++\n/usr/lib/ccache/ccache\n", {"g++", "ccache"}), ("", set()), ("\n", set())],
)
def test_programs_are_named_by_their_paths(text: str, programs: set[str]) -> None:
    assert parsers.program_names(text) == programs


def test_a_history_names_releases_in_the_order_of_their_use() -> None:
    text = '{"release": "one", "at": "2026-11-24T10:00:00Z", "by": "a@b"}\n\n{"release": "two", "at": "?", "by": "?"}\n'
    assert parsers.history(text) == (
        parsers.Taken("one", "2026-11-24T10:00:00Z", "a@b"),
        parsers.Taken("two", "?", "?"),
    )
    assert parsers.history("") == ()


@pytest.mark.parametrize("text", ["{", "[]", '{"release": "one"}'])
def test_a_history_that_is_cut_is_no_history(text: str) -> None:
    with pytest.raises((ValueError, KeyError)):
        parsers.history(text)


def test_the_disk_that_is_used_is_read_by_path() -> None:
    assert parsers.disk_used("4096\t/opt/a b\n8192\t/opt\nno\n") == {"/opt/a b": 4096, "/opt": 8192}
