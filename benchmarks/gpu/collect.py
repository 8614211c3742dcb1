"""What a GPU host sent back, as results that `invoke bench.report` and `bench.compare` read.

python -m benchmarks.gpu.collect FOLDER DESTINATION     FOLDER: the unpacked archive
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from core.config import CONFIG
from core.facts import parse as parse_facts
from serve.bench import figures, startup
from serve.bench.fingerprint import node_print
from serve.bench.record import Fingerprint, NodePrint, Record, Run, Sample, save
from serve.bench.report import page
from serve.bench.suite import Suite, load_suite

NODES = ("gx10-beee", "gx10-c6fb")
NOTE = "dummy weights, two machines on one host, NCCL over sockets"


def records(folder: Path) -> Iterator[Record]:
    """Give a record of every setting that was measured."""
    nodes = tuple(_nodes(folder))
    for path in sorted(folder.glob("*.json")):
        data = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(data, dict) and data.get("runs"):
            yield _record(data, nodes)


def _nodes(folder: Path) -> Iterator[NodePrint]:
    rates = _json(folder / "probe.json")
    for place, name in enumerate(NODES):
        capture = _json(folder / f"facts-{name}.json")
        own = {**rates, "devices": {"found": rates.get("devices", {}).get("found", [])[place : place + 1]}}
        yield node_print(parse_facts(name, capture), own)


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def _record(data: Mapping[str, Any], nodes: tuple[NodePrint, ...]) -> Record:
    log = "\n".join(data["logs"].values())
    return Record(
        at=_at(data["runs"][0]["date"]),
        by="benchmarks/gpu",
        title=f"{data['setting']} ({NOTE})",
        suite=_suite(data),
        fingerprint=_fingerprint(data, nodes),
        startup=startup.parse(log),
        runs=tuple(_runs(data)),
        samples=_samples(data),
    )


def _at(date: str) -> str:
    """Turn vLLM's 20261130-140629 into ISO 8601."""
    return f"{date[:4]}-{date[4:6]}-{date[6:8]}T{date[9:11]}:{date[11:13]}:{date[13:15]}Z"


def _suite(data: Mapping[str, Any]) -> Suite:
    """Return the guide's suite as it was run there: fewer single requests, two repeats, perhaps not all tests."""
    ran = {run["test"] for run in data["runs"]}
    guide = load_suite("guide")
    tests = (test.model_copy(update={"prompts": 2}) if test.name == "single" else test for test in guide.tests)
    repeats = max(run["run"] for run in data["runs"])
    return guide.model_copy(update={"tests": tuple(test for test in tests if test.name in ran), "repeats": repeats})


def _fingerprint(data: Mapping[str, Any], nodes: tuple[NodePrint, ...]) -> Fingerprint:
    parallel = dict(zip(data["parallel"][::2], data["parallel"][1::2], strict=True))
    known = json.loads((CONFIG / "models" / "Qwen2.5-32B-Instruct.json").read_text(encoding="utf-8"))
    return Fingerprint(
        cluster="gpu-host",
        nodes=nodes,
        stack="vllm-0.21.0-torch-2.11.0",
        release="none",
        profile=data["setting"],
        model="Qwen2.5-32B-Instruct",
        pipeline_parallel=int(parallel.get("--pipeline-parallel-size", 1)),
        tensor_parallel=int(parallel.get("--tensor-parallel-size", 1)),
        replicas=2 if data["replicas"] else 1,
        executor=data["executor"],
        flags=("--load-format", "dummy", *data["flags"]),
        environment=dict(data["environment"]),
        shape=known,
    )


def _runs(data: Mapping[str, Any]) -> Iterator[Run]:
    """Give the runs; when each began was not noted, so they stand one after the other."""
    clock = 0.0
    for run in data["runs"]:
        found = figures.parse(json.dumps(run), NODES[0])
        yield Run(test=run["test"], began=clock, ended=clock + found.duration, seed=0, figures=found)
        clock += found.duration


def _samples(data: Mapping[str, Any]) -> dict[str, tuple[Sample, ...]]:
    """Return the cards' memory over time; that of the machines is the host's, and says nothing of each."""
    rows = data.get("samples", [])
    made: dict[str, tuple[Sample, ...]] = {}
    for place, name in enumerate(NODES):
        made[name] = tuple(
            Sample(
                at=row["at"] - rows[0]["at"],
                memory_used=0,
                memory_available=0,
                gpu_used=int(float(row["cards"][place].split(",")[0])) * 2**20,
            )
            for row in rows
            if len(row["cards"]) > place
        )
    return made


def main(folder: Path, destination: Path) -> None:
    """Write a result and a report for each setting, beside the guide's flags where those were measured."""
    made = list(records(folder))
    base = next((one for one in made if one.fingerprint.profile == "guide"), None)
    for one in made:
        path = save(one, destination / f"{one.at[:10]}-{one.fingerprint.profile}.json")
        other = base if base is not None and base != one else None
        path.with_suffix(".html").write_text(page(one, other), encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
