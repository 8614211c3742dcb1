"""Signatures by the real ssh-keygen: who signed is told, and whatever was changed is refused with its own words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from core.errors import HostNotReady, SignatureRefused
from core.process import run
from wheels.signature import NAMESPACE, armoured, sign, sign_wheels, verify

pytestmark = pytest.mark.wheels

TEXT = b'{\n "stack": "cpu"\n}\n'


@dataclass(frozen=True)
class Desk:
    """A folder with a key, the file that says who may sign, and a manifest that is signed."""

    folder: Path

    @property
    def key(self) -> Path:
        return self.folder / "key"

    @property
    def signers(self) -> Path:
        return self.folder / "allowed_signers"

    @property
    def manifest(self) -> Path:
        return self.folder / "manifest.json"

    @property
    def signature(self) -> Path:
        return self.folder / "manifest.json.sig"

    def make_key(self, name: str, kind: str = "ed25519", passphrase: str = "") -> Path:
        run(["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", "", "-f", str(self.folder / name)])
        return self.folder / name

    def allow(self, options: str = "", key: str = "key") -> None:
        """Let the key sign as release@example.org, with options of ssh-keygen(1)."""
        public = (self.folder / f"{key}.pub").read_text(encoding="utf-8")
        self.signers.write_text(f"release@example.org {options} {public}", encoding="utf-8")

    def sign_for(self, namespace: str) -> None:
        """Sign for another purpose, as `git commit -S` would."""
        self.signature.unlink()
        run(["ssh-keygen", "-q", "-Y", "sign", "-f", str(self.key), "-n", namespace, str(self.manifest)])


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    desk = Desk(tmp_path)
    desk.make_key("key")
    desk.allow()
    desk.manifest.write_bytes(TEXT)
    sign(desk.manifest, desk.key)
    return desk


def test_who_signed_is_told(desk: Desk) -> None:
    assert verify(desk.manifest, desk.signers) == "release@example.org"


def test_plain_ssh_keygen_agrees(desk: Desk) -> None:
    argv = ["ssh-keygen", "-Y", "verify", "-f", str(desk.signers), "-I", "release@example.org", "-n", NAMESPACE]
    assert run([*argv, "-s", str(desk.signature)], stdin=TEXT.decode()).out.startswith(f'Good "{NAMESPACE}" signature')


@pytest.mark.parametrize("kind", ["ecdsa", "rsa"])
def test_keys_of_other_kinds_sign_too(desk: Desk, kind: str) -> None:
    key = desk.make_key(kind, kind)
    desk.allow(key=kind)
    sign(desk.manifest, key)
    assert verify(desk.manifest, desk.signers) == "release@example.org"


def test_signing_again_with_the_same_key_changes_nothing(desk: Desk) -> None:
    before = desk.signature.stat()
    assert sign(desk.manifest, desk.key) == desk.signature
    assert sign(desk.manifest, desk.key.with_suffix(".pub")) == desk.signature
    assert desk.signature.stat() == before


@pytest.mark.parametrize("change", ["the file", "the key", "the signature"])
def test_signing_again_after_a_change_signs_anew(desk: Desk, change: str) -> None:
    key = desk.key
    if change == "the file":
        desk.manifest.write_bytes(TEXT + b"\n")
    elif change == "the key":
        key = desk.make_key("other")
        desk.allow(key="other")
    else:
        desk.signature.write_text("damaged")
    sign(desk.manifest, key)
    assert verify(desk.manifest, desk.signers) == "release@example.org"
    assert sorted(path.name for path in desk.folder.glob("*manifest*")) == ["manifest.json", "manifest.json.sig"]


def test_the_manifest_of_a_folder_of_wheels_is_signed(desk: Desk, tmp_path: Path) -> None:
    desk.signature.unlink()
    assert sign_wheels(tmp_path, desk.key) == desk.signature
    desk.manifest.unlink()
    with pytest.raises(SignatureRefused, match=r"has no manifest\.json"):
        sign_wheels(tmp_path, desk.key)


@pytest.fixture
def agent(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """Run an SSH agent that holds the key; its file goes."""
    said = run(["ssh-agent", "-s"]).out
    socket, pid = (re.search(rf"{name}=([^;]+);", said)[1] for name in ("SSH_AUTH_SOCK", "SSH_AGENT_PID"))  # type: ignore[index]
    monkeypatch.setenv("SSH_AUTH_SOCK", socket)
    run(["ssh-add", "-q", str(desk.key)])
    desk.key.unlink()
    desk.signature.unlink()
    yield desk
    run(["ssh-agent", "-k"], env={"SSH_AGENT_PID": pid})


def test_a_key_of_the_agent_signs_by_its_public_half(agent: Desk) -> None:
    sign(agent.manifest, agent.key.with_suffix(".pub"))
    assert verify(agent.manifest, agent.signers) == "release@example.org"


def test_a_passphrase_is_asked_for_and_never_in_an_argument(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a terminal ssh-keygen asks the program SSH_ASKPASS."""
    key = desk.make_key("locked", passphrase="open sesame")
    desk.allow(key="locked")
    program = desk.folder / "askpass"
    program.write_text(f'#!/bin/sh\ntr "\\0" " " < /proc/$PPID/cmdline > {desk.folder}/seen\necho "open sesame"\n')
    program.chmod(0o755)
    monkeypatch.setenv("SSH_ASKPASS", str(program))
    monkeypatch.setenv("SSH_ASKPASS_REQUIRE", "force")
    sign(desk.manifest, key)
    assert verify(desk.manifest, desk.signers) == "release@example.org"
    assert "sesame" not in (desk.folder / "seen").read_text()


def not_signed(desk: Desk) -> None:
    desk.signature.unlink()


def by_another(desk: Desk) -> None:
    sign(desk.manifest, desk.make_key("other"))


def written(path: str, content: bytes) -> Callable[[Desk], None]:
    return lambda desk: (desk.folder / path).write_bytes(content) and None


REFUSED: dict[str, tuple[Callable[[Desk], object], str]] = {
    "not signed": (not_signed, "is not signed: there is no manifest.json.sig beside it"),
    "not among those who may": (by_another, "with a key that is not among the allowed signers"),
    "nobody may": (written("allowed_signers", b"# nobody\n"), "with a key that is not among the allowed signers"),
    "signers that are none": (written("allowed_signers", b"junk\n"), "the file of allowed signers cannot be read"),
    "no file of signers": (lambda desk: desk.signers.unlink(), "allowed_signers is not there"),
    "another purpose": (lambda desk: desk.sign_for("git"), f"it was signed for another purpose than {NAMESPACE}"),
    "a signer for other things": (lambda desk: desk.allow('namespaces="git"'), "its signer may not sign releases"),
    "expired": (lambda desk: desk.allow('valid-before="20200101"'), "its signer's key has expired"),
    "not valid yet": (lambda desk: desk.allow('valid-after="20900101"'), "its signer's key is not valid yet"),
    "another file": (written("manifest.json", TEXT + b"\n"), "its bytes were changed"),
    "an empty file": (written("manifest.json", b""), "its bytes were changed"),
    "bytes that are no text": (written("manifest.json", b"\xff\xfe"), "its bytes were changed"),
    "a signature that is none": (written("manifest.json.sig", b"junk"), "its signature is damaged"),
    "an empty signature": (written("manifest.json.sig", b""), "its signature is damaged"),
    "a signature of nothing": (written("manifest.json.sig", armoured(b"").encode()), "its signature is damaged"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_signed_by_somebody_who_may_is_refused_in_its_own_words(desk: Desk, case: str) -> None:
    spoil, says = REFUSED[case]
    spoil(desk)
    with pytest.raises(SignatureRefused) as caught:
        verify(desk.manifest, desk.signers)
    assert says in caught.value.cause
    assert caught.value.next_move


def readable_by_others(desk: Desk) -> Path:
    key = desk.make_key("open")
    key.chmod(0o644)
    return key


def without_its_private_half(desk: Desk) -> Path:
    desk.make_key("half").unlink()
    return desk.folder / "half.pub"


KEYS: dict[str, tuple[Callable[[Desk], Path], str]] = {
    "none": (lambda desk: desk.folder / "none", "none is not there"),
    "no key": (lambda desk: desk.manifest, "the key is not an SSH key"),
    "readable by others": (readable_by_others, "others on this host can read the key"),
    "a passphrase and no terminal": (lambda desk: desk.make_key("locked", passphrase="x1y2z"), "passphrase was wrong"),
    "the public half alone": (without_its_private_half, "nobody has the private key"),
}


@pytest.mark.parametrize("case", KEYS)
def test_a_key_that_cannot_sign_is_refused_and_the_signature_that_was_there_stays(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    for name in ("SSH_AUTH_SOCK", "SSH_ASKPASS", "DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    before = desk.signature.read_bytes()
    key, says = KEYS[case]
    with pytest.raises(SignatureRefused) as caught:
        sign(desk.manifest, key(desk))
    assert says in caught.value.cause
    assert caught.value.next_move
    assert desk.signature.read_bytes() == before


def test_without_ssh_keygen_its_package_is_named(desk: Desk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(HostNotReady, match="ssh-keygen is not there") as caught:
        verify(desk.manifest, desk.signers)
    assert "openssh-client" in caught.value.next_move


def changed(content: bytes, place: int, byte: int) -> bytes:
    """Return the content with another byte at a place, counted around its end."""
    place %= len(content)
    return content[:place] + bytes([content[place] ^ byte]) + content[place + 1 :]


SIGNED: dict[str, bytes] = {}


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["manifest.json", "manifest.json.sig"]), st.integers(0, 1000), st.integers(1, 255))
@example("manifest.json.sig", 38, 4)  # the version's last bits: ssh-keygen takes an older one
@example("manifest.json.sig", -1, 42)  # another end of the last line
@example("manifest.json.sig", 29, 42)  # a blank in place of a line's end
def test_one_changed_byte_is_refused_wherever_it_is(desk: Desk, name: str, place: int, byte: int) -> None:
    path = desk.folder / name
    good = SIGNED.setdefault(str(path), path.read_bytes())
    path.write_bytes(changed(good, place, byte))
    with pytest.raises(SignatureRefused):
        verify(desk.manifest, desk.signers)
    path.write_bytes(good)
    assert verify(desk.manifest, desk.signers)


@pytest.mark.long
def test_no_changed_byte_of_a_signature_is_taken(desk: Desk) -> None:
    good = desk.signature.read_bytes()
    for place in range(len(good)):
        for bit in range(8):
            desk.signature.write_bytes(changed(good, place, 1 << bit))
            with pytest.raises(SignatureRefused):
                verify(desk.manifest, desk.signers)
