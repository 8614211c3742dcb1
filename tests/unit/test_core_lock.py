"""One command at a time, with real processes."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from core import config
from core.config import ROOT, Cluster, load_cluster
from core.errors import LockHeld
from core.lock import locked

HOLDER = """
import sys, time
from pathlib import Path
from core import config
config.WORK = Path(sys.argv[1])
from core.config import load_cluster
from core.lock import locked
with locked(load_cluster("local"), "invoke deploy"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setattr(config, "WORK", tmp_path)
    return load_cluster("local")


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.processes
def test_a_second_command_is_told_who_holds_the_lock_and_a_killed_holder_frees_it(
    tmp_path: Path, cluster: Cluster
) -> None:
    with holder(tmp_path) as first:
        with pytest.raises(LockHeld) as caught, locked(cluster, "invoke serve"):
            pytest.fail("two commands at once")
        assert caught.value.cause.startswith(f"invoke deploy (process {first.pid}, since 20")
        assert caught.value.cause.endswith("works on the cluster local")
        first.send_signal(signal.SIGKILL)
        first.wait()
        with locked(cluster, "invoke serve"):
            assert "invoke serve" in (cluster.state / "lock").read_text(), "what the dead one wrote is gone"


def test_the_lock_is_free_after_an_error(cluster: Cluster) -> None:
    with pytest.raises(ZeroDivisionError), locked(cluster, "invoke deploy"):
        raise ZeroDivisionError
    with locked(cluster, "invoke deploy"):
        pass
    assert (cluster.state / "lock").read_text() == ""


@pytest.mark.parametrize("text", ["", "{}", "[]", "no json"])
def test_a_holder_that_has_not_said_its_name_is_another_command(text: str, cluster: Cluster) -> None:
    with locked(cluster, "invoke deploy"):
        (cluster.state / "lock").write_text(text)
        with pytest.raises(LockHeld, match=r"^another command works on the cluster local"), locked(cluster, "x"):
            pytest.fail("two commands at once")


def test_clusters_have_locks_of_their_own(cluster: Cluster) -> None:
    with locked(cluster, "x"), locked(load_cluster("spark"), "y"):
        pass
