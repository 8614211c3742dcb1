"""What wheels cost to read and to pack: GPU architectures, whole sheets, and the one byte form beside `zip -6`.

    .venv/bin/python -m benchmarks.wheel_reading

README.md beside this file says what is compared with what.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

from packaging.utils import parse_wheel_filename

from benchmarks.machine import load, machine
from build.index import platform_flags
from core.config import WORK, load_stack
from core.process import run
from wheels.canonical import canonicalize, pack, unpack
from wheels.fatbin import device_code_of_wheel, in_words
from wheels.manifest import folder, sha256_of
from wheels.manifest import load as load_manifest
from wheels.sheet import read_sheet, sheet_of
from wheels.target import Target

RESULTS = Path(__file__).parent / "results"
DOWNLOADS = WORK / "benchmark" / "wheels"
SPARK = Target(architecture="aarch64", python=(3, 12), glibc=(2, 39))
SUBJECT = "vllm==0.33.0"
REPACKED = (SUBJECT, "ray==2.60.0", "numpy==2.3.5", "transformers==5.19.0", "grpcio==1.85.1")
"""Many small files, few large ones, and GPU code: wheels for a Spark."""
MOST_SECONDS = 4.0
"""What reading the GPU architectures of the subject may take, in the median."""
MOST_RATIO = 1.3
"""What the one form may take of `zip -6`, in the worst median."""
EPOCH = 1_764_547_200


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write; return 0 when both are as promised."""
    wish = _arguments(argv)
    wheels = _fetched(REPACKED)
    result: dict[str, Any] = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": machine(),
        "load_before": load(),
        "reading": _reading(wheels[SUBJECT], wish.rounds),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "stack": _stack(),
        "packing": [_packing(pin, wheel, wish.rounds) for pin, wheel in wheels.items()],
    }
    fast = result["reading"]["GPU architectures"]["median"] <= MOST_SECONDS
    result["as_promised"] = fast and all(one["ratio"] <= MOST_RATIO for one in result["packing"])
    wish.output.parent.mkdir(parents=True, exist_ok=True)
    wish.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(table(result))
    return 0 if result["as_promised"] else 1


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wheel_reading", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="times that each is measured (5)")
    parser.add_argument("--output", type=Path, default=RESULTS / "wheel_reading.json", help="where the result goes")
    return parser.parse_args(argv)


def _fetched(pins: Sequence[str]) -> dict[str, Path]:
    """Return the wheels, downloaded once."""
    DOWNLOADS.mkdir(parents=True, exist_ok=True)
    missing = [pin for pin in pins if pin not in _there()]
    if missing:
        flags = ("--no-deps", "--only-binary=:all:", f"--dest={DOWNLOADS}", *platform_flags(SPARK))
        run([sys.executable, "-m", "pip", "download", "--quiet", *flags, *missing], timeout=1800)
    return {pin: _there()[pin] for pin in pins}


def _there() -> dict[str, Path]:
    names = {path: parse_wheel_filename(path.name) for path in DOWNLOADS.glob("*.whl")}
    return {f"{name}=={version}": path for path, (name, version, _, _) in names.items()}


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return seconds on the wall and of the processors of this process."""
    began, used = perf_counter(), process_time()
    work()
    return perf_counter() - began, process_time() - used


def _spread(values: Iterable[float]) -> dict[str, float]:
    found = sorted(round(value, 3) for value in values)
    return {"median": round(statistics.median(found), 3), "least": found[0], "most": found[-1]}


def _reading(wheel: Path, rounds: int) -> dict[str, Any]:
    """Read the subject again and again, nothing kept: its GPU code alone, and all that a gate asks."""
    _say(f"reading {wheel.name}")
    sha256 = sha256_of(wheel)  # also fills the file cache
    code = [_timed(lambda: device_code_of_wheel(wheel)) for _ in range(rounds)]
    sheet = [_timed(lambda: read_sheet(wheel, sha256)) for _ in range(rounds)]
    return {
        "subject": wheel.name,
        "sha256": sha256,
        "size": wheel.stat().st_size,
        "GPU architectures": _spread(wall for wall, _ in code),
        "GPU architectures, processor time": _spread(used for _, used in code),
        "whole sheet": _spread(wall for wall, _ in sheet),
        "whole sheet, processor time": _spread(used for _, used in sheet),
        "found": {name: in_words(codes) for name, codes in device_code_of_wheel(wheel).items()},
    }


def _stack() -> dict[str, Any] | None:
    """Read all wheels of the stack that runs here, twice: nothing kept, and all kept. None where they are not there."""
    stack, target = load_stack("cpu"), Target(architecture="x86_64", python=(3, 11))
    manifest = load_manifest(stack, target)
    if manifest is None:
        return None
    place = folder(stack, target)
    _say(f"reading {len(manifest.wheels)} wheels of the stack {stack.name}")
    with tempfile.TemporaryDirectory() as work:

        def read() -> None:
            for wheel in manifest.wheels:
                sheet_of(place / wheel.filename, wheel.sha256, work=Path(work))

        first, again = _timed(read), _timed(read)
    return {
        "wheels": len(manifest.wheels),
        "size": manifest.size,
        "first": round(first[0], 2),
        "first, processor time": round(first[1], 2),
        "again": round(again[0], 2),
    }


def _packing(pin: str, wheel: Path, rounds: int) -> dict[str, Any]:
    """Pack the same files in the one form and by `zip -6`, in turn."""
    _say(f"packing {wheel.name}")
    with tempfile.TemporaryDirectory(dir=DOWNLOADS) as name:
        work = Path(name)
        unpack(wheel, work / "tree")
        ours, folders, zipped = [], [], []
        for _ in range(rounds):
            ours.append(_timed(lambda: canonicalize(wheel, work / "ours.whl", EPOCH))[0])
            folders.append(_timed(lambda: pack(work / "tree", work / "folder.whl", EPOCH))[0])
            zipped.append(_timed(lambda: _zip(work))[0])
        sizes = {"size": (work / "ours.whl").stat().st_size, "zip_size": (work / "zip.zip").stat().st_size}
        files = sum(path.is_file() for path in (work / "tree").rglob("*"))
        shutil.rmtree(work / "tree")
    ratio = statistics.median(one / other for one, other in zip(ours, zipped, strict=True))
    seconds = {"from wheel": _spread(ours), "from folder": _spread(folders), "zip -6": _spread(zipped)}
    return {"wheel": pin, "files": files, **sizes, **seconds, "ratio": round(ratio, 3)}


def _zip(work: Path) -> None:
    (work / "zip.zip").unlink(missing_ok=True)
    run(["zip", "-6", "-q", "-r", "-X", str(work / "zip.zip"), "."], cwd=work / "tree", timeout=900)


def table(result: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    reading = result["reading"]
    kinds = ("GPU architectures", "whole sheet")
    title = f"{reading['subject']} ({reading['size'] // 10**6} MB), {result['machine']['processor']}, "
    title += f"{result['machine']['cores']} cores, at most {result['peak_memory_mib']} MiB of memory\n"
    lines = [title, _markdown(("reading", "seconds", "spread", "processor time"), _reading_rows(reading, kinds))]
    if stack := result["stack"]:
        row = (stack["wheels"], stack["size"] // 10**6, stack["first"], stack["again"])
        lines.append(_markdown(("wheels of cpu", "MB", "first, s", "again, s"), [row]))
    head = ("packing", "files", "one form, s", "of its folder, s", "`zip -6`, s", "ratio")
    lines.append(_markdown(head, map(_packing_row, result["packing"])))
    return "\n".join(lines)


def _reading_rows(reading: dict[str, Any], kinds: Iterable[str]) -> Iterable[Sequence[object]]:
    for kind in kinds:
        one, used = reading[kind], reading[f"{kind}, processor time"]
        yield kind, one["median"], f"{one['least']} to {one['most']}", used["median"]


def _packing_row(one: dict[str, Any]) -> Sequence[object]:
    seconds = [one[key]["median"] for key in ("from wheel", "from folder", "zip -6")]
    return one["wheel"], one["files"], *seconds, one["ratio"]


def _markdown(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
