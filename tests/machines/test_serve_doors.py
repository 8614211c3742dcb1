"""Who gets in: which ports are open, which keys, where secrets lie, and what Ray asks of those who come."""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import shlex
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from core.config import ROOT, WORK
from lab.demo import QUESTION
from lab.model import expected_answer
from tests.machines.clients import ANSWERED, Door, Traffic, body
from tests.machines.harness import Lab
from tests.machines.serving import ANY, NODES, RAY, UNITS, A, B, Service, as_root_python, main_process

pytestmark = pytest.mark.machines

PATHS = ("/v1/models", "/v1/chat/completions", "/metrics", "/docs", "/version", "/sparkstack/live", "/nothing")


@contextmanager
def without_the_labs_firewall(lab: Lab) -> Iterator[None]:
    """Take the machines' own firewall away: what is still closed then is closed by the service itself.

    To restart nftables would flush every table, ours too.
    """
    for name in NODES:
        lab.as_root(name, "nft delete table inet sparkstack")
    try:
        yield
    finally:
        for name in NODES:
            lab.as_root(name, 'grep -v "^flush ruleset" /etc/nftables.conf | nft -f -')


def open_ports(address: str, patience: float) -> set[int]:
    """Connect to every TCP port of an address from this host; return those that take the connection."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8192)), hard))
    return asyncio.run(_scan(address, patience))


async def _scan(address: str, patience: float) -> set[int]:
    loop, ports, found = asyncio.get_running_loop(), iter(range(1, 65536)), set()

    async def scout() -> None:
        for port in ports:
            with socket.socket() as one:
                one.setblocking(False)
                try:
                    await asyncio.wait_for(loop.sock_connect(one, (address, port)), patience)
                except (OSError, TimeoutError):
                    continue
                found.add(port)

    await asyncio.gather(*(scout() for _ in range(800)))
    return found


def doors(lab: Lab) -> dict[str, set[int]]:
    """Return the ports that are meant to be open over management."""
    cluster = lab.cluster
    return {node.name: {node.ssh_port, *([cluster.api.port] if node == cluster.head else [])} for node in cluster.nodes}


@pytest.mark.parametrize(
    "executor", [pytest.param("ray", id="ray"), pytest.param("mp", id="mp", marks=pytest.mark.long)]
)
def test_of_all_ports_only_ssh_and_the_api_are_open_without_any_firewall_but_ours(
    lab: Lab, serving_with: Callable[[str], Service], executor: str
) -> None:
    serving_with(executor)
    with without_the_labs_firewall(lab):
        found = {node.name: open_ports(str(node.management), 5) for node in lab.cluster.nodes}
        neighbour = listening_ports_that_answer(lab, to=A, at=B)
    assert found == doors(lab)
    assert neighbour == doors(lab)[A], "seen from the other machine, over management"


def listening_ports_that_answer(lab: Lab, *, to: str, at: str) -> set[int]:
    """Connect from one machine to every port that the other listens on, at its management address."""
    ports = {int(line.split()[3].rpartition(":")[2]) for line in lab.output(to, "ss -Hltn").splitlines()}
    script = (
        "import socket, sys\n"
        "for port in map(int, sys.argv[2:]):\n"
        "    try: socket.create_connection((sys.argv[1], port), 3).close()\n"
        "    except OSError: continue\n"
        "    print(port)"
    )
    words = [str(lab.cluster.node(to).management), *map(str, sorted(ports))]
    return set(map(int, lab.output(at, f"python3 -c {shlex.quote(script)} {' '.join(words)}").split()))


@pytest.mark.long
def test_with_the_machines_own_firewall_the_same_ports_are_open(
    lab: Lab, serving_with: Callable[[str], Service]
) -> None:
    serving_with(ANY)
    # it says no by ICMP, which the kernel does once a second: most ports just say nothing
    assert {node.name: open_ports(str(node.management), 1.5) for node in lab.cluster.nodes} == doors(lab)


def status_of(door: Door, path: str, *, method: str = "GET") -> int:
    """Return the status code of a request with the door's key, without one where that is empty."""
    headers = door.headers if door.key else {}
    data = {**body(QUESTION), "stream": False} if method == "POST" else None
    with httpx.Client(trust_env=False, timeout=60) as client:
        reply = client.request(method, door.url.removesuffix("/v1") + path, headers=headers, json=data)
    if reply.status_code == httpx.codes.UNAUTHORIZED:
        assert reply.json()["error"]["code"] == "invalid_api_key", "the error has OpenAI's form"
        assert reply.headers["www-authenticate"] == "Bearer"
    return reply.status_code


def test_without_the_right_key_every_path_is_refused(serving_with: Callable[[str], Service]) -> None:
    right = serving_with(ANY).door
    wrong = [Door(right.url, key) for key in ("", "wrong", right.key[:-1], right.key + "0", right.key.upper() + "x")]
    found = {(door.key, path): status_of(door, path) for door in wrong for path in PATHS}
    assert set(found.values()) == {401}
    assert {status_of(door, "/v1/chat/completions", method="POST") for door in wrong} == {401}
    assert status_of(Door(right.url, ""), "/health") == 200
    assert status_of(right, "/v1/models") == 200
    assert status_of(right, "/v1/chat/completions", method="POST") == 200


def test_the_key_of_the_monitor_opens_the_metrics_and_nothing_else(
    lab: Lab, serving_with: Callable[[str], Service]
) -> None:
    door = Door(serving_with(ANY).door.url, lab.as_root(A, "cat /etc/sparkstack/credentials/monitor-key"))
    assert {path: status_of(door, path) for path in PATHS} == dict.fromkeys(PATHS, 401) | {"/metrics": 200}
    assert status_of(door, "/v1/chat/completions", method="POST") == 401


def test_a_new_key_counts_at_once_the_old_one_no_more_and_nothing_restarts(
    serving_with: Callable[[str], Service],
) -> None:
    service = serving_with(ANY)
    old, since, engine = service.door, service.since(), service.engine()
    with Traffic(old, clients=1) as traffic:
        service.invoke.works("key.rotate")
        assert status_of(old, "/v1/models") == 401
        new = service.door
        assert new.key != old.key
        assert status_of(new, "/v1/models") == 200
    assert [one for one in traffic.asked if one.outcome != ANSWERED and not one.why.startswith("401")] == []
    assert service.invoke.works("key.show").out == f"{new.key}\n"
    assert service.invoke.works("chat", QUESTION).out == f"{expected_answer(QUESTION)}\n"
    assert (service.since(), service.engine()) == (since, engine)


KEPT = "/run/sparkstack-test-secrets"
_SEARCH = """
import os, pathlib, subprocess, sys
secrets = {}
for folder in ("/etc/sparkstack/credentials", sys.argv[1]):
    for path in pathlib.Path(folder).glob("*"):
        secrets[str(path)] = path.read_bytes().strip()
assert secrets and all(len(value) == 64 for value in secrets.values()), {k: len(v) for k, v in secrets.items()}
def look(where, data):
    for name, value in secrets.items():
        if value in data:
            print(name, "is in", where)
looked = 0
for process in pathlib.Path("/proc").glob("[0-9]*"):
    for part in ("cmdline", "environ"):
        try:
            look(str(process / part) + " of " + (process / "comm").read_text().strip(), (process / part).read_bytes())
            looked += 1
        except OSError:
            continue
export = subprocess.run(["journalctl", "--output=export", "--no-pager"], stdout=subprocess.PIPE, check=True).stdout
look("the journal", export)
folders = "/etc/systemd", "/run/systemd/system", "/run/sparkstack", "/run/sparkstack-vllm", "/tmp/ray", "/var/log"
for folder, _, names in (found for folder in folders for found in os.walk(folder)):  # one that vanishes is passed over
    for path in (pathlib.Path(folder, name) for name in names):
        try:
            if path.is_file() and not path.is_relative_to("/var/log/journal"):
                look(str(path), path.read_bytes())
        except OSError:
            continue
for path in pathlib.Path("/etc/sparkstack").glob("*"):
    if path.is_file():
        look(str(path), path.read_bytes())
print("looked at", looked, "and", len(export), "bytes of journal")
"""


def test_no_secret_lies_anywhere_but_in_its_own_file(lab: Lab, serving_with: Callable[[str], Service]) -> None:
    service = serving_with(ANY)
    for name in NODES:  # the key that is about to be replaced as well
        lab.as_root(name, f"install -d -m 700 {KEPT} && cp /etc/sparkstack/credentials/* {KEPT}/")
    try:
        for words in (("key.rotate",), ("chat", QUESTION), ("status", "--json"), ("logs", "--lines=50")):
            service.invoke.works(*words)
        secrets = {key for name in NODES for key in lab.as_root(name, f"cat {KEPT}/*").split()} | {service.door.key}
        with Traffic(service.door, clients=2):
            said = {name: as_root_python(lab, name, _SEARCH, KEPT).splitlines() for name in NODES}
    finally:
        for name in NODES:
            lab.as_root(name, f"rm -rf {KEPT}")
    for name, lines in said.items():
        looked = re.fullmatch(r"looked at (\d+) and (\d+) bytes of journal", lines[-1])
        assert looked, lines
        assert int(looked[1]) > 20
        assert int(looked[2]) > 10_000
        assert lines[:-1] == [], name
    assert [path for path in files_of_ours() if any(key.encode() in path.read_bytes() for key in secrets)] == []


def files_of_ours() -> Iterator[Path]:
    """Return the files of the working tree, and what commands have written down: logs, journals, state."""
    kept = (WORK / "logs", WORK / "journal", WORK / "test-profiles", WORK / "clusters")
    skipped = {".git", ".venv", ".work", "dist", "machines"}
    for top in (ROOT, *kept):
        for folder, names, files in os.walk(top):
            names[:] = [name for name in names if name not in skipped]
            yield from (path for path in (Path(folder, name) for name in files) if path.is_file())


def test_whoever_reads_a_node_as_its_user_finds_no_secret(lab: Lab, serving_with: Callable[[str], Service]) -> None:
    serving_with(ANY)
    for name in NODES:
        done = lab.ssh(name, "cat /etc/sparkstack/credentials/* || ls /etc/sparkstack/credentials")
        assert done.code != 0
        assert done.out == ""
        modes = lab.as_root(
            name, "stat -c %U:%a /etc/sparkstack/credentials /etc/sparkstack/credentials/*"
        ).splitlines()
        assert modes == ["root:700", *["root:600"] * (len(modes) - 1)]


EXPOSURE = {"vllm": 5.0, "supervisor": 6.0}
"""What systemd-analyze may find: 5.0 is asked of the API; the supervisor is root, it starts units and closes ports."""
OTHERS = 3.0


def test_systemd_finds_our_units_well_closed(lab: Lab, serving_with: Callable[[str], Service]) -> None:
    service = serving_with(ANY)
    for name, units in UNITS[service.executor].items():
        rows = [line.split() for line in lab.output(name, "systemd-analyze security --no-pager").splitlines()]
        found = {
            row[0].removeprefix("sparkstack-").removesuffix(".service"): float(row[1])
            for row in rows[1:]
            if row and row[0].startswith("sparkstack-")
        }
        assert found.keys() >= units, rows
        assert {unit: value for unit, value in found.items() if value > EXPOSURE.get(unit, OTHERS)} == {}, name


_DRIVER = "import ray; ray.init(address={address!r}, log_to_driver=False); print('nodes:', len(ray.nodes()))"


def test_ray_lets_nobody_in_without_the_token(lab: Lab, serving_with: Callable[[str], Service]) -> None:
    service = serving_with(RAY)
    cluster = lab.cluster
    driver = shlex.quote(_DRIVER.format(address=f"{cluster.head.fabric}:{cluster.ray_port}"))
    python = f"timeout 90 /opt/sparkstack/current/venv/bin/python -c {driver}"
    since, token = service.since(), "/tmp/sparkstack-test-token"
    wrong = f"RAY_AUTH_MODE=token RAY_AUTH_TOKEN={'0' * 64}"
    lab.as_root(A, f"install -m 600 -o {cluster.user} /etc/sparkstack/credentials/ray-token {token}")
    try:
        for environment in ("RAY_AUTH_MODE=disabled", wrong):
            done = lab.ssh(A, f"env {environment} {python}", timeout=120)
            assert done.code != 0, f"{environment}: {done}"
            assert "nodes:" not in done.out
        # the same user with the token: so it is the token that makes the difference
        done = lab.ssh(A, f"env RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={token} {python}", timeout=120)
        assert "nodes: 2" in done.out, done
    finally:
        lab.output(A, f"rm -f {token}")
    assert service.since() == since


def test_our_ports_stay_closed_when_the_owner_loads_the_firewall_again(
    lab: Lab, serving_with: Callable[[str], Service]
) -> None:
    """`flush ruleset`, as in Debian's own /etc/nftables.conf, takes every table away, ours too."""
    service = serving_with(ANY)
    since = service.since()
    for name in NODES:
        lab.as_root(name, "systemctl reload nftables")
    time.sleep(5)
    with without_the_labs_firewall(lab):
        assert listening_ports_that_answer(lab, to=A, at=B) == doors(lab)[A]
        assert listening_ports_that_answer(lab, to=B, at=A) == doors(lab)[B]
    assert service.since() == since


@pytest.mark.long
def test_https_comes_with_a_flag_and_goes_without_it(lab: Lab, serving_with: Callable[[str], Service]) -> None:
    service = serving_with(ANY)
    service.invoke.works("serve", "--tls", service.flag)
    found = json.loads(service.invoke.works("status", "--json").out)
    assert found["api"] == lab.cluster.api_url.replace("http://", "https://")
    assert service.invoke.works("chat", QUESTION).out == f"{expected_answer(QUESTION)}\n"
    assert main_process(lab, A, "sparkstack-proxy") != "0"
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"{found['api']}/models", trust_env=False)
    with without_the_labs_firewall(lab):
        assert listening_ports_that_answer(lab, to=A, at=B) == doors(lab)[A]
    service.invoke.works("serve", service.flag)
    assert json.loads(service.invoke.works("status", "--json").out)["api"] == lab.cluster.api_url
    assert service.invoke.works("chat", QUESTION).out == f"{expected_answer(QUESTION)}\n"
    assert lab.paths(A, "/etc/systemd/system/sparkstack-proxy.service /etc/sparkstack/Caddyfile") == []
