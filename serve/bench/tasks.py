"""Tasks of serve/bench/: bench.measure (bench for short), bench.compare, bench.report, tune."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from invoke.context import Context
from invoke.tasks import task

from core.choice import chosen_cluster, stack_of
from core.command import Options, answer, answer_json, command, look, show_plan
from core.config import WORK, Cluster, load_profile, shown
from core.errors import UsageError
from core.facts import Facts
from core.hand import Hand
from core.lock import locked
from core.nodelock import held
from core.remote import Hosts
from core.screen import Screen
from serve.bench import compare as comparison
from serve.bench import screen
from serve.bench.record import load
from serve.bench.report import page
from serve.bench.running import (
    Wanted,
    measure,
    question,
    require_room,
    require_serving,
    result_path,
    unmeasured,
)
from serve.bench.search import structures
from serve.bench.suite import Suite, load_suite
from serve.bench.tuning import Tuning, run_invoke, space_of, write_winners
from serve.bench.tuning import tune as search
from serve.cluster import Service


@task(
    help={
        "cluster": "which machines (config/clusters)",
        "profile": "which profile is served (config/profiles)",
        "suite": "which tests (config/suites), or a file of them",
        "title": "what the measurement is called in reports",
        "output": "the file that keeps the figures; without it one in .work/bench",
        "no-probe": "leave out the memory's bandwidth, which takes some seconds",
        "dry-run": "show the plan and stop",
        "json": "answer as JSON",
        "facts": "plan from a saved file, without touching a node",
    }
)
@command
def measure_suite(
    _: Context,
    cluster: str = "",
    profile: str = "",
    suite: str = "guide",
    title: str = "",
    output: str = "",
    no_probe: bool = False,
    dry_run: bool = False,
    json: bool = False,
    facts: str = "",
) -> None:
    """Measure what is served with vLLM's own benchmark; keeps figures, fingerprint and a report."""
    chosen, tests = chosen_cluster(cluster), load_suite(suite)
    options = Options(dry_run, json, Path(facts) if facts else None)
    own = load_profile(profile or chosen.profile)
    asked = question(own)

    def wanted(seen: Facts) -> Wanted:
        service = _service(chosen, profile, seen)
        require_room(service, tests)
        return Wanted(service, tests, title, _output(output, chosen, own.name, tests), not no_probe)

    if options.plan_only:
        with Hosts(chosen) as hosts:
            seen = look(chosen, asked, options, hosts)
        show_plan(unmeasured(wanted(seen), seen), options)
        return
    said = "invoke bench"
    with locked(chosen, said), Hosts(chosen) as hosts, held(chosen, hosts, said, report=Screen().line) as guard:
        seen = look(chosen, asked, options, hosts)
        what = wanted(seen)
        require_serving(what.service, seen)
        made = measure(what, seen, hosts, guard)
    written = _write_page(what.output.with_suffix(".html"), page(made))
    if json:
        answer_json({**screen.as_data(made), "kept": str(what.output), "report": str(written)})
    else:
        answer(f"{screen.table(made)}\nkept: {shown(what.output)}\nreport: {shown(written)}")


def _service(cluster: Cluster, profile: str, seen: Facts) -> Service:
    release = seen[cluster.head.name].current or "none"
    return Service(cluster, stack_of(cluster), load_profile(profile or cluster.profile), release)


def _output(given: str, cluster: Cluster, profile: str, suite: Suite) -> Path:
    if given and not given.endswith(".json"):
        raise UsageError(f"--output {given} does not end in .json", next_move="the report goes beside it as .html")
    return Path(given).absolute() if given else result_path(cluster, profile, suite, Hand.mine())


def _write_page(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@task(
    help={
        "first": "a file that invoke bench has kept",
        "second": "another one, which is judged against the first",
        "tolerance": "share by which a figure may be worse (0.05 is 5 percent)",
        "html": "write the comparison into this file as well",
        "json": "answer as JSON",
    }
)
@command
def compare(
    _: Context, first: str, second: str, tolerance: float = comparison.TOLERANCE, html: str = "", json: bool = False
) -> None:
    """Compare two measurements; ends with 42 where throughput or latency has become worse."""
    one, other = load(Path(first)), load(Path(second))
    found = comparison.ratios(one, other)
    if html:
        _write_page(Path(html), page(other, one))
    if json:
        answer_json(comparison.as_data(one, other, found, tolerance))
    else:
        answer(comparison.as_text(one, other, found, tolerance))
    comparison.refuse_worse(found, tolerance)


@task(
    help={
        "result": "a file that invoke bench has kept",
        "html": "the file to write; without it one beside the result",
        "json": "answer as JSON",
    }
)
@command
def report(_: Context, result: str, html: str = "", json: bool = False) -> None:
    """Write the HTML report of a measurement again, and show its figures."""
    made = load(Path(result))
    written = _write_page(Path(html) if html else Path(result).with_suffix(".html"), page(made))
    answer_json(screen.as_data(made)) if json else answer(f"{screen.table(made)}\nreport: {shown(written)}")


@task(
    help={
        "cluster": "which machines (config/clusters)",
        "profile": "which model; what is not varied stays as it is there (config/profiles)",
        "suite": "which tests (config/suites), or a file of them",
        "minutes": "how long the search may take; a setting that would not fit is not begun",
        "output": "the folder for measurements and profiles; without it one in .work/tune",
        "dry-run": "show what may be tried and stop",
        "json": "answer as JSON",
        "facts": "plan from a saved file, without touching a node",
    }
)
@command
def tune(
    _: Context,
    cluster: str = "",
    profile: str = "",
    suite: str = "tune",
    minutes: int = 120,
    output: str = "",
    dry_run: bool = False,
    json: bool = False,
    facts: str = "",
) -> None:
    """Search for the settings that serve best here; writes a profile for each goal with its evidence."""
    chosen, tests = chosen_cluster(cluster), load_suite(suite)
    options = Options(dry_run, json, Path(facts) if facts else None)
    own = load_profile(profile or chosen.profile)
    with Hosts(chosen) as hosts:
        seen = look(chosen, question(own), options, hosts)
    require_room(_service(chosen, profile, seen), tests)
    space = space_of(own, seen, len(chosen.nodes))
    if options.plan_only:
        first = [setting.title for setting in structures(space)]
        answer_json({"first": first}) if json else answer("\n".join(["tried first, the best go on:", *first]))
        return
    stamp = Hand.mine().at.replace("-", "").replace(":", "")
    folder = Path(output).absolute() if output else WORK / "tune" / f"{stamp}-{chosen.name}-{own.name}"
    tuning = Tuning(chosen, own, tests, space, minutes * 60, folder, Screen().line, run_invoke)
    done = search(tuning)
    winners = {goal: shown(path) for goal, path in write_winners(tuning, done).items()}
    if json:
        answer_json({"tried": [asdict(one) for one in done], "winners": winners})
    else:
        answer("\n".join(f"{goal}: {path}" for goal, path in winners.items()) or "nothing served")
