"""A wheel out of an image while the registry fails: the same wheel in the end, or an error and nothing bad kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core.errors import RegistryRefused
from tests.unit.faultyserver import Reply, Server, changed, cut, in_front_of, serving, status
from tests.wheels.images import Workbench
from tests.wheels.registry import Registry, registry
from tests.wheels.test_round_trip import Case, installed, wish_of
from wheels.extract import extract
from wheels.images import patience

pytestmark = pytest.mark.wheels
__all__ = ["registry"]

TAKEN = Case("uvloop==0.23.0")


@pytest.fixture(scope="module")
def image(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """Have the registry hold an image with the distribution."""
    place = tmp_path_factory.mktemp("faults")
    root = installed(place / "root", (TAKEN,))
    bench = Workbench(place / "bench")
    bench.begin()
    with bench.layer() as files:
        shutil.copytree(root, files, dirs_exist_ok=True)
    registry.push(bench.reference, "faults/image:1")
    return registry


@pytest.fixture
def front(image: Registry, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.05)
    with serving(in_front_of(image.host)) as made:
        yield made


def taken(host: str, folder: Path) -> str:
    """Return the hash of the wheel."""
    (one,) = extract(wish_of(f"{host}/faults/image:1", (TAKEN,), folder), print)
    return one.sha256


@pytest.mark.parametrize(
    "fault", [cut(1_000_000), status(503), status(429, Retry_After="1")], ids=["cut", "out of order", "busy"]
)
def test_what_a_registry_recovers_from_gives_the_same_wheel_by_one_command(
    image: Registry, front: Server, tmp_path: Path, fault: Callable[[Reply], Reply]
) -> None:
    front.fail("blobs", fault, times=3)
    assert taken(front.host, tmp_path / "front") == taken(image.host, tmp_path / "plain")


@pytest.mark.parametrize("at", [0, 1000, 1_000_000])
def test_changed_bytes_are_refused_by_digest_and_the_next_command_gives_the_wheel(
    image: Registry, front: Server, tmp_path: Path, at: int
) -> None:
    front.fail("blobs", lambda reply: changed(at)(reply) if len(reply.body) > 1_100_000 else reply, times=10)
    with pytest.raises(RegistryRefused, match="is not what it should be"):
        taken(front.host, tmp_path / "front")
    assert not list((tmp_path / "front" / "out").glob("*.whl"))
    front.faults.clear()
    assert taken(front.host, tmp_path / "front") == taken(image.host, tmp_path / "plain")
