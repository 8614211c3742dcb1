"""A model onto both machines: out of a hub on this host, over the fabric, whatever happens in between."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.errors import ModelRefused, RegistryRefused, UnfitNode
from lab import lifecycle, network
from tests.machines.command_line import CommandLine, Ended, Started, assert_interrupted, assert_refused
from tests.machines.harness import Lab, eventually
from tests.machines.test_release import filled_disk
from tests.unit.modelhub import REPOSITORY, Hub, Running, running, sha256

pytestmark = pytest.mark.machines

A, B = "test-a", "test-b"
MODELS = "/opt/sparkstack/models"
FOLDER = f"{MODELS}/{REPOSITORY}"
INCOMING = f"{MODELS}/Qwen/.Tiny.incoming"
LARGE = "model-00001-of-00002.safetensors"
MEGABYTES = 24
SUMS = f"cd {FOLDER} && sha256sum $(find . -type f | sort)"


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """A model whose large files take a while."""
    large = {f"model-0000{n}-of-00002.safetensors": os.urandom(MEGABYTES << 20) for n in (1, 2)}
    return {"config.json": b"{}\n", "tokenizer.json": b"[]\n", **large}


@pytest.fixture
def hub(lab: Lab, files: dict[str, bytes], tmp_path: Path) -> Iterator[Running]:
    """A hub on this host's end of the management network; no model is on the machines."""
    for name in (A, B):
        lab.as_root(name, "systemctl stop sparkstack-model-* sparkstack-relay*")
        lab.output(name, f"rm -rf {MODELS}")
    with running(tmp_path, Hub(files=dict(files)), str(network.host_address(lab.cluster))) as found:
        yield found


def environment(hub: Running) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.server.url, "no_proxy": hub.server.address, "HF_TOKEN": ""}


def fetched(invoke: CommandLine, hub: Running, *words: str) -> Ended:
    done = invoke("model.fetch", REPOSITORY, *words, environment=environment(hub))
    assert done.code == 0, str(done)
    return done


def assert_there(lab: Lab, hub: Running) -> None:
    """Both machines have every file, and nothing that was on its way."""
    expected = {path: sha256(data) for path, data in hub.hub.files.items()}
    for name in (A, B):
        lines = lab.output(name, f"ls -A {MODELS}/Qwen && cd {FOLDER} && sha256sum {' '.join(expected)}").splitlines()
        assert lines[0] == "Tiny", name
        assert {path: digest for digest, path in map(str.split, lines[1:])} == expected, name


def arrives(lab: Lab, name: str, started: Started, megabytes: int = 4) -> None:
    """Wait until so much of a large file is there."""
    size = f"[ ! -e {INCOMING} ] || du -sm {INCOMING} | cut -f1"
    started.reaches(lambda: int(lab.output(name, size) or 0) >= megabytes, "nothing arrived")


def test_a_model_comes_once_from_the_hub_and_once_over_the_fabric(lab: Lab, hub: Running, invoke: CommandLine) -> None:
    fetched(invoke, hub)
    assert_there(lab, hub)
    assert len(hub.cdn.asked) == 2
    assert lab.output(A, SUMS) == lab.output(B, SUMS)
    assert fetched(invoke, hub).out == "nothing to do\n"
    assert len(hub.cdn.asked) == 2
    listed = json.loads(invoke.works("model.list", "--json").out)
    assert [(one["node"], one["repository"], one["files"]) for one in listed] == [
        (A, REPOSITORY, 4),
        (B, REPOSITORY, 4),
    ]
    assert lab.paths(A, "/opt/sparkstack/tools/*.json") == [], "requests hold secrets"
    assert eventually(lambda: "29777" not in lab.output(A, "ss -Hltn"))


def test_a_damaged_file_is_found_and_only_that_one_is_mended(lab: Lab, hub: Running, invoke: CommandLine) -> None:
    fetched(invoke, hub)
    lab.output(B, f"printf damaged | dd of={FOLDER}/{LARGE} bs=1 seek=1000000 conv=notrunc status=none")
    assert_refused(invoke("model.verify"), ModelRefused.exit_code, B, LARGE, "model.fetch Qwen/Tiny", "--again")
    before = len(hub.cdn.asked)
    fetched(invoke, hub, "--again")
    assert_there(lab, hub)
    assert len(hub.cdn.asked) == before, "it came from the other machine"
    invoke.works("model.verify")


def test_power_lost_in_mid_fetch_costs_what_was_not_there(lab: Lab, hub: Running, invoke: CommandLine) -> None:
    hub.hub.slow = 0.2
    with invoke.begin("model.fetch", REPOSITORY, environment=environment(hub)) as started:
        arrives(lab, A, started, 8)
        lifecycle.kill(lab.cluster, A, lab.said.append)
        assert started.ended(180).code != 0
    lab.up()
    hub.hub.slow = 0
    before = len(hub.cdn.asked)
    fetched(invoke, hub)
    assert_there(lab, hub)
    assert all(asked.range for asked in hub.cdn.asked[before:]), "it went on from the byte it had"


def test_ctrl_c_ends_the_looking_on_and_not_the_fetch(lab: Lab, hub: Running, invoke: CommandLine) -> None:
    hub.hub.slow = 0.2
    with invoke.begin("model.fetch", REPOSITORY, environment=environment(hub)) as started:
        arrives(lab, A, started)
        started.interrupt()
        done = started.ended()
    assert_interrupted(done)
    assert "goes on, the same command follows it" in done.error
    fetched(invoke, hub)
    assert_there(lab, hub)
    assert len(hub.cdn.asked) == 2, "the fetch was not begun again"


def test_a_link_cut_in_mid_relay_and_healed_costs_seconds(lab: Lab, hub: Running, invoke: CommandLine) -> None:
    with lab.slow_links("100mbit"), invoke.begin("model.fetch", REPOSITORY, environment=environment(hub)) as started:
        arrives(lab, B, started, 1)
        lifecycle.cut(lab.cluster, B, lab.said.append)
        lifecycle.heal(lab.cluster, B, lab.said.append)
        assert started.ended(180).code == 0
    assert_there(lab, hub)


def test_a_node_without_room_is_named_and_the_others_files_stay(lab: Lab, hub: Running, invoke: CommandLine) -> None:
    with filled_disk(lab, B, leave=1040):
        done = invoke("model.fetch", REPOSITORY, environment=environment(hub))
        assert_refused(done, UnfitNode.exit_code, B, "are still to come", "invoke model.remove")
    fetched(invoke, hub)
    assert_there(lab, hub)
    assert len(hub.cdn.asked) == 2


def test_wrong_bytes_from_the_hub_are_put_nowhere(lab: Lab, hub: Running, invoke: CommandLine) -> None:
    good = hub.hub.files["config.json"]
    row = hub.hub._row("config.json")
    hub.hub.files["config.json"] = b"[]\n"
    hub.hub.rows = [row, *(hub.hub._row(name) for name in hub.hub.files if name != "config.json")]
    done = invoke("model.fetch", REPOSITORY, environment=environment(hub))
    assert_refused(done, ModelRefused.exit_code, A, "config.json is not what the hub lists")
    assert lab.paths(A, f"{FOLDER}/*") == []
    hub.hub.files["config.json"] = good
    fetched(invoke, hub)
    assert_there(lab, hub)


def test_a_hub_that_is_not_there_is_named(hub: Running, invoke: CommandLine) -> None:
    given = {**environment(hub), "HF_ENDPOINT": f"http://{hub.server.address}:9"}
    assert_refused(invoke("model.fetch", REPOSITORY, environment=given), RegistryRefused.exit_code, A, "times in a row")


def test_what_is_removed_is_gone_and_the_second_time_there_is_nothing_to_do(
    lab: Lab, hub: Running, invoke: CommandLine
) -> None:
    fetched(invoke, hub)
    invoke.works("model.remove", REPOSITORY)
    assert [lab.output(name, f"ls -A {MODELS}/Qwen") for name in (A, B)] == ["", ""]
    assert invoke.works("model.remove", REPOSITORY).out == "nothing to do\n"
