"""Published wheels, installed, packed into images, pushed to a real registry, and taken out again: the same wheels."""

from __future__ import annotations

import hashlib
import shutil
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name, parse_wheel_filename

from core.command import Options
from core.config import WORK
from core.errors import ImageRefused
from core.process import Completed, run
from tests.wheels.images import Workbench, in_layers
from tests.wheels.registry import Registry, registry
from wheels.canonical import EARLIEST, canonicalize, pack, unpack
from wheels.extract import Extracted, Wish, extract, look, recorded, run_extract, wanted_of
from wheels.leftover import prove

__all__ = ["registry"]
pytestmark = pytest.mark.wheels
DOWNLOADS = WORK / "tests" / "wheels" / "files"
SITE = f"usr/local/lib/python3.{sys.version_info.minor}/site-packages"
PLATFORM = "linux/amd64"


@dataclass(frozen=True)
class Case:
    """A published wheel: ``how`` it is installed, and what is special about it."""

    pin: str
    how: str = "pip"
    special: str = ""

    @property
    def name(self) -> str:
        return canonicalize_name(self.pin.partition("==")[0])


SMALL = (
    Case("cryptography==50.0.2", special="abi3"),
    Case("google-api-core==2.44.0", special="a namespace package"),
    Case("greenlet==3.5.6", special="headers"),
    Case("jmespath==1.1.0", "uv", "a script with #!python"),
    Case("jupyterlab-widgets==3.0.17", special="data below share/"),
    Case("lxml==6.1.3", "pip --no-compile"),
    Case("ninja==1.13.2", "pip --target", "a program among its scripts"),
    Case("pybind11-global==3.1.0", "uv", "headers, and data below include/"),
    Case("PyYAML==6.0.3", "uv", "a name with capitals"),
    Case("pyzmq==27.3.0", special=".libs"),
    Case("sentencepiece==0.2.3", "uv"),
    Case("supervisor==4.3.0", special="entry points, py2.py3"),
    Case("tbb==2023.2.0", special="libraries as data below lib/"),
    Case("uvloop==0.23.0", special="five tags"),
    Case("widgetsnbextension==4.0.16", "pip --target", "data below etc/ and share/"),
    Case("zope.interface==8.7", "pip --no-compile", "a dot in its name"),
)
LARGE = (
    Case("ansible-core==2.19.14", special="many scripts"),
    Case("cmake==4.4.4", "uv"),
    Case("debugpy==1.8.22"),
    Case("docutils==0.23", "uv"),
    Case("flashinfer-python==0.7.2.post1", special="CUDA sources as data"),
    Case("grpcio==1.85.1"),
    Case("h5py==3.16.0", special=".libs"),
    Case("jupyter-core==5.9.1"),
    Case("jupyterlab==4.6.6", special="data below etc/ and share/"),
    Case("matplotlib==3.11.2"),
    Case("notebook==7.6.5", "uv"),
    Case("numpy==2.4.6", special=".libs"),
    Case("opencv-python-headless==5.0.0.93", "pip --no-compile"),
    Case("pandas==3.1.1", "pip --no-compile"),
    Case("pillow==13.0.0"),
    Case("protobuf==7.36.2", special="a namespace package, abi3"),
    Case("psycopg2-binary==2.9.13"),
    Case("ray==2.60.0", special="its WHEEL says linux_x86_64, its published name manylinux2014_x86_64"),
    Case("ruff==0.17.6", special="a program among its scripts"),
    Case("safetensors==0.8.0"),
    Case("scikit-learn==1.9.1"),
    Case("scipy==1.17.1", special=".libs"),
    Case("tokenizers==0.23.3"),
    Case("uv==0.13.9", "uv", "two programs among its scripts"),
)
RENAMED = {"ray": "ray-2.60.0-cp311-cp311-linux_x86_64.whl"}
"""Wheels whose published names say other tags than their WHEEL does: an installation knows the latter only."""
NOTES = ("direct_url.json", "RECORD")
"""Files that name the wheel's own path, and their hashes."""


def python(*argv: str | Path, check: bool = True, site: Path | None = None) -> Completed:
    env = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_ROOT_USER_ACTION": "ignore"}
    env |= {"PYTHONPATH": str(site)} if site else {}
    return run([sys.executable, *map(str, argv)], check=check, env=env, timeout=600)


def published(case: Case) -> Path:
    """Return the published wheel, downloaded once."""
    wanted = case.pin.partition("==")[2]
    for path in sorted(DOWNLOADS.glob("*.whl")):
        name, version, *_ = parse_wheel_filename(path.name)
        if (name, str(version)) == (case.name, wanted):
            return path
    DOWNLOADS.mkdir(parents=True, exist_ok=True)
    python("-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", DOWNLOADS, case.pin)
    return published(case)


def install(root: Path, how: str, wheels: list[Path]) -> None:
    """Install wheels below a root as an image's maker would."""
    plain = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--ignore-installed"]
    match how:
        case "uv":
            folder = root / "opt" / "uv"
            argv = ["--no-deps", "--no-index", "--quiet", "--link-mode=copy", "--prefix", folder]
            python("-m", "uv", "pip", "install", *argv, *wheels)
        case "pip --target":
            for wheel in wheels:  # where a folder is there already, pip leaves out what belongs into it
                python(*plain, "--target", root / "opt" / "alone" / wheel.name.partition("-")[0], wheel)
        case _:
            python(*plain, *how.split()[1:], "--root", root, "--prefix", "/usr/local", *wheels)


def installed(root: Path, cases: tuple[Case, ...]) -> Path:
    for how in sorted({case.how for case in cases}):
        install(root, how, [published(case) for case in cases if case.how == how])
    return root


def require_the_same(cases: tuple[Case, ...], taken: tuple[Extracted, ...], place: Path, spare: Path) -> None:
    """Compare each wheel with the published one: the bytes of both in the one form, names and tags."""
    spare.mkdir()
    assert {one.name for one in taken} == {case.name for case in cases}
    for case in cases:
        (one,) = (one for one in taken if one.name == case.name)
        original = published(case)
        canonicalize(original, spare / "canonical.whl", EARLIEST)
        prove(place / one.filename, one.name, one.version)
        if case.name in RENAMED:
            assert one.filename == RENAMED[case.name]
        else:
            assert parse_wheel_filename(one.filename) == parse_wheel_filename(original.name)
        assert one.sha256 == hashlib.sha256((spare / "canonical.whl").read_bytes()).hexdigest(), case


def tree(root: Path) -> dict[str, tuple[str, int]]:
    """Return what is installed: content and mode of each file."""
    files = (path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {
        str(path.relative_to(root)): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            stat.S_IMODE(path.stat().st_mode),
        )
        for path in files
    }


def require_that_installers_agree(cases: tuple[Case, ...], place: Path, spare: Path) -> None:
    """Install both sets afresh: pip writes the same files with the same modes, and checks them alike; uv takes ours."""
    pins = [case.pin for case in cases]
    argv = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile", "--ignore-installed"]
    for name, source in (("theirs", DOWNLOADS), ("ours", place)):
        python(*argv, "--prefix", "/usr/local", "--root", spare / name, "--find-links", source, *pins)
    assert tree(spare / "ours") == tree(spare / "theirs")
    checks = [python("-m", "pip", "check", site=spare / name / SITE, check=False) for name in ("ours", "theirs")]
    assert (checks[0].code, checks[0].out) == (checks[1].code, checks[1].out)
    uv = ["--no-deps", "--no-index", "--quiet", "--prefix", spare / "uv", "--find-links", place]
    python("-m", "uv", "pip", "install", *uv, *pins)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed(tmp_path_factory.mktemp("small") / "root", SMALL)


@pytest.fixture(scope="module")
def bench(root: Path) -> Workbench:
    bench = Workbench(root.parent / "bench")
    in_layers(bench, root, (f"{SITE}/lxml", f"{SITE}/cryptography-50.0.2.dist-info", "opt/uv/include"))
    return bench


def wish_of(reference: str, cases: tuple[Case, ...], folder: Path) -> Wish:
    return Wish(reference, wanted_of([case.pin for case in cases]), folder / "out", PLATFORM, work=folder / "work")


def round_trip(cases: tuple[Case, ...], reference: str, folder: Path) -> None:
    """Take all wheels out of an image and compare them with the published ones; a second run takes nothing."""
    wish, lines = wish_of(reference, cases, folder), list[str]()
    taken = extract(wish, lines.append)
    require_the_same(cases, taken, wish.target, folder / "spare")
    require_that_installers_agree(cases, wish.target, folder / "spare")
    assert {one.image for one in taken} == {look(wish, lines.append).pinned}
    layers = {layer.blob.digest for layer in look(wish, lines.append).layers}
    assert all(set(one.layers) <= layers and one.layers for one in taken)
    before = {path: path.stat().st_mtime_ns for path in wish.target.rglob("*")}
    assert extract(wish, lines.append) == taken
    assert {path: path.stat().st_mtime_ns for path in wish.target.rglob("*")} == before
    assert list((wish.work / "extract").glob("image-*")) == []


def test_small_wheels_of_every_kind(bench: Workbench, registry: Registry, tmp_path: Path):
    registry.push(bench.reference, "round/trip:small")
    round_trip(SMALL, f"{registry.host}/round/trip:small", tmp_path)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_every_wheel(registry: Registry, tmp_path: Path):
    cases = (*SMALL, *LARGE)
    root = installed(tmp_path / "root", cases)
    bench = Workbench(tmp_path / "bench")
    in_layers(bench, root, (f"{SITE}/numpy", f"{SITE}/ray/_private", "opt/uv/bin", "usr/local/share"))
    registry.push(bench.reference, "round/trip:all")
    shutil.rmtree(root)
    round_trip(cases, f"{registry.host}/round/trip:all", tmp_path)


def test_a_dry_run_reads_the_manifest_and_no_layer(
    bench: Workbench, registry: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    registry.push(bench.reference, "round/trip:small")
    wish = wish_of(f"{registry.host}/round/trip:small", SMALL[:2], tmp_path)
    run_extract(wish, Options(dry_run=True))
    told = capsys.readouterr().out
    image = look(wish, print)
    assert f"to have the same image again, name {image.pinned}" in told
    assert all(layer.blob.digest in told for layer in image.layers)
    largest = max(layer.blob.size for layer in image.layers)
    assert sum(path.stat().st_size for path in wish.work.rglob("*") if path.is_file()) < largest / 100
    assert not wish.target.exists()


def test_a_layout_on_the_disk_gives_the_same_as_a_registry(bench: Workbench, tmp_path: Path):
    cases = tuple(case for case in SMALL if case.how == "uv")
    wish = wish_of(bench.reference, cases, tmp_path)
    require_the_same(cases, extract(wish, print), wish.target, tmp_path / "spare")


def prepared(tmp_path: Path, wheel: Path) -> tuple[Workbench, Path]:
    """Return an image with one wheel installed, and its root."""
    root = tmp_path / "root"
    install(root, "pip --no-compile", [wheel])
    bench = Workbench(tmp_path / "bench")
    in_layers(bench, root, ())
    return bench, root


JMESPATH = next(case for case in SMALL if case.name == "jmespath")


@pytest.mark.parametrize("how", ["whiteout", "opaque", "changed"])
def test_a_file_that_an_upper_layer_hides_or_changes_is_refused_by_name(how: str, tmp_path: Path):
    bench, root = prepared(tmp_path, published(JMESPATH))
    if how == "whiteout":
        bench.whiteout(f"/{SITE}/jmespath/lexer.py")
    elif how == "opaque":
        (root / SITE / "jmespath" / "lexer.py").unlink()
        bench.opaque(root / SITE / "jmespath", f"/{SITE}/jmespath")
    else:
        with bench.layer() as place:
            (place / SITE / "jmespath" / "lexer.py").write_bytes(b"changed")
    wish = wish_of(bench.reference, (JMESPATH,), tmp_path)
    with pytest.raises(ImageRefused, match=r"jmespath/lexer\.py"):
        extract(wish, print)
    assert recorded(wish.target) == ()
    assert list(wish.target.glob("*.whl")) == []
    assert list((wish.work / "extract").glob("image-*")) == []


def test_another_version_than_the_stacks_is_refused_naming_both(tmp_path: Path):
    bench, _ = prepared(tmp_path, published(JMESPATH))
    other = Case("jmespath==9.9")
    with pytest.raises(ImageRefused, match=r"(?s)1\.1\.0.*9\.9|9\.9.*1\.1\.0"):
        extract(wish_of(bench.reference, (other,), tmp_path), print)


def test_an_editable_installation_is_refused_in_words(tmp_path: Path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\n[project]\nname = "e"\nversion = "1"\n'
    )
    (source / "e.py").write_text("")
    plain = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed"]
    python(*plain, "--root", tmp_path / "root", "--prefix", "/usr/local", "--editable", source)
    bench = Workbench(tmp_path / "bench")
    in_layers(bench, tmp_path / "root", ())
    with pytest.raises(ImageRefused, match="installed as editable"):
        extract(wish_of(bench.reference, (Case("e==1"),), tmp_path), print)


def test_a_wheel_that_was_left_over_comes_out_byte_for_byte(tmp_path: Path):
    bench = Workbench(tmp_path / "bench")
    bench.begin()
    original = published(JMESPATH)
    with bench.layer() as place:
        (place / "opt" / "wheels").mkdir(parents=True)
        shutil.copy2(original, place / "opt" / "wheels")
    wish = wish_of(bench.reference, (JMESPATH,), tmp_path)
    (one,) = extract(wish, print)
    assert (one.kind, one.filename) == ("wheel", original.name)
    assert (wish.target / one.filename).read_bytes() == original.read_bytes()


def test_a_build_number_comes_back_into_the_name(tmp_path: Path):
    shutil.copy2(published(JMESPATH), tmp_path)
    python("-m", "wheel", "tags", "--remove", "--build", "7", tmp_path / published(JMESPATH).name)
    (wheel,) = tmp_path.glob("*.whl")
    bench, _ = prepared(tmp_path, wheel)
    wish = wish_of(bench.reference, (JMESPATH,), tmp_path)
    (one,) = extract(wish, print)
    canonicalize(wheel, wheel, EARLIEST)
    assert one.filename == wheel.name == "jmespath-1.1.0-7-py3-none-any.whl"
    assert (wish.target / one.filename).read_bytes() == wheel.read_bytes()


def test_where_both_kinds_of_libraries_lie_in_one_folder_they_come_back_as_one(tmp_path: Path):
    """An installation on a system with one library folder does not say what was purelib and what platlib."""
    case = next(case for case in SMALL if case.name == "zope-interface")
    unpack(published(case), tmp_path / "tree")
    (library,) = (tmp_path / "tree").rglob("*.so")
    part = tmp_path / "tree" / "zope_interface-8.7.data" / "platlib" / library.relative_to(tmp_path / "tree")
    part.parent.mkdir(parents=True)
    library.rename(part)
    mixed = tmp_path / published(case).name
    pack(tmp_path / "tree", mixed, EARLIEST)
    bench, _ = prepared(tmp_path, mixed)
    wish = wish_of(bench.reference, (case,), tmp_path)
    (one,) = extract(wish, print)
    for number, wheel in enumerate((mixed, wish.target / one.filename)):
        install(tmp_path / str(number), "pip --no-compile", [wheel])
    trees = [
        {name: found for name, found in tree(tmp_path / str(n)).items() if not name.endswith(NOTES)} for n in (0, 1)
    ]
    assert trees[0] == trees[1]
    canonicalize(published(case), tmp_path / "canonical.whl", EARLIEST)
    assert (wish.target / one.filename).read_bytes() == (tmp_path / "canonical.whl").read_bytes()
