"""Wheels for another machine, tried under emulation: the root, and what an import says."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest

from build import emulate
from build.emulate import (
    ARCHITECTURES,
    Root,
    apt_options,
    emulator,
    import_argv,
    import_wheel,
    mirror_of,
    root_folder,
    sources_list,
)
from core.errors import BuildFailed, HostNotReady
from lab.base import Distribution, Mirror

BOOKWORM = Distribution("debian", "bookworm", "arm64")
NOBLE = Distribution("ubuntu", "noble", "arm64")


def test_apt_works_in_a_folder_of_its_own_and_checks_the_signature() -> None:
    words = apt_options(BOOKWORM, Path("/place"))
    settings = dict(word.split("=", 1) for word in words[1::2])
    assert set(words[::2]) == {"-o"}
    assert all(
        value.startswith("/place/") for key, value in settings.items() if key.startswith("Dir::") and value != "-"
    )
    assert settings["APT::Architecture"] == settings["APT::Architectures::"] == "arm64"
    line = sources_list(BOOKWORM, Mirror("http://m.example/debian", ("main", "universe")))
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    assert line == f"deb [arch=arm64 signed-by={keyring}] http://m.example/debian bookworm main universe\n"


def test_ubuntu_has_other_architectures_on_another_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulate, "host_distribution", lambda: Distribution("ubuntu", "noble", "amd64"))
    assert mirror_of(NOBLE).url == "http://ports.ubuntu.com/ubuntu-ports"


def test_debians_mirror_has_every_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulate, "host_distribution", lambda: Distribution("debian", "bookworm", "amd64"))
    monkeypatch.setattr(emulate, "host_mirror", lambda wanted: Mirror(f"http://near.example/{wanted.architecture}"))
    assert mirror_of(BOOKWORM).url == "http://near.example/arm64"


def test_other_packages_make_another_root(monkeypatch: pytest.MonkeyPatch) -> None:
    before = root_folder(BOOKWORM)
    assert before.name.startswith("bookworm-arm64-")
    monkeypatch.setattr(emulate, "PACKAGES", (*emulate.PACKAGES, "more"))
    assert root_folder(BOOKWORM) != before


def test_a_root_gets_the_links_that_packages_leave_out(tmp_path: Path) -> None:
    headers = tmp_path / "usr/include/aarch64-linux-gnu/python3.11"
    headers.mkdir(parents=True)
    (headers / "pyconfig.h").touch()
    (tmp_path / "usr/include/aarch64-linux-gnu/asm").mkdir()
    (tmp_path / "usr/include/python3.11").mkdir()
    (tmp_path / "lib").mkdir()
    emulate._finish(tmp_path)
    assert (tmp_path / "bin").readlink() == Path("usr/bin")
    assert not (tmp_path / "lib").is_symlink(), "this distribution has one of its own"
    own, other = Root(tmp_path, "aarch64").includes
    assert own == tmp_path / "usr/include/python3.11"
    assert (other / "aarch64-linux-gnu/python3.11/pyconfig.h").is_file()
    assert [path.name for path in (other / "aarch64-linux-gnu").iterdir()] == ["python3.11"], "nothing but Python's"


def test_without_an_emulator_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("build.emulate.shutil.which", lambda _: None)
    assert emulator("aarch64") is None
    with pytest.raises(HostNotReady, match="aarch64 cannot be emulated here") as caught:
        import_wheel(Path("x.whl"), ["x"], print)
    assert "qemu-user-static" in caught.value.next_move


def test_either_name_of_the_emulator_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"qemu-aarch64": "/usr/bin/qemu-aarch64"}
    monkeypatch.setattr("build.emulate.shutil.which", found.get)
    assert emulator("aarch64") == "/usr/bin/qemu-aarch64"
    assert list(ARCHITECTURES) == ["aarch64"]


def test_nothing_of_this_hosts_python_is_seen() -> None:
    root = Root(Path("/root"), "aarch64")
    argv = import_argv("qemu", root, Path("/unpacked"), ["one", "two"])
    assert argv[:4] == ("qemu", "-L", "/root", "/root/usr/bin/python3")
    assert {"-E", "-s", "-S"} < set(argv)
    assert argv[-3:] == ("/unpacked", "one", "two")


@pytest.fixture
def own_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in for an emulator and its root: our own Python, for all that precedes it."""
    program = tmp_path / "qemu"
    program.write_text('#!/bin/sh\nshift 2\nexec "$@"\n')
    program.chmod(0o755)
    (tmp_path / "root/usr/bin").mkdir(parents=True)
    (tmp_path / "root/usr/bin/python3").symlink_to(sys.executable)
    monkeypatch.setattr(emulate, "emulator", lambda _: str(program))
    monkeypatch.setattr(emulate, "ensure_root", lambda machine, _: Root(tmp_path / "root", machine))
    return tmp_path


def a_wheel(folder: Path, **files: str) -> Path:
    path = folder / "trial-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name.replace("__", "."), text)
    return path


@pytest.mark.processes
def test_a_wheel_that_imports_is_said_to(own_python: Path) -> None:
    said: list[str] = []
    import_wheel(a_wheel(own_python, trial__py="import json"), ["trial"], said.append)
    assert said == ["trial-1-py3-none-any.whl imports on aarch64 (emulated)"]


@pytest.mark.processes
@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"trial__py": "import nonesuch"}, "No module named 'nonesuch'"),
        ({"trial__py": "", "library__so": "no library"}, "library.so"),
        ({"other__py": ""}, "No module named 'trial'"),
    ],
)
def test_what_python_says_of_a_wheel_that_does_not_import_is_shown(
    files: dict[str, str], says: str, own_python: Path
) -> None:
    with pytest.raises(BuildFailed, match="does not import on aarch64") as caught:
        import_wheel(a_wheel(own_python, **files), ["trial"], print)
    assert says in caught.value.evidence
