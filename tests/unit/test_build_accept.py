"""Wheels made by hand: one is as its recipe promises, each other one is wrong in one thing."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from build import accept as gates
from build import times
from build.accept import LEVELS, Made, accept, verify
from build.job import FIXED
from build.recipe import Recipe
from build.records import recorded
from core.config import Stack, load_data
from core.errors import BuildFailed, HostNotReady
from tests.unit.elf_builder import EXECUTE, Library, Part, entry, fatbin
from tests.unit.samples import cpu
from tests.unit.smalldisk import mounted
from wheels.manifest import Wheel, sha256_of

NAME = "small_thing-1.0-py3-none-linux_x86_64.whl"
RECIPE: dict[str, Any] = {
    "distribution": "small-thing",
    "version": "1.0",
    "requires": ["pip==26.3"],
    "source": {"path": "build/sources/probe"},
    "expected": {
        "tags": "py3-none-linux_{arch}",
        "files": ["small/__init__.py"],
        "device_code": {"small/_C*.so": ["{architectures}"]},
    },
    "requires_dist": ["numpy>=2", 'ray[cgraph]!=2.50; python_version >= "3.10"'],
}


def library(*codes: int, rpath: str = "", text: bytes = b"\xc3") -> bytes:
    parts = (Part(".text", text, flags=2 | EXECUTE), Part(".nv_fatbin", fatbin(*(entry(2, code) for code in codes))))
    return Library(parts=parts if codes else parts[:1], runpath=rpath).build()


METADATA = """Metadata-Version: 2.1
Name: Small_Thing
Version: 1.0
Requires-Dist: ray[cgraph]!=2.50; python_version>='3.10'
Requires-Dist: numpy>=2
"""
FILES: dict[str, bytes] = {
    "small/__init__.py": b"",
    "small/_C.abi3.so": library(121),
    "small_thing-1.0.dist-info/METADATA": METADATA.encode(),
    "small_thing-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\n",
    "small_thing-1.0.dist-info/RECORD": b"",
}


@dataclass
class Bench:
    """A job folder with what a build left in it, and a wheelhouse."""

    made: Made
    place: Path
    said: list[str]

    def builds(self, changes: Mapping[str, bytes | None]) -> None:
        """Leave a wheel of FILES with changes, and the runner's word of it; None leaves a file out."""
        self.made.path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(self.made.path, "w") as archive:
            for name, content in {**FILES, **changes}.items():
                if content is not None:
                    archive.writestr(zipfile.ZipInfo(name), content)
        self.tells(sha256=sha256_of(self.made.path), seconds={"all": 12.4})

    def tells(self, **result: Any) -> None:
        (self.made.path.parent / "result.json").write_text(json.dumps(result))

    def accept(self) -> None:
        accept(self.made, self.place, self.said.append)

    @property
    def holds(self) -> list[str]:
        """Every file of the wheelhouse."""
        return sorted(str(path.relative_to(self.place)) for path in self.place.rglob("*") if path.is_file())


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(times, "WORK", tmp_path)
    stack: Stack = cpu().model_copy(update={"architectures": ("121",)})
    recipe = load_data(Recipe, Path("small.toml"), RECIPE)
    made = Made(recipe, stack, tmp_path / "job", NAME, "1" * 64, "2" * 64, "gx10", tmp_path / "log")
    bench = Bench(made, tmp_path / "wheelhouse", [])
    bench.builds({})
    return bench


def test_a_wheel_as_promised_is_moved_and_recorded_and_its_job_removed(bench: Bench) -> None:
    bench.made.log.write_text("x\n-- Not building marlin as no compatible archs found in 12.1\n")
    bench.accept()
    assert bench.holds == ["built/small-thing.json", NAME]
    (wheel,) = recorded(bench.place)
    assert (wheel.recipe, wheel.tree, wheel.origin, wheel.level) == ("1" * 64, "2" * 64, "source", None)
    assert wheel.sha256 == sha256_of(bench.place / NAME)
    assert wheel.notes == ("Not building marlin as no compatible archs found in 12.1",)
    assert not bench.made.folder.exists()
    assert times.expected_seconds("gx10", "small") == 12.4
    assert bench.said == [f"note: {wheel.notes[0]}", f"{NAME} is as the recipe says (12 s)"]


def changed(old: str, new: str) -> Callable[[Bench], None]:
    assert old in METADATA
    return lambda bench: bench.builds({"small_thing-1.0.dist-info/METADATA": METADATA.replace(old, new).encode()})


def with_file(name: str, content: bytes | None) -> Callable[[Bench], None]:
    return lambda bench: bench.builds({name: content})


LIBRARY = "small/_C.abi3.so"
WRONG: dict[str, tuple[Callable[[Bench], object], tuple[str, ...]]] = {
    "no wheel": (lambda bench: bench.made.path.unlink(), ("small left no wheel", "begins this wheel anew")),
    "no word of it": (lambda bench: (bench.made.path.parent / "result.json").unlink(), ("small left no wheel",)),
    "half a word of it": (
        lambda bench: bench.made.path.with_name("result.json").write_text('{"sha256":'),
        ("small left no wheel",),
    ),
    "another wheel": (
        lambda bench: bench.tells(sha256="0" * 64, seconds={"all": 1}),
        ("the wheel that arrived is not the one that was built",),
    ),
    "another version": (changed("Version: 1.0", "Version: 1.1"), (f"{NAME} says", "small-thing==1.1", "small.toml")),
    "another name": (changed("Small_Thing", "Other"), ("says of itself that it is other==1.0",)),
    "no metadata": (with_file("small_thing-1.0.dist-info/METADATA", None), (f"{NAME} has no METADATA",)),
    "a missing file": (with_file("small/__init__.py", None), (f"{NAME} lacks small/__init__.py",)),
    "a missing library": (with_file(LIBRARY, None), (f"{NAME} lacks small/_C*.so", "left out silently")),
    "one requirement more": (
        changed("Requires-Dist: numpy>=2", "Requires-Dist: numpy>=2\nRequires-Dist: pandas"),
        ("only in the wheel: pandas", "correct requires_dist", "invoke build.lock"),
    ),
    "another requirement": (
        changed("numpy>=2", "numpy>=3"),
        ("only in the wheel: numpy>=3", "only in the recipe: numpy>=2"),
    ),
    "no device code": (with_file(LIBRARY, library()), ("holds no sm_121", "it holds no device code")),
    "other device code": (with_file(LIBRARY, library(90, 120)), ("holds no sm_121", "it holds sm_120, sm_90")),
    "a path into the job": (
        with_file(LIBRARY, library(121, rpath=f"$ORIGIN:{FIXED}/venv/lib")),
        (f"{LIBRARY} in {NAME} looks for libraries in {FIXED}/venv/lib", "patchelf"),
    ),
    "a library that is damaged": (with_file(LIBRARY, library(121)[:90]), (LIBRARY,)),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wheel_that_is_not_as_promised_stays_out(bench: Bench, case: str) -> None:
    spoil, says = WRONG[case]
    spoil(bench)
    with pytest.raises(BuildFailed) as caught:
        bench.accept()
    assert [text for text in says if text not in str(caught.value)] == []
    assert caught.value.next_move
    assert bench.holds == []


def test_a_stack_without_gpu_asks_for_no_device_code(bench: Bench) -> None:
    bench.made = replace(bench.made, stack=cpu().model_copy(update={"architectures": ()}))
    bench.builds({LIBRARY: None})
    bench.accept()
    assert NAME in bench.holds


def test_a_cross_built_wheel_is_imported_for_its_machine(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Any] = []
    monkeypatch.setattr(gates, "import_wheel", lambda *words, **more: tried.append((words[1], more["machine"])))
    expected = bench.made.recipe.expected.model_copy(update={"imports": ("small",)})
    recipe = bench.made.recipe.model_copy(update={"expected": expected})
    bench.made = replace(bench.made, recipe=recipe, cross="aarch64")
    bench.accept()
    assert tried == [(("small",), "aarch64")]


@pytest.mark.processes
def test_a_wheelhouse_on_a_full_disk_gets_no_half_wheel(bench: Bench) -> None:
    bench.builds({"small/large": bytes(2**20)})
    with mounted(bench.place):
        with pytest.raises(HostNotReady, match="is full"):
            bench.accept()
        assert bench.holds == []
    assert bench.made.path.exists()


def first_of(bench: Bench) -> Wheel:
    """Accept the wheel of FILES as the first of two."""
    bench.accept()
    (wheel,) = recorded(bench.place)
    return wheel


LEVELLED: dict[str, tuple[dict[str, bytes | None], int, str]] = {
    "the same": ({}, 1, ""),
    "another RECORD": ({"small_thing-1.0.dist-info/RECORD": b"x"}, 2, "the form of the zip file, RECORD or byte code"),
    "other data": ({"small/table.json": b"[2]"}, 3, "small/table.json"),
    "other code": ({LIBRARY: library(121, text=b"\x90")}, 0, f"{LIBRARY}: .text"),
    "a file more": ({"small/more.py": b""}, 0, "small/more.py: only in one of the two"),
}


@pytest.mark.parametrize("case", LEVELLED)
def test_a_second_build_is_compared_and_the_level_recorded(bench: Bench, case: str) -> None:
    changes, level, differs = LEVELLED[case]
    bench.builds({"small/table.json": b"[1]"})
    first = first_of(bench)
    bench.builds({"small/table.json": b"[1]", **changes})
    verify(first, bench.made, bench.place, bench.said.append)
    (wheel,) = recorded(bench.place)
    assert (wheel.level, wheel.differs or "") == (level, differs)
    assert wheel.sha256 == first.sha256 == sha256_of(bench.place / NAME)
    assert LEVELS[level] in bench.said[-1]
    assert not bench.made.folder.exists()


def test_a_second_build_that_left_no_wheel_records_nothing(bench: Bench) -> None:
    first = first_of(bench)
    with pytest.raises(BuildFailed, match="left no wheel"):
        verify(first, bench.made, bench.place, bench.said.append)
    assert recorded(bench.place) == (first,)
