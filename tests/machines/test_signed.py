"""A cluster that names who may sign installs nothing else: each node verifies for itself, what runs there stays."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from core.config import ROOT
from core.process import run
from tests.machines.checkout import Checkout
from tests.machines.command_line import CommandLine, Ended, assert_refused
from tests.machines.harness import Lab
from wheels.signature import sign_wheels

pytestmark = pytest.mark.machines

A, B = "test-a", "test-b"
CHANGED = "build/sources/vllm-ray-cpu/sparkstack_vllm_ray_cpu/platform.py"
OWN = "sparkstack_vllm_ray_cpu-*.whl"
"""The wheel that differs between the two releases."""


@dataclass(frozen=True)
class Signing:
    """A release in a copy of the project, a key to sign it with, and the cluster that lets this key sign."""

    invoke: CommandLine
    place: Path
    key: Path
    kept: dict[str, bytes]
    """What was built, without a signature."""

    @property
    def release(self) -> str:
        manifest = json.loads(self.kept["manifest.json"])
        mark = "-".join((manifest["stack"], self.place.name))
        return f"{mark}-{manifest['lock_sha256'][:10]}"

    def sign(self) -> None:
        sign_wheels(self.place, self.key)

    def reset(self) -> None:
        """Put everything back as it was built, unsigned; the wheels share their bytes with the project's."""
        (self.place / "manifest.json.sig").unlink(missing_ok=True)
        for name, content in self.kept.items():
            replace(self.place / name, content)

    def deploy(self) -> Ended:
        return self.invoke("deploy")


def replace(path: Path, content: bytes) -> None:
    """Give a name other bytes; those that it had may have another name."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


@pytest.fixture(scope="module")
def signing(checkout: Checkout, wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Signing:
    key = tmp_path_factory.mktemp("signing") / "key"
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)])
    signers = checkout.folder / "config" / "allowed_signers"
    signers.write_text(f"release@example.org {key.with_suffix('.pub').read_text(encoding='utf-8')}", encoding="utf-8")
    stack = checkout.cluster.stack
    names = ('profile = "tiny"', 'profile = "tiny"\nallowed_signers = "config/allowed_signers"')
    invoke = checkout.variant("signed", names)
    checkout.share_wheels(ROOT, stack)
    source = checkout.folder / CHANGED
    source.write_text(source.read_text(encoding="utf-8") + "\n# a signed build\n", encoding="utf-8")
    invoke.works("build-wheels", f"--stack={stack}")
    place = checkout.folder / "dist" / stack / wheels.parent.name
    (own,) = place.glob(OWN)
    kept = {path.name: path.read_bytes() for path in (place / "manifest.json", place / "stack.lock", own)}
    return Signing(invoke, place, key, kept)


@pytest.fixture
def unsigned(lab: Lab, deployed: str, signing: Signing) -> Iterator[Signing]:
    """Begin with the project's release in use and without this one on the nodes."""
    assert signing.release != deployed
    signing.reset()
    for name in (A, B):
        lab.output(name, f"rm -rf /opt/sparkstack/releases/{signing.release} /opt/sparkstack/signed")
    yield signing
    signing.reset()


@pytest.fixture
def signed(unsigned: Signing) -> Signing:
    unsigned.sign()
    return unsigned


def assert_untouched(lab: Lab, deployed: str, signing: Signing) -> None:
    """What ran before is still in use, and nothing of the other release was installed."""
    for name in (A, B):
        assert lab.output(name, "readlink /opt/sparkstack/current") == f"releases/{deployed}"
        assert lab.ssh(name, f"test -e /opt/sparkstack/releases/{signing.release}").code == 1
        assert lab.output(name, "/opt/sparkstack/current/venv/bin/python -c 'import sparkstack_probe; print(1)'") == "1"


def test_a_signed_release_is_verified_by_every_node_and_deployed(lab: Lab, signed: Signing) -> None:
    done = signed.invoke.works("deploy")
    for name in (A, B):
        assert f"{name}: verify the signature" in done.err
        assert lab.output(name, "readlink /opt/sparkstack/current") == f"releases/{signed.release}"
    assert signed.invoke.works("deploy").out == "nothing to do\n"


def test_an_unsigned_release_is_refused_before_anything_travels(lab: Lab, deployed: str, unsigned: Signing) -> None:
    done = unsigned.deploy()
    assert_refused(done, 34, "manifest.json is not signed", "invoke wheels.sign")
    assert_untouched(lab, deployed, unsigned)
    assert lab.ssh(A, "test -e /opt/sparkstack/signed").code == 1


def other_blank(signing: Signing) -> None:
    text = signing.kept["manifest.json"]
    replace(signing.place / "manifest.json", text.replace(b'"stack": ', b'"stack":\t', 1))


def other_letter(signing: Signing) -> None:
    replace(signing.place / "stack.lock", signing.kept["stack.lock"].replace(b"# stack", b"# Stack", 1))


SPOILT: dict[str, tuple[Callable[[Signing], None], str]] = {
    "a byte of the manifest": (other_blank, "it is not what was signed: its bytes were changed"),
    "a byte of the lock": (other_letter, "stack.lock is not the one that was signed"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_what_was_changed_after_it_was_signed_is_refused_on_the_node(
    lab: Lab, deployed: str, signed: Signing, case: str
) -> None:
    spoil, says = SPOILT[case]
    spoil(signed)
    done = signed.deploy()
    assert_refused(done, 34, f"{A}: {signed.release}: ", says)
    assert "push" not in done.err
    assert_untouched(lab, deployed, signed)


def test_a_wheel_that_was_changed_after_it_was_signed_is_refused_on_the_node(
    lab: Lab, deployed: str, signed: Signing
) -> None:
    (name,) = (name for name in signed.kept if name.endswith(".whl"))
    content = signed.kept[name]
    replace(signed.place / name, content[:2000] + bytes([content[2000] ^ 1]) + content[2001:])
    good = f"/opt/sparkstack/store/{hashlib.sha256(content).hexdigest()}"
    for node in (A, B):
        lab.output(node, f"rm -f {good} /opt/sparkstack/wheels/{name}")
    done = signed.deploy()
    assert_refused(done, 33, f"{name} did not arrive as the manifest lists it")
    assert_untouched(lab, deployed, signed)


def test_a_signature_of_somebody_else_is_refused_on_the_node(
    lab: Lab, deployed: str, unsigned: Signing, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other)])
    sign_wheels(unsigned.place, other)
    assert_refused(unsigned.deploy(), 34, f"{A}: ", "a key that is not among the allowed signers")
    assert_untouched(lab, deployed, unsigned)
