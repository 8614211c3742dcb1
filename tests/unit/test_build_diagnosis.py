"""Logs of builds: the first real error, what was left out, how far it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from build.diagnosis import first_error, progress, skipped_architectures, words

ERRORS = json.loads((Path(__file__).parent / "tables" / "build_errors.json").read_text(encoding="utf-8"))
VLLM = """\
-- CUDA target architectures: 12.0
  -- Not building Marlin kernels as no compatible archs found in CUDA target architectures
-- Building AllSpark kernels for archs: 8.0
-- Not building scaled_mm_c3x_sm90 as no compatible archs found in CUDA target architectures
\x1b[32m-- Not building NVFP4 as no compatible archs were found.\x1b[0m
-- Not building scaled_mm_c2x as all archs are already built for and covered by scaled_mm_c3x
-- Not building NVFP4 as no compatible archs were found.
"""
"""After the messages of vLLM 0.11.2's CMakeLists.txt."""


@pytest.mark.parametrize("case", ERRORS, ids=[case["name"] for case in ERRORS])
def test_the_first_real_error_is_told(case: dict[str, Any]):
    assert first_error(case["log"]) == "\n".join(case["told"])


def test_an_error_is_found_before_a_hundred_lines_of_consequences():
    case = ERRORS[0]
    log = ["-- Configuring done"] * 500 + case["log"] + ["ninja: build stopped: subcommand failed.", "error: x"] * 100
    assert first_error(log) == "\n".join(case["told"])


@pytest.mark.parametrize(
    "line",
    [
        "a.cpp:3:5: warning: unused variable ‘error’ [-Wunused-variable]",
        "g++ -Werror=format-security -DMESSAGE=error: -c a.cpp",
        "[3/4] Building CXX object errors.dir/fatal error.cpp.o",
        "-- Performing Test HAVE_ERROR - Failed",
        "a.cpp:3:5: note: this is no error",
        "copying torch/errors.py -> build/lib/torch",
        "",
    ],
)
def test_what_only_looks_like_an_error_is_none(line: str):
    assert first_error([line]) == ""


@pytest.mark.parametrize(
    ("line", "program"),
    [
        ("c++: fatal error: Killed signal terminated program cc1plus", "cc1plus"),
        ("gcc: internal compiler error: Killed (program cc1)", "cc1"),
        ("make[2]: *** [CMakeFiles/x.dir/build.make:76: a.o] Killed", "a process of the build"),
        ("nvcc error   : 'cicc' died due to signal 9 (Kill signal)", "a process of the build"),
        ("cc1plus: out of memory allocating 65536 bytes: virtual memory exhausted", "a process of the build"),
    ],
)
def test_a_compiler_that_was_killed_is_a_lack_of_memory(line: str, program: str):
    said, shown = first_error(["[1/9] x", line]).split("\n")
    assert said.startswith(f"{program} was ended, most likely out of memory: use fewer jobs")
    assert shown == line


@pytest.mark.parametrize(
    "line",
    [
        "ptxas /tmp/tmpxft_1.ptx, line 31; error   : Feature '.e2m1x2' requires .target sm_120a or higher",
        "nvlink error   : Undefined reference to '_Z3addi' in 'a.o'",
        "nvcc error   : 'ptxas' died due to signal 11 (Invalid memory reference)",
        "/tmp/cc1.s:14: Error: no such instruction: `fmovq'",
        'a.cu(12): catastrophic error: cannot open source file "cutlass/cutlass.h"',
        'a.cuh(9): error #20014-D: calling a __host__ function("f") from a __device__ function("g") is not allowed',
        "cc1plus: error: unrecognized command-line option ‘-mnope’",
        "/usr/bin/ld: error: cannot open x.o",
        "make: *** No rule to make target 'a.cu', needed by 'a.o'.  Stop.",
    ],
)
def test_every_tool_of_a_build_is_understood(line: str):
    assert first_error(["[1/2] x", line, "ninja: build stopped: subcommand failed."]) == line


def test_what_cmake_left_out_is_told_once_each():
    assert skipped_architectures(VLLM.splitlines()) == [
        "Not building Marlin kernels as no compatible archs found in CUDA target architectures",
        "Not building scaled_mm_c3x_sm90 as no compatible archs found in CUDA target architectures",
        "Not building NVFP4 as no compatible archs were found",
    ]


def test_what_a_dependency_of_vllm_says_of_itself_counts_too():
    """Seen in the configuration of vLLM 0.21.0 for 12.1."""
    line = "-- FlashMLA will not compile: unsupported CUDA architecture 12.0"
    assert skipped_architectures([line, line]) == ["FlashMLA will not compile: unsupported CUDA architecture 12.0"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("[12/345] Building CUDA object x.cu.o", (12, 345)),
        ("  [1/1] Linking", (1, 1)),
        ("\x1b[1m[7/9]\x1b[0m x", (7, 9)),
        ("[ 12%] Building CXX object a.o", (12, 100)),
        ("[100%] Built target x", (100, 100)),
        ("[  3%] x", (3, 100)),
        ("[9/3] no progress", None),
        ("[0/0] nothing", None),
        ("[34 lines of output]", None),
        ("see [3/4]", None),
        ("╰─> [14/20]", None),
        ("", None),
    ],
)
def test_progress_is_read(line: str, expected: tuple[int, int] | None):
    assert progress(line) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (200, "3 min 20 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h"),
        (3931, "1 h 6 min"),
        (86400, "24 h"),
    ],
)
def test_durations_are_said_in_words(seconds: float, expected: str):
    assert words(seconds) == expected


PIECES = (
    *("error:", "fatal", "CMake Error", "Traceback (most recent call last):", "Killed", " ", "a.cpp:1:2: ", "|"),
    *(": note: ", "Could not resolve host", "'x-populate'", "\x1b[1m", "[", "1/2", "]", "No space left on device"),
)


@given(st.lists(st.lists(st.sampled_from(PIECES) | st.text(max_size=8), max_size=5).map("".join), max_size=20))
def test_any_lines_can_be_read(lines: list[str]):
    first_error(lines)
    skipped_architectures(lines)
    for line in lines:
        found = progress(line)
        assert found is None or 0 <= found[0] <= found[1]
