"""What was published is used by others' tools: pip, uv, twine, nginx, pypiserver, a registry, ssh-keygen, sha256sum."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from core.command import Options
from core.config import ROOT, WORK, load_stack
from core.errors import PublishRefused, RegistryRefused, SignatureRefused
from core.process import Completed, run
from tests.unit.faultyserver import Asked, Backend, Reply, in_front_of, serving, status
from tests.unit.small_wheels import Place, listed, small_wheel
from tests.wheels.indexes import Served, closed_pypi_server, nginx, plain, pypi_server
from tests.wheels.registry import Registry, registry, running
from wheels.images import patience
from wheels.manifest import describe
from wheels.publishing import artifacts as artifacts_module
from wheels.publishing import publish as module
from wheels.publishing import release as releases
from wheels.publishing.audit import audit
from wheels.publishing.publish import Wish, publish
from wheels.publishing.release import names_in

__all__ = ["registry"]
pytestmark = pytest.mark.wheels
DOWNLOADS = WORK / "tests" / "wheels" / "small"
PINS = ("idna==3.11", "markupsafe==3.0.3", "six==1.17.0")
"""Published wheels of three kinds: new metadata, an extension, and one for every Python."""
ORAS = "oras==0.2.43"
DOCS = (ROOT / "docs" / "publish.md").read_text(encoding="utf-8")
CLEAN = {"PIP_CONFIG_FILE": "/dev/null", "PIP_INDEX_URL": "", "PIP_EXTRA_INDEX_URL": "", "PIP_NO_CACHE_DIR": "1"}
SIGNER = "releases@example.org"


def block(language: str, part: str) -> str:
    """Return the block of docs/publish.md that has this part."""
    found = re.findall(rf"```{language}\n(.*?)```", DOCS, re.DOTALL)
    return next(text for text in found if part in text)


@pytest.fixture(scope="module")
def downloads() -> list[Path]:
    DOWNLOADS.mkdir(parents=True, exist_ok=True)
    missing = [pin for pin in PINS if not list(DOWNLOADS.glob(pin.replace("==", "-") + "-*.whl"))]
    if missing:
        flags = ["--no-deps", "--only-binary=:all:", "--quiet", "--dest", str(DOWNLOADS)]
        run([sys.executable, "-m", "pip", "download", *flags, *missing], timeout=300)
    return [next(DOWNLOADS.glob(pin.replace("==", "-") + "-*.whl")) for pin in PINS]


def make_place(folder: Path, downloads: list[Path], version: str = "1.0+cu130", content: str = "VALUE = 1\n") -> Place:
    """Make what build-wheels leaves: a wheel of ours, one that it requires, and three of an index."""
    folder.mkdir(parents=True)
    requires = ["spark-needed>=2", "MarkupSafe", "idna", "six"]
    ours = describe(small_wheel(folder, "spark-alpha", version, requires=requires, content=content), "source", "r" * 64)
    needed = describe(small_wheel(folder, "spark-needed", "2.0"), "source", "s" * 64)
    others = [describe(Path(shutil.copy(path, folder)), "index") for path in downloads]
    return listed(folder, *sorted([ours, needed, *others], key=lambda one: one.name), stack="cpu")


class World:
    """A dist/ of its own to publish from."""

    def __init__(self, dist: Path) -> None:
        self.dist = dist

    def publish(self, *to: str, key: Path | None = None, private: bool = False) -> Path:
        """Publish what is in dist/cpu/target, and return the release's folder."""
        publish(Wish(load_stack("cpu"), to=to, key=key, private=private), Options())
        return self.folder

    @property
    def folder(self) -> Path:
        manifest = module.read_manifest(self.dist / "cpu" / "target")
        return self.dist / "releases" / manifest.release


@pytest.fixture
def world(tmp_path: Path, downloads: list[Path], monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(module, "DIST", tmp_path / "dist")
    monkeypatch.setattr(releases, "RELEASES", tmp_path / "dist" / "releases")
    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.001)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("TWINE_USERNAME", "TWINE_PASSWORD"):
        monkeypatch.setenv(name, "nobody")
    make_place(tmp_path / "dist" / "cpu" / "target", downloads)
    return World(tmp_path / "dist")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)])
    return path


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a fresh environment with the pip that Python brings."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    run([sys.executable, "-m", "venv", str(folder)], timeout=120)
    return folder


@pytest.fixture
def fresh(bare: Path, tmp_path: Path) -> Path:
    shutil.copytree(bare, tmp_path / "venv", symlinks=True)
    return tmp_path / "venv"


def pip(venv: Path, *argv: str, check: bool = True) -> Completed:
    flags = ["--disable-pip-version-check", "--no-input"]
    return run([str(venv / "bin/python"), "-m", "pip", *flags, *argv], env=CLEAN, check=check, timeout=120)


def uv(venv: Path, *argv: str) -> Completed:
    program = [str(Path(sys.executable).with_name("uv")), "--no-config", "--no-cache"]
    return run([*program, "pip", *argv, "--python", str(venv / "bin/python")], timeout=120)


def require_installed(venv: Path) -> None:
    code = "import spark_alpha, spark_needed, markupsafe, idna, six; print(spark_alpha.VALUE)"
    assert run([str(venv / "bin/python"), "-c", code]).out == "1\n"
    pip(venv, "check")


def require_metadata_first(served: Served) -> None:
    """Every wheel's metadata was fetched, and before any wheel."""
    metadata = [number for number, path in enumerate(served.paths) if path.endswith(".whl.metadata")]
    wheels = [number for number, path in enumerate(served.paths) if path.endswith(".whl")]
    assert len(set(served.paths)) > 5
    assert len(metadata) == len(wheels) == 5
    assert max(metadata) < min(wheels)


class TestInstalling:
    def test_plain_pip_installs_from_a_release_on_a_plain_web_server(self, world: World, fresh: Path) -> None:
        with plain(world.publish()) as served:
            pip(fresh, "install", "--index-url", f"{served.url}/simple/", "spark-alpha")
        require_installed(fresh)
        require_metadata_first(served)

    def test_uv_installs_from_it(self, world: World, fresh: Path) -> None:
        with plain(world.publish()) as served:
            uv(fresh, "install", "--index-url", f"{served.url}/simple/", "spark-alpha")
        require_installed(fresh)
        require_metadata_first(served)

    def test_the_lock_installs_exactly_the_set_by_hash(self, world: World, fresh: Path) -> None:
        release = world.publish()
        with plain(release) as served:
            flags = ["--no-deps", "--require-hashes", "--index-url", f"{served.url}/simple/"]
            pip(fresh, "install", *flags, "-r", str(release / "stack.lock"))
        require_installed(fresh)

    def test_no_server_is_needed_at_all(self, world: World, fresh: Path) -> None:
        pip(fresh, "install", "--no-index", "--find-links", str(world.publish()), "spark-alpha")
        require_installed(fresh)

    def test_a_wheel_that_was_changed_on_the_server_is_not_installed(self, world: World, fresh: Path) -> None:
        release = world.publish()
        path = next(release.glob("six-*.whl"))
        data = bytearray(path.read_bytes())
        data[200] ^= 1
        path.unlink()
        path.write_bytes(data)
        with plain(release) as served:
            done = pip(fresh, "install", "--index-url", f"{served.url}/simple/", "spark-alpha", check=False)
        assert done.code != 0
        assert "THESE PACKAGES DO NOT MATCH THE HASHES" in done.out + done.err

    def test_nginx_gives_json_as_docs_say_to_pip_and_uv(
        self, world: World, downloads: list[Path], tmp_path: Path, bare: Path
    ) -> None:
        """Two releases lie there, and the newer one is for a Python that does not exist yet."""
        shared = tmp_path / "shared"
        world.publish(f"folder:{shared}")
        place = tmp_path / "dist" / "cpu" / "target"
        shutil.rmtree(place)
        make_place(place, downloads, "2.0+cu130")
        small_wheel(place, "spark-alpha", "2.0+cu130", python=">=3.99")
        found = [describe(path, "index") for path in sorted(place.glob("*.whl"))]
        listed(place, *found, stack="cpu")
        world.publish(f"folder:{shared}")
        with nginx(tmp_path / "nginx", block("nginx", "map"), shared) as served:
            self.require_pages(served)
            for number, install in enumerate((pip, uv)):
                venv = Path(shutil.copytree(bare, tmp_path / f"venv{number}", symlinks=True))
                install(venv, "install", "--index-url", f"{served.url}/simple/", "spark-alpha")
                require_installed(venv)
                assert "spark-alpha 1.0+cu130" in " ".join(pip(venv, "list").out.split())
        asked = (tmp_path / "nginx" / "asked").read_text().splitlines()
        assert asked.count("/simple/spark-alpha/index.json") >= 2
        assert sum(path.endswith(".metadata") for path in asked) == 10

    def require_pages(self, served: Served) -> None:
        kind = "application/vnd.pypi.simple.v1+json"
        for path, name in (("", "projects"), ("spark-alpha/", "files")):
            answer = httpx.get(f"{served.url}/simple/{path}", headers={"Accept": kind})
            assert answer.headers["Content-Type"] == kind
            assert answer.headers["Vary"] == "Accept"
            assert answer.json()[name]
            assert httpx.get(f"{served.url}/simple/{path}").headers["Content-Type"] == "text/html"


class TestChecking:
    def test_twine_finds_nothing_to_say_about_our_wheels(self, world: World) -> None:
        ours = [str(path) for path in world.publish().glob("spark_*.whl")]
        done = run([sys.executable, "-m", "twine", "check", "--strict", *ours], env={"NO_COLOR": "1", "COLUMNS": "200"})
        assert done.out.count("PASSED") == len(ours) == 2

    def test_the_bill_of_materials_is_valid(self, world: World) -> None:
        text = (world.publish() / "sbom.cdx.json").read_text()
        version = SchemaVersion.from_version(json.loads(text)["specVersion"])
        assert JsonStrictValidator(version).validate_str(text) is None

    def test_a_release_is_checked_by_hand_as_docs_say_and_by_us(self, world: World, key: Path) -> None:
        release = world.publish(key=key)
        self.allow(release.parent, key)
        by_hand(release)
        assert audit(release, release.parent / "allowed_signers") == SIGNER
        assert audit(release) == ""

    def test_any_changed_byte_is_found_by_hand_and_by_us(self, world: World, key: Path) -> None:
        release = world.publish(key=key)
        self.allow(release.parent, key)
        signers = release.parent / "allowed_signers"
        for name in sorted(names_in(release)):
            path = release / name
            whole = path.read_bytes()
            middle = len(whole) // 2
            path.unlink()  # a wheel has other links
            path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
            assert by_hand(release, check=False).code != 0, name
            with pytest.raises(SignatureRefused):
                audit(release, signers)
            path.write_bytes(whole)
        by_hand(release)

    def test_a_list_that_was_made_anew_has_no_signature_that_fits(self, world: World, key: Path) -> None:
        release = world.publish(key=key)
        self.allow(release.parent, key)
        lock = release / "stack.lock"
        lock.unlink()
        lock.write_text("six==1.17.0 --hash=sha256:" + "0" * 64 + "\n")
        names = sorted(set(names_in(release)) - {"SHA256SUMS", "SHA256SUMS.sig", "manifest.json.sig"})
        (release / "SHA256SUMS").unlink()
        (release / "SHA256SUMS").write_text(run(["sha256sum", *names], cwd=release).out)
        assert run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=release).code == 0
        assert by_hand(release, check=False).code != 0
        with pytest.raises(SignatureRefused, match="bytes were changed"):
            audit(release, release.parent / "allowed_signers")
        with pytest.raises(SignatureRefused, match=r"its stack\.lock is not the one that its manifest\.json names"):
            audit(release)

    def test_another_key_may_not_sign(self, world: World, key: Path, tmp_path: Path) -> None:
        release = world.publish(key=key)
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")])
        self.allow(release.parent, tmp_path / "other")
        assert by_hand(release, check=False).code != 0
        with pytest.raises(SignatureRefused, match="not among the allowed signers"):
            audit(release, release.parent / "allowed_signers")

    def test_a_file_too_many_is_found(self, world: World) -> None:
        release = world.publish()
        (release / "vllm-9.9-py3-none-any.whl").write_bytes(b"x")
        with pytest.raises(SignatureRefused, match=r"vllm-9\.9-py3-none-any\.whl is not in its SHA256SUMS"):
            audit(release)

    def allow(self, folder: Path, key: Path) -> None:
        (folder / "allowed_signers").write_text(f"{SIGNER} {key.with_suffix('.pub').read_text()}")


def by_hand(release: Path, *, check: bool = True) -> Completed:
    """Run the lines of docs/publish.md in a release's folder; the signers' file lies beside it."""
    lines = block("sh", "sha256sum --check").replace("allowed_signers", "../allowed_signers")
    return run(["bash", "-euc", lines], cwd=release, check=check)


class TestPypiserver:
    @pytest.fixture
    def server(self, tmp_path: Path) -> Iterator[Served]:
        with pypi_server(tmp_path / "packages", tmp_path / "pypiserver.log") as served:
            yield served

    def test_wheels_are_uploaded_once_and_installed_from_there(
        self, world: World, server: Served, tmp_path: Path, fresh: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        world.publish(f"index:{server.url}/")
        there = {path.name: path.read_bytes() for path in (tmp_path / "packages").glob("*.whl")}
        assert there == {path.name: path.read_bytes() for path in world.folder.glob("*.whl")}
        assert "Uploading spark_alpha-1.0+cu130-py3-none-any.whl" in capsys.readouterr().err
        world.publish(f"index:{server.url}/")
        assert capsys.readouterr().out == "nothing to do\n"
        pip(fresh, "install", "--index-url", f"{server.url}/simple/", "spark-alpha")
        require_installed(fresh)

    def test_what_is_missing_is_uploaded_alone(
        self, world: World, server: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "packages").mkdir(exist_ok=True)
        shutil.copy(next(DOWNLOADS.glob("six-*.whl")), tmp_path / "packages")
        world.publish(f"index:{server.url}/")
        shown = capsys.readouterr().err
        assert "Uploading six" not in shown
        assert shown.count("Uploading ") == 1 + 4

    def test_another_file_under_the_same_name_is_refused_and_nothing_is_sent(
        self, world: World, server: Served, tmp_path: Path
    ) -> None:
        name = "spark_needed-2.0-py3-none-any.whl"
        small_wheel(tmp_path / "packages", "spark-needed", "2.0", content="VALUE = 2\n")
        with pytest.raises(PublishRefused, match="has another spark_needed"):
            world.publish(f"index:{server.url}/")
        assert [path.name for path in (tmp_path / "packages").iterdir()] == [name]

    def test_a_password_is_found_where_twine_finds_it_and_shown_nowhere(
        self, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with closed_pypi_server(tmp_path / "closed", "me", "a-secret-word", tmp_path / "log") as served:
            with pytest.raises(RegistryRefused, match="403 Forbidden"):
                world.publish(f"index:{served.url}/")
            monkeypatch.delenv("TWINE_USERNAME")
            monkeypatch.delenv("TWINE_PASSWORD")
            Path(os.environ["HOME"]).mkdir()
            text = f"[distutils]\nindex-servers = ours\n[ours]\nrepository = {served.url}/\nusername = me\n"
            (Path(os.environ["HOME"]) / ".pypirc").write_text(f"{text}password = a-secret-word\n")
            world.publish("index:ours")
            world.publish("index:ours")
        assert len(list((tmp_path / "closed").glob("*.whl"))) == 5
        shown = capsys.readouterr()
        assert "nothing to do" in shown.out
        assert "a-secret-word" not in shown.out + shown.err


@dataclass(frozen=True)
class Loss:
    """The connection breaks at one piece of an upload, before or after the registry has it.

    ``pieces`` are then sent until a file of eight pieces is there.
    """

    number: int
    arrives: bool
    pieces: int

    def in_front_of(self, backend: Backend) -> Backend:
        pieces: list[Asked] = []

        def lost(asked: Asked) -> Reply:
            pieces.extend([asked] if asked.method == "PATCH" else [])
            if asked.method != "PATCH" or len(pieces) != self.number:
                return backend(asked)
            return replace(backend(asked) if self.arrives else Reply(), cut=-1)

        return lost


class TestRegistry:
    def test_an_artifact_is_sent_once_and_pulled_by_oras(
        self, world: World, registry: Registry, tmp_path: Path, key: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        address = f"{registry.host}/wheels/once"
        release = world.publish(f"oci:{address}", key=key)
        capsys.readouterr()
        world.publish(f"oci:{address}", key=key)
        assert capsys.readouterr().out == "nothing to do\n"
        pulled = tmp_path / "pulled"
        oras(f"{address}:{release.name}", pulled)
        assert {name: (pulled / name).read_bytes() for name in names_in(pulled)} == {
            name: (release / name).read_bytes() for name in names_in(release)
        }
        TestChecking().allow(tmp_path, key)
        assert audit(pulled, tmp_path / "allowed_signers") == SIGNER
        raw = registry.skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{address}:{release.name}").out
        assert json.loads(raw)["artifactType"] == "application/vnd.sparkstack.release.v1"

    def test_another_release_under_the_tag_is_refused(self, world: World, registry: Registry, key: Path) -> None:
        world.publish(f"oci:{registry.host}/wheels/other")
        with pytest.raises(PublishRefused, match="is there and is another one"):
            world.publish(f"oci:{registry.host}/wheels/other", key=key)

    @pytest.mark.parametrize(
        "loss",
        [
            pytest.param(Loss(3, arrives=False, pieces=9), id="a piece gets lost and is sent again"),
            pytest.param(
                Loss(3, arrives=True, pieces=11), id="an answer gets lost, and this registry drops the upload"
            ),
            pytest.param(Loss(1, arrives=False, pieces=9), id="the first piece gets lost"),
        ],
    )
    def test_a_large_file_arrives_though_connections_break(
        self, world: World, registry: Registry, monkeypatch: pytest.MonkeyPatch, loss: Loss
    ) -> None:
        """In pieces of 10 kB; the first file that is so large has eight."""
        monkeypatch.setattr(artifacts_module, "AT_ONCE", 10_000)
        with serving(loss.in_front_of(in_front_of(registry.host))) as front:
            front.fail("blobs/sha256", status(503, Retry_After="0"))
            release = world.publish(f"oci:{front.host}/wheels/broken{loss.number}{loss.pieces}")
            sent = [asked.headers["content-range"] for asked in front.asked if asked.method == "PATCH"]
        assert sent[: loss.pieces].count("70000-71007") == 1
        assert sent[loss.pieces - 1] == "70000-71007"
        for line in (release / "SHA256SUMS").read_text().splitlines():
            sha256, _, name = line.partition("  ")
            assert registry.blob(f"sha256:{sha256}").read_bytes() == (release / name).read_bytes()

    def test_a_registry_with_a_password_is_written_to_with_what_skopeo_login_left(
        self, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "auth.json").write_text("{}")
        with running(tmp_path / "closed", user=("me", "a-secret-word")) as closed:
            monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))  # the registry would read it too
            with pytest.raises(RegistryRefused, match="does not let us"):
                world.publish(f"oci:{closed.host}/wheels")
            closed.skopeo("login", "--tls-verify=false", "--username=me", "--password=a-secret-word", closed.host)
            release = world.publish(f"oci:{closed.host}/wheels")
            name = f"docker://{closed.host}/wheels:{release.name}"
            assert json.loads(closed.skopeo("inspect", "--raw", "--tls-verify=false", name).out)["layers"]


def oras(reference: str, folder: Path) -> None:
    """Pull an artifact by the Python client of the ORAS project, in an environment of its own."""
    venv = WORK / "tests" / "oras"
    if not list(venv.glob("lib/*/site-packages/oras/client.py")):
        run([sys.executable, "-m", "venv", "--clear", str(venv)], timeout=120)
        run([str(venv / "bin/python"), "-m", "pip", "install", "--quiet", ORAS], timeout=300)
    code = "import sys, oras.client; oras.client.OrasClient(insecure=True).pull(target=sys.argv[1], outdir=sys.argv[2])"
    folder.mkdir()
    run([str(venv / "bin/python"), "-c", code, reference, str(folder)], timeout=120)
