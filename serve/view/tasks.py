"""Tasks of serve/view: status, logs."""

from __future__ import annotations

import json as notation
from collections.abc import Mapping
from dataclasses import asdict

from invoke.context import Context
from invoke.tasks import task
from rich.console import Console

from core.choice import chosen_cluster
from core.command import answer, answer_json, command
from core.config import Cluster
from core.errors import SparkstackError, UsageError
from core.process import end_all
from core.remote import Hosts
from core.screen import Screen
from serve.view import logs as journals
from serve.view import traffic
from serve.view.probe import prove, unproven
from serve.view.screen import as_text, screen
from serve.view.status import Status, as_data, look, trouble
from serve.view.watch import Looking, stream
from serve.view.watch import watch as show_again

CLUSTER = "which machines (config/clusters)"
JSON = "answer as JSON"


@task(
    help={
        "cluster": CLUSTER,
        "watch": "look again every 2 s, until Ctrl-C",
        "probe": "send one request too, and show that what the ranks say to each other is on the fabric",
        "json": JSON,
    }
)
@command
def status(_: Context, cluster: str = "", watch: bool = False, probe: bool = False, json: bool = False) -> None:
    """Show what runs on one screen; ends with 40 where the service is wanted and does not serve."""
    chosen = chosen_cluster(cluster)
    if watch and probe:
        raise UsageError("--probe sends one request", next_move="leave out --watch")
    proof = None
    with Hosts(chosen) as hosts:
        found, silent = _watched(chosen, hosts, json=json) if watch else look(chosen, hosts)
        error = trouble(chosen, found, silent)
        if not watch and not json:
            answer(as_text(screen(found)))
        if probe and found.serving and error is None:
            proof = prove(chosen, hosts)
    if json and not watch:
        answer_json({**as_data(found), **({"probe": asdict(proof) if proof else None} if probe else {})})
    elif probe:
        answer(traffic.as_text(proof) if proof else "no probe: it takes a service that serves, and every node")
    _end(error or (unproven(proof) if proof else None))


def _end(error: SparkstackError | None) -> None:
    if error is not None:
        raise error


def _watched(chosen: Cluster, hosts: Hosts, *, json: bool) -> tuple[Status, Mapping[str, SparkstackError]]:
    """Look until Ctrl-C; return what the last look found."""
    seen: list[tuple[Status, Mapping[str, SparkstackError]]] = []

    def again() -> Status:
        seen[:] = [look(chosen, hosts)]
        return seen[0][0]

    def end() -> None:
        hosts.close()
        end_all()

    looking = Looking(again, end)
    stream(looking, answer) if json else show_again(looking, answer, Console())
    if not seen:
        raise KeyboardInterrupt
    return seen[0]


@task(
    iterable=["unit", "node"],
    help={
        "cluster": CLUSTER,
        "follow": "go on as lines come (Ctrl-C ends it)",
        "lines": f"lines of each node ({journals.LINES}, or all with --since)",
        "since": 'from this time on, as journalctl reads it, in UTC ("10 min ago", -2h)',
        "unit": "only this unit, as vllm, or a pattern (may be said again)",
        "node": "only this node (may be said again)",
        "json": JSON,
    },
)
@command
def logs(
    _: Context,
    cluster: str = "",
    follow: bool = False,
    lines: int = -1,
    since: str = "",
    unit: list[str] | None = None,
    node: list[str] | None = None,
    json: bool = False,
) -> None:
    """Show the journals of our units on all nodes, merged by time, with the model server's real error first."""
    chosen = chosen_cluster(cluster)
    wanted = journals.Wanted(tuple(unit or ()), tuple(node or ()), lines if lines >= 0 else None, since)
    with Hosts(chosen) as hosts:
        try:
            found = journals.merged(chosen, hosts, wanted)
            _show(found, wanted, json=json, follow=follow)
            silent = dict(found.silent)
            if follow:
                silent |= journals.follow(chosen, hosts, wanted, found, lambda entry: _show_one(entry, json=json))
        except KeyboardInterrupt:
            if not follow:
                raise
            return  # Ctrl-C is how following ends
    _name_silent(silent)


def _show(found: journals.Merged, wanted: journals.Wanted, *, json: bool, follow: bool) -> None:
    """Show the entries that are there; to a program that follows, an object a line, as those that come."""
    entries, fault = journals.latest(found.entries, wanted.most), journals.fault(found.entries)
    if json and not follow:
        answer_json(journals.as_page(entries, fault, found.silent))
        return
    if fault is not None and not json:
        answer(journals.heading(fault))
    for entry in entries:
        _show_one(entry, json=json)
    if not entries and not json and not found.silent:
        answer("no lines yet")


def _show_one(entry: journals.Entry, *, json: bool) -> None:
    answer(notation.dumps(journals.as_data(entry)) if json else journals.as_text(entry))


def _name_silent(silent: Mapping[str, SparkstackError]) -> None:
    """End with the first node's error; the others are named before it."""
    first, *others = silent.values() or [None]
    for error in others:
        if error is not None:
            Screen().line(f"no answer either: {error.node}: {error.cause} ({error.exit_code})", style="red")
    _end(first)
