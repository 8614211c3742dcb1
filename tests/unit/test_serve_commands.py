"""What runs on which node: commands and environment, as the guide's chapter 5 has them; what differs is said."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from core import parsers
from core.config import Address, load_cluster, load_profile, load_stack
from core.errors import UnfitNode, UsageError
from serve.cluster import RANK, RAY_HEAD, RAY_WORKER, UNIT_FOLDER, VLLM, Service
from serve.commands import environment_of, rank_argv, vllm_argv
from serve.deviations import deviations
from serve.files import NODE_ENV, WANTED, files_of
from tests.unit.samples import cpu, lab_facts, local, service, spark_captures, tiny
from tests.unit.systemd_rules import environment, exec_words, unit_values

SPARK = load_cluster("spark")
GUIDE = Service(SPARK, load_stack("guide"), load_profile("qwen2.5-32b"), "guide-aarch64-cp312-0123456789")
SPARKS = spark_captures().parsed()


def unit(service: Service, node: str, name: str) -> str:
    facts = SPARKS if service.cluster.name == "spark" else lab_facts()
    return files_of(service, facts)[node][UNIT_FOLDER / f"{name}.service"]


def command(text: str, key: str = "ExecStart") -> list[str]:
    (value,) = unit_values(text, key)
    return exec_words(value)


def node_env(service: Service, node: str) -> dict[str, str]:
    facts = SPARKS if service.cluster.name == "spark" else lab_facts()
    return environment(files_of(service, facts)[node][NODE_ENV])


class TestTwoSparks:
    def test_the_head_runs_ray_and_vllm_and_the_worker_ray(self) -> None:
        assert [GUIDE.units_of(node) for node in SPARK.nodes] == [(RAY_HEAD, VLLM), (RAY_WORKER,)]

    def test_all_nodes_have_their_gpu_in_ray_before_vllm_starts(self) -> None:
        asked = command(unit(GUIDE, "gx10-beee", VLLM), "ExecStartPre")
        assert asked[2:] == ["-m", "serve.onnode.raynodes", "172.16.100.1:6379", "90", "172.16.100.1", "172.16.100.2"]

    def test_ray_asks_for_the_clusters_token(self) -> None:
        assert [node_env(GUIDE, node)["RAY_AUTH_MODE"] for node in ("gx10-beee", "gx10-c6fb")] == ["token"] * 2
        for node, name in (("gx10-beee", RAY_HEAD), ("gx10-c6fb", RAY_WORKER), ("gx10-beee", VLLM)):
            text = unit(GUIDE, node, name)
            assert "LoadCredential=ray-token:/etc/sparkstack/credentials/ray-token" in text
            assert "Environment=RAY_AUTH_TOKEN_PATH=%d/ray-token" in text

    def test_ray_is_on_the_fabric_on_both_nodes(self) -> None:
        head, worker = command(unit(GUIDE, "gx10-beee", RAY_HEAD)), command(unit(GUIDE, "gx10-c6fb", RAY_WORKER))
        ray = "/opt/sparkstack/releases/guide-aarch64-cp312-0123456789/venv/bin/ray"
        assert head[:3] == [ray, "start", "--head"]
        assert {"--block", "--node-ip-address=172.16.100.1", "--port=6379", "--include-dashboard=false"} <= set(head)
        assert {"--block", "--address=172.16.100.1:6379", "--node-ip-address=172.16.100.2"} <= set(worker)
        assert {"--num-gpus=1", "--num-cpus=2", "--object-store-memory=1073741824"} <= set(head) & set(worker)

    def test_vllm_has_the_guides_flags(self) -> None:
        words = command(unit(GUIDE, "gx10-beee", VLLM))
        assert words[words.index("--") + 2 :] == [
            *("serve", "/home/gx10/models/Qwen2.5-32B-Instruct"),
            *("--served-model-name", "/home/gx10/models/Qwen2.5-32B-Instruct", "qwen2.5-32b"),
            *("--pipeline-parallel-size", "2", "--tensor-parallel-size", "1"),
            *("--distributed-executor-backend", "ray"),
            *("--host", "192.168.34.100", "--port", "8000"),
            *("--middleware", "serve.onnode.guard.Guard", "--disable-uvicorn-access-log"),
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

    def test_vllm_runs_below_its_watch_which_knows_where_and_what_to_ask(self) -> None:
        words = command(unit(GUIDE, "gx10-beee", VLLM))
        watch = ["--url", "http://192.168.34.100:8000", "--model", "/home/gx10/models/Qwen2.5-32B-Instruct"]
        assert words[: words.index("--")] == [
            *("/usr/bin/python3", "-s", "-m", "serve.onnode.engine", *watch, "--stall", "25")
        ]
        assert unit_values(unit(GUIDE, "gx10-beee", VLLM), "WatchdogSec") == ["25"]

    def test_the_management_address_is_the_apis_and_nothing_elses(self) -> None:
        for files in files_of(GUIDE, SPARKS).values():
            times = {path.name: text.count("192.168.34.") for path, text in files.items() if "192.168.34." in text}
            lines = re.findall(r"(?:--host |--url http://)192.168.34.100", "".join(files.values()))
            assert times.pop(WANTED.name) == 1
            assert sum(times.values()) == len(lines)

    def test_what_differs_from_the_guide_is_noted_with_its_reason(self) -> None:
        notes = deviations(GUIDE, SPARKS)
        assert all(note.startswith("unlike the guide, ") and ": " in note for note in notes)
        for what in (
            "systemd units",
            "supervisors on every node",
            "the API listens on 192.168.34.100",
            "dashboard is off",
            "2 CPUs and 1 GiB of object store",
            "RAY_AUTH_MODE=token",
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

    def test_every_option_that_the_guide_does_not_give_is_in_a_note(self) -> None:
        """The guide's chapter 5 gives these; a stage has one card there too; the last are told by what they are for."""
        guides = {
            *("--head", "--node-ip-address", "--port", "--num-gpus", "--address", "--host", "--max-model-len"),
            *("--pipeline-parallel-size", "--distributed-executor-backend", "--enforce-eager"),
            *("--gpu-memory-utilization", "--tensor-parallel-size"),
        }
        told = {
            "--include-dashboard": "dashboard is off",
            "--num-cpus": "CPUs",
            "--object-store-memory": "object store",
        }
        ray = [command(unit(GUIDE, node, name)) for node, name in (("gx10-beee", RAY_HEAD), ("gx10-c6fb", RAY_WORKER))]
        words = [word.partition("=")[0] for argv in (*ray, vllm_argv(GUIDE)) for word in argv]
        ours = {word for word in words if word.startswith("--")} - guides
        notes = "\n".join(deviations(GUIDE, SPARKS))
        assert len(ours) >= 10
        assert not [one for one in ours if told.get(one, one) not in notes]

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


class TestExecutorMp:
    served = service(profile=tiny().model_copy(update={"executor": "mp"}))

    def test_vllm_itself_spreads_over_the_nodes_by_the_fabric(self) -> None:
        head, worker = vllm_argv(self.served), rank_argv(self.served, local().nodes[1])
        place = ("--nnodes", "2", "--node-rank", "{}", "--master-addr", "198.18.100.1", "--master-port", "29501")
        for argv, rank in ((head, "0"), (worker, "1")):
            start = argv.index("--nnodes")
            assert argv[start : start + 8] == tuple(word.format(rank) for word in place)
        assert ("--headless" in head, "--headless" in worker) == (False, True)
        assert not {"--host", "--port", "--middleware"} & set(worker), "a worker listens to nobody"

    def test_a_worker_has_the_profiles_flags_as_the_head_has(self) -> None:
        flags = tiny().flags
        assert vllm_argv(self.served)[-len(flags) :] == rank_argv(self.served, local().nodes[1])[-len(flags) :] == flags

    def test_no_variable_speaks_of_ray(self) -> None:
        names = {name for node in ("lab-a", "lab-b") for name in node_env(self.served, node)}
        assert not names & {"RAY_ADDRESS", "RAY_AUTH_MODE"}

    def test_all_ranks_start_at_once(self) -> None:
        assert self.served.stages == ({"lab-a": VLLM, "lab-b": RANK},)

    def test_nodes_without_a_rank_start_nothing(self) -> None:
        one = service(profile=self.served.profile.model_copy(update={"pipeline_parallel": 1}))
        assert one.stages == ({"lab-a": VLLM},)
        assert [one.units_of(node) for node in local().nodes] == [(VLLM,), ()]
        assert not {"--nnodes", "--master-addr"} & set(vllm_argv(one))
        assert UNIT_FOLDER / f"{RANK}.service" not in files_of(one, lab_facts())["lab-b"]

    def test_one_node_alone_needs_no_master(self) -> None:
        alone = local().model_copy(update={"nodes": local().nodes[:1]})
        argv = vllm_argv(replace(self.served, cluster=alone))
        assert not {"--nnodes", "--master-addr"} & set(argv)


def test_a_ray_that_knows_no_token_is_told_nothing_of_it() -> None:
    ray = cpu().components["ray"].model_copy(update={"version": "2.51.1"})
    older = cpu().model_copy(update={"components": {**cpu().components, "ray": ray}})
    assert "RAY_AUTH_MODE" not in node_env(service(stack=older), "lab-a")
    assert "ray-token" not in unit(service(stack=older), "lab-a", RAY_HEAD)


def test_behind_tls_vllm_listens_on_the_heads_loopback_alone() -> None:
    argv = vllm_argv(service(local().with_tls()))
    assert argv[argv.index("--host") + 1] == "127.0.0.1"


def test_ranks_start_in_stages_ray_first_and_vllm_last() -> None:
    assert service().stages == ({"lab-a": RAY_HEAD}, {"lab-b": RAY_WORKER}, {"lab-a": VLLM})
    alone = local().model_copy(update={"nodes": local().nodes[:1]})
    assert service(alone).stages == ({"lab-a": RAY_HEAD}, {"lab-a": VLLM})


def test_three_nodes_have_two_workers() -> None:
    third = local().nodes[1].model_copy(update={"name": "lab-c", "fabric": Address("198.18.100.3")})
    cluster = local().model_copy(update={"nodes": (*local().nodes, third)})
    assert [service(cluster).units_of(node) for node in cluster.nodes] == [
        (RAY_HEAD, VLLM),
        (RAY_WORKER,),
        (RAY_WORKER,),
    ]
