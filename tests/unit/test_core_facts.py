"""The probe: what it asks, what it runs, and how a capture becomes facts or an error that names node and fact."""

from __future__ import annotations

import contextlib
import copy
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.config import Address, Subnet, load_cluster, load_profile
from core.errors import ConfigError, FactsError
from core.facts import Captures, NodeFacts, gather, load_captures, parse, require_nodes
from core.parsers import Toolchain
from core.probe import probe_argv
from core.process import Completed
from core.question import Question, model_folder, probe_request
from tests.unit.samples import LAB_PAIR, SPARK_PAIR, lab_captures, spark_captures

NEEDED = ["uname", "glibc", "python", "cores", "disk", "addresses"]
CAPTURE: dict[str, Any] = dict(lab_captures().nodes["lab-a"])


def changed(fact: str, answer: dict[str, Any] | None) -> dict[str, Any]:
    facts = {name: copy.deepcopy(raw) for name, raw in CAPTURE.items() if name != fact}
    return facts if answer is None else {**facts, fact: answer}


def test_a_whole_capture_of_a_local_machine_is_read() -> None:
    seen = parse("lab-a", CAPTURE)
    assert (seen.name, seen.hostname, seen.architecture) == ("lab-a", "lab-a", "x86_64")
    assert (seen.glibc, seen.python, seen.cores) == ((2, 36), (3, 11), 2)
    assert seen.memory_total == 5 * 1024**3, "its cgroup's, not the host's"
    assert seen.memory_available < seen.memory_total
    assert seen.root_owner == "spark"
    assert seen.current in seen.releases
    assert not seen.partial
    assert "config.json" in seen.model_files
    assert seen.model_origin is not None
    assert seen.units["sparkstack-ray-head"].active == "active"
    assert [process.pid for process in seen.processes] == [394, 516, 575]
    assert (seen.gpus, seen.cuda, seen.hcas) == ((), None, ())


@pytest.mark.parametrize(
    ("name", "lan", "fabric"), [("gx10-beee", "34.100", "100.1"), ("gx10-c6fb", "34.101", "100.2")]
)
def test_the_shipped_sparks_are_the_guides(name: str, lan: str, fabric: str) -> None:
    seen, cluster = spark_captures().parsed()[name], load_cluster("spark")
    assert (seen.hostname, seen.architecture, seen.python, seen.glibc) == (name, "aarch64", (3, 12), (2, 39))
    management, cable = seen.interface_of(cluster.node(name).management), seen.interface_of(cluster.node(name).fabric)
    assert management is not None
    assert cable is not None
    assert (management.name, cable.name, cable.mtu, cable.up) == ("enP7s7", "enp1s0f0np0", 9000, True)
    assert (str(management.ipv4[0]), str(cable.ipv4[0])) == (f"192.168.{lan}", f"172.16.{fabric}")
    assert seen.addresses["enP2p1s0f0np0"].up
    assert not seen.addresses["enp1s0f1np1"].up
    assert [hca.device for hca in seen.hcas if hca.up] == ["rocep1s0f0", "roceP2p1s0f0"]
    assert [gpu.capability for gpu in seen.gpus] == ["12.1"]
    assert seen.cuda == "13.0"
    assert seen.memory_total == 128452014080 - 128452014080 % 1024
    tools = seen.toolchain
    assert (tools.gcc, tools.programs, tools.headers) == ("13.3.0", {"g++", "git"}, True)
    assert tools.cuda_folder == "/usr/local/cuda-13.0"
    assert "sm_121" in (tools.nvcc_codes or ())
    assert {"sm_121", "sm_121a", "sm_121f"} < (tools.ptxas_codes or set())
    assert (seen.current, seen.root_owner, seen.units, seen.processes) == (None, None, {}, ())


def test_the_shipped_facts_answer_all_that_the_probe_asks_and_say_where_each_is_from() -> None:
    shipped, cluster = spark_captures(), load_cluster("spark")
    for node in cluster.nodes:
        question = Question(load_profile("qwen2.5-32b"), ("gcc",), whole=True, wiring=True)
        request = probe_request(cluster, node, question)
        assert {*request["commands"], *request["files"], "clock", "asked"} == set(shipped.nodes[node.name])
        assert set(shipped.nodes[node.name]) <= set(shipped.sources)
    assert "/work" not in SPARK_PAIR.read_text()


@pytest.mark.parametrize("fact", NEEDED)
@pytest.mark.parametrize("answer", [None, {"code": 127, "out": "", "error": "no such file"}], ids=["missing", "failed"])
def test_a_needed_fact_that_is_missing_is_named_with_its_node(fact: str, answer: dict[str, Any] | None) -> None:
    with pytest.raises(FactsError) as caught:
        parse("lab-a", changed(fact, answer))
    assert caught.value.node == "lab-a"
    assert caught.value.cause == f"the fact {fact!r} cannot be read: the node did not answer it"
    assert caught.value.evidence == ("no such file" if answer else "")


def test_facts_that_cannot_be_read_silence_their_own_node_only() -> None:
    nodes = {**lab_captures().nodes, "lab-b": changed("cores", {"code": 0, "out": "many"})}
    facts, silent = Captures(nodes).parsed_each()
    assert facts == {"lab-a": parse("lab-a", CAPTURE)}
    assert list(silent) == ["lab-b"]
    assert (silent["lab-b"].node, silent["lab-b"].exit_code) == ("lab-b", FactsError.exit_code)


@pytest.mark.parametrize("fact", ["ours", "containers", "history"])
@pytest.mark.parametrize("text", ["[" * 100_000, '{"pid": null}', "5", '{"pid": [1]}'])
def test_json_of_another_shape_is_a_fact_that_cannot_be_read(fact: str, text: str) -> None:
    answer = {"code": 0, "out": f"answered\n{text}" if fact == "containers" else text}
    with pytest.raises(FactsError, match="cannot be read"):
        parse("lab-a", changed(fact, answer))


def test_a_manifest_that_is_nested_without_end_is_a_damaged_one() -> None:
    found = parse("lab-a", changed("models", {"code": 0, "files": {"/m/x/sparkstack-model.json": "[" * 100_000}}))
    assert found.models == {"/m/x": {}}


@pytest.mark.parametrize("fact", sorted(CAPTURE.keys() - {*NEEDED, "meminfo"}))
def test_any_other_fact_may_be_absent(fact: str) -> None:
    assert isinstance(parse("lab-a", changed(fact, None)), NodeFacts)


@pytest.mark.parametrize(
    ("fact", "answer"),
    [
        ("cores", {"out": "many"}),
        ("uname", {"out": "Linux"}),
        ("disk", {"out": "df: no such file"}),
        ("addresses", {"out": "eth0 UP 300.1.1.1/24"}),
        ("wheels", {"out": "x.whl large"}),
        ("units", {"out": "Id=a.service\nMainPID=x"}),
        ("processes", {"out": "a b c"}),
        ("meminfo", {"files": {}}),
        ("meminfo", {"files": {"/proc/meminfo": "MemFree: 1 kB\n"}}),
        ("cgroup_usage", {"files": {"/usage": "much"}}),
        ("complete", {"files": {"/opt/sparkstack/releases/x/complete.json": "{"}}),
        ("complete", {"files": {"/opt/sparkstack/releases/x/complete.json": "[]"}}),
        ("model_origin", {"files": {"/m/sparkstack.json": "\0"}}),
    ],
    ids=lambda value: value if isinstance(value, str) else json.dumps(value),
)
def test_a_fact_that_cannot_be_read_is_named_with_its_node(fact: str, answer: dict[str, Any]) -> None:
    with pytest.raises(FactsError) as caught:
        parse("lab-a", changed(fact, answer))
    assert caught.value.node == "lab-a"
    assert caught.value.cause.startswith(f"the fact {fact!r} cannot be read: ")
    text = answer.get("out") or next(iter(answer.get("files", {}).values()), "")
    assert caught.value.evidence == text.strip()


@given(fact=st.sampled_from(sorted(CAPTURE)), text=st.text())
def test_a_capture_with_any_text_in_it_is_read_or_refused(fact: str, text: str) -> None:
    raw = CAPTURE[fact]
    answer = {"files": dict.fromkeys([*raw["files"], "/more/x"], text)} if "files" in raw else {"out": text}
    with contextlib.suppress(FactsError):
        assert isinstance(parse("lab-a", changed(fact, answer)), NodeFacts)


def test_an_older_capture_knows_nothing_of_the_toolchain() -> None:
    assert parse("lab-a", CAPTURE).toolchain == Toolchain()
    assert not parse("lab-a", CAPTURE).toolchain.ccache


def test_what_was_asked_and_is_not_there_is_known() -> None:
    absent = {"code": 127, "out": "", "error": "[Errno 2] No such file or directory"}
    facts = ("gcc", "tools", "cuda_folder", "nvcc_codes", "ptxas_help", "headers")
    found = parse("lab-a", {**CAPTURE, **dict.fromkeys(facts, absent)}).toolchain
    assert (found.gcc, found.programs, found.cuda_folder, found.headers) == ("", frozenset(), "", False)
    assert (found.nvcc_codes, found.ptxas_codes) == (frozenset(), frozenset())


def test_rdma_devices_are_found_where_ibdev2netdev_is_not_installed() -> None:
    shipped = spark_captures().nodes["gx10-beee"]
    plain, without = (parse("a", facts).hcas for facts in (shipped, {**shipped, "hcas": {"code": 127, "out": ""}}))
    assert len(plain) == 4
    assert set(plain) == set(without)


def test_builds_that_ended_on_a_node_are_named() -> None:
    seen = parse("lab-a", changed("builds", {"out": "/opt/sparkstack/build/probe-0123456789/out/result.json\n"}))
    assert seen.builds == {"probe-0123456789"}


def test_a_release_without_a_record_is_a_partial_one() -> None:
    seen = parse("lab-a", changed("releases", {"out": CAPTURE["releases"]["out"] + "cpu-x86_64-cp311-broken\n"}))
    assert seen.partial == {"cpu-x86_64-cp311-broken"}


def test_interfaces_are_found_by_address_and_by_network() -> None:
    seen = parse("lab-a", CAPTURE)
    fabric = seen.addresses["fab0"]
    assert seen.interface_of(Address("198.18.100.1")) == fabric == seen.interface_in(Subnet("198.18.100.0/24"))
    assert seen.interface_of(Address("198.18.100.9")) is None
    assert seen.interface_in(Subnet("10.0.0.0/8")) is None


def test_the_probe_reads_no_credential() -> None:
    cluster = load_cluster("local")
    for node in cluster.nodes:
        globs = [glob for globs in probe_request(cluster, node, Question())["files"].values() for glob in globs]
        assert "/etc/sparkstack/*" in globs
        assert not [glob for glob in globs if Path("/etc/sparkstack/credentials/api-key").match(glob)]


def test_the_condition_is_asked_only_where_it_is_wanted() -> None:
    cluster = load_cluster("local")
    plain, whole = (probe_request(cluster, cluster.head, Question(whole=whole)) for whole in (False, True))
    more = {*whole["commands"], *whole["files"]} - {*plain["commands"], *plain["files"]}
    assert {"reach lab-b", "route lab-b", "gpu_processes", "gids", "model_config"} < more
    assert whole["commands"]["reach lab-b"][-2:] == ["198.18.100.1", "198.18.100.2"]


def test_a_model_is_below_the_root_unless_its_path_is_absolute() -> None:
    cluster, tiny = load_cluster("local"), load_profile("tiny")
    assert str(model_folder(cluster, tiny)) == "/opt/sparkstack/models/sparkstack-tiny"
    assert str(model_folder(cluster, tiny.model_copy(update={"model": "/srv/m"}))) == "/srv/m"


def test_a_request_is_data_and_is_asked_in_one_command() -> None:
    cluster = load_cluster("local")
    request = probe_request(cluster, cluster.head, Question(load_profile("tiny"), ("libnuma1",), whole=True))
    assert json.loads(json.dumps(request)) == request
    assert request["commands"]["packages"][-1] == "libnuma1"
    argv = probe_argv(request)
    assert argv[:4] == ("python3", "-I", "-S", "-c")
    assert not any("sparkstack" in word for word in argv), "or the probe would find itself among our processes"


def test_facts_are_saved_and_read_back(tmp_path: Path) -> None:
    shipped = spark_captures()
    (tmp_path / "f.json").write_text(shipped.to_json())
    assert load_captures(tmp_path / "f.json") == shipped
    (tmp_path / "f.json").write_text(Captures(shipped.nodes).to_json())
    assert load_captures(tmp_path / "f.json") == replace(shipped, sources={})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "Expecting value"),
        ("[]", "list indices"),
        ('{"sources": {}}', "'nodes'"),
        ('{"nodes": []}', "its nodes are not {name: {fact: answer}}"),
        ('{"nodes": {"a": []}}', "its nodes are not"),
        ('{"nodes": {"a": {"uname": "Linux"}}}', "its nodes are not"),
        ('{"nodes": {"a": {"uname": {"out": 5}}}}', "its nodes are not"),
        ('{"nodes": {"a": {"mtu": {"files": {"x": null}}}}}', "its nodes are not"),
        ("\ud800", "'utf-8' codec"),
    ],
)
def test_a_file_that_holds_no_facts_is_refused(content: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "f.json").write_bytes(content.encode(errors="surrogatepass"))
    with pytest.raises(ConfigError) as caught:
        load_captures(tmp_path / "f.json")
    assert says in caught.value.cause
    assert caught.value.next_move == "make it with invoke facts --save FILE"


def test_a_missing_facts_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.json cannot be read: No such file"):
        load_captures(tmp_path / "none.json")


def test_facts_of_another_cluster_are_refused() -> None:
    with pytest.raises(ConfigError, match="the facts hold gx10-beee, gx10-c6fb, not lab-a, lab-b"):
        require_nodes(spark_captures().parsed(), load_cluster("local").nodes)


class Answering:
    """A node that answers the probe with a text."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text

    def run(self, argv: Any, **_: Any) -> Completed:
        return Completed(tuple(argv), 0, self.text)


def test_all_nodes_are_asked() -> None:
    cluster, saved = load_cluster("local"), load_captures(LAB_PAIR)
    hosts = {name: Answering(name, json.dumps(facts)) for name, facts in saved.nodes.items()}
    began = time.time()
    found = gather(hosts, cluster, Question()).nodes  # type: ignore[arg-type]
    assert {name: {**facts, "asked": None} for name, facts in found.items()} == {
        name: {**facts, "asked": None} for name, facts in saved.nodes.items()
    }
    for facts in found.values():
        asked, answered = map(float, facts["asked"]["out"].split())
        assert began - 1 < asked <= answered < time.time() + 1, "when this host asked and was answered"


@pytest.mark.parametrize("text", ["Welcome!\n{}", "5", ""])
def test_a_login_script_that_prints_is_suspected(text: str) -> None:
    cluster = load_cluster("local")
    hosts = {name: Answering(name, text) for name in ("lab-a", "lab-b")}
    with pytest.raises(FactsError, match="is not JSON") as caught:
        gather(hosts, cluster, Question())  # type: ignore[arg-type]
    assert (caught.value.node, "bashrc" in caught.value.next_move) == ("lab-a", True)


def test_an_inventory_asks_for_the_disk_and_the_locks_and_no_other_question_does() -> None:
    cluster = load_cluster("local")
    plain = probe_request(cluster, cluster.head, Question())
    whole = probe_request(cluster, cluster.head, Question(inventory=True))
    assert whole["commands"].keys() - plain["commands"].keys() == {"used", "total"}
    assert whole["files"].keys() - plain["files"].keys() == {"locks"}


def test_an_inventory_is_read_by_release_and_by_path() -> None:
    root = "/opt/sparkstack"
    capture = {
        **CAPTURE,
        "history": {"code": 0, "out": '{"release": "one", "at": "2026-11-24T10:00:00Z", "by": "a@b"}\n'},
        "entries": {"code": 0, "out": "releases\nwheels\n"},
        "used": {"code": 0, "out": f"9\t{root}/releases/one\n30\t{root}\n"},
        "total": {"code": 0, "out": f"20\t{root}\n"},
        "locks": {"code": 0, "files": {f"{root}/releases/one/stack.lock": "torch==1"}},
    }
    seen = parse("lab-a", capture)
    assert [taken.release for taken in seen.history] == ["one"]
    assert seen.entries == {"releases", "wheels"}
    assert seen.used == {f"{root}/releases/one": 9, root: 20}, "the whole counts a file that two share once"
    assert seen.locks == {"one": "torch==1"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        *[('{"phase": "serving"}', {"phase": "serving"}), ("half a f", {}), ("", {})],
        *[("[1]", {}), ("null", {}), ("[" * 100_000, {}), (None, {})],
    ],
    ids=["whole", "damaged", "empty", "no object", "null", "without end", "none"],
)
def test_what_supervisor_and_watch_say_is_read_with_the_nodes_own_clock(text: str | None, said: dict[str, str]) -> None:
    facts = {
        name: {"code": 0, "files": {} if text is None else {f"/run/{name}.json": text}} for name in ("state", "live")
    }
    clock = {"code": 0, "out": "1771000000.310 1771000001.120\n"}
    seen = parse("lab-a", {**CAPTURE, **facts, "clock": clock})
    assert (seen.state, seen.live, seen.moment) == (said, said, 1771000001.12)


def test_a_user_lingers_where_logind_has_a_file_of_its_name() -> None:
    there = {"code": 0, "files": {"/var/lib/systemd/linger/spark": ""}}
    assert (parse("lab-a", CAPTURE).lingers, parse("lab-a", {**CAPTURE, "linger": there}).lingers) == (False, True)
