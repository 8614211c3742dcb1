"""A stack with a component out of an image, all the way: build-wheels, sign, publish, verify, by the command line."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from core.config import ROOT
from core.errors import ImageRefused, PublishRefused, SignatureRefused
from core.process import run
from tests.machines.checkout import copy_project
from tests.machines.command_line import CommandLine
from tests.wheels.images import Workbench
from tests.wheels.registry import Registry, registry
from tests.wheels.test_round_trip import PLATFORM, Case, installed, published, wish_of
from wheels.extract import look
from wheels.manifest import sha256_of
from wheels.sbom import sbom_in

pytestmark = pytest.mark.wheels
__all__ = ["registry"]

TAKEN, FETCHED = Case("uvloop==0.23.0"), Case("jmespath==1.1.0", "uv")
STACK = """
description = "one wheel out of an image, one from the index"
lock = "config/stacks/mixed.lock"
platforms = ["x86_64"]
python = ["{python}"]
[components.uvloop]
origin = "image"
version = "{version}"
image = "{image}"
[components.jmespath]
origin = "index"
version = "1.1.0"
"""


@dataclass(frozen=True)
class House:
    """A copy of the project whose stack `mixed` takes uvloop out of ``image``."""

    folder: Path
    image: str

    @property
    def invoke(self) -> CommandLine:
        return CommandLine(self.folder, "")

    @property
    def wheels(self) -> Path:
        (place,) = (self.folder / "dist" / "mixed").glob("*")
        return place

    @property
    def manifest(self) -> dict[str, Any]:
        return json.loads((self.wheels / "manifest.json").read_text())

    @property
    def release(self) -> Path:
        (place,) = (self.folder / "dist" / "releases").glob("mixed-*")
        return place

    def write(self, version: str) -> None:
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        text = STACK.format(python=python, version=version, image=self.image)
        (self.folder / "config" / "stacks" / "mixed.toml").write_text(text)


@pytest.fixture(scope="module")
def house(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> House:
    place = tmp_path_factory.mktemp("mixed")
    root = installed(place / "root", (TAKEN,))
    bench = Workbench(place / "bench")
    bench.begin()
    with bench.layer() as files:
        shutil.copytree(root, files, dirs_exist_ok=True)
    registry.push(bench.reference, "mixed/image:1")
    image = look(wish_of(f"{registry.host}/mixed/image:1", (TAKEN,), place), print).pinned
    copy_project(ROOT, place / "project")
    made = House(place / "project", image)
    lock = f"jmespath==1.1.0 --hash=sha256:{sha256_of(published(FETCHED))}\n"
    (made.folder / "config" / "stacks" / "mixed.lock").write_text(lock)
    made.write("0.23.0")
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(place / "key")])
    public = (place / "key.pub").read_text()
    (place / "signers").write_text(f'me@example.org namespaces="sparkstack-release" {public}')
    return made


def test_build_wheels_takes_the_component_out_of_the_image_with_its_origin(house: House) -> None:
    done = house.invoke.works("build-wheels", "--stack=mixed", "--target=x86_64")
    assert "extract uvloop==0.23.0" in done.err
    wheels = {wheel["name"]: wheel for wheel in house.manifest["wheels"]}
    taken = wheels["uvloop"]
    assert (taken["origin"], taken["image"], taken["redistributable"]) == ("image", house.image, False)
    assert len(taken["layers"]) == 1
    assert wheels["jmespath"]["redistributable"] is True
    sbom = json.loads(sbom_in(house.wheels / taken["filename"]) or "")
    assert house.image.partition("@")[2].removeprefix("sha256:") in json.dumps(sbom)
    assert PLATFORM in json.dumps(sbom)
    assert house.invoke.works("build-wheels", "--stack=mixed", "--target=x86_64").out == "nothing to do\n"


def test_another_version_than_the_images_is_refused_and_what_was_there_stays(house: House) -> None:
    before = (house.wheels / "manifest.json").read_bytes()
    house.write("0.22.0")
    done = house.invoke("build-wheels", "--stack=mixed", "--target=x86_64")
    house.write("0.23.0")
    assert done.code == ImageRefused.exit_code
    assert "holds no uvloop 0.22.0" in done.error
    assert "0.23.0" in done.error, "what it holds instead"
    assert (house.wheels / "manifest.json").read_bytes() == before
    assert house.invoke.works("build-wheels", "--stack=mixed", "--target=x86_64").out == "nothing to do\n"


def test_a_wheel_out_of_an_image_is_not_sent_to_others(house: House) -> None:
    done = house.invoke("publish", "--stack=mixed", "--to=index:http://127.0.0.1:9/")
    assert done.code == PublishRefused.exit_code
    assert "uvloop-0.23.0" in done.error
    assert "redistributable = true" in done.error
    assert not (house.folder / "dist" / "releases").exists()


def test_the_release_is_signed_and_verified_and_publishing_it_again_does_nothing(house: House) -> None:
    key, signers = house.folder.parent / "key", house.folder.parent / "signers"
    house.invoke.works("wheels.sign", "--stack=mixed", f"--key={key}")
    assert house.invoke.works("wheels.sign", "--stack=mixed", f"--key={key}").out == "nothing to do\n"
    house.invoke.works("publish", "--stack=mixed", f"--key={key}")
    assert house.invoke.works("publish", "--stack=mixed", f"--key={key}").out == "nothing to do\n"
    verified = house.invoke.works("wheels.verify", f"--folder={house.release}", f"--signers={signers}")
    assert "signed by me@example.org" in verified.out


def test_a_changed_byte_of_the_release_is_refused(house: House) -> None:
    wheel = next(house.release.glob("uvloop-*.whl"))
    copy = house.release.with_name("copy")
    shutil.copytree(house.release, copy)
    data = bytearray((copy / wheel.name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / wheel.name).write_bytes(data)
    done = house.invoke("wheels.verify", f"--folder={copy}", f"--signers={house.folder.parent / 'signers'}")
    shutil.rmtree(copy)
    assert done.code == SignatureRefused.exit_code
    assert f"{wheel.name} was changed" in done.error


def test_inspect_shows_the_wheel_and_what_the_gates_say(house: House) -> None:
    (wheel,) = house.wheels.glob("uvloop-*.whl")
    data = json.loads(house.invoke.works("wheels.inspect", f"--file={wheel}", "--stack=mixed", "--json").out)
    assert data["verdicts"] == []
    assert "uvloop" in house.invoke.works("wheels.inspect", f"--file={wheel}").out
