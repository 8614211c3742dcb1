"""The manifest: what it says of wheel files, and what of them is still so."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from core.config import load_cluster, load_stack
from core.errors import BuildFailed, UnfitNode
from core.facts import NodeFacts
from tests.unit.samples import SPARK, X86, cpu, lab_facts, manifest, spark_captures, wheel
from wheels import manifest as module
from wheels.manifest import damaged, describe, draft, folder, load, lock_text, planned, save
from wheels.target import Target, common_target

NAME = "sparkstack_probe-0.1.0+cpu-py3-none-linux_x86_64.whl"


@pytest.fixture(autouse=True)
def dist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "DIST", tmp_path)
    folder(cpu(), X86).mkdir(parents=True)
    return tmp_path


def wheel_file(content: str = "wheel") -> Path:
    path = folder(cpu(), X86) / NAME
    path.write_text(content)
    return path


def test_wheels_of_each_stack_and_target_have_a_folder_of_their_own(dist: Path) -> None:
    assert folder(cpu(), X86) == dist / "cpu" / "x86_64-cp311"
    assert folder(load_stack("guide"), SPARK) == dist / "guide" / "aarch64-cp312"


def test_a_wheel_file_is_described_by_name_version_size_and_hash() -> None:
    found = describe(wheel_file("wheel"), "source", "recipe")
    assert (found.name, found.version, found.filename) == ("sparkstack-probe", "0.1.0+cpu", NAME)
    assert (found.size, found.sha256) == (5, hashlib.sha256(b"wheel").hexdigest())
    assert (found.origin, found.recipe) == ("source", "recipe")


def test_a_manifest_is_saved_with_its_lock_and_loaded_again() -> None:
    saved = save(cpu(), X86, [describe(wheel_file(), "source"), wheel("aiohttp", "3.1")], "i" * 64)
    assert load(cpu(), X86) == saved
    text = (folder(cpu(), X86) / "stack.lock").read_text()
    assert saved.lock_sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert [line.split("==")[0] for line in text.splitlines()[1:]] == ["aiohttp", "sparkstack-probe"]
    assert not list(folder(cpu(), X86).glob("*.new"))


def test_the_lock_names_every_wheel_by_hash() -> None:
    one = wheel("b")
    lines = lock_text(cpu(), X86, [one, wheel("a")]).splitlines()
    assert lines[0] == "# stack cpu for x86_64-cp311: every wheel of the set"
    assert lines[2] == f"b==1.0 --hash=sha256:{one.sha256}"


def test_a_release_is_named_after_stack_target_and_set() -> None:
    assert manifest().release == "cpu-x86_64-cp311-cccccccccc"
    assert manifest().size == 5_002_000


def test_without_a_build_there_is_no_manifest() -> None:
    assert load(cpu(), X86) is None


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"stack": "cpu"}', b"[1]"])
def test_what_is_no_manifest_is_refused_with_the_way_out(content: bytes) -> None:
    (folder(cpu(), X86) / "manifest.json").write_bytes(content)
    with pytest.raises(BuildFailed, match=r"manifest\.json is not a manifest") as caught:
        load(cpu(), X86)
    assert caught.value.next_move == "delete it and run invoke build-wheels --stack cpu"


def test_a_hash_that_is_none_is_refused() -> None:
    data = json.loads(save(cpu(), X86, [describe(wheel_file(), "source")], "i").model_dump_json())
    data["wheels"][0]["sha256"] = "not built"
    (folder(cpu(), X86) / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(BuildFailed):
        load(cpu(), X86)


def test_a_missing_or_truncated_wheel_is_found() -> None:
    saved = save(cpu(), X86, [describe(wheel_file(), "source")], "i")
    assert damaged(cpu(), saved) == []
    wheel_file("whee")
    assert damaged(cpu(), saved) == [NAME]
    wheel_file().unlink()
    assert damaged(cpu(), saved) == [NAME]


def test_a_draft_names_every_wheel_to_come_and_no_hash() -> None:
    guide = load_stack("guide")
    found = draft(guide, SPARK)
    by_name = {one.name: one for one in found.wheels}
    assert found.release == "guide-aarch64-cp312-not-built"
    assert {one.sha256 for one in found.wheels} == {"not built"}
    assert by_name["torch"].filename == "torch-2.9.0+cu130-….whl"
    assert [by_name[name].origin for name in ("torch", "flash-attn", "ray", "uv")] == [
        "source",
        "image",
        "index",
        "index",
    ]
    assert len(found.wheels) == len(by_name) > 130


def test_a_plan_takes_the_wheels_at_hand_before_a_draft() -> None:
    assert planned(cpu(), X86).release.endswith("not-built")
    saved = save(cpu(), X86, [wheel("uv")], "i")
    assert planned(cpu(), X86) == saved


class TestTarget:
    def test_it_has_a_tag_and_words(self) -> None:
        assert (SPARK.tag, SPARK.in_words) == ("aarch64-cp312", "aarch64, Python 3.12, glibc 2.39")

    def test_it_is_that_of_all_nodes(self) -> None:
        assert common_target(load_cluster("spark"), spark_captures().parsed()) == SPARK

    def test_it_has_the_oldest_glibc_of_the_nodes(self) -> None:
        facts = spark_captures().parsed()
        facts["gx10-c6fb"] = replace(facts["gx10-c6fb"], glibc=(2, 31))
        assert common_target(load_cluster("spark"), facts).glibc == (2, 31)

    @pytest.mark.parametrize("change", [{"architecture": "aarch64"}, {"python": (3, 13)}])
    def test_nodes_that_are_not_alike_are_refused(self, change: Mapping[str, object]) -> None:
        facts: dict[str, NodeFacts] = lab_facts()
        facts["lab-b"] = replace(facts["lab-b"], **change)  # type: ignore[arg-type]
        with pytest.raises(UnfitNode, match=r"the head lab-a is x86_64-cp311: one release cannot fit both") as caught:
            common_target(load_cluster("local"), facts)
        assert caught.value.node == "lab-b"

    def test_it_is_read_back_from_json(self) -> None:
        assert Target.model_validate_json(SPARK.model_dump_json()) == SPARK


def test_what_holds_a_development_build_says_so_in_its_name():
    plain = manifest(wheel("torch"))
    marked = manifest(wheel("torch").model_copy(update={"development": True}))
    assert marked.release == f"{plain.release}-dev"
