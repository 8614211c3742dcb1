"""The search as it happens: each setting is served, measured and stopped by the suite's own commands.

They are the commands that a user types, with files for cluster and profile, so that what was tried can be repeated.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from core import process
from core.config import ROOT, Cluster, Profile, load_cluster
from core.errors import NotServing
from core.facts import Facts
from core.hand import Hand
from core.plan import Report
from serve.bench.record import Record, load, save
from serve.bench.replicas import share, together
from serve.bench.search import GOALS, Outcome, Space, failed, next_setting, outcome_of, winner
from serve.bench.setting import Parallel, Setting, profile_of
from serve.bench.suite import Suite
from serve.bench.tomltext import alone, evidence, profile_text, toml


@dataclass(frozen=True)
class Tuning:
    """What is searched, for how long, and where everything is kept."""

    cluster: Cluster
    profile: Profile
    suite: Suite
    space: Space
    seconds: float
    folder: Path
    report: Report
    invoke: Callable[[Sequence[str]], None]
    """Runs one of our commands; raises NotServing where it ends badly."""


def space_of(profile: Profile, facts: Facts, nodes: int) -> Space:
    """Return what may be varied here: without a GPU neither graphs nor a share of its memory, on one node no spreading.

    Flags that vLLM would refuse together stay as they are: a fixed size of the KV cache leaves no share to choose.
    """
    gpu = all(seen.gpus for seen in facts.values())
    parallels: tuple[Parallel, ...] = ("one", "replicas", "pipeline", "tensor") if nodes > 1 else ("one",)
    fixed = any(word.startswith("--kv-cache-memory-bytes") for word in profile.flags)
    space = Space(parallels)
    if not gpu:
        return Space(parallels[:3], graphs=(), batched=(), fractions=())
    return Space(parallels, fractions=()) if fixed else space


def tune(tuning: Tuning) -> tuple[Outcome, ...]:
    """Search until nothing is left to try or the time is up; keeps each measurement, and the winners' profiles."""
    done: list[Outcome] = []
    began = monotonic()
    tuning.folder.mkdir(parents=True, exist_ok=True)
    while (setting := next_setting(tuning.space, done, tuning.seconds - (monotonic() - began))) is not None:
        tuning.report(f"{len(done) + 1}. {setting.title}")
        done.append(_try(tuning, setting, len(done) + 1))
        tuning.report(f"   {_short(done[-1])}")
        write_winners(tuning, done)
    return tuple(done)


def _short(one: Outcome) -> str:
    if not one.works:
        return one.trouble or one.error.strip().splitlines()[0][:160]
    return ", ".join(f"{name} {rate:,.1f} tok/s" for name, rate in one.throughput.items())


def _try(tuning: Tuning, setting: Setting, number: int) -> Outcome:
    """Serve and measure one setting, then stop it; what does not come up is an outcome too."""
    began = monotonic()
    clusters = tuple(_clusters(tuning, setting))
    profile = _write(
        tuning.folder / f"{number:02d}.profile.toml",
        profile_text(profile_of(tuning.profile, setting, len(tuning.cluster.nodes), f"{number:02d}"), [setting.title]),
    )
    try:
        for cluster in clusters:
            tuning.invoke(("serve", f"--cluster={cluster}", f"--profile={profile}"))
        record = _measured(tuning, clusters, profile, number)
        save(record.model_copy(update={"title": setting.title}), tuning.folder / f"{number:02d}.json")
        return outcome_of(setting, record, monotonic() - began)
    except NotServing as error:
        return failed(setting, monotonic() - began, f"{error.cause}\n{error.evidence}")
    finally:
        for cluster in clusters:
            tuning.invoke(("stop", f"--cluster={cluster}"))


def _clusters(tuning: Tuning, setting: Setting) -> Iterator[str]:
    """Give what --cluster takes: the cluster itself, the first node of it alone, or each node alone."""
    cluster = tuning.cluster
    if setting.parallel in ("pipeline", "tensor") or len(cluster.nodes) == 1:
        yield cluster.flag
        return
    for node in cluster.nodes if setting.parallel == "replicas" else cluster.nodes[:1]:
        path = _write(tuning.folder / f"{cluster.name}.{node.name}.toml", alone(cluster, node))
        own = load_cluster(str(path))
        own.state.mkdir(parents=True, exist_ok=True)
        if cluster.known_hosts.exists():  # the hosts are those that were enrolled for the whole
            shutil.copyfile(cluster.known_hosts, own.known_hosts)
        yield str(path)


def _measured(tuning: Tuning, clusters: Sequence[str], profile: Path, number: int) -> Record:
    """Measure the suite on the service, or its parts on all services at the same time."""
    parts = []
    for place, cluster in enumerate(clusters):
        suite = share(tuning.suite, place, len(clusters))
        if suite is not None:
            name = tuning.folder / f"{number:02d}.{place}"
            tests = _write(Path(f"{name}.suite.toml"), toml(suite.model_dump(mode="json", exclude_none=True)))
            parts.append((cluster, tests, Path(f"{name}.json")))
    with ThreadPoolExecutor(len(parts)) as pool:
        for done in [pool.submit(_bench, tuning, profile, *part) for part in parts]:
            done.result()
    records = [load(path) for _, _, path in parts]
    return records[0] if len(records) == 1 else together(tuning.suite, records)


def _bench(tuning: Tuning, profile: Path, cluster: str, tests: Path, output: Path) -> None:
    words = (f"--cluster={cluster}", f"--profile={profile}", f"--suite={tests}", f"--output={output}", "--no-probe")
    tuning.invoke(("bench.measure", *words, "--json"))


def run_invoke(words: Sequence[str]) -> None:
    """Run one of our commands. Raises NotServing with what it said when it ends badly."""
    done = process.run((str(Path(sys.executable).with_name("invoke")), *words), cwd=ROOT, check=False)
    if done.code:
        said = next((line for line in done.err.splitlines() if line.startswith("error: ")), done.tail(1))
        raise NotServing(
            f"invoke {words[0]}: {said.removeprefix('error: ')}",
            next_move="the same command by hand shows more",
            evidence=done.tail(60),
        )


def _write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def write_winners(tuning: Tuning, done: Sequence[Outcome]) -> dict[str, Path]:
    """Write a profile for every goal that has a winner, with all that was measured as comments."""
    written: dict[str, Path] = {}
    hand = Hand.mine()
    about = (f"{tuning.cluster.name}, {len(tuning.cluster.nodes)} nodes, {hand.at}, by {hand.by}.",)
    for goal in GOALS:
        best = winner(done, goal)
        if best is not None:
            name = f"{tuning.profile.name}.{goal}"
            profile = profile_of(tuning.profile, best.setting, len(tuning.cluster.nodes), name)
            comments = [*evidence(goal, done, about), *_how(best)]
            written[goal] = _write(tuning.folder / f"{name}.toml", profile_text(profile, comments))
    return written


def _how(best: Outcome) -> Sequence[str]:
    """Return what a reader has to know of a winner that is not one service over all nodes."""
    if best.setting.parallel == "replicas":
        return ("", "Serve it on each node alone, with a cluster file a node, and divide the requests.")
    return ("", "It takes the first node alone.") if best.setting.parallel == "one" else ()
