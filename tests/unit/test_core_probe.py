"""The probe as it runs: on this host, with its own commands and files."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from core.config import load_cluster
from core.facts import look_here, parse
from core.host import SudoPassword
from core.local import LocalHost
from core.probe import probe_argv
from core.process import run
from core.question import Question, probe_request
from tests.unit.samples import lab_captures

CAPTURE: dict[str, Any] = dict(lab_captures().nodes["lab-a"])
REQUEST: dict[str, Any] = {
    "ours": "sparkstack-unit-test",
    "commands": {
        "hello": ["echo", "hello"],
        "fails": ["sh", "-c", "echo part; exit 3"],
        "absent": ["no-such-program"],
        "processes": [
            "printf",
            "%s\n",
            "1 root sparkstack-unit-test a",
            "2 root other",
            "3 x sparkstack-unit-test\u2028b",
        ],
    },
    "files": {"kept": ["/etc/os-rel*"], "gone": ["/no/such/*"]},
}


@pytest.mark.processes
def test_the_probe_runs_and_answers_every_fact() -> None:
    facts = json.loads(run(probe_argv(REQUEST)).out)
    assert facts["hello"] == {"code": 0, "out": "hello\n"}
    assert facts["fails"] == {"code": 3, "out": "part\n"}
    assert facts["absent"]["code"] == 127
    assert "no-such-program" in facts["absent"]["error"]
    assert facts["kept"]["files"]["/etc/os-release"] == Path("/etc/os-release").read_text()
    assert facts["gone"] == {"code": 0, "files": {}}
    began, ended = map(float, facts["clock"]["out"].split())
    assert began <= ended
    assert facts["processes"]["out"] == "1 root sparkstack-unit-test a\n3 x sparkstack-unit-test\u2028b\n"


@pytest.mark.processes
def test_the_probe_does_not_find_its_own_commands_among_our_processes() -> None:
    commands = {
        "processes": ["ps", "-eww", "-o", "pid=,user:32=,args="],
        **{str(number): ["sh", "-c", "sleep 2; exit # sparkstack-unit-test"] for number in range(3)},
    }
    began = time.monotonic()
    facts = json.loads(run(probe_argv({**REQUEST, "commands": commands})).out)
    assert time.monotonic() - began < 5.5, "they run side by side"
    assert facts["processes"] == {"code": 0, "out": ""}


@pytest.mark.processes
def test_the_probe_reads_this_host(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("the probe asks Linux")
    cluster = load_cluster("local").model_copy(update={"root": tmp_path / "sparkstack"})
    (tmp_path / "sparkstack" / "wheels").mkdir(parents=True)
    (tmp_path / "sparkstack" / "wheels" / "x-1-py3-none-any.whl").write_text("12345")
    (tmp_path / "sparkstack" / "current").symlink_to("releases/one")
    host = LocalHost("lab-a", SudoPassword(None))
    capture = json.loads(host.run(probe_argv(probe_request(cluster, cluster.head, Question()))).out)
    seen = parse("lab-a", {**capture, "addresses": CAPTURE["addresses"]})  # a bare host may have no `ip`
    assert seen.architecture == os.uname().machine
    assert seen.wheels == {"x-1-py3-none-any.whl": 5}
    assert seen.current == "one"
    assert seen.memory_total > 0
    assert (seen.releases, seen.partial, seen.model_files, seen.state) == ({}, frozenset(), {}, {})


@pytest.mark.processes
def test_this_host_is_probed_as_a_machine_that_builds(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("the probe asks Linux")
    seen = look_here(tmp_path, ("libc6",))
    assert (seen.name, seen.architecture) == ("controller", os.uname().machine)
    assert seen.python == sys.version_info[:2], "the one that runs us"
    assert seen.disk_free > 0
    assert seen.toolchain.programs is not None
    assert (seen.units, seen.processes, seen.builds) == ({}, (), frozenset())
