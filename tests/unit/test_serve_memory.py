"""Memory that is available on a node: the machine's, or what a container's limit leaves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.onnode import memory
from serve.onnode.memory import available, free, in_group
from tests.unit.samples import capture

GIB = 2**30
OTHERWISE = 7 * GIB
NUMBER = st.integers(0, 2**50)


def test_the_limit_less_the_use_is_what_is_left() -> None:
    assert in_group(f"{5 * GIB}\n", f"{2 * GIB}\n", "", OTHERWISE) == 3 * GIB


def test_page_cache_is_available_in_both_versions() -> None:
    two = f"anon 1\nfile {GIB}\ninactive_file {GIB // 2}\nactive_file {GIB // 4}\n"
    one = f"cache 1\nactive_file 5\ninactive_file 5\ntotal_active_file {GIB // 4}\ntotal_inactive_file {GIB // 2}\n"
    for stat in (two, one):
        assert in_group(str(5 * GIB), str(2 * GIB), stat, OTHERWISE) == 3 * GIB + GIB // 2 + GIB // 4


@pytest.mark.parametrize(("limit", "usage"), [("max\n", "5"), ("", ""), ("5", ""), ("-1", "5"), ("x", "y")])
def test_without_a_limit_it_is_the_machines(limit: str, usage: str) -> None:
    assert in_group(limit, usage, "", OTHERWISE) == OTHERWISE


@given(NUMBER, NUMBER, NUMBER, NUMBER)
def test_it_is_never_negative_and_never_more_than_the_limit(limit: int, usage: int, active: int, idle: int) -> None:
    found = in_group(str(limit), str(usage), f"active_file {active}\ninactive_file {idle}\n", OTHERWISE)
    assert 0 <= found <= limit


@given(st.text(), st.text(), st.text())
def test_any_text_gives_a_number(limit: str, usage: str, stat: str) -> None:
    assert in_group(limit, usage, stat, OTHERWISE) >= 0


def test_a_spark_has_what_its_kernel_says(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {"/proc/meminfo": capture("proc-meminfo.gb10.partial.txt")}
    monkeypatch.setattr(memory, "_read", lambda path: texts.get(path, ""))
    assert available() == 1024 * int(texts["/proc/meminfo"].split("MemAvailable:")[1].split()[0])


def test_a_container_has_the_lesser_of_both(monkeypatch: pytest.MonkeyPatch) -> None:
    limit, usage, _ = memory.GROUPS[0]
    texts = {"/proc/meminfo": f"MemAvailable: {9 * 2**20} kB\n", limit: f"{5 * GIB}", usage: f"{GIB}"}
    monkeypatch.setattr(memory, "_read", lambda path: texts.get(path, ""))
    assert available() == 4 * GIB


def test_what_is_free_is_without_the_page_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    limit, usage, stat = memory.GROUPS[0]
    texts = {"/proc/meminfo": f"MemFree: {9 * 2**20} kB\nMemAvailable: {10 * 2**20} kB\n"}
    monkeypatch.setattr(memory, "_read", lambda path: texts.get(path, ""))
    assert free() == 9 * GIB
    texts |= {limit: f"{5 * GIB}", usage: f"{3 * GIB}", stat: f"active_file {GIB}\ninactive_file {GIB}\n"}
    assert free() == 2 * GIB


def test_this_host_has_some() -> None:
    assert available() > 0
