"""What watches: the files as Prometheus and systemd read them, and the plans that bring it up and take it off."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from core.config import load_cluster
from core.errors import NotServing, UnfitNode
from core.facts import Facts, NodeFacts
from core.parsers import Listener, Unit
from core.plan import Later, Plan, Poll, Run, as_text
from core.process import Completed, run
from core.units import MONITOR, NODE_EXPORTER, PROMETHEUS
from serve.monitor import targets
from serve.monitor.files import CONFIG, KEY_FILE, OWN, configuration, files_of, units_of
from serve.monitor.plan import PACKAGES, plan_monitor, plan_off
from serve.monitor.scrape import Target, required, vllm
from serve.monitor.tasks import how_to_see, tunnel
from tests.unit.samples import lab_facts, local, spark_captures, unit
from tests.unit.systemd_rules import exec_words, unit_values

CLUSTER = local()
SPARK = load_cluster("spark")
KEYS = {"/etc/sparkstack/credentials.json": json.dumps({"api-key": "a" * 64, "monitor-key": "b" * 64})}
ALL = frozenset(PACKAGES)


def enabled(name: str) -> Unit:
    return replace(unit(name), enabled=True)


def ready(**changes: Any) -> dict[str, NodeFacts]:
    """Return two machines that have packages and key, and nothing that watches."""
    facts = lab_facts(packages=ALL, **changes)
    return {**facts, "lab-a": replace(facts["lab-a"], files=KEYS)}


def watched(facts: Facts | None = None) -> dict[str, NodeFacts]:
    """Return two machines on which everything watches."""
    facts = facts or ready()
    return {
        node.name: replace(
            facts[node.name],
            units={**facts[node.name].units, **{name: enabled(name) for name in units_of(CLUSTER, node)}},
            files={
                **facts[node.name].files,
                **{str(path): text for path, text in files_of(CLUSTER, node, facts).items()},
            },
        )
        for node in CLUSTER.nodes
    }


def served(api: dict[str, Any] | None = None) -> dict[str, NodeFacts]:
    facts = ready()
    head = facts["lab-a"]
    files = {**head.files, "/etc/sparkstack/service.json": json.dumps({"api": api or {}})}
    return {**facts, "lab-a": replace(head, files=files, units={"sparkstack-vllm": unit("sparkstack-vllm")})}


def titles(plan: Plan, node: str) -> list[str]:
    return [step.title for step in plan.steps if step.node == node]


def text_of(name: str, cluster: str = "local") -> str:
    facts = spark_captures().parsed() if cluster == "spark" else ready()
    chosen = load_cluster(cluster)
    return next(text for path, text in files_of(chosen, chosen.head, facts).items() if path.name == name)


class TestFiles:
    def test_prometheus_listens_on_loopback_and_an_exporter_on_the_fabric_only(self) -> None:
        (command,) = unit_values(text_of(f"{PROMETHEUS}.service"), "ExecStart")
        assert [word for word in exec_words(command) if "listen" in word] == ["--web.listen-address=127.0.0.1:9090"]
        assert not [word for word in exec_words(command) if "admin-api" in word or "lifecycle" in word]
        (command,) = unit_values(text_of(f"{NODE_EXPORTER}.service"), "ExecStart")
        fabric = f"--web.listen-address={CLUSTER.head.fabric}:9100"
        assert [word for word in exec_words(command) if "listen" in word] == [fabric]

    def test_what_is_kept_is_bounded(self) -> None:
        words = exec_words(unit_values(text_of(f"{PROMETHEUS}.service"), "ExecStart")[0])
        assert {"--storage.tsdb.retention.size=1GB", "--storage.tsdb.retention.time=30d"} <= set(words)

    def test_the_key_comes_from_systemd_and_stands_in_no_file(self) -> None:
        (credential,) = unit_values(text_of(f"{PROMETHEUS}.service"), "LoadCredential")
        assert credential == "monitor-key:/etc/sparkstack/credentials/monitor-key"
        text = text_of("prometheus.yml")
        assert f"credentials_file: {KEY_FILE}" in text
        assert "b" * 64 not in text

    def test_another_key_makes_another_file(self) -> None:
        other = ready()
        files = {"/etc/sparkstack/credentials.json": json.dumps({"monitor-key": "c" * 64})}
        other["lab-a"] = replace(other["lab-a"], files=files)
        assert configuration(CLUSTER, other) != configuration(CLUSTER, ready())

    def test_two_sparks_have_both_halves_of_the_port_as_the_fabric(self) -> None:
        found = re.findall(r'regex: "(.*)"\n.*\n +replacement: (\w+)', text_of("prometheus.yml", "spark"))
        rules = [(pattern.replace("\\\\", "\\"), network) for pattern, network in found]
        devices = {"enp1s0f0np0", "enP2p1s0f0np0", "rocep1s0f0", "roceP2p1s0f0", "enP7s7", "docker0", "lo"}
        for node in ("gx10-beee", "gx10-c6fb"):
            seen = {
                device: network for pattern, network in rules for device in devices
                if re.fullmatch(pattern, f"{node};{device}")
            }  # fmt: skip
            assert seen == {**dict.fromkeys(devices - {"enP7s7", "docker0", "lo"}, "fabric"), "enP7s7": "management"}

    @pytest.mark.parametrize("name", MONITOR)
    def test_every_file_is_known_as_what_monitor_writes(self, name: str) -> None:
        assert {f"/etc/systemd/system/{name}.service", str(CONFIG)} <= OWN

    @pytest.mark.processes
    @pytest.mark.parametrize("name", MONITOR)
    @pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze here")
    def test_systemd_reads_the_unit_and_finds_it_little_exposed(self, name: str, tmp_path: Path) -> None:
        path = tmp_path / f"{name}.service"
        path.write_text(text_of(path.name).replace("/usr/bin/prometheus", "/bin/true"), encoding="utf-8")
        done = run(["systemd-analyze", "security", "--offline=true", "--threshold=20", str(path)], check=False)
        assert done.code == 0, done.tail(30)
        assert "Unknown" not in done.err

    @pytest.mark.processes
    @pytest.mark.skipif(shutil.which("promtool") is None, reason="there is no promtool here; the machines have it")
    @pytest.mark.parametrize("cluster", ["local", "spark"])
    def test_promtool_accepts_the_configuration(self, cluster: str, tmp_path: Path) -> None:
        path = tmp_path / "prometheus.yml"
        path.write_text(text_of(path.name, cluster), encoding="utf-8")
        run(["promtool", "check", "config", "--syntax-only", str(path)])


class TestTargets:
    @pytest.mark.parametrize(
        ("api", "address"),
        [
            (None, f"{CLUSTER.api_host}:8000"),
            ({"url": "http://10.0.0.1:8001/v1", "tls": False}, f"{CLUSTER.api_host}:8001"),
            ({"url": "https://spark.example:8000/v1", "tls": True}, "127.0.0.1:8000"),
            ({"url": "https://spark.example/v1", "tls": True}, "127.0.0.1:8000"),
        ],
    )
    def test_with_tls_vllm_is_asked_behind_the_proxy(self, api: dict[str, Any] | None, address: str) -> None:
        assert vllm(CLUSTER, served(api)["lab-a"]) == Target("vllm", "lab-a", address)

    def test_vllm_has_to_be_up_only_while_it_serves(self) -> None:
        assert [target.job for target in required(CLUSTER, served())] == ["vllm", "node", "node"]
        assert [target.job for target in required(CLUSTER, ready())] == ["node", "node"]

    def test_what_is_not_up_is_named_with_what_prometheus_said(self) -> None:
        wanted = required(CLUSTER, served())
        rows = [[one.job, one.node, one.address, "up", ""] for one in wanted[1:]]
        refused = [*[wanted[0].job, wanted[0].node, wanted[0].address], "down", "server returned HTTP status 401"]
        done = Completed((), 0, json.dumps({"error": "", "targets": [refused, *rows]}))
        assert not targets.all_up(wanted, done)
        assert targets.all_up(wanted[1:], done)
        error = targets.not_up("lab-a", wanted, done)
        assert error.cause == "2 of 3 targets are up"
        assert error.evidence == f"vllm of lab-a at {wanted[0].address}: down server returned HTTP status 401"
        assert targets.table(targets.parse(done.out)[0]).splitlines()[0].split()[:3] == ["up", "node", "lab-a"]

    @pytest.mark.parametrize("said", ["", "no JSON", "[]", '{"targets": [[1]], "error": ""}'])
    def test_an_answer_that_cannot_be_read_is_no_target(self, said: str) -> None:
        done = Completed((), 0, said)
        assert not targets.all_up(required(CLUSTER, ready()), done)
        assert isinstance(targets.not_up("lab-a", required(CLUSTER, ready()), done), NotServing)

    @pytest.mark.processes
    def test_a_prometheus_that_is_not_there_is_an_answer_too(self) -> None:
        done = run(targets.ask_argv(port=1))
        seen, error = targets.parse(done.out)
        assert seen == ()
        assert "refused" in error


class TestPlan:
    def test_two_machines_that_serve_are_watched_in_order(self) -> None:
        plan = plan_monitor(CLUSTER, served())
        assert [stage.title for stage in plan.stages] == ["configure", "start", "wait for the targets"]
        assert titles(plan, "lab-b") == [
            "make the folder",
            f"write {NODE_EXPORTER}.service",
            "reload systemd",
            f"start {NODE_EXPORTER}",
        ]
        (wait,) = [step for step in plan.steps if isinstance(step, Poll)]
        assert wait.title == "wait until 3 targets are up"
        assert not plan.notes

    def test_everything_in_place_is_nothing_to_do(self) -> None:
        assert plan_monitor(CLUSTER, watched()).empty
        assert plan_monitor(CLUSTER, watched(served())).empty

    def test_without_a_service_its_target_may_be_down_and_the_plan_says_so(self) -> None:
        (note,) = plan_monitor(CLUSTER, ready()).notes
        assert "its target is down until invoke serve --cluster local" in note

    def test_the_service_comes_first_where_there_is_no_key(self) -> None:
        plan = plan_monitor(CLUSTER, lab_facts(packages=ALL))
        (later,) = [step for step in plan.steps if isinstance(step, Later)]
        assert later.command == "invoke serve --cluster local"

    def test_missing_packages_are_installed_with_their_own_services_masked_before(self) -> None:
        facts = ready()
        plan = plan_monitor(CLUSTER, {**facts, "lab-b": replace(facts["lab-b"], packages=frozenset())})
        assert titles(plan, "lab-b")[:3] == [
            "mask prometheus-node-exporter.service",
            "ask the package sources anew",
            "install prometheus-node-exporter",
        ]
        assert not [title for title in titles(plan, "lab-a") if "mask" in title], "what the owner installed is theirs"
        assert "listens on every interface" in as_text(plan)

    def test_a_unit_that_is_to_change_is_stopped_before_its_files_do(self) -> None:
        facts = watched()
        files = {**facts["lab-a"].files, str(CONFIG): "older"}
        plan = plan_monitor(CLUSTER, {**facts, "lab-a": replace(facts["lab-a"], files=files)})
        assert [stage.title for stage in plan.stages] == [
            "stop what changes",
            "configure",
            "start",
            "wait for the targets",
        ]
        assert [step.title for step in plan.steps if step.title.startswith("write ")] == ["write prometheus.yml"]
        assert {step.node for step in plan.steps} == {"lab-a"}

    @pytest.mark.parametrize("state", ["failed", "inactive", "activating"])
    def test_a_unit_that_does_not_run_is_started_again(self, state: str) -> None:
        facts = watched()
        units = {NODE_EXPORTER: unit(NODE_EXPORTER, state)}
        plan = plan_monitor(CLUSTER, {**facts, "lab-b": replace(facts["lab-b"], units=units)})
        assert f"start {NODE_EXPORTER}" in titles(plan, "lab-b")

    def test_a_unit_that_no_boot_would_start_is_enabled(self) -> None:
        facts = watched()
        facts["lab-b"] = replace(facts["lab-b"], units={NODE_EXPORTER: unit(NODE_EXPORTER)})
        assert titles(plan_monitor(CLUSTER, facts), "lab-b")[-1] == f"start {NODE_EXPORTER}"

    def test_a_node_that_is_no_longer_the_head_loses_prometheus(self) -> None:
        facts = watched()
        files = {**facts["lab-a"].files, **facts["lab-b"].files}
        plan = plan_monitor(CLUSTER, {**facts, "lab-b": replace(facts["lab-b"], files=files)})
        assert f"disable {PROMETHEUS}" in titles(plan, "lab-b")
        assert "remove 2 files" in titles(plan, "lab-b")

    @pytest.mark.parametrize(
        ("node", "address", "port"),
        [("lab-a", "0.0.0.0", 9090), ("lab-a", "127.0.0.1", 9090), ("lab-b", "*", 9100), ("lab-b", "::", 9100)],
    )
    def test_a_port_that_somebody_else_has_is_refused(self, node: str, address: str, port: int) -> None:
        facts = ready()
        facts[node] = replace(facts[node], listening=(Listener(address, port),))
        with pytest.raises(UnfitNode, match=f"port {port} is taken") as caught:
            plan_monitor(CLUSTER, facts)
        assert caught.value.node == node
        assert "disable --now prometheus" in caught.value.next_move

    def test_a_port_elsewhere_is_not_in_the_way_nor_is_our_own(self) -> None:
        facts = watched()
        ours = (Listener("127.0.0.1", 9090), Listener(str(CLUSTER.head.fabric), 9100))
        facts["lab-a"] = replace(facts["lab-a"], listening=ours)
        assert plan_monitor(CLUSTER, facts).empty
        other = ready(listening=(Listener(str(CLUSTER.head.management), 9100),))
        assert not plan_monitor(CLUSTER, other).empty

    def test_two_sparks_can_be_planned_for_from_saved_facts(self) -> None:
        plan = plan_monitor(SPARK, spark_captures().parsed())
        assert "172.16.100.2:9100" in as_text(plan)


class TestOff:
    def test_units_files_and_metrics_go_and_packages_stay(self) -> None:
        plan = plan_off(CLUSTER, watched())
        assert titles(plan, "lab-a") == [
            f"stop {NODE_EXPORTER}, {PROMETHEUS}",
            f"disable {PROMETHEUS}, {NODE_EXPORTER}",
            "remove the metrics kept so far",
            "remove 3 files",
        ]
        assert titles(plan, "lab-b") == [f"stop {NODE_EXPORTER}", f"disable {NODE_EXPORTER}", "remove 1 files"]
        assert "packages stay" in plan.notes[0]

    def test_nothing_of_the_service_goes(self) -> None:
        plan = plan_off(CLUSTER, watched(served()))
        (removing, _) = [step for step in plan.steps if step.title.startswith("remove") and "files" in step.title]
        assert isinstance(removing, Run)
        assert {path for path in removing.argv if path.startswith("/")} == OWN
        assert "sparkstack-vllm" not in as_text(plan)

    def test_where_nothing_watches_there_is_nothing_to_do(self) -> None:
        assert plan_off(CLUSTER, ready()).empty
        assert plan_off(CLUSTER, served()).empty


def test_the_way_to_see_it_is_a_command_to_paste() -> None:
    head = CLUSTER.head.model_copy(update={"ssh_port": 2222})
    cluster = CLUSTER.model_copy(update={"identity": PurePosixPath("a key"), "nodes": (head, *CLUSTER.workers)})
    assert tunnel(cluster)[:6] == ("ssh", "-N", "-L", "9090:127.0.0.1:9090", "-p", "2222")
    assert "-i 'a key'" in how_to_see(cluster)[0]
    assert tunnel(SPARK) == ("ssh", "-N", "-L", "9090:127.0.0.1:9090", "gx10@192.168.34.100")
    assert "serve/monitor/grafana.json" in how_to_see(SPARK)[1]
    here = SPARK.model_copy(update={"nodes": (SPARK.head.model_copy(update={"local": True}), *SPARK.workers)})
    assert how_to_see(here)[0] == "Prometheus: http://127.0.0.1:9090 on gx10-beee"
