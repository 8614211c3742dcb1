"""The gates over published wheels: nothing that works is refused, and what does not fit is told."""

from __future__ import annotations

import re
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name, parse_wheel_filename

from build.index import platform_flags, requirements_text
from core.config import ROOT, WORK, Stack, load_stack
from core.process import run
from wheels.fatbin import device_code_of_wheel
from wheels.gates import Case, Verdict, candidate, torch_gives_its_names
from wheels.judge import judge
from wheels.lock import for_target, read_lock
from wheels.manifest import describe
from wheels.sheet import Sheet, sheet_of
from wheels.target import Target

pytestmark = pytest.mark.wheels
PUBLISHED = WORK / "tests" / "wheels" / "published"
SPARK = Target(architecture="aarch64", python=(3, 12), glibc=(2, 39))
CUOBJDUMP = "nvidia-cuda-cuobjdump==13.5.37"
FEW = {
    "torch==2.9.0": [],
    "flashinfer-python==0.5.1": [],
    "nvidia-cufile==1.15.1.6": ["gpu: has GPU code only as PTX"],
    "nccl-extensions==0.1.0": ["gpu: has libraries without GPU code for this GPU: nccl/m2n/lib/cu12/libnccl_m2n.so"],
    "protobuf==6.33.5": ["abi3: promises abi3 of Python 3.9, google/_upb/_message.abi3.so needs 3.10"],
    "pyzmq==27.1.0": [],
    "sentencepiece==0.2.1": ["licence: says nothing of its licence"],
    "torch-c-dlpack-ext==0.1.5": [
        "torch: needs of torch 2.9.0 what it does not give: torch_c_dlpack_ext/libtorch_c_dl"
    ],
    "torchaudio==2.9.0": [],
    "torchvision==0.24.0": ["rpath: looks for libraries where no node has them: torchvision/_C.so in /__w/_temp/conda"],
    "triton==3.5.0": [],
}
"""Pinned wheels for a Spark and what the gates say of them; triton's 160 MB only in the long runs."""
LARGE = {"triton==3.5.0"}
LATER = ("torchaudio==2.11.0", "torchvision==0.29.0", "torchcodec==0.17.0")
"""Built against the stable ABI of torch 2.10 or later."""


def fetched(pins: Iterable[str], name: str) -> list[Path]:
    """Return wheels for a Spark, in a folder that is kept between runs."""
    place = PUBLISHED / name
    place.mkdir(parents=True, exist_ok=True)
    have = {pin_of(path): path for path in place.glob("*.whl")}
    missing = [pin for pin in pins if pin not in have]
    if missing:
        flags = ("--no-deps", "--only-binary=:all:", f"--dest={place}", "--quiet", *platform_flags(SPARK))
        run([sys.executable, "-m", "pip", "download", "--disable-pip-version-check", *flags, *missing], timeout=1800)
    have = {pin_of(path): path for path in place.glob("*.whl")}
    return [have[pin] for pin in pins]


def pin_of(path: Path) -> str:
    name, version, _, _ = parse_wheel_filename(path.name)
    return f"{name}=={version}"


def sparks(stack: str = "current") -> Stack:
    return load_stack(stack).model_copy(update={"architectures": ("121",)})


def judged(paths: list[Path], stack: Stack) -> tuple[Verdict, ...]:
    """Ask all gates; what the set lacks is not asked where it is no whole set."""
    names = {str(parse_wheel_filename(path.name)[0]) for path in paths}
    lacking = {canonicalize_name(re.split(r"[^\w.-]", line)[0]) for path in paths for line in sheet_of(path).requires}
    own = stack.model_copy(update={"without": dict.fromkeys(lacking - names, "not fetched here")})
    wheels = [describe(path, "index") for path in paths]
    return judge(wheels, own, SPARK, paths[0].parent, print)


def said(verdicts: Iterable[Verdict], path: Path) -> list[str]:
    return [f"{one.gate}: {one.cause}" for one in verdicts if one.wheel == path.name]


@pytest.mark.parametrize(
    "pins", [[pin for pin in FEW if pin not in LARGE], pytest.param([*FEW], marks=pytest.mark.long)]
)
def test_published_wheels_are_let_in_with_the_warnings_that_they_deserve(pins: list[str]):
    paths = fetched(pins, "few")
    verdicts = judged(paths, sparks())
    for pin, path in zip(pins, paths, strict=True):
        found = said(verdicts, path)
        assert len(found) == len(FEW[pin]), found
        for text, expected in zip(found, FEW[pin], strict=True):
            assert text.startswith(expected), pin


def lacking(path: Path, torch: Sheet) -> list[str]:
    case = Case(candidate(path.name, "index", sheet_of(path)), SPARK, (), torch.version, frozenset(torch.exports))
    assert sum(len(one.torch) for one in case.sheet.libraries) > 100, "a check of nothing proves nothing"
    return [problem.cause for problem in torch_gives_its_names(case) if problem.weight == "fails"]


@pytest.mark.parametrize("pin", ["torchaudio==2.9.0", "torchvision==0.24.0"])
def test_what_was_built_against_torch_2_9_fits_it(pin: str):
    path, torch = fetched([pin, "torch==2.9.0"], "few")
    assert not lacking(path, sheet_of(torch))


@pytest.mark.parametrize("pin", LATER)
def test_what_was_built_against_a_later_torch_does_not_fit_2_9(pin: str):
    path, torch = fetched([pin, "torch==2.9.0"], "few")
    (cause,) = lacking(path, sheet_of(torch))
    assert "needs of torch 2.9.0 what it does not give" in cause
    assert "torch_" in cause


STACKS = {
    "current": {
        "nvidia-cufft==12.0.0.61": "gpu: holds no GPU code that runs on compute capability 12.1, only sm_75",
        "pynvvideocodec==2.0.4": "record: has a RECORD that is not true",
        "torch-c-dlpack-ext==0.1.5": "torch: needs of torch 2.14.0 what it does not give",
        "vllm==0.33.0": "gpu: has GPU code only as PTX for this GPU in vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so",
    },
    "guide": {"scipy==1.17.0": "rpath: looks for libraries where no node has them"},
}
"""Some of what is to be said of the wheels that an index gives for a stack, besides that none is refused."""


@pytest.mark.long
@pytest.mark.parametrize("name", STACKS)
def test_no_published_wheel_of_a_whole_stack_is_refused(name: str):
    stack = sparks(name)
    pins = by_lock(stack)
    paths = fetched(pins, name)
    verdicts = judged(paths, stack)
    for pin, expected in STACKS[name].items():
        texts = said(verdicts, paths[pins.index(pin)])
        assert any(text.startswith(expected) for text in texts), texts


def by_lock(stack: Stack) -> list[str]:
    locked = for_target(read_lock(ROOT / stack.lock), SPARK)
    return [line.split()[0] for line in requirements_text(locked).splitlines()]


@pytest.mark.long
@pytest.mark.parametrize(
    "pin", ["vllm==0.33.0", "nvidia-nccl-cu13==2.30.7", "torch==2.14.0", "nvidia-cublas==13.1.1.3"]
)
def test_gpu_code_is_what_nvidias_own_tool_finds(pin: str, tmp_path: Path):
    (wheel,) = fetched([pin], "current")
    run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", f"--target={tmp_path / 'tool'}", CUOBJDUMP])
    (tool,) = (tmp_path / "tool").rglob("bin/cuobjdump")
    tool.chmod(0o755)
    for name, codes in device_code_of_wheel(wheel).items():
        with zipfile.ZipFile(wheel) as archive:
            library = Path(archive.extract(name, tmp_path))
        # its lists leave the suffix `f` out; -all: code that was linked into other code too
        assert listed(tool, library) == {str(code).removesuffix("f") for code in codes}, name
        library.unlink()


def listed(tool: Path, library: Path) -> set[str]:
    elf, ptx = (
        run([str(tool), "-all", flag, str(library)], timeout=600, check=False).out
        for flag in ("--list-elf", "--list-ptx")
    )
    sass = {f"sm_{name}" for name in re.findall(r"\.sm_(\w+)\.cubin", elf)}
    return sass | {f"compute_{name}" for name in re.findall(r"\.sm_(\w+)\.ptx", ptx)}
