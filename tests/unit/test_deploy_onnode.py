"""A push as the nodes see it, on loopback: real processes, real sockets, files that arrive, are cut, or are damaged."""

from __future__ import annotations

import errno
import os
import random
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from core import process
from core.errors import BuildFailed, LockHeld, NodeUnreachable, SparkstackError, UnfitNode, WheelRefused
from core.host import SudoPassword
from core.local import LocalHost
from core.process import Conversation
from deploy import sending
from deploy.onnode import boot, calling, common, receive, serving, store
from deploy.onnode.store import Store, Wheel
from deploy.sending import ARGV, Errand, Progress, send
from tests.unit.modelhub import sha256
from tests.wheels.indexes import free_port

MEGABYTE = 1 << 20
SECRET = "7e" * 32
SIZES = {"one": 3 * MEGABYTE + 17, "two": 5, "three": MEGABYTE}


@dataclass
class House:
    """Wheels on this host, and nodes that are folders of it. ``heard`` is what was reported, by node."""

    folder: Path
    heard: dict[str, list[str]] = field(default_factory=dict)
    sent: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        make = random.Random(5)
        self.data = {name: make.randbytes(size) for name, size in SIZES.items()}
        self.wheels = [Wheel(sha256(data), len(data), f"{name}-1.0.whl") for name, data in self.data.items()]
        self.port = free_port()
        (self.folder / "dist").mkdir()
        for name, data in self.data.items():
            (self.folder / "dist" / f"{name}-1.0.whl").write_bytes(data)

    def node(self, name: str) -> Store:
        return Store(self.folder / name)

    def errand(self, node: str, main: str, /, **more: Any) -> Errand:
        told = {"root": str(self.folder / node), "wheels": [(one.sha256, one.size, one.name) for one in self.wheels]}
        files = {one.sha256: (self.folder / "dist" / one.name, one.size) for one in self.wheels}
        return Errand(node, main, {**told, **more}, files if main == "receive" else {})

    def run(self, errand: Errand, wrap: Callable[[Conversation], Conversation] = lambda one: one) -> None:
        said = self.heard.setdefault(errand.node, [])
        host = LocalHost(errand.node, SudoPassword(None))
        argv = (getattr(sys, "_base_executable", sys.executable), "-E", "-s", *ARGV[1:])
        host.converse(argv, lambda one: send(errand, wrap(self._counted(errand.node, one)), said.append))

    def _counted(self, node: str, conversation: Conversation) -> Conversation:
        real, self.sent[node] = conversation.send_file, 0

        def counted(path: Path, start: int, end: int, on_bytes: Callable[[int], None]) -> None:
            self.sent[node] += end - start
            real(path, start, end, on_bytes)

        conversation.send_file = counted  # type: ignore[method-assign]
        return conversation

    def push(self, node: str = "a") -> None:
        """Push to a node directly."""
        self.run(self.errand(node, "receive"))

    def relay(self) -> None:
        """Push to a, which gives it to b."""
        link = {"address": "127.0.0.1", "port": self.port, "secret": SECRET}
        errands = (
            self.errand("a", "receive", offer={**link, "takers": ["b"]}),
            self.errand("b", "join", node="b", **{"from": link}),
        )
        with ThreadPoolExecutor(2) as pool:
            futures: list[Future[None]] = [pool.submit(self.run, one) for one in errands]
        for one in futures:
            one.result()

    def assert_whole(self, *nodes: str) -> None:
        """The nodes have every file under its hash and its name, and nothing else."""
        for node in nodes:
            place = self.node(node)
            for wheel in self.wheels:
                assert sha256(place.whole(wheel).read_bytes()) == wheel.sha256
                assert place.named(wheel).samefile(place.whole(wheel))
            names = {path.name for path in (place.root / "store").iterdir()}
            assert names == {".incoming", ".lock", *(one.sha256 for one in self.wheels)}
            assert list((place.root / "store" / ".incoming").iterdir()) == []
            assert {path.name for path in (place.root / "wheels").iterdir()} == {one.name for one in self.wheels}


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def total(house: House) -> int:
    return sum(one.size for one in house.wheels)


@pytest.mark.processes
class TestDirect:
    def test_everything_arrives_once_and_the_second_time_nothing_travels(self, house: House) -> None:
        house.push()
        house.assert_whole("a")
        assert house.sent["a"] == total(house)
        house.push()
        assert house.sent["a"] == 0

    def test_a_file_goes_on_at_the_byte_where_it_was_cut(self, house: House) -> None:
        one = house.wheels[0]
        part = house.node("a").part(one)
        part.parent.mkdir(parents=True)
        part.write_bytes(house.data["one"][: MEGABYTE + 3])
        house.push()
        house.assert_whole("a")
        assert house.sent["a"] == total(house) - MEGABYTE - 3

    def test_a_part_that_is_not_its_beginning_costs_the_file_once_more(self, house: House) -> None:
        one = house.wheels[0]
        part = house.node("a").part(one)
        part.parent.mkdir(parents=True)
        part.write_bytes(b"\0" * MEGABYTE)
        house.push()
        house.assert_whole("a")
        assert house.sent["a"] == total(house) - MEGABYTE + one.size

    def test_a_part_that_is_too_long_is_begun_anew(self, house: House) -> None:
        part = house.node("a").part(house.wheels[1])
        part.parent.mkdir(parents=True)
        part.write_bytes(b"much more than there is")
        house.push()
        house.assert_whole("a")

    def test_parts_of_what_nobody_wants_any_more_go(self, house: House) -> None:
        part = house.folder / "a" / "store" / ".incoming" / ("0" * 64)
        part.parent.mkdir(parents=True)
        part.write_bytes(b"old")
        house.push()
        house.assert_whole("a")

    def test_a_damaged_file_is_found_said_and_replaced_under_both_names(self, house: House) -> None:
        house.push()
        with house.node("a").whole(house.wheels[0]).open("r+b") as file:
            file.seek(1000)
            file.write(b"damaged")
        house.push()
        house.assert_whole("a")
        assert house.sent["a"] == house.wheels[0].size
        assert "note: one-1.0.whl is damaged there and comes again" in house.heard["a"]

    def test_what_is_there_by_name_is_taken_into_the_store_and_not_sent(self, house: House) -> None:
        names = house.folder / "a" / "wheels"
        names.mkdir(parents=True)
        for name in ("one", "three"):
            (names / f"{name}-1.0.whl").write_bytes(house.data[name])
        (names / "two-1.0.whl").write_bytes(b"other")
        house.push()
        house.assert_whole("a")
        assert house.sent["a"] == SIZES["two"]

    def test_a_name_follows_the_build_that_was_deployed_last(self, house: House) -> None:
        house.push()
        old = house.wheels[1]
        house.data["two"] = b"newer"
        (house.folder / "dist" / old.name).write_bytes(b"newer")
        house.wheels[1] = Wheel(sha256(b"newer"), 5, old.name)
        house.push()
        place = house.node("a")
        assert place.named(old).read_bytes() == b"newer"
        assert sha256(place.whole(old).read_bytes()) == old.sha256, "another release may still need it"

    def test_a_file_that_is_not_what_the_manifest_says_never_gets_a_name(self, house: House) -> None:
        (house.folder / "dist" / "one-1.0.whl").write_bytes(b"\1" * SIZES["one"])
        with pytest.raises(WheelRefused, match=r"a: one-1\.0\.whl did not arrive as the manifest lists it"):
            house.push()
        place = house.node("a")
        assert not place.whole(house.wheels[0]).exists()
        assert list((place.root / "wheels").iterdir()) == []

    def test_a_file_that_shrank_here_ends_the_push_and_the_rest_goes_on_later(self, house: House) -> None:
        (house.folder / "dist" / "three-1.0.whl").write_bytes(house.data["three"][:1000])
        with pytest.raises(BuildFailed, match="a wheel has changed while it was sent"):
            house.push()
        (house.folder / "dist" / "three-1.0.whl").write_bytes(house.data["three"])
        house.push()
        house.assert_whole("a")
        assert house.sent["a"] == SIZES["three"] - 1000

    def test_a_connection_that_breaks_loses_nothing_that_arrived(self, house: House) -> None:
        def breaking(conversation: Conversation) -> Conversation:
            real = conversation.send_file

            def some(path: Path, start: int, end: int, on_bytes: Callable[[int], None]) -> None:
                real(path, start, min(end, 2 * MEGABYTE), on_bytes)
                raise BrokenPipeError

            conversation.send_file = some  # type: ignore[method-assign]
            return conversation

        with pytest.raises(NodeUnreachable, match="the connection ended in the middle"):
            _cut(house, breaking)
        assert house.node("a").arrived(house.wheels[0]) == 2 * MEGABYTE
        house.push()
        house.assert_whole("a")
        assert house.sent["a"] == total(house) - 2 * MEGABYTE


def _cut(house: House, breaking: Callable[[Conversation], Conversation]) -> None:
    """Push over a connection that breaks: the node sees the end of its input, and says so."""

    def ending(conversation: Conversation) -> Conversation:
        broken = breaking(conversation)
        inner = broken.send_file

        def closing(path: Path, start: int, end: int, on_bytes: Callable[[int], None]) -> None:
            try:
                inner(path, start, end, on_bytes)
            except BrokenPipeError:
                broken._input.close()
                raise

        broken.send_file = closing  # type: ignore[method-assign]
        return broken

    house.run(house.errand("a", "receive"), ending)


@pytest.mark.processes
class TestRelay:
    def test_one_copy_comes_from_here_and_both_have_everything(self, house: House) -> None:
        house.relay()
        house.assert_whole("a", "b")
        assert house.sent == {"a": total(house), "b": 0}
        assert any("MB/s" in line for line in house.heard["b"])

    def test_what_the_first_one_has_goes_to_the_other_without_us(self, house: House) -> None:
        house.push()
        house.relay()
        house.assert_whole("a", "b")
        assert house.sent == {"a": 0, "b": 0}

    def test_both_go_on_at_the_byte_where_they_were(self, house: House) -> None:
        for node, size in (("a", MEGABYTE), ("b", 2 * MEGABYTE)):
            part = house.node(node).part(house.wheels[0])
            part.parent.mkdir(parents=True)
            part.write_bytes(house.data["one"][:size])
        house.relay()
        house.assert_whole("a", "b")
        assert house.sent["a"] == total(house) - MEGABYTE

    def test_a_part_that_is_not_good_on_either_costs_the_file_once_more(self, house: House) -> None:
        for node in ("a", "b"):
            part = house.node(node).part(house.wheels[0])
            part.parent.mkdir(parents=True)
            part.write_bytes(b"\0" * MEGABYTE)
        house.relay()
        house.assert_whole("a", "b")

    def test_a_damaged_file_of_the_other_one_comes_over_the_fabric(self, house: House) -> None:
        house.relay()
        house.node("b").whole(house.wheels[2]).write_bytes(b"\0" * SIZES["three"])
        house.relay()
        house.assert_whole("a", "b")
        assert house.sent["a"] == 0
        assert "note: three-1.0.whl is damaged there and comes again" in house.heard["b"]

    def test_a_node_that_nobody_offers_to_gives_up(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        _changed(monkeypatch, "join", "PATIENCE = 60.0", "PATIENCE = 0.5")
        link = {"address": "127.0.0.1", "port": house.port, "secret": SECRET}
        with pytest.raises(NodeUnreachable, match=r"b: nothing came over the fabric for 0 s: .*refused") as caught:
            house.run(house.errand("b", "join", node="b", **{"from": link}))
        assert caught.value.next_move == "check the cable between the nodes, then run it again"


def _changed(monkeypatch: pytest.MonkeyPatch, module: str, old: str, new: str) -> None:
    """Send a module to the nodes with a constant changed."""
    real = sending.source

    def source(name: str) -> str:
        text = real(name)
        assert name != module or old in text
        return text.replace(old, new) if name == module else text

    monkeypatch.setattr(sending, "source", source)


SHORT = SIZES["one"] - 3
"""How large a file may grow on a node: the last write of the largest one is a short one, as on a disk that fills up."""

LIMITED = f"import sys\nimport resource\n\nresource.setrlimit(resource.RLIMIT_FSIZE, ({SHORT}, {SHORT}))\n"


@pytest.mark.processes
class TestShortWrite:
    def test_of_a_push_is_no_whole_file(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        _changed(monkeypatch, "common", "import sys\n", LIMITED)
        with pytest.raises(UnfitNode, match=r"a: .*File too large"):
            house.push()
        assert not house.node("a").whole(house.wheels[0]).exists()
        monkeypatch.undo()
        house.push()
        house.assert_whole("a")

    def test_of_a_relay_is_none_either(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        house.push()
        _changed(monkeypatch, "common", "import sys\n", LIMITED)
        with pytest.raises(UnfitNode, match=r"b: .*File too large"):
            house.relay()
        assert not house.node("b").whole(house.wheels[0]).exists()
        monkeypatch.undo()
        house.relay()
        house.assert_whole("a", "b")

    def test_goes_on_until_all_of_a_block_is_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        real = os.pwrite
        monkeypatch.setattr(os, "pwrite", lambda file, block, at: real(file, block[:3], at))
        with (tmp_path / "x").open("w+b", buffering=0) as file:
            common.write_all(file.fileno(), memoryview(b"0123456789"), 2)
        assert (tmp_path / "x").read_bytes() == b"\0\x000123456789"

    def test_that_nobody_saw_gets_no_name(self, tmp_path: Path) -> None:
        place, wheel = Store(tmp_path), Wheel(sha256(b"abcdef"), 6, "x.whl")
        place.part(wheel).parent.mkdir(parents=True)
        place.part(wheel).write_bytes(b"abcd")
        with pytest.raises(common.Refused, match=r"4 of the 6 bytes of x\.whl are on the disk") as caught:
            place.keep(wheel)
        assert (caught.value.kind, place.whole(wheel).exists()) == ("disk", False)


@pytest.mark.parametrize("fault", [errno.EPERM, errno.EXDEV, errno.EMLINK])
def test_a_good_file_that_cannot_be_linked_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: int
) -> None:
    place, wheel = Store(tmp_path / "root"), Wheel(sha256(b"abcdef"), 6, "x.whl")
    foreign = tmp_path / "elsewhere"
    foreign.write_bytes(b"abcdef")
    real = os.link

    def link(source: Path, target: Path) -> None:
        if Path(source).resolve() == foreign:
            raise OSError(fault, os.strerror(fault), str(source))
        real(source, target)

    monkeypatch.setattr(os, "link", link)
    with place.held():
        place.named(wheel).symlink_to(foreign)
        assert place.missing([wheel]) == []
        place.name([wheel])
    assert place.whole(wheel).read_bytes() == b"abcdef"
    assert not place.whole(wheel).is_symlink()
    assert place.named(wheel).samefile(place.whole(wheel))
    assert not foreign.samefile(place.whole(wheel))


@pytest.mark.processes
class TestListening:
    def test_at_an_address_that_is_taken_is_no_fault_of_the_disk(self, house: House) -> None:
        link = {"address": "127.0.0.1", "port": house.port, "secret": SECRET}
        with (
            closing(socket.create_server(("127.0.0.1", house.port))),
            pytest.raises(NodeUnreachable, match=r"a: 127\.0\.0\.1:\d+ cannot be listened at: Address") as caught,
        ):
            house.run(house.errand("a", "receive", offer={**link, "takers": ["b"]}))
        assert "ss -ltnp" in caught.value.next_move

    def test_asks_no_resolver_for_a_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[str] = []
        monkeypatch.setattr(socket, "getfqdn", lambda name="": asked.append(name) or "slow.example")
        with serving.server({"address": "127.0.0.1", "port": 0}, _served(tmp_path)) as made:
            assert made.server_port == made.socket.getsockname()[1]
        assert asked == []


def _served(folder: Path) -> serving.Served:
    return serving.Served(receive.Arriving(Store(folder), []), SECRET)


@pytest.mark.processes
def test_a_node_that_is_at_work_says_so_again_and_again_over_one_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calling, "BEAT", 0.02)
    served, callers = _served(tmp_path), []
    real = serving.Handler._empty

    def empty(self: serving.Handler, status: int) -> None:
        callers.append((status, self.path, self.client_address))
        real(self, status)

    monkeypatch.setattr(serving.Handler, "_empty", empty)
    with serving.server({"address": "127.0.0.1", "port": 0}, served) as made:
        threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True).start()
        link = {"address": "127.0.0.1", "port": made.server_port, "secret": SECRET}
        with closing(calling.Caller(link)) as caller, calling.at_work(caller, "/here/b"):
            deadline = time.monotonic() + 20
            while len(callers) < 3 and time.monotonic() < deadline:
                time.sleep(0.01)
        made.shutdown()
    assert len(callers) >= 3
    assert len({address for _, _, address in callers}) == 1
    assert {(status, path) for status, path, _ in callers} == {(200, "/here/b")}


class TestAlone:
    def test_who_comes_second_is_told_what_the_first_one_does(self, tmp_path: Path) -> None:
        lock = tmp_path / "lock"
        with common.alone(lock, 5, "one"), pytest.raises(common.Refused, match="two") as caught, _alone(lock, 0.01):
            pass
        assert caught.value.kind == "busy"

    def test_who_waited_for_a_file_that_is_removed_has_the_new_one(self, tmp_path: Path) -> None:
        lock, entered = tmp_path / "lock", []

        def second() -> None:
            with common.alone(lock, 20, "two"):
                entered.append(lock.exists())

        with common.alone(lock, 5, "one"):
            thread = threading.Thread(target=second)
            thread.start()
            time.sleep(0.05)
            lock.unlink()
        thread.join()
        assert entered == [True]


def _alone(lock: Path, patience: float) -> Any:
    return common.alone(lock, patience, "two")


def test_what_waits_for_a_thread_is_left_undone_where_the_work_fails() -> None:
    done: list[int] = []
    began, go = threading.Event(), threading.Event()

    def first() -> None:
        began.set()
        go.wait(20)

    def fail() -> None:
        with common.threads(1) as pool:
            pool.submit(first)
            pool.submit(done.append, 1)
            began.wait(20)
            threading.Timer(0.05, go.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert done == []


@pytest.mark.parametrize(("line", "found"), [('{"a": 1}', {"a": 1}), ("[1]", {}), ("x", {}), ("[" * 100_000, {})])
def test_a_line_of_a_node_is_an_object_or_nothing(line: str, found: dict[str, Any]) -> None:
    assert common.said(line) == found


@pytest.mark.processes
def test_a_full_disk_is_said_with_node_and_next_move(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    _changed(monkeypatch, "common", "MARGIN = 1 << 30", "MARGIN = 1 << 60")
    with pytest.raises(UnfitNode, match=r"a: 4 MB are still to come and .* are free") as caught:
        house.push()
    assert "releases --collect" in caught.value.next_move


@pytest.mark.processes
def test_a_store_that_another_push_has_is_waited_for(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    _changed(monkeypatch, "store", "PATIENCE = 60.0", "PATIENCE = 0.1")
    with house.node("a").held(), pytest.raises(LockHeld, match="another push works on its store"):
        house.push()
    house.push()
    house.assert_whole("a")


@pytest.mark.processes
def test_a_node_without_python_is_an_error_of_the_command(house: House) -> None:
    host = LocalHost("a", SudoPassword(None))
    with pytest.raises(SparkstackError, match="ended with 3"):
        host.converse(("sh", "-c", "exit 3"), lambda one: send(house.errand("a", "receive"), one, lambda _: None))


def test_a_disk_that_fills_up_in_the_middle_is_a_refusal() -> None:
    with pytest.raises(common.Refused) as caught, common.named_errors():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/store/x")
    assert caught.value.kind == "disk"


def test_silence_ends_a_push(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receive, "SILENCE", 0.05)
    reading, writing = os.pipe()
    wheel = Wheel(sha256(b"x"), 1, "x.whl")
    with pytest.raises(common.Refused, match="ended in the middle"):
        receive.receive({"root": str(tmp_path), "wheels": [(wheel.sha256, 1, wheel.name)]}, reading)
    os.close(reading)
    os.close(writing)


def test_who_waits_for_a_file_gets_what_there_is_and_not_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receive, "WAIT", 5)
    wheel = Wheel(sha256(b"abcdef"), 6, "x.whl")
    arriving = receive.Arriving(Store(tmp_path), [wheel])
    (tmp_path / "store" / ".incoming").mkdir(parents=True)
    arriving.begin([wheel])
    threading.Timer(0.05, arriving.grow, (wheel, 4)).start()
    assert arriving.reach(0, 0) == 4
    assert (arriving.size(0), arriving.size(1)) == (6, None)
    monkeypatch.setattr(receive, "WAIT", 0.01)
    with pytest.raises(TimeoutError):
        arriving.reach(0, 4)


@pytest.mark.parametrize(("path", "known"), [("/done/b", True), ("/here/b", True), ("/done/", False), ("/x", False)])
def test_nodes_say_that_they_work_and_that_they_have_done(tmp_path: Path, path: str, known: object) -> None:
    arriving = receive.Arriving(Store(tmp_path), [])
    arriving.left.add("b")
    assert arriving.said(path) is known
    assert arriving.left == (set() if path == "/done/b" else {"b"})


def test_progress_says_how_far_how_fast_and_how_long() -> None:
    said: list[str] = []
    now = iter([0.0, 0.1, 2.0, 4.0])
    progress = Progress(400_000_000, said.append, clock=lambda: next(now))
    for size in (1_000_000, 199_000_000, 200_000_000):
        progress.add(size)
    assert said == ["200 MB of 400 MB, 100 MB/s, 2 s left", "400 MB of 400 MB, 100 MB/s, 0 s left"]
    assert common.how_far(10, 6010, 10, 1) == "10 B of 6 kB, 10 B/s, 10 min left"
    assert common.how_far(10, 20, 0, 1) == "10 B of 20 B, 0 B/s"


def test_modules_are_sent_in_the_order_in_which_they_import_each_other() -> None:
    for errand, modules in sending.MODULES.items():
        for number, name in enumerate(modules):
            asked = set(re.findall(r"^from deploy\.onnode\.(\w+) import", sending.source(name), re.MULTILINE))
            assert asked <= set(modules[:number]), (errand, name)
        assert modules[-1] == errand
    assert ARGV[4] == Path(boot.__file__).read_text(encoding="utf-8")
    sent = {path.stem for path in sending.SCRIPTS.glob("*.py")} - {"__init__", "boot"}
    assert {name for modules in sending.MODULES.values() for name in modules} == sent
    assert store.READERS > 1


@pytest.mark.processes
class TestConversation:
    def test_lines_come_back_and_what_it_complains_of_is_kept(self) -> None:
        found: list[str] = []

        def talk(one: Conversation) -> None:
            one.send(b"hello\n")
            found.append(one.line())

        done = process.converse(("sh", "-c", "read x; echo $x there; echo bad >&2; exit 4"), talk)
        assert (found, done.code, done.err) == (["hello there\n"], 4, "bad\n")

    def test_one_that_has_ended_is_no_error_of_its_own(self) -> None:
        done = process.converse(("sh", "-c", "exit 7"), lambda one: [one.send(b"x" * MEGABYTE) for _ in range(9)])
        assert done.code == 7

    def test_a_program_that_is_not_there_is_named(self) -> None:
        with pytest.raises(SparkstackError, match="no-such-program cannot be run"):
            process.converse(("no-such-program",), lambda _: None)

    def test_the_end_of_all_ends_it_too(self) -> None:
        def talk(one: Conversation) -> None:
            threading.Timer(0.1, process.end_all).start()
            assert one.line() == ""

        assert process.converse(("sleep", "60"), talk).code == -15
