"""The watch over vLLM: ready is a token; alive is what moves, or what answers when nobody asks; the rest is killed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.config import ROOT
from serve.onnode import engine
from serve.onnode.engine import Api, Numbers, Pulse, Watch, numbers
from tests.unit.playing_vllm import METRICS, Server, Systemd, playing
from tests.unit.samples import capture

READY = "READY=1\nSTATUS=gives tokens"
FED = "WATCHDOG=1"


class TestNumbers:
    def test_the_metrics_of_a_current_version_are_read(self) -> None:
        found = numbers(capture("vllm-metrics.0.32.cpu.txt"))
        assert found == Numbers(running=2, waiting=1, prompt=1834, generated=412, kv_cache=0.1271)

    def test_an_older_version_has_another_name_for_its_cache(self) -> None:
        found = numbers(capture("vllm-metrics.0.11.gb10.txt"))
        assert found == Numbers(running=1, waiting=0, prompt=52, generated=3_100_000, kv_cache=0.0312)

    def test_engines_are_added_up(self) -> None:
        one = METRICS.format(running=1, waiting=2, cache=0.25, prompt=3, generated=4)
        both = one + one.replace('engine="0"', 'engine="1"')
        assert numbers(both) == Numbers(running=2, waiting=4, prompt=6, generated=8, kv_cache=0.5)

    @pytest.mark.parametrize("text", ["", "vllm:num_requests_running", "vllm:prompt_tokens_total NaN", "# vllm:x 1"])
    def test_what_is_not_said_is_nothing(self, text: str) -> None:
        assert numbers(text) == Numbers()

    @given(st.text() | st.from_regex(r"vllm:prompt_tokens_total(\{.*\})? [-+.\deE]*"))
    def test_any_text_is_read_or_a_mistake_that_the_watch_knows(self, text: str) -> None:
        with contextlib.suppress(*engine.NO_ANSWER):
            assert numbers(text)


class TestPulse:
    def test_whatever_moves_is_a_move_and_only_a_new_token_is_a_token(self) -> None:
        pulse = Pulse(moved=0)
        pulse.feel(1, Numbers(prompt=5, running=1))
        assert (pulse.moved, pulse.token) == (1, None)
        pulse.feel(2, Numbers(prompt=5, running=1))
        assert pulse.moved == 1
        pulse.feel(3, Numbers(prompt=5, running=1, generated=1))
        assert (pulse.moved, pulse.token) == (3, 3)

    def test_the_rate_is_that_of_the_last_seconds(self) -> None:
        pulse = Pulse(moved=0)
        for second in range(31):
            pulse.feel(second, Numbers(generated=7 * second if second > 10 else 0))
        assert pulse.rate == 7.0

    def test_one_look_is_no_rate(self) -> None:
        pulse = Pulse(moved=0)
        pulse.feel(1, Numbers(generated=5))
        assert pulse.rate == 0.0


class Watched:
    """A watch on a server, turned by hand, and what it tells systemd."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server, self.live = server, folder / "live.json"
        self.systemd = Systemd(folder / "notify")
        self.watch = Watch(Api(server.url, "tiny", "k" * 64), 25.0, self.live)

    def turns(self, count: int = 1, each: Callable[[], object] = lambda: None) -> list[str]:
        """Turn so many times, and return what was said."""
        heard = []
        for _ in range(count):
            each()
            self.watch.turn()
            time.sleep(0.01)
            heard += self.systemd.heard()  # a socket of datagrams holds ten
        return heard

    def until(self, said: str) -> list[str]:
        """Turn until it was said, and return all that was."""
        heard: list[str] = []
        end = time.monotonic() + 10
        while said not in heard:
            assert time.monotonic() < end, heard
            heard += self.turns()
        return heard

    def written(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.live.read_text())
        return found


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setattr(engine, "IDLE", 0.15)
    with playing() as server:
        made = Watched(server, tmp_path)
        yield made
        server.over.set()
        made.systemd.close()


def busy(server: Server) -> None:
    server.numbers |= {"running": 3, "waiting": 1}


@pytest.mark.processes
class TestReady:
    def test_it_is_a_token_and_it_is_said_once(self, watched: Watched) -> None:
        watched.until(READY)
        assert READY not in watched.turns(10)
        assert watched.server.asked[0]["model"] == "tiny"
        assert watched.server.asked[0]["max_tokens"] == 1

    def test_an_answer_without_a_token_is_none(self, watched: Watched) -> None:
        watched.server.tokens = 0
        assert watched.turns(20) == []
        assert len(watched.server.asked) > 1, "it is asked again"
        assert watched.written()["ready"] is False
        watched.server.tokens = 1
        watched.until(READY)

    def test_an_error_is_none_and_is_said(self, watched: Watched) -> None:
        watched.server.code = 500
        assert watched.turns(20) == []
        assert watched.written()["ready"] is False

    def test_a_rank_that_hangs_is_none(self, watched: Watched) -> None:
        watched.server.frozen.set()
        assert watched.turns(20) == []

    def test_every_question_shows_the_probes_own_key(self, watched: Watched) -> None:
        watched.until(READY)
        assert watched.server.keys == {"Bearer " + "k" * 64}


@pytest.mark.processes
class TestAlive:
    @pytest.fixture
    def ready(self, watched: Watched) -> Watched:
        watched.until(READY)
        watched.turns(3)
        return watched

    def test_a_loaded_server_is_fed_as_long_as_tokens_move_though_no_question_is_answered(self, ready: Watched) -> None:
        ready.server.frozen.set()
        busy(ready.server)

        def token() -> None:
            ready.server.numbers["generated"] += 1

        assert ready.turns(20, token) == [FED] * 20

    def test_a_long_prompt_that_is_read_is_a_move(self, ready: Watched) -> None:
        ready.server.frozen.set()
        busy(ready.server)

        def piece() -> None:
            ready.server.numbers["cache"] = round(ready.server.numbers["cache"] + 0.01, 2)

        assert ready.turns(10, piece) == [FED] * 10

    def test_nobody_is_asked_besides_while_others_ask(self, ready: Watched) -> None:
        busy(ready.server)
        ready.turns(2)
        before = len(ready.server.asked)
        ready.turns(30)
        assert len(ready.server.asked) == before

    def test_a_server_in_which_nothing_moves_while_somebody_waits_is_not_fed(self, ready: Watched) -> None:
        ready.server.frozen.set()
        busy(ready.server)
        ready.turns(2)
        assert ready.turns(30) == []

    def test_a_server_that_counts_nobody_though_somebody_waits_is_not_fed(self, ready: Watched) -> None:
        ready.server.frozen.set()
        ready.server.in_flight = 2  # the engine has ended: who asked before it is in no count of its own any more
        ready.turns(2)
        assert ready.turns(30) == []

    def test_an_idle_server_is_fed_and_asked_now_and_then(self, ready: Watched) -> None:
        before = len(ready.server.asked)
        fed = ready.turns(40).count(FED)
        asked = len(ready.server.asked) - before
        assert asked > 0
        assert fed >= 39 - 3 * asked, "it rests but while a question of its own is out"

    def test_an_idle_server_that_answers_no_question_is_not_fed(self, ready: Watched) -> None:
        ready.server.frozen.set()
        ready.turns(20)
        assert ready.turns(30) == []

    def test_an_idle_server_that_answers_errors_is_not_fed(self, ready: Watched) -> None:
        ready.server.code = 500
        ready.turns(20)
        assert ready.turns(30) == []

    def test_a_server_whose_api_hangs_is_not_fed_and_it_is_said(
        self, ready: Watched, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(engine, "PATIENCE", 0.2)
        ready.server.mute.set()
        assert ready.turns(2) == []
        assert "timed out" in ready.written()["error"]

    def test_a_server_that_breaks_off_its_answers_is_not_fed_and_the_watch_goes_on(self, ready: Watched) -> None:
        ready.server.half = True
        assert ready.turns(20) == []
        assert ready.written()["error"]
        ready.server.half = False
        ready.until(FED)

    def test_one_that_was_well_again_is_fed_again(self, ready: Watched) -> None:
        ready.server.frozen.set()
        ready.turns(30)
        ready.server.frozen.clear()
        ready.until(FED)


@pytest.mark.processes
def test_what_it_sees_is_written_for_others(watched: Watched) -> None:
    watched.server.numbers |= {"running": 2, "waiting": 1, "cache": 0.127, "prompt": 50}
    watched.server.in_flight = 4
    watched.until(READY)
    before = time.time()
    watched.turns()
    found = watched.written()
    assert before <= found["at"] <= time.time()
    assert found["last_token"] <= found["at"]
    assert {key: found[key] for key in ("ready", "running", "waiting", "in_flight", "kv_cache", "prompt_tokens")} == {
        "ready": True,
        "running": 2,
        "waiting": 1,
        "in_flight": 4,
        "kv_cache": 0.127,
        "prompt_tokens": 50,
    }
    assert (found["generated_tokens"], found["draining"], found["error"]) == (1, False, "")
    watched.server.draining = True
    watched.turns()
    assert watched.written()["draining"] is True


@pytest.mark.processes
class TestProcess:
    """The watch as systemd starts it, over something that is not vLLM."""

    def start(self, folder: Path, script: str) -> subprocess.Popen[str]:
        own = {"PYTHONPATH": str(ROOT), "RUNTIME_DIRECTORY": str(folder), "PATH": os.environ["PATH"]}
        options = ["--url", "http://127.0.0.1:9", "--model", "tiny", "--stall", "25"]
        argv = [sys.executable, "-m", "serve.onnode.engine", *options, "--", "sh", "-c", script]
        return subprocess.Popen(argv, env=own, text=True, stderr=subprocess.PIPE)

    @pytest.mark.parametrize(
        ("script", "code"), [("exit 3", 3), ("kill -KILL $$", -signal.SIGKILL), ("kill -ABRT $$", -signal.SIGABRT)]
    )
    def test_it_ends_as_vllm_has_ended(self, script: str, code: int, tmp_path: Path) -> None:
        with self.start(tmp_path, script) as process:
            assert process.wait(20) == code

    def test_told_to_end_it_lets_vllm_end(self, tmp_path: Path) -> None:
        script = f"trap 'touch {tmp_path}/ended; exit 0' TERM; touch {tmp_path}/up; while :; do sleep 0.05; done"
        with self.start(tmp_path, script) as process:
            while not (tmp_path / "up").exists():
                time.sleep(0.01)
            process.terminate()
            assert process.wait(20) == 0
        assert (tmp_path / "ended").exists()

    def test_each_start_has_a_key_of_its_own_and_only_its_fingerprint_is_written(self, tmp_path: Path) -> None:
        found = set()
        for _ in range(2):
            with self.start(tmp_path, "exit 0") as process:
                process.wait(20)
            found.add((tmp_path / "probe.sha256").read_text().strip())
        assert len(found) == 2
        assert all(len(one) == hashlib.sha256().digest_size * 2 for one in found)
