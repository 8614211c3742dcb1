"""Sheets for people and programs, of wheels made by hand."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from core.errors import UsageError, WheelRefused
from tests.unit.elf_builder import AARCH64, Library
from tests.unit.samples import cpu
from tests.unit.test_wheels_judge import TAGS, Bench, with_gpu_code
from wheels import inspect as inspection
from wheels import manifest
from wheels.inspect import as_data, inspect, show
from wheels.target import Target


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(manifest, "DIST", tmp_path / "dist")
    return Bench(tmp_path)


def shown(found: inspection.Inspection) -> str:
    text = io.StringIO()
    show(found, Console(file=text, width=150, highlight=False))
    return text.getvalue()


def stack_for_sparks(**changes: object):
    own = {"platforms": ("x86_64", "aarch64"), "python": ("3.11", "3.12"), "architectures": ("121",), **changes}
    return cpu().model_copy(update=own)


def test_a_sheet_says_what_is_in_a_wheel(bench: Bench):
    path = bench.add("kernels", with_gpu_code(90), "Requires-Dist: numpy>=2\n")
    text = shown(inspect([path], work=bench.work))
    for part in (
        *("kernels 1.0", TAGS, ">=3.9", "MIT", "numpy>=2", "RECORD", "true", "1 for aarch64"),
        *("small_thing/_C.abi3.so: sm_90", "made by", "test 2", bench.wheels[0].sha256),
    ):
        assert part in text
    assert "Gates" not in text, "no stack was given"


def test_a_pure_wheel_has_no_lines_of_libraries(bench: Bench, tmp_path: Path):
    from tests.unit.small_wheels import small_wheel

    text = shown(inspect([small_wheel(tmp_path, "plain")], work=bench.work))
    assert "plain 1.0" in text
    assert not {"libraries", "GPU code", "RPATH"} & set(text.split())


def test_with_a_stack_the_gates_speak(bench: Bench):
    path = bench.add("kernels", with_gpu_code(90))
    found = inspect([path], stack_for_sparks(), work=bench.work)
    assert found.refused
    assert found.target == Target(architecture="aarch64", python=(3, 12), glibc=(2, 39))
    assert "refused kernels-1.0" in shown(found)
    assert "next: build it for the stack's architectures" in shown(found)
    fine = inspect([bench.add("fine", with_gpu_code(121))], stack_for_sparks(), work=bench.work)
    assert not fine.refused
    assert "they pass all of them" in shown(fine)


def test_files_that_do_not_fit_each_other_get_their_smallest_cure(bench: Bench):
    paths = [bench.add("user", Library(machine=AARCH64), "Requires-Dist: other>=2\nRequires-Dist: absent\n")]
    paths.append(bench.add("other", Library(machine=AARCH64)))
    found = inspect(paths, work=bench.work)
    assert "other 1.0 must be >=2 (user requires other>=2)" in shown(found)
    assert "absent" not in [one.wish.of for one in found.conflicts], "two files are no whole set"


def test_names_of_torch_are_compared_with_the_stacks_own(bench: Bench):
    user = bench.add("user", Library(machine=AARCH64, undefined=("_ZN3c103NewE",)))
    stack, bench.wheels = stack_for_sparks(), []
    target = Target(architecture="aarch64", python=(3, 12), glibc=(2, 39))
    assert not inspect([user], stack, work=bench.work).verdicts, "there is no torch to compare with"
    torch = bench.add("torch", Library(machine=AARCH64))
    place = manifest.folder(stack, target)
    place.mkdir(parents=True)
    torch.rename(place / torch.name)
    manifest.save(stack, target, bench.wheels, "0" * 64)
    (verdict,) = inspect([user], stack, work=bench.work).verdicts
    assert "lacks c10::New" in verdict.cause


def test_a_program_gets_everything_as_data(bench: Bench):
    paths = [bench.add("kernels", with_gpu_code(90), "Requires-Dist: other>=2\n"), bench.add("other")]
    data = json.loads(json.dumps(as_data(inspect(paths, stack_for_sparks(), work=bench.work))))
    assert (data["target"], data["stack"]) == ("aarch64-cp312", "cpu")
    wheel = data["wheels"][0]
    assert (wheel["file"], wheel["origin"]) == (paths[0].name, "index")
    assert wheel["file_tags"] == [TAGS]
    assert wheel["libraries"][0]["code"] == ["sm_90"]
    assert {verdict["gate"] for verdict in data["verdicts"]} >= {"gpu", "requirements", "machine"}
    assert data["conflicts"][0]["wish"] == {"by": "kernels", "of": "other", "specifier": ">=2"}
    assert data["cure"][0]["name"] == "other"


def test_no_files_and_files_that_are_no_wheels_are_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="no file was named"):
        inspect([])
    (tmp_path / "x-1-py3-none-any.whl").write_text("<html>")
    with pytest.raises(WheelRefused, match="is no wheel to use"):
        inspect([tmp_path / "x-1-py3-none-any.whl"], work=tmp_path)
