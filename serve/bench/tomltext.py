"""Profiles and clusters as TOML text, for the files that a search writes. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from core.config import Cluster, Node, Profile
from serve.bench.search import GOALS, Goal, Outcome, winner


def toml(data: Mapping[str, Any]) -> str:
    """Return nested data as TOML; what is None is left out."""
    lines: list[str] = []
    _table(data, "", lines)
    return "\n".join(lines).strip() + "\n"


def _table(data: Mapping[str, Any], path: str, lines: list[str]) -> None:
    tables = {key: value for key, value in data.items() if isinstance(value, dict) or _rows(value)}
    for key, value in data.items():
        if key not in tables and value is not None:
            lines.append(f"{_key(key)} = {_value(value)}")
    for key, value in tables.items():
        name = f"{path}{_key(key)}"
        for row in value if _rows(value) else [value]:
            lines += ["", f"[[{name}]]" if _rows(value) else f"[{name}]"]
            _table(row, f"{name}.", lines)


def _rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _key(key: str) -> str:
    plain = key.replace("_", "").replace("-", "")
    return key if plain.isascii() and plain.isalnum() else _value(key)


def _value(value: Any) -> str:
    """Return a value; JSON's texts, numbers and lists are TOML's too, once DEL is escaped and no surrogate is."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def profile_text(profile: Profile, comments: Iterable[str]) -> str:
    """Return a profile's file: what speaks for it as comments, then its keys."""
    data = profile.model_dump(mode="json", exclude={"name"})
    return "".join(f"# {line}".rstrip() + "\n" for line in comments) + toml(data)


def alone(cluster: Cluster, node: Node) -> str:
    """Return the file of a cluster of this node alone, out of one of several."""
    data = cluster.model_dump(mode="json", exclude={"nodes", "lab", "name"}, exclude_none=True)
    return toml({"name": f"{cluster.name}.{node.name}", **data, "nodes": [node.model_dump(mode="json")]})


def evidence(goal: Goal, done: Iterable[Outcome], about: Iterable[str]) -> list[str]:
    """Return the comments of a winner's file: what it won at, and all that was measured."""
    outcomes = list(done)
    best = winner(outcomes, goal)
    if best is None:
        return list(about)
    lines = [f"The best for {goal} that invoke tune found: {best.setting.title}.", *about, ""]
    lines += [f"{_marks(one, outcomes)}{one.setting.title}: {_said(one)}" for one in outcomes]
    return lines


def _marks(one: Outcome, outcomes: list[Outcome]) -> str:
    won = [goal for goal in GOALS if (best := winner(outcomes, goal)) is not None and best.setting == one.setting]
    return f"[{', '.join(won)}] " if won else ""


def _said(one: Outcome) -> str:
    if one.trouble:
        return f"stopped: {one.trouble}"
    if one.error:
        return f"did not serve: {(one.error.strip().splitlines() or ['?'])[0][:160]}"
    rates = ", ".join(f"{name} {rate:,.1f} tok/s" for name, rate in one.throughput.items())
    tpot = ", ".join(f"{value:,.1f}" for value in one.tpot.values())
    cache = f"; {one.kv_tokens:,} tokens of KV cache" if one.kv_tokens else ""
    return f"{rates}; TPOT {tpot} ms{cache}"
