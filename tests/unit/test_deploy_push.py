"""Wheels to a node: what it has does not travel, what is there is verified before an installation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from core.facts import NodeFacts
from core.plan import Push, Run, Step, Write
from core.process import run
from core.root import root_steps
from deploy.push import push_steps
from tests.unit.samples import lab_facts, local, manifest, wheel

HEAD = local().head
WHEELS = manifest(wheel("one", size=2_000_000), wheel("two"), wheel("uv"))


def has(*names: str, **more: object) -> NodeFacts:
    files = {one.filename: one.size for one in WHEELS.wheels if one.name in names}
    return replace(lab_facts()["lab-a"], wheels=files, **more)  # type: ignore[arg-type]


def steps(seen: NodeFacts) -> tuple[Step, ...]:
    return push_steps(local(), HEAD, seen, WHEELS, Path("/dist"))


def pushed(seen: NodeFacts) -> list[str]:
    return [source.name for step in steps(seen) if isinstance(step, Push) for source in step.sources]


def verified(seen: NodeFacts) -> list[str]:
    lines = [line for step in steps(seen) if isinstance(step, Write) for line in step.content.splitlines()]
    return [line.rpartition("/")[2].partition("-")[0] for line in lines]


def test_an_empty_node_gets_everything() -> None:
    push = next(step for step in steps(has()) if isinstance(step, Push))
    assert push.title == "push 3 wheels, 2 MB"
    assert push.reason == "0 of 3 are there"
    assert (push.size, str(push.destination)) == (2_002_000, "/opt/sparkstack/wheels")
    assert push.sources[0] == Path("/dist/one-1.0-py3-none-any.whl")
    assert verified(has()) == ["one", "two", "uv"]


def test_what_is_there_does_not_travel_and_is_verified_all_the_same() -> None:
    assert pushed(has("one")) == ["two-1.0-py3-none-any.whl", "uv-1.0-py3-none-any.whl"]
    assert pushed(has("one", "two", "uv")) == []
    assert verified(has("one", "two", "uv")) == ["one", "two", "uv"]


def test_a_truncated_wheel_travels_again() -> None:
    cut = replace(has("two", "uv"), wheels={**has("two", "uv").wheels, "one-1.0-py3-none-any.whl": 12})
    assert pushed(cut) == ["one-1.0-py3-none-any.whl"]


def test_an_installed_release_is_left_alone_and_its_lost_wheels_come_back() -> None:
    installed = {WHEELS.release: {"stack": "cpu"}}
    assert steps(has("one", "two", "uv", releases=installed)) == ()
    assert pushed(has("one", "uv", releases=installed)) == verified_names(has("one", "uv", releases=installed))


def verified_names(seen: NodeFacts) -> list[str]:
    return [f"{name}-1.0-py3-none-any.whl" for name in verified(seen)]


@pytest.mark.parametrize(
    ("owner", "reason"), [(None, "it does not exist"), ("root", "it belongs to root"), ("spark", None)]
)
def test_the_root_folder_is_made_once_and_that_takes_root(owner: str | None, reason: str | None) -> None:
    made = root_steps(local(), replace(lab_facts()["lab-a"], root_owner=owner))
    assert [(step.reason, step.privileged) for step in made] == ([(reason, True)] if reason else [])


@pytest.mark.processes
def test_a_damaged_wheel_is_removed_and_named_and_the_others_stay(tmp_path: Path) -> None:
    """The verification as it runs on a node."""
    (verify,) = [step for step in steps(has()) if isinstance(step, Run) and step.title.startswith("verify")]
    (write,) = [step for step in steps(has()) if isinstance(step, Write)]
    for name in ("one", "two", "uv"):
        (tmp_path / f"{name}.whl").write_text(name)
    sums = run(["sha256sum", *map(str, tmp_path.glob("*.whl"))]).out
    (tmp_path / "two.whl").write_text("damaged")
    (tmp_path / "uv.whl").unlink()
    (tmp_path / "sums").write_text(sums)
    assert verify.argv[-1] == str(write.path)
    done = run([*verify.argv[:-1], str(tmp_path / "sums")], check=False)
    assert done.code == 1
    assert "two.whl: FAILED" in done.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.whl", "sums"]
    (tmp_path / "sums").write_text(run(["sha256sum", str(tmp_path / "one.whl")]).out)
    assert run([*verify.argv[:-1], str(tmp_path / "sums")]).out == ""
