"""What a node has on its disk while it serves: units, what is wanted, our code; and when that is present."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.config import ROOT, Cluster, load_profile
from core.errors import ConfigError
from core.process import run
from core.units import RANK, RAY_HEAD, RAY_WORKER, SUPERVISOR, VLLM
from serve.cluster import UNIT_FOLDER, Service
from serve.commands import environment_of
from serve.files import (
    CODE,
    FIREWALL,
    NODE_ENV,
    WANTED,
    closed_ports,
    env_value,
    exec_word,
    files_of,
    memory,
    merged,
    present,
    stale,
)
from serve.onnode import wanted
from tests.unit.samples import lab_facts, local, service, serving, spark_captures, tiny
from tests.unit.systemd_rules import environment, exec_words, unit_values

TEXT = st.text(st.characters(exclude_categories=("Cc", "Cs")) | st.just("\t"), max_size=30)
NODES = ("lab-a", "lab-b")


def files(served: Service, node: str = "lab-a") -> dict[PurePosixPath, str]:
    return files_of(served, lab_facts())[node]


def behind_tls() -> Cluster:
    return local().with_tls()


def record(served: Service, node: str = "lab-a") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(files(served, node)[WANTED])
    return found


class TestWhichFiles:
    def test_every_node_has_a_supervisor_and_the_units_of_its_part_and_no_others(self) -> None:
        units = {
            node: {path.stem for path in found if path.parent == UNIT_FOLDER}
            for node, found in files_of(service(), lab_facts()).items()
        }
        assert units == {"lab-a": {SUPERVISOR, RAY_HEAD, VLLM}, "lab-b": {SUPERVISOR, RAY_WORKER}}

    def test_with_the_executor_mp_a_worker_has_its_rank_and_nobody_has_ray(self) -> None:
        served = service(profile=tiny().model_copy(update={"executor": "mp"}))
        units = {
            node: {path.stem for path in found if path.parent == UNIT_FOLDER}
            for node, found in files_of(served, lab_facts()).items()
        }
        assert units == {"lab-a": {SUPERVISOR, VLLM}, "lab-b": {SUPERVISOR, RANK}}
        assert not [text for node in NODES for text in files(served, node).values() if "/bin/ray " in text]

    def test_the_proxy_is_on_the_head_alone_and_only_with_tls(self) -> None:
        proxied = files_of(service(behind_tls()), lab_facts())
        found = {
            node: [path.name for path in proxied[node] if "proxy" in path.name or "Caddy" in path.name]
            for node in NODES
        }
        assert found == {"lab-a": ["Caddyfile", "sparkstack-proxy.service"], "lab-b": []}
        assert not [path for path in files(service()) if "proxy" in path.name]

    def test_our_code_goes_to_every_node_as_it_is(self) -> None:
        for node in NODES:
            sent = {
                path.name: text for path, text in files(service(), node).items() if path.parent == CODE / "serve/onnode"
            }
            assert sent == {path.name: path.read_text() for path in (ROOT / "serve/onnode").glob("*.py")}

    def test_no_file_holds_a_secret(self) -> None:
        keys = ("api-key", "monitor-key", "link-key", "ray-token")
        assert not [path for node in NODES for path in files(service(), node) if path.name in keys]

    def test_the_head_and_a_worker_are_told_the_same_service_from_their_own_side(self) -> None:
        head, worker = record(service(), "lab-a"), record(service(), "lab-b")
        assert {key for key in head if head[key] != worker[key]} == {"node"}


class TestWanted:
    def test_what_is_wanted_is_read_on_the_node_as_it_was_meant(self) -> None:
        read = wanted.parse(files(service(), "lab-b")[WANTED])
        assert (read.node, read.head, read.nodes) == ("lab-b", "lab-a", NODES)
        assert read.units_of("lab-b") == (RAY_WORKER,)
        assert read.until(1) == {"lab-a": (RAY_HEAD,), "lab-b": (RAY_WORKER,)}
        assert read.addresses["lab-b"] == "198.18.100.2"
        assert (read.port, read.user, read.hook) == (29779, "spark", ())
        assert (read.limits.start, read.limits.attempts, read.limits.lost) == (300, 5, 12)

    def test_the_clusters_own_word_on_supervision_reaches_the_node(self) -> None:
        own = local().supervision.model_copy(update={"attempts": 2, "delays": (1.0, 4.5), "hook": ("/bin/mail", "me")})
        read = wanted.parse(files(service(local().model_copy(update={"supervision": own})))[WANTED])
        assert (read.limits.attempts, read.limits.delays, read.hook) == (2, (1.0, 4.5), ("/bin/mail", "me"))

    def test_the_same_service_is_the_same_generation(self) -> None:
        assert record(service())["generation"] == record(service())["generation"]

    @pytest.mark.parametrize(
        "change",
        [{"environment": {"A": "1"}}, {"flags": ("--seed", "1")}, {"stall_timeout": 60}, {"ray_cpus": 3}],
        ids=lambda change: next(iter(change)),
    )
    def test_whatever_a_rank_would_see_makes_another_generation(self, change: dict[str, Any]) -> None:
        other = service(profile=tiny().model_copy(update=change))
        assert record(other)["generation"] != record(service())["generation"]

    @pytest.mark.parametrize("change", [{"attempts": 2}, {"lost": 30.0}, {"hook": ("/bin/true",)}, {"delays": (1.0,)}])
    def test_another_patience_is_another_generation(self, change: dict[str, Any]) -> None:
        """Each node's supervisor has to know it: it is read once, at its start."""
        own = local().supervision.model_copy(update=change)
        other = service(local().model_copy(update={"supervision": own}))
        assert record(other)["generation"] != record(service())["generation"]

    def test_the_api_is_where_clients_find_it(self) -> None:
        assert record(service())["api"] == {"url": "http://198.18.34.100:8000/v1", "tls": False}
        assert record(service(behind_tls()))["api"] == {"url": "https://198.18.34.100:8000/v1", "tls": True}

    def test_memory_is_asked_for_in_steps_so_that_a_few_bytes_make_no_new_service(self) -> None:
        step = 256 * 2**20
        sparks = spark_captures().parsed()
        guide = service(profile=load_profile("qwen2.5-32b"))
        found = memory(guide, sparks["gx10-beee"])
        assert found % step == 0
        less = replace(sparks["gx10-beee"], memory_total=sparks["gx10-beee"].memory_total - 4096)
        assert memory(guide, less) == found

    def test_of_a_model_that_nobody_knows_no_memory_is_asked(self) -> None:
        assert memory(service(), lab_facts()["lab-a"]) == 0


class TestPorts:
    def test_every_port_of_ours_but_the_apis_is_closed_outside_of_the_fabric(self) -> None:
        seen = lab_facts()["lab-a"]
        assert closed_ports(local(), seen) == ("6379-6381", "10001-19999", "29501", "29779", "32768-60999")

    def test_what_a_node_gives_to_who_asks_for_any_port_is_read_from_it(self) -> None:
        facts = {name: replace(seen, port_range=(15000, 65535)) for name, seen in lab_facts().items()}
        closed = "tcp dport { 6379-6381, 10001-65535 } reject"
        assert [closed in found[FIREWALL] for found in files_of(service(), facts).values()] == [True, True]

    @given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 9)).map(lambda pair: (pair[0], sum(pair)))))
    def test_ranges_that_are_merged_hold_the_same_ports_and_share_none(self, ranges: list[tuple[int, int]]) -> None:
        def ports(found: list[tuple[int, int]]) -> list[int]:
            return [port for first, last in found for port in range(first, last + 1)]

        assert ports(merged(ranges)) == sorted(set(ports(ranges)))

    def test_the_fabric_and_the_machine_itself_are_let_in_and_the_rest_is_refused(self) -> None:
        for node in NODES:
            text = files(service(), node)[FIREWALL]
            assert 'iifname { "lo", "fab0" } accept' in text
            assert "tcp dport { 22, 8000 } accept" in text
            assert f"tcp dport {{ {', '.join(closed_ports(local(), lab_facts()[node]))} }} reject" in text

    def test_one_node_has_no_fabric_and_lets_nobody_in(self) -> None:
        alone = local().model_copy(update={"nodes": local().nodes[:1]})
        profile = tiny().model_copy(update={"pipeline_parallel": 1})
        assert 'iifname { "lo" } accept' in files(service(alone, profile=profile))[FIREWALL]

    def test_they_stay_closed_when_the_supervisor_is_killed(self) -> None:
        """What it has started goes on."""
        text = files(service())[UNIT_FOLDER / f"{SUPERVISOR}.service"]
        (after,) = unit_values(text, "ExecStopPost")
        assert "$SERVICE_RESULT" in after


class TestQuoting:
    @given(st.lists(TEXT, max_size=6))
    def test_flags_come_back_as_they_were(self, flags: list[str]) -> None:
        served = service(profile=tiny().model_copy(update={"flags": tuple(flags)}))
        (value,) = unit_values(files(served)[UNIT_FOLDER / f"{VLLM}.service"], "ExecStart")
        words = exec_words(value)
        assert words[len(words) - len(flags) :] == flags

    @given(st.dictionaries(st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True), TEXT, max_size=5))
    def test_variables_come_back_as_they_were(self, variables: dict[str, str]) -> None:
        served = service(profile=tiny().model_copy(update={"environment": variables}))
        meant = environment_of(served, local().head, lab_facts()["lab-a"])
        assert environment(files(served)[NODE_ENV]) == meant

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
            *[("--port", "--port"), ('{"mode":2}', "'{\"mode\":2}'"), ("50%", "50%%"), ("$HOME", "$$HOME")],
            *[("it's", '"it\'s"'), ("a\\b", "'a\\\\b'"), ("", "''"), (";", "';'")],
        ],
    )
    def test_words_are_written_as_plainly_as_can_be(self, word: str, written: str) -> None:
        assert exec_word(word) == written


class TestPresent:
    facts = serving(service())
    meant = files_of(service(), facts)

    def test_the_same_files_are_present(self) -> None:
        for node in NODES:
            assert present(self.meant[node], self.facts[node])

    @pytest.mark.parametrize(
        "change", ["other content", "one less", "a unit of another part", "code that is no longer ours"]
    )
    def test_any_difference_is_none(self, change: str) -> None:
        seen = self.facts["lab-a"]
        held = dict(seen.files)
        if change == "other content":
            held[str(NODE_ENV)] += "A=1\n"
        elif change == "one less":
            del held[str(NODE_ENV)]
        else:
            held[str({"a": UNIT_FOLDER / f"{RANK}.service", "c": CODE / "serve/onnode/old.py"}[change[0]])] = ""
        assert not present(self.meant["lab-a"], replace(seen, files=held))

    def test_what_is_others_is_left_alone(self) -> None:
        others = ("/etc/systemd/system/sparkstack-prometheus.service", "/etc/sparkstack/credentials.json")
        others += ("/etc/systemd/system/sparkstack-node-exporter.service", "/etc/sparkstack/prometheus.yml")
        seen = replace(self.facts["lab-a"], files={**self.facts["lab-a"].files, **dict.fromkeys(others, "")})
        assert stale(self.meant["lab-a"], seen) == []

    def test_a_proxy_that_is_no_longer_wanted_goes(self) -> None:
        proxied = serving(service(behind_tls()))["lab-a"]
        assert stale(self.meant["lab-a"], proxied) == [
            "/etc/sparkstack/Caddyfile",
            "/etc/systemd/system/sparkstack-proxy.service",
        ]


@pytest.mark.processes
@pytest.mark.parametrize("executor", ["ray", "mp"])
def test_systemd_finds_nothing_wrong_with_the_units(executor: str, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not on this host")
    cluster = local().model_copy(update={"root": tmp_path / "sparkstack", "user": "root"}).with_tls()
    served = service(cluster, profile=tiny().model_copy(update={"executor": executor}))
    bin_folder = tmp_path / "sparkstack/releases" / served.release / "venv/bin"
    bin_folder.mkdir(parents=True)
    for name in ("ray", "vllm", "python"):
        (bin_folder / name).write_text("#!/bin/sh\n")
        (bin_folder / name).chmod(0o755)
    written: dict[str, Path] = {}
    for found in files_of(served, lab_facts()).values():
        for path, text in found.items():
            if path.parent == UNIT_FOLDER:
                written[path.name] = tmp_path / path.name
                written[path.name].write_text(text)
    assert len(written) == {"ray": 5, "mp": 4}[executor]
    done = run(["systemd-analyze", "verify", "--man=no", *map(str, written.values())], check=False)
    ours = [
        line for line in (done.out + done.err).splitlines() if "sparkstack" in line and "not executable" not in line
    ]
    assert not ours, "\n".join(ours)
