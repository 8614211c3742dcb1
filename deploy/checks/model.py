"""The model that the profile names: the right one, whole, and the same on every node."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from core.facts import NodeFacts
from core.findings import Finding, Severity
from core.question import model_command, model_folder
from deploy.checks.case import Case

WRONG = "vLLM loads it, and answers with another model than was meant"


def revision(case: Case) -> Iterator[Finding]:
    """A node has another repository or commit than the profile names; or the nodes differ; or it still arrives."""
    folder = model_folder(case.cluster, case.profile)
    had = {node.name: _manifest(seen, folder) for node, seen, _ in case.nodes()}
    first = next((found for found in had.values() if found.get("commit")), {})
    for node, seen, _ in case.nodes():
        name, found = node.name, had[node.name]
        fault = _fault(case, found)
        if fault:
            yield Finding(name, fault, _fetch(case), WRONG, Severity.WARNING)
        elif not seen.model_files and _manifest(seen, folder.parent / f".{folder.name}.incoming"):
            yield Finding(name, "its model is still arriving", _fetch(case), "vLLM finds no whole model there")
        elif found and found.get("commit") != first.get("commit"):
            yield Finding(
                name,
                f"its model is {_of(found)}, another node's {_of(first)}",
                _fetch(case),
                "the ranks work with different weights: the answers are noise",
            )


def _manifest(seen: NodeFacts, folder: PurePosixPath) -> Mapping[str, Any]:
    """Return what a fetch noted of the model in a folder; nothing of one that was brought by hand."""
    return seen.models.get(str(folder), {})


def _fault(case: Case, found: Mapping[str, Any]) -> str:
    """Say in what a fetched model differs from the profile. A commit of ModelScope is none of the profile's hub."""
    wanted = case.profile
    if not found or wanted.repository is None:
        return ""
    if found.get("repository") != wanted.repository:
        return f"its model is {_of(found)}, the profile {wanted.name} names {wanted.repository}"
    pinned = wanted.revision if found.get("hub") == "huggingface" else None
    if pinned and pinned not in (found.get("commit"), found.get("revision")):
        return f"its model is {_of(found)}, the profile {wanted.name} names {pinned[:12]}"
    return ""


def _of(found: Mapping[str, Any]) -> str:
    return f"{found.get('repository')} at {str(found.get('commit') or 'an unknown commit')[:12]}"


def _fetch(case: Case) -> str:
    folder = model_folder(case.cluster, case.profile)
    return model_command(case.cluster, case.profile) or f"put the model's files into {folder} on every node"
