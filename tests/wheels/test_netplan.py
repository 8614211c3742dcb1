"""Netplan's own generator reads our file, beside those that a Spark has, for both of its renderers."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from core.config import WORK
from core.process import Completed, run
from core.store import held
from core.wiring import NETPLAN
from deploy.network.files import netplan

pytestmark = pytest.mark.wheels

PLACE = WORK / "tests" / "netplan"
FIRST, SECOND = "enp1s0f0np0", "enP2p1s0f0np0"

DESKTOP = """\
network:
  version: 2
  renderer: NetworkManager
"""
LINK_LOCAL = f"""\
network:
  version: 2
  ethernets:
    {FIRST}:
      link-local: [ ipv4 ]
    {SECOND}:
      link-local: [ ipv4 ]
      mtu: 1500
"""
"""What NVIDIA's instructions for two Sparks have people write, with an MTU."""
SAME_ADDRESS = f"""\
network:
  version: 2
  ethernets:
    {FIRST}:
      addresses: [172.16.100.1/24]
"""


@dataclass(frozen=True)
class Generator:
    """Netplan's generator and the libraries that it was downloaded with."""

    program: Path
    libraries: Path

    def __call__(self, root: Path) -> Completed:
        """Read ROOT/etc/netplan and write ROOT/run."""
        argv = [str(self.program), "--root-dir", str(root)]
        return run(argv, check=False, env={"LD_LIBRARY_PATH": str(self.libraries)})


@pytest.fixture(scope="module")
def generator() -> Generator:
    """Return netplan of this host's distribution, downloaded once with what it lacks here and not installed."""
    root = PLACE / "root"
    with held(PLACE / ".lock", "unpacks netplan", print):
        if not root.exists():
            archives = PLACE / "archives"
            (archives / "partial").mkdir(parents=True, exist_ok=True)
            words = ["install", "--download-only", "--yes", "--no-install-recommends", "--reinstall", "netplan.io"]
            run(["apt-get", "-o", "Debug::NoLocking=1", "-o", f"Dir::Cache::archives={archives}", *words], timeout=300)
            for package in archives.glob("*.deb"):
                run(["dpkg-deb", "-x", str(package), str(PLACE / "unpacked")])
            (PLACE / "unpacked").rename(root)
    (program,) = [path for path in root.rglob("netplan/generate") if path.is_file() and os.access(path, os.X_OK)]
    return Generator(program, next((path.parent for path in root.rglob("libnetplan.so.*")), root))


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """Return a root with our file in it."""
    write(tmp_path, NETPLAN.name, next(iter(netplan(FIRST, (SECOND,), "172.16.100.1/24", 9000).values()))["content"])
    return tmp_path


def write(root: Path, name: str, text: str) -> None:
    path = root / "etc" / "netplan" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(0o600)
    path.write_text(text, encoding="utf-8")


def section(root: Path, path: str, name: str) -> list[str]:
    """Return the lines of a section of a file that was generated."""
    text = (root / "run" / path).read_text(encoding="utf-8")
    return text.partition(f"[{name}]\n")[2].partition("\n\n")[0].splitlines()


def networkd_of(root: Path, interface: str, name: str) -> list[str]:
    return section(root, f"systemd/network/10-netplan-{interface}.network", name)


def connection_of(root: Path, interface: str, name: str) -> list[str]:
    return section(root, f"NetworkManager/system-connections/netplan-{interface}.nmconnection", name)


def accepts(generator: Generator, root: Path) -> None:
    done = generator(root)
    assert (done.code, done.err) == (0, "")


def test_networkd_gets_address_and_mtu(generator: Generator, machine: Path) -> None:
    accepts(generator, machine)
    assert {"MTUBytes=9000", "RequiredForOnline=no"} <= set(networkd_of(machine, FIRST, "Link"))
    assert {"MTUBytes=9000", "RequiredForOnline=no"} <= set(networkd_of(machine, SECOND, "Link"))
    assert {"Address=172.16.100.1/24", "LinkLocalAddressing=no"} <= set(networkd_of(machine, FIRST, "Network"))
    assert not [line for line in networkd_of(machine, SECOND, "Network") if line.startswith(("Address=", "DHCP="))]


def test_networkmanager_gets_them_where_another_file_says_so(generator: Generator, machine: Path) -> None:
    write(machine, "01-network-manager-all.yaml", DESKTOP)
    accepts(generator, machine)
    assert "mtu=9000" in connection_of(machine, FIRST, "ethernet")
    assert "mtu=9000" in connection_of(machine, SECOND, "ethernet")
    assert {"method=manual", "address1=172.16.100.1/24"} <= set(connection_of(machine, FIRST, "ipv4"))
    assert not [line for line in connection_of(machine, SECOND, "ipv4") if line.startswith("address")]
    assert not list((machine / "run" / "systemd" / "network").glob("*.network"))


def test_it_wins_over_what_nvidias_instructions_leave(generator: Generator, machine: Path) -> None:
    write(machine, "40-cx7.yaml", LINK_LOCAL)
    accepts(generator, machine)
    for interface in (FIRST, SECOND):
        assert "LinkLocalAddressing=no" in networkd_of(machine, interface, "Network")
        assert "MTUBytes=9000" in networkd_of(machine, interface, "Link")


def test_an_address_that_another_file_gives_too_is_given_once(generator: Generator, machine: Path) -> None:
    write(machine, "50-fabric.yaml", SAME_ADDRESS)
    accepts(generator, machine)
    assert networkd_of(machine, FIRST, "Network").count("Address=172.16.100.1/24") == 1


def test_what_is_no_netplan_is_refused(generator: Generator, machine: Path) -> None:
    write(machine, NETPLAN.name, "network: {version: 2, ethernets: {x: {mtu: large}}}\n")
    assert generator(machine).code != 0
