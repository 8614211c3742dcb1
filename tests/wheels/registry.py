"""Debian's registry of images, unpacked beside the tests and never installed: its package would start a service."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import bcrypt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID

from core.config import WORK
from core.process import Completed, run
from core.store import held
from tests.unit.faultyserver import Asked, Reply, serving

PLACE = WORK / "tests" / "registry"
LEEWAY = 60
"""Seconds that the registry adds to the life of a token."""
ISSUER = "tests"


def program() -> Path:
    """Return the registry's program, downloaded once."""
    found = PLACE / "root" / "usr" / "bin" / "docker-registry"
    with held(PLACE / ".lock", "unpacks the registry", print):
        if not found.exists():
            run(["apt-get", "download", "docker-registry"], cwd=PLACE, timeout=300)
            (package,) = PLACE.glob("docker-registry_*.deb")
            run(["dpkg-deb", "-x", str(package), str(PLACE / "root")])
    return found


@dataclass
class Registry:
    """A registry that runs, its files below ``folder``."""

    folder: Path
    port: int
    user: tuple[str, str] | None = None
    """Who pushes, and the password."""
    tokens: Tokens | None = None

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def push(self, source: str, name: str, *flags: str) -> None:
        """Push an image by skopeo: from "oci:FOLDER:TAG", to REPOSITORY:TAG here."""
        login = [f"--dest-creds={':'.join(self.user)}"] if self.user else []
        self.skopeo("copy", "--dest-tls-verify=false", *login, *flags, source, f"docker://{self.host}/{name}")

    def skopeo(self, *argv: str) -> Completed:
        """Run skopeo, which trusts what the test makes."""
        return run(["skopeo", "--insecure-policy", *argv], timeout=300)

    def blob(self, digest: str) -> Path:
        """Return the file in which the registry keeps a blob."""
        name = digest.removeprefix("sha256:")
        return self.folder / "data/docker/registry/v2/blobs/sha256" / name[:2] / name / "data"


@contextmanager
def running(
    folder: Path, *, user: tuple[str, str] | None = None, tokens: Tokens | None = None, tls: Authority | None = None
) -> Iterator[Registry]:
    """Run a registry on a free loopback port: open, with a password, or with tokens of a token server."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Registry(folder, _free_port(), user or (tokens.user if tokens else None), tokens)
    config = _configuration(made, tls)
    (folder / "config.yml").write_text(json.dumps(config))  # JSON is YAML
    with made.log.open("ab") as log:
        argv = [str(program()), "serve", str(folder / "config.yml")]
        process = subprocess.Popen(argv, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait_for(made, process)
        yield made
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _configuration(made: Registry, tls: Authority | None) -> dict[str, object]:
    http: dict[str, object] = {"addr": made.host, "secret": "for tests"}
    config = {
        "version": "0.1",
        "log": {"level": "info", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(made.folder / "data")}, "delete": {"enabled": True}},
        "http": http,
    }
    if tls:
        http["tls"] = {"certificate": str(tls.certificate), "key": str(tls.key)}
    if tokens := made.tokens:
        told = {"realm": tokens.realm, "service": "registry", "issuer": ISSUER}
        config["auth"] = {"token": {**told, "rootcertbundle": str(tokens.authority.certificate)}}
    elif made.user:
        file = made.folder / "htpasswd"
        name, password = made.user
        file.write_text(f"{name}:{bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()}\n")
        config["auth"] = {"htpasswd": {"realm": "tests", "path": str(file)}}
    return config


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _wait_for(made: Registry, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 20
    while time.monotonic() < until and process.poll() is None:
        with socket.socket() as knock:
            if knock.connect_ex(("127.0.0.1", made.port)) == 0:
                return
        time.sleep(0.05)
    pytest.fail(f"the registry does not answer: {made.log.read_text()[-2000:]}")


@dataclass
class Authority:
    """A certificate that signs itself, for 127.0.0.1, and its key."""

    certificate: Path
    key: Path

    @classmethod
    def made(cls, folder: Path) -> Authority:
        folder.mkdir(parents=True, exist_ok=True)
        key = rsa.generate_private_key(65537, 2048)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=1))
        address = x509.IPAddress(ip_address("127.0.0.1"))
        builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        made = cls(folder / "cert.pem", folder / "key.pem")
        made.certificate.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        made.key.write_bytes(key.private_bytes(*form))
        return made

    def signed(self, claims: dict[str, object]) -> str:
        """Return a JSON Web Token that the registry accepts."""
        key = serialization.load_pem_private_key(self.key.read_bytes(), None)
        assert isinstance(key, rsa.RSAPrivateKey)
        der = x509.load_pem_x509_certificate(self.certificate.read_bytes()).public_bytes(serialization.Encoding.DER)
        header = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(der).decode()]}
        text = ".".join(_base64(json.dumps(part).encode()) for part in (header, claims))
        return f"{text}.{_base64(key.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256()))}"


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@dataclass
class Tokens:
    """A token server for a real registry: gives who knows ``user``'s password what he asks for; others may pull."""

    authority: Authority
    user: tuple[str, str]
    realm: str = ""
    seconds: float = 300
    """How long a token is good."""
    anonymous: bool = True
    given: list[str] = field(default_factory=list)
    """The scopes of the tokens that were given out."""

    def __call__(self, asked: Asked) -> Reply:
        query = parse_qs(urlsplit(asked.path).query)
        known = asked.authorization == f"Basic {base64.b64encode(':'.join(self.user).encode()).decode()}"
        if (asked.authorization and not known) or not (known or self.anonymous):
            return Reply(401, b'{"errors": [{"code": "UNAUTHORIZED", "message": "wrong password"}]}')
        scopes = [scope for text in query.get("scope", []) for scope in text.split()]
        self.given += scopes
        access = [_access(scope, may_push=known) for scope in scopes]
        now = time.time()
        life = {"iat": int(now), "nbf": int(now) - 600, "exp": int(now + self.seconds - LEEWAY)}
        claims = {"iss": ISSUER, "sub": "", "aud": "registry", "jti": str(len(self.given)), "access": access, **life}
        return Reply(200, json.dumps({"token": self.authority.signed(claims)}).encode())


def _access(scope: str, *, may_push: bool) -> dict[str, object]:
    kind, name, actions = scope.split(":")
    return {"type": kind, "name": name, "actions": [a for a in actions.split(",") if may_push or a == "pull"]}


@contextmanager
def token_server(folder: Path, user: tuple[str, str]) -> Iterator[Tokens]:
    """Run a token server on loopback."""
    tokens = Tokens(Authority.made(folder), user)
    with serving(tokens) as server:
        tokens.realm = f"{server.url}/token"
        yield tokens


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """Run a registry that is open to all."""
    with running(tmp_path_factory.mktemp("registry")) as made:
        yield made
