"""Releases of both backends on two machines: a venv of a Python that is brought, and the owner's own Miniforge."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.config import CONFIG
from tests.machines import miniforge
from tests.machines.checkout import Checkout
from tests.machines.command_line import CommandLine, assert_refused
from tests.machines.harness import Lab
from tests.unit.webserver import serving
from wheels.lock import read_lock

pytestmark = pytest.mark.machines

A, B = "test-a", "test-b"
ROOT = "/opt/backends"
STACK = """\
description = "two wheels, one of them the installer"
lock = "config/stacks/pair.lock"
platforms = ["x86_64", "aarch64"]
python = ["@MINOR@"]
imports = ["idna"]

[components.idna]
origin = "index"
version = "{idna}"

[environment]
FLASHINFER_DISABLE_VERSION_CHECK = "1"
GREETING = "it's $HOME"

[[interpreters]]
version = "@VERSION@"
platform = "@MACHINE@"
url = "{url}"
sha256 = "{sha256}"
"""
# Debian's own, in the layout of python-build-standalone: without the links that lead out of it
ARCHIVE = """
set -e
rm -rf /tmp/brought && mkdir -p /tmp/brought/python/bin /tmp/brought/python/lib && cd /tmp/brought/python
cp /usr/bin/python@MINOR@ bin/ && ln -s python@MINOR@ bin/python3 && cp -a /usr/lib/python@MINOR@ lib/
rm -rf lib/python@MINOR@/config-* lib/python@MINOR@/sitecustomize.py && find . -name __pycache__ -prune -exec rm -r {} +
tar -C /tmp/brought -c python | gzip -1 | base64 -w0 && rm -rf /tmp/brought
"""


@pytest.fixture(scope="module")
def python(lab_session: Lab) -> miniforge.Interpreter:
    lab_session.up()
    return miniforge.Interpreter.of(lab_session, A)


@pytest.fixture(scope="module")
def served(lab_session: Lab, python: miniforge.Interpreter) -> Iterator[tuple[str, str]]:
    """Serve the archive of a Python; return its URL and hash."""
    content = base64.b64decode(lab_session.output(A, python.put_into(ARCHIVE)))
    name = f"cpython-{python.version}%2B20261124-install_only.tar.gz"
    with serving() as web:
        web.pages[f"/{name}"] = content
        yield f"{web.url}/{name}", hashlib.sha256(content).hexdigest()


@pytest.fixture(scope="module")
def stack(checkout: Checkout, served: tuple[str, str], python: miniforge.Interpreter) -> Path:
    """Have a stack of two wheels in the copy of the project."""
    folder = checkout.folder / "config" / "stacks"
    locked = {item.name: item for item in read_lock(CONFIG / "stacks" / "cpu.lock") if item.name in ("idna", "uv")}
    (folder / "pair.lock").write_text("\n".join(item.text for item in locked.values()) + "\n", encoding="utf-8")
    url, sha256 = served
    text = python.put_into(STACK).format(idna=locked["idna"].version, url=url, sha256=sha256)
    (folder / "pair.toml").write_text(text, encoding="utf-8")
    return folder / "pair.toml"


def variant(checkout: Checkout, name: str, backend: str) -> CommandLine:
    """Return the command line for the machines with a backend, and with a folder of its own on them."""
    cluster = ('stack = "cpu"', f'stack = "pair"\nroot = "{ROOT}"')
    return checkout.variant(name, cluster, ("[management]", f"[backend]\n{backend}\n\n[management]"))


@pytest.fixture(scope="module")
def brought(checkout: Checkout, stack: Path) -> CommandLine:  # noqa: ARG001 (it has to be there)
    """Venvs, of a Python that is brought."""
    invoke = variant(checkout, "brought", 'python = "brought"')
    invoke.works("build-wheels", "--stack=pair")
    return invoke


@pytest.fixture(scope="module")
def conda(checkout: Checkout, brought: CommandLine, lab_session: Lab) -> CommandLine:  # noqa: ARG001 (its wheels)
    """Environments of the machines' Miniforge."""
    for name in (A, B):
        miniforge.install(lab_session, name)
    return variant(checkout, "conda", 'kind = "conda"\nname = "pair"')


@pytest.fixture(autouse=True)
def nothing_is_left(lab: Lab, conda: CommandLine) -> Iterator[None]:
    """A test leaves the machines as it found them."""
    conda.works("remove", "--yes", "--stop")
    yield
    conda.works("remove", "--yes", "--stop")
    for name in (A, B):
        assert lab.output(name, f"ls -d {ROOT} {miniforge.HOME}/envs/pair 2>/dev/null || echo gone") == "gone"


def current(lab: Lab, name: str) -> str:
    return lab.output(name, f"basename $(readlink {ROOT}/current)")


def prefix(lab: Lab, name: str) -> dict[str, str]:
    """Return where the release in use and its Python lie, as that Python says."""
    script = "import json, os, sys; print(json.dumps([*map(os.path.realpath, (sys.prefix, sys.base_prefix))]))"
    own, base = json.loads(lab.output(name, f"{ROOT}/current/venv/bin/python -I -c '{script}'"))
    return {"own": own, "base": base}


def test_a_python_is_brought_checked_and_used(
    lab: Lab, brought: CommandLine, served: tuple[str, str], python: miniforge.Interpreter
) -> None:
    shown = brought.works("deploy", "--dry-run").out
    assert f"push Python {python.version}" in shown
    assert "the cluster's file says so" in shown
    brought.works("deploy")
    folder = f"{ROOT}/python/{python.version}-{served[1][:10]}"
    for name in (A, B):
        assert prefix(lab, name)["base"] == folder
        assert lab.output(name, f"ls {ROOT}/python") == Path(folder).name, "no archive, nothing half unpacked"
        assert int(lab.output(name, f"find {ROOT}/current/venv/ -name idna -exec find {{}} -links +1 \\; | wc -l"))
    assert brought.works("deploy").out == "nothing to do\n"


def test_conda_makes_a_release_that_its_user_activates(lab: Lab, conda: CommandLine) -> None:
    before = {name: miniforge.state(lab, name) for name in (A, B)}
    conda.works("deploy")
    assert conda.works("deploy").out == "nothing to do\n"
    for name in (A, B):
        release = current(lab, name)
        assert release.endswith("-conda")
        assert prefix(lab, name)["base"] == f"{ROOT}/releases/{release}/venv", "it is no venv of another Python"
        shown = miniforge.activated(
            lab,
            name,
            "pair",
            'echo "$GREETING,$FLASHINFER_DISABLE_VERSION_CHECK" && python -c "import idna, sys; print(sys.prefix)"',
            'echo "${GREETING-unset},${FLASHINFER_DISABLE_VERSION_CHECK-unset}"',
        )
        assert shown.splitlines() == ["it's $HOME,1", f"{miniforge.HOME}/envs/pair", "unset,unset"]
        link = f"./envs/pair {ROOT}/current/venv"
        assert [line for line in miniforge.state(lab, name).splitlines() if line != link] == before[name].splitlines()


def test_a_name_of_the_owners_is_refused_and_his_environment_left_alone(
    lab: Lab, conda: CommandLine, checkout: Checkout
) -> None:
    owners = variant(checkout, "owners", f'kind = "conda"\nname = "{miniforge.OWNERS}"')
    says = f"{A}: conda has an environment {miniforge.OWNERS} that is not ours"
    assert_refused(owners("deploy"), 25, says, "choose another name under [backend]")
    assert lab.ssh(A, f"test -e {ROOT}/releases").code != 0
    conda.works("deploy")
    assert_refused(owners("deploy"), 25, says)


def test_from_one_backend_to_the_other_and_back(lab: Lab, brought: CommandLine, conda: CommandLine) -> None:
    brought.works("deploy")
    venv = current(lab, A)
    conda.works("deploy")
    assert current(lab, A) == current(lab, B) == f"{venv}-conda"
    conda.works("rollback")
    assert [current(lab, name) for name in (A, B)] == [venv] * 2
    conda.works("rollback")
    assert prefix(lab, B)["own"] == f"{ROOT}/releases/{venv}-conda/venv"
    rows = json.loads(conda.works("releases", "--json").out)["releases"]
    assert {(row["release"], row["state"]) for row in rows} == {(f"{venv}-conda", "in use"), (venv, "previous")}
