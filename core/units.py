"""Units of ours on a node: which run, and how they are stopped, so that nothing of them stays in systemd's list."""

from __future__ import annotations

from collections.abc import Sequence

from core.facts import NodeFacts

PREFIX = "sparkstack-"
"""How the names of our units begin."""
RUNNING = ("active", "activating", "reloading", "deactivating")
"""States of a unit in which processes of it may live."""
SUPERVISOR = "sparkstack-supervisor"
RAY_HEAD, RAY_WORKER, VLLM, RANK = "sparkstack-ray-head", "sparkstack-ray-worker", "sparkstack-vllm", "sparkstack-rank"
ENGINE = (RAY_HEAD, RAY_WORKER, RANK, VLLM)
"""Units that hold memory and ports while a model is served; the supervisors start and end them."""
PROXY = "sparkstack-proxy"
SERVICE = (SUPERVISOR, PROXY, *ENGINE)
"""Units that `invoke serve` makes."""
PROMETHEUS, NODE_EXPORTER = "sparkstack-prometheus", "sparkstack-node-exporter"
MONITOR = (PROMETHEUS, NODE_EXPORTER)
"""Units that watch and serve nothing: `invoke monitor` starts and stops them."""

# systemctl fails for a unit that nobody has loaded; it is down, which is what is wanted. What ends with another code
# than 0 when it is told to end is no failure, and is not shown as one afterwards.
_STOP = """
for unit do
    shift
    case $(systemctl show --property=LoadState,ActiveState "$unit") in
        *=not-found*=inactive* | *=inactive*=not-found*) ;;
        *) set -- "$@" "$unit" ;;
    esac
done
[ $# -eq 0 ] || systemctl stop "$@" || exit
for unit do
    ! systemctl --quiet is-failed "$unit" || systemctl reset-failed "$unit" || exit
done
"""


def in_service(seen: NodeFacts) -> list[str]:
    """Name the units of a service that run on a node."""
    return [name for name in SERVICE if runs(seen, name)]


def runs(seen: NodeFacts, name: str) -> bool:
    """Say whether a unit runs on a node."""
    unit = seen.units.get(name)
    return unit is not None and unit.active in RUNNING


def stop_argv(units: Sequence[str]) -> tuple[str, ...]:
    """Return the argv that stops units, those that have failed too, and has systemd forget that they failed."""
    return ("sh", "-c", _STOP, "sh", *units)


def clean_argv(unit: str) -> tuple[str, ...]:
    """Return the argv that removes what a stopped unit has kept in its StateDirectory=."""
    return ("systemctl", "clean", "--what=state", f"{unit}.service")
