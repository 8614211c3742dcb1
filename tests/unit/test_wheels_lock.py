"""Hashed requirements files: what is in them, and for which target."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.markers import Marker, default_environment

from core.errors import ConfigError
from tests.unit.samples import SPARK, X86
from wheels.lock import Locked, entries, for_target, marker_environment, read_lock
from wheels.target import Target

A, B = "a" * 64, "b" * 64
LOCK = f"""\
# made by uv
aiohttp==3.14.5 \\
    --hash=sha256:{A} \\
    --hash=sha256:{B}
    # via vllm
Torch_Thing==2.13.0+cpu ; platform_machine == 'x86_64' and sys_platform == 'linux' \\
    --hash=sha256:{A}   # a note
ray[default]==2.60.0 --hash=sha256:{B}
"""


def written(folder: Path, text: str) -> Path:
    (folder / "my.lock").write_text(text)
    return folder / "my.lock"


def locked(marker: str | None) -> Locked:
    return Locked("x", "1", frozenset([A]), Marker(marker) if marker else None, "x==1")


def test_a_lock_is_read_with_versions_hashes_and_markers(tmp_path: Path) -> None:
    first, second, third = read_lock(written(tmp_path, LOCK))
    assert (first.name, first.version, first.hashes, first.marker) == ("aiohttp", "3.14.5", {A, B}, None)
    assert (second.name, second.version, second.hashes) == ("torch-thing", "2.13.0+cpu", {A})
    assert second.marker == Marker("platform_machine == 'x86_64' and sys_platform == 'linux'")
    assert (third.name, third.version) == ("ray", "2.60.0")


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        (f"x>=1 --hash=sha256:{A}", "has no exact version or no hash"),
        ("x==1", "has no exact version or no hash"),
        (f"x --hash=sha256:{A}", "has no exact version or no hash"),
        (f"x==1,==2 --hash=sha256:{A}", "has no exact version or no hash"),
        (f"not a requirement --hash=sha256:{A}", "is not a requirement"),
        ("--index-url https://example.org", "is not a requirement"),
    ],
)
def test_an_entry_that_is_not_exact_is_refused(entry: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        read_lock(written(tmp_path, entry))
    assert "my.lock" in caught.value.cause


def test_a_missing_lock_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.lock cannot be read: No such file"):
        read_lock(tmp_path / "none.lock")


NAMES = st.from_regex(r"[a-z][a-z0-9]{0,8}", fullmatch=True)
ROWS = st.lists(
    st.tuples(NAMES, st.integers(0, 99), st.lists(st.sampled_from([A, B]), min_size=1, unique=True), st.booleans())
)


@given(rows=ROWS)
def test_any_layout_of_a_lock_reads_the_same(rows: list[tuple[str, int, list[str], bool]]) -> None:
    lines = []
    for name, version, hashes, broken in rows:
        between = " \\\n    " if broken else " "
        lines += ["", "# via nobody", between.join([f"{name}=={version}", *(f"--hash=sha256:{h}" for h in hashes)])]
    found = entries("\n".join(lines) + "  # end\n")
    assert [entry.split() for entry in found] == [
        [f"{name}=={version}", *(f"--hash=sha256:{digest}" for digest in hashes)] for name, version, hashes, _ in rows
    ]


@pytest.mark.parametrize(
    ("marker", "on"),
    [
        (None, "aarch64 x86_64"),
        ("platform_machine == 'x86_64'", "x86_64"),
        ("platform_machine != 'x86_64'", "aarch64"),
        ("sys_platform == 'win32'", ""),
        ("python_version >= '3.12'", "aarch64"),
        ("python_full_version < '3.12'", "x86_64"),
        ("platform_python_implementation == 'CPython'", "aarch64 x86_64"),
        ("extra == 'test'", ""),
        ("os_name == 'posix' and implementation_name == 'cpython' and platform_system == 'Linux'", "aarch64 x86_64"),
    ],
)
def test_markers_are_judged_for_the_target_and_not_for_this_host(marker: str | None, on: str) -> None:
    found = [target.architecture for target in (SPARK, X86) if for_target([locked(marker)], target)]
    assert found == on.split()


def test_the_environment_of_a_target_has_every_variable_of_the_standard_but_the_kernels() -> None:
    assert default_environment().keys() - marker_environment(X86).keys() == {"platform_release", "platform_version"}
    assert marker_environment(Target(architecture="aarch64", python=(3, 13)))["python_full_version"] == "3.13.0"
