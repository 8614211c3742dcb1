"""All gates over a small set of wheels on disk: let in, or refused with every reason at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.config import Stack
from core.errors import WheelRefused
from tests.unit.elf_builder import AARCH64, Library, Part, entry, fatbin
from tests.unit.samples import SPARK, cpu
from tests.unit.test_wheels_sheet import GIVES, INFO, METADATA, WHEEL, make
from wheels.gates import GATES
from wheels.judge import capability, judge, origin_of
from wheels.manifest import Wheel, describe

TAGS = "cp312-abi3-linux_aarch64"


class Bench:
    """A folder of wheels, each one library, and a stack for sm_121."""

    def __init__(self, folder: Path) -> None:
        self.place, self.work = folder / "wheels", folder / "work"
        self.place.mkdir()
        self.said: list[str] = []
        self.stack: Stack = cpu().model_copy(update={"architectures": ("121",), "without": {}, "overrides": {}})
        self.wheels: list[Wheel] = []

    def add(
        self, name: str, library: Library | None = None, requires: str = "", origin: str = "index", *, code: bool = True
    ) -> Path:
        metadata = METADATA.replace("Small-Thing", name).partition("Requires-Dist")[0]
        files = {
            f"{INFO}/METADATA": None,
            f"{INFO}/WHEEL": None,
            f"{INFO}/COPYING.txt": None,
            f"{INFO}/licenses/LICENSE": None,
            "small_thing/_C.abi3.so": (library or Library()).build() if code else None,
            "small_thing/libgiven.so": GIVES if name == "torch" and code else None,
            f"{name}-1.0.dist-info/METADATA": (metadata + requires).encode(),
            f"{name}-1.0.dist-info/WHEEL": WHEEL.encode(),
        }
        path = make(self.place / f"{name}-1.0-{TAGS}.whl", files)
        self.wheels.append(describe(path, origin))  # type: ignore[arg-type]
        return path

    def judge(self) -> list[str]:
        found = judge(self.wheels, self.stack, SPARK, self.place, self.said.append, work=self.work)
        return [str(verdict) for verdict in found]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def with_gpu_code(number: int, kind: int = 2, payload: bytes = bytes(5000)) -> Library:
    return Library(parts=(Part(".nv_fatbin", fatbin(entry(kind, number, payload=payload))),), machine=AARCH64)


PLAIN = Library(machine=AARCH64)


def test_wheels_that_fit_are_let_in_and_warnings_returned(bench: Bench):
    bench.add("torch", PLAIN)
    bench.add("user", Library(machine=AARCH64, undefined=("_ZN3c105GivenE",)), "Requires-Dist: torch==1.0\n")
    bench.add("kernels", with_gpu_code(90, kind=1))
    (warning,) = bench.judge()
    assert "has GPU code only as PTX for this GPU" in warning
    assert bench.said == [f"3 wheels pass {len(GATES)} gates, 1 warnings"]


def test_a_name_for_the_torch_that_nodes_have_is_compared_with_nothing(bench: Bench):
    bench.add("torch", code=False)
    bench.add("user", Library(machine=AARCH64, undefined=("_ZN3c103NewE",)), "Requires-Dist: torch==1.0\n")
    assert bench.judge() == []


def test_everything_that_is_refused_is_told_at_once_with_its_gate_and_next_move(bench: Bench):
    bench.add("torch", PLAIN)
    bench.add("user", Library(machine=AARCH64, undefined=("_ZN3c103NewE",)), "Requires-Dist: torch>=2\n")
    bench.add("kernels", with_gpu_code(90))
    with pytest.raises(WheelRefused) as caught:
        bench.judge()
    error = caught.value
    assert error.cause == (
        f"user-1.0-{TAGS}.whl needs of torch 1.0 what it does not give: small_thing/_C.abi3.so lacks c10::New "
        "(gate torch), and 2 more"
    )
    assert "against this torch" in error.next_move
    requirement, kernels, cure = error.evidence.splitlines()
    assert requirement.startswith(f"user-1.0-{TAGS}.whl requires torch>=2, the set has 1.0 (gate requirements); next: ")
    assert kernels.startswith(f"kernels-1.0-{TAGS}.whl holds no GPU code that runs on compute capability 12.1")
    assert cure == "smallest cure: torch 1.0 must be >=2 (user requires torch>=2)"


def test_who_made_a_wheel_decides_what_is_only_untidy(bench: Bench):
    untidy = Library(machine=AARCH64, runpath="/home/somebody/lib")
    bench.add("theirs", untidy)
    assert len(bench.judge()) == 1
    bench.add("ours", untidy, origin="source")
    with pytest.raises(WheelRefused, match=r"^ours-1\.0-.*looks for libraries where no node has them"):
        bench.judge()


def test_a_wheel_that_cannot_be_read_is_refused_with_the_others(bench: Bench):
    bench.add("kernels", with_gpu_code(90))
    path = bench.add("broken", PLAIN)
    path.write_bytes(b"<html>")
    with pytest.raises(WheelRefused) as caught:
        bench.judge()
    assert "broken-1.0" in caught.value.cause
    assert "is no wheel to use: it cannot be read" in caught.value.cause
    assert "(gate wheel), and 1 more" in caught.value.cause
    assert "kernels-1.0" in caught.value.evidence


def test_a_second_judgement_reads_no_wheel_again(bench: Bench):
    bench.add("user", PLAIN)
    bench.judge()
    (bench.place / bench.wheels[0].filename).unlink()
    assert bench.judge() == []


def test_what_the_stack_says_of_its_set_holds(bench: Bench):
    bench.add("user", PLAIN, "Requires-Dist: torch\nRequires-Dist: other>=2\n")
    bench.add("other", PLAIN)
    bench.stack = bench.stack.model_copy(update={"without": {"torch": "no"}, "overrides": {"other": "any"}})
    assert bench.judge() == []


@pytest.mark.parametrize(
    ("name", "expected"), [("121", "12.1"), ("121a", "12.1"), ("120f", "12.0"), ("90", "9.0"), ("100", "10.0")]
)
def test_an_architecture_has_a_compute_capability(name: str, expected: str):
    assert capability(name) == expected


def test_the_stack_says_where_a_distribution_comes_from():
    stack = cpu()
    assert origin_of("vllm", stack) == "source"
    assert origin_of("torch", stack) == origin_of("numpy", stack) == origin_of("vllm", None) == "index"
