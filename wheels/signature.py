"""Signatures by SSH keys: `ssh-keygen -Y`, whose file is PATH.sig beside what is signed.

A key may be a private key, also one with a passphrase (asked for on the terminal) or on a token, or the .pub of a key
that the agent holds. Who may sign stands in a file of OpenSSH's: ssh-keygen(1), ALLOWED SIGNERS.
"""

from __future__ import annotations

import base64
import binascii
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from core import process
from core.config import shown
from core.errors import CommandFailed, HostNotReady, SignatureRefused
from core.process import Completed
from wheels.manifest import MANIFEST, SIGNATURE

NAMESPACE = "sparkstack-release"
"""What a signature is for: one of a commit or a mail with the same key does not sign a release."""
BEGIN, END = "-----BEGIN SSH SIGNATURE-----", "-----END SSH SIGNATURE-----"
MAGIC = b"SSHSIG\x00\x00\x00\x01"
WIDTH = 70
_TOOL = "install openssh-client"
REFUSALS: Sequence[tuple[str, str, str]] = (
    (r"No such file.*'ssh-keygen'", "ssh-keygen is not there", f"on the node: sudo apt-get {_TOOL}"),
    (
        r"namespace does not match",
        f"it was signed for another purpose than {NAMESPACE}",
        "sign it with invoke wheels.sign",
    ),
    (
        r"not permitted for use in signature namespace",
        "its signer may not sign releases (namespaces= in the allowed signers)",
        f'have it signed by another, or add "{NAMESPACE}" to the namespaces of that line',
    ),
    (
        r"key has expired",
        "its signer's key has expired (valid-before= in the allowed signers)",
        "have it signed with a key that is valid now: invoke wheels.sign",
    ),
    (
        r"key is not yet valid",
        "its signer's key is not valid yet (valid-after= in the allowed signers)",
        "check the clock, and that line",
    ),
    (r"incorrect signature", "it is not what was signed: its bytes were changed", "build or fetch it again"),
    (
        r"Unable to open allowed keys file|missing key|invalid key|bad options|unsupported",
        "the file of allowed signers cannot be read",
        'write it as ssh-keygen(1) says under ALLOWED SIGNERS: NAME "ssh-ed25519 AAAA…" a line',
    ),
    (
        r"No principal matched",
        "it was signed with a key that is not among the allowed signers",
        "find out who signed it; to trust the key, add it to the allowed signers",
    ),
    (r"parse signature|incomplete message|invalid format|armor", "its signature is damaged", "fetch it again"),
)
"""What ssh-keygen says, the cause that it stands for, and the next move; the first that fits counts."""
KEY_REFUSALS: Sequence[tuple[str, str, str]] = (
    (
        r"too open",
        "others on this host can read the key, so ssh-keygen refuses it",
        "chmod 600 the key; if others had access, make another",
    ),
    (
        r"incorrect passphrase",
        "the key's passphrase was wrong, or there was no terminal to ask on",
        "run it in a terminal, or put the key into the agent (ssh-add) and name its .pub",
    ),
    (
        r"No private key found|agent refused|agent not running|communicat.* agent",
        "nobody has the private key: it is neither beside the .pub nor in the SSH agent",
        "ssh-add it, or name the private key",
    ),
    (r"device not found|FIDO|authenticator", "the token with the key does not answer", "plug it in and touch it"),
    (
        r"Couldn't load public key|invalid format|not a public key file|error in libcrypto",
        "the key is not an SSH key",
        "make one: ssh-keygen -t ed25519",
    ),
)


def sign(path: Path, key: Path) -> Path:
    """Sign a file with an SSH key and return PATH.sig; what has this key's signature already is left alone.

    Raises SignatureRefused when the key is not there, cannot be used, or nobody gave its passphrase.
    """
    if not key.is_file():
        raise SignatureRefused(f"the key {key} is not there", next_move="name it with --key, or make one: ssh-keygen")
    signature = path.with_name(path.name + SIGNATURE)
    if is_signed(path, key):
        return signature
    with tempfile.TemporaryDirectory(prefix="sparkstack-") as folder:
        copy = Path(folder) / path.name
        copy.write_bytes(path.read_bytes())
        done = _keygen("-Y", "sign", "-f", str(key), "-n", NAMESPACE, str(copy))
        made = copy.with_name(signature.name)
        if done.code or not made.is_file():
            raise _key_refused(key, done)
        fresh = signature.with_name(f".{signature.name}.new")
        fresh.write_bytes(made.read_bytes())
        fresh.replace(signature)
    return signature


def sign_wheels(place: Path, key: Path) -> Path:
    """Sign the manifest in a folder of wheels: it names stack.lock by hash, which names every wheel. As sign()."""
    if not (place / MANIFEST).is_file():
        raise SignatureRefused(f"{shown(place)} has no {MANIFEST}", next_move="run invoke build-wheels first")
    return sign(place / MANIFEST, key)


def verify(path: Path, signers: Path) -> str:
    """Return who signed the file, by the name that the allowed signers give. Raises SignatureRefused."""
    signature = path.with_name(path.name + SIGNATURE)
    require_armour(path, signature)
    if not signers.is_file():
        raise SignatureRefused(f"{signers} is not there", next_move="name the file of allowed signers")
    allowed = ("-f", str(signers), "-s", str(signature))
    found = _keygen("-Y", "find-principals", *allowed)
    if found.code or not found.out.strip():
        raise refused(shown(path), found.out + found.err)
    who = found.out.splitlines()[0]
    done = _keygen("-Y", "verify", "-I", who, "-n", NAMESPACE, *allowed, stdin=path)
    if done.code:
        raise refused(shown(path), done.out + done.err)
    return who


def require_armour(path: Path, signature: Path) -> None:
    """Refuse a file without signature, and a signature that is not exactly as ssh-keygen writes it.

    ssh-keygen reads past blanks, other line ends and an older version number; here each byte counts.
    """
    if not signature.is_file():
        raise SignatureRefused(
            f"{shown(path)} is not signed: there is no {signature.name} beside it",
            next_move="sign it with invoke wheels.sign --key PATH, or have somebody sign it who may",
        )
    try:
        text = signature.read_bytes().decode("ascii")
        body = text.removeprefix(f"{BEGIN}\n").removesuffix(f"\n{END}\n").replace("\n", "")
        blob = base64.b64decode(body, validate=True)
    except (UnicodeDecodeError, binascii.Error, ValueError) as error:
        raise refused(shown(path), "armor") from error
    if not blob.startswith(MAGIC) or text != armoured(blob):
        raise refused(shown(path), "armor")


def armoured(blob: bytes) -> str:
    """Return a signature as ssh-keygen writes it."""
    body = base64.b64encode(blob).decode()
    lines = [body[start : start + WIDTH] for start in range(0, len(body), WIDTH)]
    return "\n".join([BEGIN, *lines, END, ""])


def refused(what: str, said: str, node: str | None = None) -> SignatureRefused:
    """Return the error for what ssh-keygen said of a signature, on this host or on a node."""
    for pattern, cause, move in REFUSALS:
        if re.search(pattern, said):
            return SignatureRefused(f"{what}: {cause}", node=node, next_move=move, evidence=said)
    return SignatureRefused(
        f"{what}: its signature is not good", node=node, next_move="do not use it; fetch it again", evidence=said
    )


def _key_refused(key: Path, done: Completed) -> SignatureRefused:
    said = done.out + done.err
    for pattern, cause, move in KEY_REFUSALS:
        if re.search(pattern, said):
            return SignatureRefused(f"{key}: {cause}", next_move=move, evidence=said)
    return SignatureRefused(f"{key}: ssh-keygen does not sign with it", next_move="read the lines above", evidence=said)


def is_signed(path: Path, key: Path) -> bool:
    """Say whether PATH.sig is this key's signature of the file."""
    signature = path.with_name(path.name + SIGNATURE)
    if not signature.is_file():
        return False
    shown_key = _keygen("-l", "-f", str(key))
    done = _keygen("-Y", "check-novalidate", "-n", NAMESPACE, "-s", str(signature), stdin=path)
    fingerprint = shown_key.out.split()[1:2]
    return shown_key.code == 0 and done.code == 0 and done.out.split()[-1:] == fingerprint


def _keygen(*words: str, stdin: Path | None = None) -> Completed:
    """Run ssh-keygen, a file on its input; it asks for passphrases on the terminal, never on that."""
    # the shell opens the file: its bytes are no text that could pass through us unchanged
    shell = ("sh", "-c", 'exec "$@" < "$0"', str(stdin)) if stdin else ()
    try:
        return process.run((*shell, "ssh-keygen", *words), check=False)
    except CommandFailed as error:
        raise HostNotReady("ssh-keygen is not there", next_move=f"sudo apt-get {_TOOL}") from error
