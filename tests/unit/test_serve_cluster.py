"""Which process runs where, with which environment: unit files as systemd reads them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import parsers
from core.config import Address, load_cluster, load_profile, load_stack
from core.errors import ConfigError, UnfitNode, UsageError
from core.process import run
from core.units import RAY_HEAD, RAY_WORKER, VLLM
from serve.cluster import (
    NODE_ENV,
    UNIT_FOLDER,
    Service,
    deviations,
    env_value,
    environment_of,
    exec_word,
    files_of,
    present,
    vllm_argv,
)
from tests.unit.samples import lab_facts, local, service, serving, spark_captures, tiny
from tests.unit.systemd_rules import environment, exec_words, unit_values

SPARK = load_cluster("spark")
GUIDE = Service(SPARK, load_stack("guide"), load_profile("qwen2.5-32b"), "guide-aarch64-cp312-0123456789")
SPARKS = spark_captures().parsed()
TEXT = st.text(st.characters(exclude_categories=("Cc", "Cs")) | st.just("\t"), max_size=30)


def unit(service: Service, node: str, name: str) -> str:
    facts = SPARKS if service.cluster.name == "spark" else lab_facts()
    return files_of(service, service.cluster.node(node), facts[node])[UNIT_FOLDER / f"{name}.service"]


def command(text: str) -> list[str]:
    (value,) = unit_values(text, "ExecStart")
    return exec_words(value)


def node_env(service: Service, node: str) -> dict[str, str]:
    facts = SPARKS if service.cluster.name == "spark" else lab_facts()
    return environment(files_of(service, service.cluster.node(node), facts[node])[NODE_ENV])


class TestTwoSparks:
    def test_the_head_runs_ray_and_vllm_and_the_worker_ray(self) -> None:
        assert [GUIDE.units_of(node) for node in SPARK.nodes] == [(RAY_HEAD, VLLM), (RAY_WORKER,)]
        for node in SPARK.nodes:
            names = {f"{name}.service" for name in GUIDE.units_of(node)}
            assert {path.name for path in files_of(GUIDE, node, SPARKS[node.name])} == {*names, "node.env"}

    def test_ray_is_on_the_fabric_on_both_nodes(self) -> None:
        head, worker = command(unit(GUIDE, "gx10-beee", RAY_HEAD)), command(unit(GUIDE, "gx10-c6fb", RAY_WORKER))
        ray = "/opt/sparkstack/releases/guide-aarch64-cp312-0123456789/venv/bin/ray"
        assert head[:3] == [ray, "start", "--head"]
        assert {"--block", "--node-ip-address=172.16.100.1", "--port=6379", "--include-dashboard=false"} <= set(head)
        assert {"--block", "--address=172.16.100.1:6379", "--node-ip-address=172.16.100.2"} <= set(worker)
        assert {"--num-gpus=1", "--num-cpus=2", "--object-store-memory=1073741824"} <= set(head) & set(worker)

    def test_vllm_has_the_guides_flags(self) -> None:
        assert command(unit(GUIDE, "gx10-beee", VLLM))[1:] == [
            *("serve", "/home/gx10/models/Qwen2.5-32B-Instruct"),
            *("--served-model-name", "/home/gx10/models/Qwen2.5-32B-Instruct", "qwen2.5-32b"),
            *("--pipeline-parallel-size", "2", "--tensor-parallel-size", "1"),
            *("--distributed-executor-backend", "ray"),
            *("--host", "192.168.34.100", "--port", "8000"),
            *("--enforce-eager", "--gpu-memory-utilization", "0.80", "--max-model-len", "4096"),
        ]

    @pytest.mark.parametrize(("node", "own"), [("gx10-beee", "172.16.100.1"), ("gx10-c6fb", "172.16.100.2")])
    def test_each_node_has_its_own_address_and_the_fabrics_interface(self, node: str, own: str) -> None:
        found = node_env(GUIDE, node)
        assert found["VLLM_HOST_IP"] == own
        assert found["RAY_ADDRESS"] == "172.16.100.1:6379"
        names = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME")
        assert [found[name] for name in names] == ["enp1s0f0np0"] * 3
        assert (found["NCCL_IB_HCA"], found["NCCL_IB_DISABLE"]) == ("rocep1s0f0,roceP2p1s0f0", "0")
        assert found["VLLM_USE_RAY_COMPILED_DAG_CHANNEL_TYPE"] == "shm"
        assert found["TRITON_PTXAS_PATH"] == "/usr/local/cuda/bin/ptxas"

    def test_the_management_address_is_the_apis_and_nothing_elses(self) -> None:
        for node in SPARK.nodes:
            for path, text in files_of(GUIDE, node, SPARKS[node.name]).items():
                assert text.count("192.168.34.") == (1 if path.name == f"{VLLM}.service" else 0)

    def test_what_differs_from_the_guide_is_noted_with_its_reason(self) -> None:
        notes = deviations(GUIDE, SPARKS)
        assert all(note.startswith("unlike the guide, ") and ": " in note for note in notes)
        for what in (
            "systemd units",
            "the API listens on 192.168.34.100",
            "dashboard is off",
            "2 CPUs and 1 GiB of object store",
            "VLLM_HOST_IP",
            "--node-ip-address",
            "held to enp1s0f0np0",
            "NCCL_IB_HCA=rocep1s0f0,roceP2p1s0f0",
            "HF_HUB_OFFLINE",
            "qwen2.5-32b too",
            "NCCL_IGNORE_CPU_AFFINITY=1",
            "RAY_memory_monitor_refresh_ms=0",
            "FLASHINFER_DISABLE_VERSION_CHECK",
        ):
            assert len([note for note in notes if what in note]) == 1, what

    def test_every_variable_that_the_guide_does_not_set_is_in_a_note(self) -> None:
        guides = {"RAY_ADDRESS", "VLLM_USE_RAY_COMPILED_DAG_CHANNEL_TYPE"}
        for_sockets = {"NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME", "NCCL_IB_DISABLE"}
        notes = "\n".join(deviations(GUIDE, SPARKS))
        ours = environment_of(GUIDE, SPARK.head, SPARKS["gx10-beee"]).keys() - guides - for_sockets
        assert not [name for name in ours if name not in notes]

    def test_only_what_is_true_of_the_cluster_is_noted(self) -> None:
        alone = SPARK.model_copy(update={"nodes": SPARK.nodes[:1]})
        notes = "\n".join(deviations(replace(GUIDE, cluster=alone), SPARKS))
        assert "VLLM_HOST_IP" not in notes
        assert "NCCL" not in notes.replace("NCCL_IGNORE_CPU_AFFINITY", "").replace("NCCL's threads", "")
        assert "dashboard is off" in notes


def test_a_profile_that_is_not_the_guides_has_no_notes_on_it() -> None:
    assert deviations(service(), lab_facts()) == ()


def test_a_machine_without_rdma_has_no_setting_for_it() -> None:
    assert not {name for name in node_env(service(), "lab-a") if "_IB_" in name}


def test_the_other_port_of_a_spark_is_found_by_its_address() -> None:
    hcas = parsers.hcas(
        "rocep1s0f0 port 1 ==> enp1s0f0np0 (Up)\nrocep1s0f1 port 1 ==> enp1s0f1np1 (Up)\n"
        "roceP2p1s0f0 port 1 ==> enP2p1s0f0np0 (Up)\nroceP2p1s0f1 port 1 ==> enP2p1s0f1np1 (Up)\n"
    )
    addresses = parsers.interfaces("enP7s7 UP 192.168.34.100/24\nenp1s0f1np1 UP 172.16.100.1/24", {}, {})
    seen = replace(SPARKS["gx10-beee"], hcas=hcas, addresses=addresses)
    found = environment_of(GUIDE, SPARK.head, seen)
    assert found["NCCL_SOCKET_IFNAME"] == "enp1s0f1np1"
    assert found["NCCL_IB_HCA"] == "rocep1s0f1,roceP2p1s0f1"


def test_half_a_port_that_is_down_is_not_used() -> None:
    halves = tuple(replace(hca, up=hca.device == "rocep1s0f0") for hca in SPARKS["gx10-beee"].hcas)
    found = environment_of(GUIDE, SPARK.head, replace(SPARKS["gx10-beee"], hcas=halves))
    assert found["NCCL_IB_HCA"] == "rocep1s0f0"


def test_a_node_without_its_fabric_address_is_refused() -> None:
    seen = replace(SPARKS["gx10-beee"], addresses={})
    with pytest.raises(UnfitNode, match=r"no interface has the fabric address 172\.16\.100\.1") as caught:
        environment_of(GUIDE, SPARK.head, seen)
    assert caught.value.node == "gx10-beee"


def test_the_clusters_own_word_on_the_interface_is_taken() -> None:
    fabric = SPARK.fabric.model_copy(update={"interface": "bond0"})
    named = replace(GUIDE, cluster=SPARK.model_copy(update={"fabric": fabric}))
    assert environment_of(named, SPARK.head, SPARKS["gx10-beee"])["GLOO_SOCKET_IFNAME"] == "bond0"


def test_the_profile_comes_after_the_stack_and_the_network_after_both() -> None:
    profile = tiny().model_copy(update={"environment": {"OMP_NUM_THREADS": "2", "VLLM_HOST_IP": "0.0.0.0"}})
    found = node_env(service(profile=profile), "lab-a")
    assert (found["OMP_NUM_THREADS"], found["VLLM_HOST_IP"]) == ("2", "198.18.100.1")


def test_an_api_on_loopback_listens_there() -> None:
    api = local().api.model_copy(update={"listen": "loopback"})
    argv = vllm_argv(service(local().model_copy(update={"api": api})))
    assert argv[argv.index("--host") + 1] == "127.0.0.1"


def test_more_ranks_than_nodes_are_refused() -> None:
    with pytest.raises(UsageError, match="needs 4 GPUs, local has 2 nodes"):
        service(profile=tiny().model_copy(update={"tensor_parallel": 2})).require_ranks()


def test_an_executor_that_is_not_built_yet_is_refused() -> None:
    with pytest.raises(ConfigError, match="the executor 'mp' is not built yet"):
        service(profile=tiny().model_copy(update={"executor": "mp"})).units_of(local().head)


def test_three_nodes_have_two_workers() -> None:
    third = local().nodes[1].model_copy(update={"name": "lab-c", "fabric": Address("198.18.100.3")})
    cluster = local().model_copy(update={"nodes": (*local().nodes, third)})
    assert [service(cluster).units_of(node) for node in cluster.nodes] == [
        (RAY_HEAD, VLLM),
        (RAY_WORKER,),
        (RAY_WORKER,),
    ]


class TestQuoting:
    @given(st.lists(TEXT, max_size=6))
    def test_flags_come_back_as_they_were(self, flags: list[str]) -> None:
        served = service(profile=tiny().model_copy(update={"flags": tuple(flags)}))
        words = command(unit(served, "lab-a", VLLM))
        assert words[len(words) - len(flags) :] == flags

    @given(st.dictionaries(st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True), TEXT, max_size=5))
    def test_variables_come_back_as_they_were(self, variables: dict[str, str]) -> None:
        served = service(profile=tiny().model_copy(update={"environment": variables}))
        meant = environment_of(served, local().head, lab_facts()["lab-a"])
        assert node_env(served, "lab-a") == meant
        assert {name: meant[name] for name in variables if not name.endswith(("_IP", "_ADDRESS", "_IFNAME"))} == {
            name: value for name, value in variables.items() if not name.endswith(("_IP", "_ADDRESS", "_IFNAME"))
        }

    @given(TEXT)
    def test_each_word_alone(self, word: str) -> None:
        assert exec_words(f"/bin/x {exec_word(word)}") == ["/bin/x", word]
        assert environment(f"A={env_value('A', word)}\n") == {"A": word}

    @given(st.text(max_size=10), st.characters(categories=("Cc",), exclude_characters="\t"), st.text(max_size=10))
    def test_control_characters_are_refused(self, before: str, control: str, after: str) -> None:
        for refused in (lambda: exec_word(before + control + after), lambda: env_value("A", before + control + after)):
            with pytest.raises(ConfigError, match="holds a line break or another control character"):
                refused()

    @pytest.mark.parametrize(
        ("word", "written"),
        [
            ("--port", "--port"),
            ('{"mode":2}', "'{\"mode\":2}'"),
            ("50%", "50%%"),
            ("$HOME", "$$HOME"),
            ("it's", '"it\'s"'),
            ("a\\b", "'a\\\\b'"),
            ("", "''"),
            (";", "';'"),
        ],
    )
    def test_words_are_written_as_plainly_as_can_be(self, word: str, written: str) -> None:
        assert exec_word(word) == written


class TestPresent:
    facts = serving(service())

    def test_the_same_files_are_present(self) -> None:
        for node in local().nodes:
            assert present(files_of(service(), node, self.facts[node.name]), self.facts[node.name])

    @pytest.mark.parametrize("change", ["other content", "one less", "one more"])
    def test_any_difference_is_none(self, change: str) -> None:
        node, seen = local().head, self.facts["lab-a"]
        files = dict(seen.files)
        if change == "other content":
            files[str(NODE_ENV)] += "A=1\n"
        elif change == "one less":
            del files[str(NODE_ENV)]
        else:
            files[str(UNIT_FOLDER / f"{RAY_WORKER}.service")] = ""
        assert not present(files_of(service(), node, seen), replace(seen, files=files))


@pytest.mark.processes
def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not on this host")
    cluster = local().model_copy(update={"root": tmp_path / "sparkstack", "user": "root"})
    served = service(cluster)
    bin_folder = tmp_path / "sparkstack/releases" / served.release / "venv/bin"
    bin_folder.mkdir(parents=True)
    for name in ("ray", "vllm"):
        (bin_folder / name).write_text("#!/bin/sh\n")
        (bin_folder / name).chmod(0o755)
    written: dict[str, Path] = {}
    for node in cluster.nodes:
        for path, text in files_of(served, node, lab_facts()[node.name]).items():
            if path.parent == PurePosixPath(UNIT_FOLDER):
                written[path.name] = tmp_path / path.name
                written[path.name].write_text(text)
    assert len(written) == 3
    done = run(["systemd-analyze", "verify", "--man=no", *map(str, written.values())], check=False)
    ours = [line for line in (done.out + done.err).splitlines() if "sparkstack" in line]
    assert not ours, "\n".join(ours)
