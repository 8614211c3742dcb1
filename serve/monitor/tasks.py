"""The task of serve/monitor: monitor."""

from __future__ import annotations

import shlex
from pathlib import Path

from invoke.context import Context
from invoke.tasks import task

from core.choice import chosen_cluster
from core.command import Options, answer, command, converge
from core.config import Cluster, shown
from core.facts import Facts, NodeFacts
from core.plan import Plan
from core.question import Question
from core.remote import Hosts
from serve.monitor import targets
from serve.monitor.dashboard import FILE
from serve.monitor.plan import PACKAGES, plan_monitor, plan_off
from serve.monitor.scrape import PROMETHEUS_PORT, required

HELP = {
    "cluster": "which machines (config/clusters)",
    "off": "stop it and take it off, with the metrics kept so far",
    "dry-run": "show the plan and stop",
    "json": "answer as JSON",
    "facts": "plan from a saved file, without touching a node",
}


@task(help=HELP)
@command
def monitor(
    _: Context,
    cluster: str = "",
    off: bool = False,
    dry_run: bool = False,
    json: bool = False,
    facts: str = "",
) -> None:
    """Have Prometheus on the head watch vLLM, Ray and the nodes; ends when every target is up."""
    chosen = chosen_cluster(cluster)
    options = Options(dry_run, json, Path(facts) if facts else None)
    latest: dict[str, NodeFacts] = {}

    def planner(seen: Facts) -> Plan:
        latest.update(seen)
        return plan_off(chosen, seen) if off else plan_monitor(chosen, seen)

    plan = converge("monitor", chosen, Question(packages=PACKAGES), planner, options)
    if options.plan_only:
        return
    if not off:
        _look(chosen, latest, options)
    if not (options.as_json or plan.empty):
        answer("\n".join(f"note: {note}" for note in plan.notes))


def _look(cluster: Cluster, facts: Facts, options: Options) -> None:
    """Say what Prometheus sees now, and how to see it. Raises NotServing where a target that has to be up is not."""
    head, wanted = cluster.head.name, required(cluster, facts)
    with Hosts(cluster) as hosts:
        done = hosts[head].run(targets.ask_argv())
    if not targets.all_up(wanted, done):
        raise targets.not_up(head, wanted, done)
    if not options.as_json:
        seen, _ = targets.parse(done.out)
        answer("\n".join((targets.table(seen), *how_to_see(cluster))))


def how_to_see(cluster: Cluster) -> tuple[str, ...]:
    """Return what a person does next: the tunnel to Prometheus, and the dashboard's file."""
    url = f"http://127.0.0.1:{PROMETHEUS_PORT}"
    way = f"on {cluster.head.name}" if cluster.head.local else f"through: {shlex.join(tunnel(cluster))}"
    return f"Prometheus: {url} {way}", f"dashboard:  {shown(FILE)} (in Grafana: Dashboards, New, Import)"


def tunnel(cluster: Cluster) -> tuple[str, ...]:
    """Return the command that brings Prometheus to this host's own loopback."""
    head, forward = cluster.head, f"{PROMETHEUS_PORT}:127.0.0.1:{PROMETHEUS_PORT}"
    port = () if head.ssh_port == 22 else ("-p", str(head.ssh_port))
    identity = () if cluster.identity is None else ("-i", str(cluster.identity))
    return ("ssh", "-N", "-L", forward, *port, *identity, f"{cluster.user}@{head.management}")
