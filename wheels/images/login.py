"""Who we are to a registry: keys from the environment and from Docker's file, and the challenges that ask for them.

Nothing of it is ever shown: what has a secret hides it in its repr(), and scrub() takes it out of a server's words.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.config import shown
from core.download import without_secrets
from core.errors import ConfigError, RegistryRefused, UsageError
from core.parsers import shown as printable
from wheels.images.reference import HUB

NGC = "nvcr.io"
NGC_KEY = "NGC_API_KEY"
NGC_USER = "$oauthtoken"
"""The user that stands for an API key (not a variable)."""
HUB_KEY = "https://index.docker.io/v1/"
"""How Docker calls its own registry in its file."""
_TOKEN = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*")
_PARAMETER = re.compile(r'\s*([A-Za-z0-9_-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s",]+))\s*(?:,|$)')
_VISIBLE = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True)
class Credentials:
    """A user with a password or key; ``origin`` says where they were found."""

    user: str
    password: str = field(repr=False)
    origin: str

    def basic(self) -> str:
        """Return the value of the header Authorization."""
        return f"Basic {base64.b64encode(f'{self.user}:{self.password}'.encode()).decode()}"


@dataclass(frozen=True)
class Challenge:
    """What a server asks for: the scheme in lower case, and its parameters."""

    scheme: str
    parameters: Mapping[str, str]


def credentials(host: str, repository: str, environment: Mapping[str, str] | None = None) -> Credentials | None:
    """Return what is known for a registry: NGC_API_KEY for nvcr.io, else what `docker login` or `skopeo login` left.

    Raises ConfigError for a file that cannot be read, UsageError for a key that cannot be one.
    """
    variables = os.environ if environment is None else environment
    key = variables.get(NGC_KEY, "").strip()
    if host == NGC and key:
        if not _VISIBLE.fullmatch(key):
            raise UsageError(f"what {NGC_KEY} holds is no API key", next_move=f"set {NGC_KEY} again, or unset it")
        return Credentials(NGC_USER, key, f"the environment variable {NGC_KEY}")
    for path in _files(variables):
        found = _from_file(path, host, repository)
        if found:
            return found
    return None


def _files(variables: Mapping[str, str]) -> Iterable[Path]:
    """Name the files, the one that counts first."""
    if chosen := variables.get("REGISTRY_AUTH_FILE"):
        return [Path(chosen)]
    run = variables.get("XDG_RUNTIME_DIR")
    docker = Path(variables.get("DOCKER_CONFIG") or Path(variables.get("HOME", "/"), ".docker"))
    return [*([Path(run, "containers", "auth.json")] if run else []), docker / "config.json"]


def _from_file(path: Path, host: str, repository: str) -> Credentials | None:
    try:
        known = json.loads(path.read_bytes()).get("auths") or {}
        # what is said of a repository counts more than what is said of its registry
        parts = [host, *repository.split("/")]
        names = ["/".join(parts[:end]) for end in range(len(parts), 0, -1)]
        names += [f"https://{host}", f"https://{host}/v1/", f"https://{host}/v2/", *([HUB_KEY] if host == HUB else [])]
        entry = next((known[name] for name in names if _has_secret(known.get(name))), None)
        return _decoded(entry, f"{shown(path)}") if entry else None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no file of `docker login`"
        raise ConfigError(
            f"{shown(path)} cannot be read: {reason}", next_move=f"log in again (`skopeo login {host}`), or remove it"
        ) from None  # what the file holds is in the error


def _has_secret(entry: Any) -> bool:
    return isinstance(entry, dict) and bool(entry.get("auth") or entry.get("password"))


def _decoded(entry: Mapping[str, Any], origin: str) -> Credentials:
    """Read one entry: user and password in base64, or each by itself."""
    if not entry.get("auth"):
        return Credentials(str(entry.get("username", "")), str(entry["password"]), origin)
    try:
        user, colon, password = base64.b64decode(str(entry["auth"]), validate=True).decode().partition(":")
    except binascii.Error as error:
        raise ValueError("no base64") from error
    if not colon:
        raise ValueError("no user and password")
    return Credentials(user, password.rstrip("\0"), origin)


def challenges(headers: Iterable[str]) -> list[Challenge]:
    """Return what the headers WWW-Authenticate ask for; what cannot be read is left out."""
    found = []
    for header in headers:
        rest = header[:8192]
        while scheme := _TOKEN.match(rest.lstrip(" ,")):
            rest = rest.lstrip(" ,")[scheme.end() :]
            parameters, rest = _parameters(rest)
            found.append(Challenge(scheme[0].lower(), parameters))
    return found


def _parameters(text: str) -> tuple[dict[str, str], str]:
    """Return the parameters at the beginning of the text, and what follows them."""
    parameters: dict[str, str] = {}
    while match := _PARAMETER.match(text):
        name, quoted, plain = match.groups()
        parameters.setdefault(name.lower(), re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else plain)
        text = text[match.end() :]
    return parameters, text


def bearer(host: str, answer: bytes) -> str:
    """Return the token of a token server's answer. Raises RegistryRefused when there is none in it."""
    try:
        fields = json.loads(answer)
        token = fields.get("token") or fields.get("access_token")
    except (ValueError, AttributeError, RecursionError):
        token = None
    if not isinstance(token, str) or not _VISIBLE.fullmatch(token):
        raise RegistryRefused(
            f"{host} gives no token where it says that it does", next_move="run the same command again in a minute"
        )
    return token


def scrub(text: str, secrets: Iterable[str]) -> str:
    """Return a server's words as they may be shown: one short line without our secrets and signed URLs."""
    for secret in sorted((secret for secret in secrets if secret), key=len, reverse=True):
        text = text.replace(secret, "…")
    return without_secrets(" ".join(printable(text).split()))[:200]
