"""What cannot come up is given up, with the reason, and its owner is told: none of it gets better by itself."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.machines.checkout import Checkout
from tests.machines.command_line import CommandLine, assert_refused
from tests.machines.harness import Lab, eventually
from tests.machines.serving import MP, NODES, A, B, active, executed, footprint, processes, profile, state

pytestmark = [pytest.mark.machines, pytest.mark.timeout(600)]

TOLD = "/dev/shm/sparkstack-test-told.json"


@pytest.fixture
def stopped(lab: Lab, model: str, checkout: Checkout) -> Iterator[CommandLine]:
    """Nothing serves; the command line is that of a cluster that gives up soon, and tells a program of it."""
    assert model
    hook = f'attempts = 3\nhook = ["/usr/bin/tee", "{TOLD}"]'
    invoke = checkout.variant("gives-up", ("attempts = 50", hook))
    invoke.works("stop", "--drain=0", "--all")
    lab.output(A, f"rm -f {TOLD}")
    yield invoke
    invoke.works("stop", "--drain=0", "--all")


def assert_given_up(lab: Lab, invoke: CommandLine, words: str, *says: str) -> None:
    """Serve; it is given up, says why, at once and later, tells the hook, and leaves nothing but the supervisors."""
    done = invoke("serve", words)
    assert_refused(done, 40, "given up after", *says)
    attempts = state(lab)["attempt"]
    assert attempts <= 3
    assert_refused(invoke("status"), 40, "the service is not serving: given-up", *says)
    seen = json.loads(invoke("status", "--json").out)
    assert (seen["wanted"], seen["serving"], seen["service"]["phase"]) == (True, False, "given-up")
    assert says[0] in seen["service"]["failures"][-1]["reason"]
    assert eventually(lambda: lab.paths(A, TOLD) == [TOLD], 10), "the hook was not run"
    told = json.loads(lab.output(A, f"cat {TOLD}"))
    assert told["phase"] == "given-up"
    assert says[0] in told["reason"]
    assert lab.output(A, f"stat -c %U {TOLD}") == lab.cluster.user
    assert [active(lab, name) for name in NODES] == [{"supervisor"}] * 2
    assert [processes(lab, name) for name in NODES] == [[], []]
    assert [footprint(lab, name).orphans for name in NODES] == [(), ()]
    time.sleep(5)
    assert state(lab)["attempt"] == attempts, "it tries no more"


@contextmanager
def taken(lab: Lab, port: int) -> Iterator[None]:
    """Have another program listen where the API would."""
    unit, address = "test-squatter", lab.cluster.head.management
    listen = f"/usr/bin/python3 -m http.server --bind {address} --directory /var/empty {port}"
    lab.as_root(A, f"mkdir -p /var/empty && systemd-run --quiet --collect --unit={unit} {listen}")
    assert eventually(lambda: f"{address}:{port}" in lab.output(A, "ss -Hltn"), 20)
    try:
        yield
    finally:
        lab.as_root(A, f"systemctl stop {unit}")


def test_a_port_that_is_taken_is_given_up_with_the_reason(lab: Lab, stopped: CommandLine) -> None:
    with taken(lab, lab.cluster.api.port):
        assert_given_up(lab, stopped, profile("tiny-mp", executed(MP)), "ddress already in use")


def test_a_folder_that_holds_no_model_is_given_up_with_the_reason(lab: Lab, stopped: CommandLine) -> None:
    """One that is not there at all is refused before anything stops (test_serve_supervision.py)."""
    models = "/opt/sparkstack/models"
    for name in (A, B):
        lab.output(name, f"mkdir -p {models}/hollow && cp {models}/sparkstack-tiny/config.json {models}/hollow/")
    try:
        change = ('model = "sparkstack-tiny"', 'model = "hollow"')
        assert_given_up(lab, stopped, profile("tiny-hollow", executed(MP), change), f"{models}/hollow")
    finally:
        for name in (A, B):
            lab.output(name, f"rm -rf {models}/hollow")
