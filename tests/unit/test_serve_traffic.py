"""Which way the ranks talk to each other: counters, sockets, and the verdict on them."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.config import Cluster, load_cluster
from core.errors import FactsError
from core.process import Completed, run
from serve.view import probe, traffic
from serve.view.traffic import Answer, Case, Proof, Reading, as_text, counters, judge, reading, size, sockets
from tests.unit.samples import TABLES, local

ROWS = json.loads((TABLES / "traffic.json").read_text())
TOKENS = 32
KEY = "0123456789abcdef" * 4


def net(name: str, received: int, sent: int) -> dict[str, str]:
    folder = f"/sys/class/net/{name}/statistics"
    return {f"{folder}/rx_bytes": f"{received}\n", f"{folder}/tx_bytes": f"{sent}\n"}


def rdma(device: str, received: int, sent: int) -> dict[str, str]:
    folder = f"/sys/class/infiniband/{device}/ports/1/counters"
    return {f"{folder}/port_rcv_data": f"{received}\n", f"{folder}/port_xmit_data": f"{sent}\n"}


def addresses(own: dict[str, list[str]]) -> list[dict[str, Any]]:
    return [{"ifname": name, "addr_info": [{"local": one} for one in found]} for name, found in own.items()]


def table(rows: list[list[str]]) -> tuple[str, dict[str, str]]:
    """Make what ss prints, and the units, of rows: unit, local end, peer end."""
    users = [f'users:(("python",pid={n},fd=9))' for n in range(len(rows))]
    lines = [f"ESTAB 0 0 {local} {peer} {user}" for (_, local, peer), user in zip(rows, users, strict=True)]
    return "\n".join(lines), {str(n): f"{row[0]}.service" for n, row in enumerate(rows)}


def test_counters_are_bytes_and_those_of_rdma_are_words() -> None:
    found = counters({**net("fab0", 10, 20), **rdma("rocep1s0f0", 30, 40)}, {"rocep1s0f0": ["enp1s0f0np0"]})
    assert found["fab0"] == traffic.Counter("fab0", "fab0", 10, 20)
    assert found["rocep1s0f0/1"] == traffic.Counter("rocep1s0f0/1", "enp1s0f0np0", 120, 160)
    assert [counter.rdma for counter in found.values()] == [False, True]


@pytest.mark.parametrize(
    "files",
    [
        {"/sys/class/net/fab0/statistics/rx_bytes": "10\n"},
        {**net("fab0", 1, 2), "/sys/class/net/fab0/statistics/rx_bytes": ""},
        {**net("fab0", 1, 2), "/sys/class/net/fab0/statistics/rx_bytes": "-1"},
        {"x": "1", "/": "1"},
    ],
    ids=["half", "unread", "negative", "another path"],
)
def test_a_counter_that_cannot_be_read_is_none(files: dict[str, str]) -> None:
    assert counters(files, {}) == {}


@pytest.mark.parametrize(
    ("end", "address", "port"),
    [
        ("198.18.100.1:6379", "198.18.100.1", 6379),
        ("[::ffff:198.18.100.1]:6379", "198.18.100.1", 6379),
        ("[fe80::1%fab0]:22", "fe80::1", 22),
        ("[fe80::1]%fab0:22", "fe80::1", 22),
        ("127.0.0.1%lo:53", "127.0.0.1", 53),
    ],
)
def test_every_form_of_an_address_is_read(end: str, address: str, port: int) -> None:
    (found,) = sockets(f'ESTAB 0 0 {end} 10.0.0.9:1 users:(("ray::IDLE",pid=5,fd=9))', {"5": "sparkstack-rank.service"})
    assert (str(found.local), found.local_port, found.process, found.unit) == (
        address,
        port,
        "ray::IDLE",
        "sparkstack-rank",
    )


@pytest.mark.parametrize(
    "line",
    [
        'ESTAB 0 0 10.0.0.1:22 10.0.0.9:1 users:(("sshd",pid=9,fd=4))',
        'TIME-WAIT 0 0 10.0.0.1:22 10.0.0.9:1 users:(("x",pid=5,fd=4))',
        "ESTAB 0 0 10.0.0.1:22 10.0.0.9:1",
        'ESTAB 0 0 10.0.0.1:x 10.0.0.9:1 users:(("x",pid=5,fd=4))',
        'ESTAB 0 0 here:1 there:2 users:(("x",pid=5,fd=4))',
        "",
    ],
    ids=["another's", "not established", "of nobody", "no port", "no address", "nothing"],
)
def test_other_sockets_are_passed_over(line: str) -> None:
    assert sockets(line, {"5": "sparkstack-rank.service", "9": "ssh.service"}) == ()


def test_a_socket_that_processes_share_is_one() -> None:
    line = 'ESTAB 0 0 10.0.0.1:1 10.0.0.9:1 users:(("sh",pid=9,fd=4),("py thon",pid=5,fd=4),("b",pid=5,fd=6))'
    (found,) = sockets(line, {"5": "sparkstack-vllm.service"})
    assert str(found) == "sparkstack-vllm (py thon) 10.0.0.1:1 to 10.0.0.9:1"


@given(st.text(), st.dictionaries(st.text(), st.text()), st.dictionaries(st.text(), st.text()))
def test_anything_is_read(listing: str, files: dict[str, str], devices: dict[str, str]) -> None:
    reading({"sockets": listing, "counters": files, "rdma": devices, "units": devices, "at": listing}, listing)


OWN = {
    "lab-a": {"lo": ["127.0.0.1"], "host0": ["198.18.34.100", "fe80::a"], "fab0": ["198.18.100.1", "fe80::fa"]},
    "lab-b": {"lo": ["127.0.0.1"], "host0": ["198.18.34.101", "fe80::b"], "fab0": ["198.18.100.2", "fe80::fb"]},
}


def look(row: dict[str, Any], name: str, at: float, moved: dict[str, int]) -> Reading:
    """Return a reading: ``moved`` bytes by interface, half of them received; of an RDMA device they are its own."""
    found: dict[str, str] = {}
    for one, count in moved.items():
        found |= rdma(one, count // 8, count // 8) if one.startswith("roce") else net(one, count // 2, count // 2)
    listing, units = table([rest for node, *rest in row.get("sockets", []) if node == name])
    data = {"at": at, "counters": found, "sockets": listing, "units": units, "rdma": row.get("rdma", {})}
    return reading(data, addresses(OWN[name]))


def case(row: dict[str, Any], cluster: Cluster | None = None) -> Case:
    """Make a case of a row: bytes that each interface of each node moved in 2 s before, and in 2 s with the request."""
    looks: list[dict[str, Reading]] = [{}, {}, {}]
    for name in OWN:
        idle, busy = row["idle"], row["busy"].get(name, row["busy"]["all"])
        sums = {one: idle.get(one, 0) for one in busy}, {one: idle.get(one, 0) + busy[one] for one in busy}
        looks[0][name] = look(row, name, 0, dict.fromkeys(busy, 0))
        looks[1][name], looks[2][name] = look(row, name, 2, sums[0]), look(row, name, 4, sums[1])
    answer = Answer(row.get("tokens", TOKENS), 1.5, row.get("error", ""))
    return Case(cluster or local(), *looks, answer, 8000)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_the_verdict_is_good_only_where_it_is_shown(row: dict[str, Any]) -> None:
    proof = judge(case(row))
    assert (proof.good, row["says"] in proof.verdict) == (row["good"], True), proof.verdict
    assert [one for one in proof.strays if not any(part in one for part in row.get("strays", []))] == []
    assert len(proof.strays) == len(row.get("strays", []))
    assert len(proof.elsewhere) == row.get("elsewhere", 0)
    error = probe.unproven(proof)
    assert (error.exit_code if error else 0) == (0 if row["good"] else 29)
    json.dumps(asdict(proof))


def good() -> Proof:
    return judge(case(ROWS[0]))


def test_the_page_says_what_moved_where() -> None:
    text = as_text(good())
    assert text.startswith("probe: 32 tokens in 1.5 s\nthe traffic between the ranks was on the fabric")
    assert "  lab-a: fab0 (fabric): received 20.0 KB, sent 20.0 KB\n" in text
    assert "  lab-b: host0: received 1.0 KB, sent 1.0 KB\n" in text
    assert "  lab-a: 1 connections to other nodes on the fabric\n" in text


def test_an_interface_that_came_up_meanwhile_is_left_out() -> None:
    found = case(ROWS[0])
    after = {**found.after, "lab-a": replace(found.after["lab-a"], counters=found.first["lab-a"].counters)}
    proof = judge(replace(found, after=after))
    assert [one for one in proof.moved if one.node == "lab-a"] == []
    assert not proof.good


def test_one_node_distributes_nothing() -> None:
    alone = local().model_copy(update={"nodes": local().nodes[:1]})
    assert judge(case(ROWS[0], alone)).good


def test_the_other_half_of_a_port_is_the_fabric_too() -> None:
    cluster = load_cluster("spark")
    own = {"enp1s0f0np0": [str(cluster.head.fabric)], "enP2p1s0f0np0": [], "enP7s7": [str(cluster.head.management)]}
    found = reading({}, addresses(own))
    spark = Case(cluster, {}, {}, {cluster.head.name: found}, Answer(0, 0, ""), 8000)
    carried = [name for name in own if spark.carries(cluster.head, name)]
    assert carried == ["enp1s0f0np0", "enP2p1s0f0np0"]


@pytest.mark.parametrize(
    ("bytes_", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 KB"), (2_500_000, "2.5 MB"), (5 * 10**12, "5000.0 GB")]
)
def test_bytes_read_well(bytes_: int, text: str) -> None:
    assert size(bytes_) == text


class Host:
    """A node that prints a text whatever it is asked."""

    name = "lab-a"

    def __init__(self, *texts: str) -> None:
        self.texts = list(texts)
        self.asked: list[Any] = []

    def run(self, argv: Any, **options: Any) -> Completed:
        self.asked.append((argv, options))
        return Completed(tuple(argv), 0, self.texts.pop(0))


def test_a_probe_looks_asks_and_looks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "sleep", lambda _: None)
    seen = json.dumps({"at": 1, "counters": net("fab0", 1, 2), "addresses": "[]", "sockets": "", "units": {}})
    hosts: Any = {"lab-a": Host(seen, seen, '{"tokens": 3, "seconds": 1}', seen), "lab-b": Host(seen, seen, seen)}
    proof = probe.prove(local(), hosts)
    assert (proof.answer.tokens, proof.good) == (3, False)
    assert all(options["privileged"] for _, options in hosts["lab-a"].asked)
    assert hosts["lab-a"].asked[2][0][-3:] == (probe.SERVICE, probe.KEY, str(probe.TOKENS))


@pytest.mark.parametrize("text", ["", "no JSON", '{"addresses": "no JSON"}'])
def test_a_node_that_prints_something_else_is_named(text: str) -> None:
    with pytest.raises(FactsError) as caught:
        probe.prove(local(), {"lab-a": Host(text), "lab-b": Host(text)})  # type: ignore[arg-type]
    assert caught.value.node == "lab-a"


def ask(folder: Path, url: str, key: str = KEY, **api: Any) -> dict[str, Any]:
    (folder / "service.json").write_text(json.dumps({"api": {"url": url, "tls": False, **api}}))
    (folder / "api-key").write_text(key + "\n")
    program = [sys.executable, "-I", "-S", "-c", probe.ASKER.read_text()]
    done = run([*program, str(folder / "service.json"), str(folder / "api-key"), "7"])
    assert key not in done.out + done.err or not key
    return dict(json.loads(done.out))


ASKED: list[tuple[str, str | None, dict[str, Any]]] = []


class Api(BaseHTTPRequestHandler):
    """A model server that knows one key."""

    def _reply(self, code: int, answer: dict[str, Any]) -> None:
        text = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self) -> None:
        ASKED.append((self.path, self.headers["Authorization"], {}))
        known = self.headers["Authorization"] == f"Bearer {KEY}"
        self._reply(200 if known else 401, {"data": [{"id": "tiny"}]} if known else {"error": str(self.headers)})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        ASKED.append((self.path, self.headers["Authorization"], body))
        self._reply(200, {"usage": {"completion_tokens": body["max_tokens"]}})

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Api)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.processes
def test_a_real_request_is_made_with_the_key_that_stays_there(tmp_path: Path) -> None:
    ASKED.clear()
    with serving() as url:
        found = ask(tmp_path, f"{url}/v1")
        behind_tls = ask(tmp_path, f"https://198.18.34.100:{url.rpartition(':')[2]}/v1", tls=True)
    assert (found["tokens"], found["error"], behind_tls["tokens"]) == (7, "", 7)
    assert [(path, key) for path, key, _ in ASKED[:2]] == [
        ("/v1/models", f"Bearer {KEY}"),
        ("/v1/completions", f"Bearer {KEY}"),
    ]
    assert ASKED[1][2]["model"] == "tiny"


@pytest.mark.processes
@pytest.mark.parametrize(
    ("key", "says"), [("f" * 64, "HTTP 401"), ("", "does not hold one key"), ("a\r\nX: y", "does not hold one key")]
)
def test_a_key_that_is_wrong_is_not_shown(key: str, says: str, tmp_path: Path) -> None:
    with serving() as url:
        found = ask(tmp_path, f"{url}/v1", key)
    assert found["tokens"] == 0
    assert says in found["error"]


@pytest.mark.processes
def test_a_node_reads_its_own_network() -> None:
    done = run([sys.executable, "-I", "-S", "-c", probe.METER.read_text()])
    found = reading(json.loads(done.out), json.loads(json.loads(done.out)["addresses"]))
    assert "lo" in found.counters
    assert "lo" in found.addresses.values()
