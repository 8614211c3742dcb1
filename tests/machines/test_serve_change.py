"""Another profile in the place of the one that serves: what has begun ends, and nothing of the old one is left."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.machines.clients import Traffic, let_in_for_nothing
from tests.machines.harness import Lab, eventually
from tests.machines.serving import MP, NODES, RAY, UNITS, A, B, Service, active, footprint

pytestmark = pytest.mark.machines


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("old", "new"),
    [pytest.param(MP, RAY, id="mp-to-ray", marks=pytest.mark.long), pytest.param(RAY, MP, id="ray-to-mp")],
)
def test_another_profile_takes_the_place_of_the_one_that_serves(
    lab: Lab, serving_with: Callable[[str], Service], old: str, new: str
) -> None:
    service = serving_with(old)
    release = lab.output(A, "readlink /opt/sparkstack/current")
    with Traffic(service.door) as traffic:
        after = serving_with(new)
        assert eventually(lambda: traffic.answer_since(after.since()) is not None, 20)
    assert let_in_for_nothing(traffic) == [], "what had begun was let to its end"
    assert {name: active(lab, name) for name in NODES} == UNITS[new]
    assert {name: written(lab, name) for name in NODES} == UNITS[new], "units of the old one are off the disk"
    assert lab.output(A, "readlink /opt/sparkstack/current") == release
    assert {name: footprint(lab, name).orphans for name in NODES} == {A: (), B: ()}


def written(lab: Lab, name: str) -> set[str]:
    """Return our units of which a file is on a machine's disk."""
    paths = lab.paths(name, "/etc/systemd/system/sparkstack-*.service")
    return {path.rpartition("/sparkstack-")[2].removesuffix(".service") for path in paths}
