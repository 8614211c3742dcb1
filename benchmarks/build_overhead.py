"""Ours against plain `pip wheel` on one source distribution: are the bytes the same twice, and what does it cost?

    .venv/bin/python -m benchmarks.build_overhead

README.md beside this file says what is compared with what.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import workshop
from benchmarks.machine import machine
from benchmarks.workshop import BARE, CLOCKED, FOLDERS, OURS, Run, Workshop
from build.reproduce import compare

RESULTS = Path(__file__).parent / "results"
TARGET = 1.05
"""What ours may take of the bare build, in the median."""
NAMES = {OURS: "ours", BARE: "`pip wheel`", CLOCKED: "`pip wheel`, `SOURCE_DATE_EPOCH` set"}
LONG_ENOUGH = 60.0
"""Seconds of a bare build below which the ratio says little."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write; return 0 when bytes and time are as promised."""
    wish = _arguments(argv)
    shop = workshop.make(wish.jobs)
    _say("once each, not counted: fetches what is fetched, fills the caches")
    done = [_built(shop, OURS, FOLDERS[0]), _built(shop, BARE, FOLDERS[0])]
    pairs = [_pair(shop, number) for number in range(1, wish.pairs + 1)]
    done += [run for pair in pairs for run in pair]
    if not wish.short:
        _say("once more by pip, its clock fixed")
        done += [_built(shop, CLOCKED, name) for name in FOLDERS]
    result = _result(wish.jobs, pairs, done, shop)
    wish.output.parent.mkdir(parents=True, exist_ok=True)
    wish.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(table(result))
    return 0 if result["as_promised"] else 1


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.build_overhead", description=__doc__)
    parser.add_argument("--pairs", type=int, default=5, help="pairs of builds that are timed (5)")
    parser.add_argument("--jobs", type=int, default=1, help="compilers at once, in both (1)")
    parser.add_argument("--short", action="store_true", help="leave out the two builds by pip with a fixed clock")
    parser.add_argument("--output", type=Path, default=RESULTS / "build_overhead.json", help="where the result goes")
    return parser.parse_args(argv)


def _pair(shop: Workshop, number: int) -> tuple[Run, Run]:
    """Build once each in one of the two folders, in the order that the pair before had not."""
    name, first = FOLDERS[number % 2], (OURS, BARE) if number % 2 else (BARE, OURS)
    _say(f"pair {number}, in folder {name}")
    runs = {kind: _built(shop, kind, name) for kind in first}
    return runs[OURS], runs[BARE]


def _built(shop: Workshop, kind: str, name: str) -> Run:
    run = shop.build(kind, name)
    _say(f"  {kind}: {run.seconds:.1f} s, sha256 {run.sha256[:12]}")
    return run


def _result(jobs: int, pairs: Sequence[tuple[Run, Run]], done: Sequence[Run], shop: Workshop) -> dict[str, Any]:
    recipe = workshop.recipe()
    ratios = {
        "environment made by both": _spread(ours.seconds / bare.seconds for ours, bare in pairs),
        "environment there for pip": _spread(
            ours.seconds / (bare.seconds - bare.prepare_seconds) for ours, bare in pairs
        ),
        "processor time": _spread(ours.cpu_seconds / bare.cpu_seconds for ours, bare in pairs),
    }
    kinds = {run.kind: _bytes(shop, run.kind, done) for run in done}
    long_enough = statistics.median(bare.seconds - bare.prepare_seconds for _, bare in pairs) >= LONG_ENOUGH
    within = ratios["environment made by both"]["median"] <= TARGET
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "subject": str(recipe.source.sdist),
        "jobs": jobs,
        "machine": machine(),
        "ratios": ratios,
        "long_enough": long_enough,
        "bytes": kinds,
        "as_promised": within and long_enough and kinds[OURS]["same"],
        "pairs": [[asdict(ours), asdict(bare)] for ours, bare in pairs],
    }


def _spread(values: Iterable[float]) -> dict[str, float]:
    found = sorted(round(value, 4) for value in values)
    return {"median": round(statistics.median(found), 4), "least": found[0], "most": found[-1]}


def _bytes(shop: Workshop, kind: str, done: Sequence[Run]) -> dict[str, Any]:
    """Say which hashes a kind gave in which folder, and what differs first between two folders."""
    hashes = {name: sorted({run.sha256 for run in done if (run.kind, run.folder) == (kind, name)}) for name in FOLDERS}
    verdict = compare(*(shop.wheel(kind, name) for name in FOLDERS))
    same = len({sha256 for found in hashes.values() for sha256 in found}) == 1
    return {"same": same, "level": verdict.level, "differs": verdict.differs, "sha256": hashes}


def table(result: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    title = f"{result['subject']}, compilers at once: {result['jobs']}, {result['machine']['processor']}\n"
    return "\n".join(
        [
            title,
            _markdown(("pair", "ours, s", "bare, s", "of which environment, s", "ratio"), _times(result["pairs"])),
            _markdown(("ours to bare", "median", "spread"), _ratios(result["ratios"])),
            _markdown(("in two folders", "bytes", "level", "first difference", "sha256"), _kinds(result["bytes"])),
        ]
    )


def _markdown(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def _times(pairs: Sequence[Sequence[dict[str, Any]]]) -> Iterable[Sequence[object]]:
    for number, (ours, bare) in enumerate(pairs, 1):
        ratio = f"{ours['seconds'] / bare['seconds']:.3f}"
        yield number, ours["seconds"], bare["seconds"], bare["prepare_seconds"], ratio


def _ratios(ratios: dict[str, dict[str, float]]) -> Iterable[Sequence[object]]:
    for name, one in ratios.items():
        yield name, f"{one['median']:.3f}", f"{one['least']:.3f} to {one['most']:.3f}"


def _kinds(kinds: dict[str, dict[str, Any]]) -> Iterable[Sequence[object]]:
    for kind, one in kinds.items():
        hashes = " / ".join(sha256[:12] for found in one["sha256"].values() for sha256 in found)
        yield NAMES[kind], "the same" if one["same"] else "differ", one["level"], one["differs"] or "none", hashes


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
