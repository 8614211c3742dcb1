"""Ours against `skopeo copy` and `umoci unpack`: one distribution out of an image of eight layers in a real registry.

    .venv/bin/python -m benchmarks.image_extract

README.md beside this file says what is compared with what.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import registry
from benchmarks.machine import load, machine
from core.config import WORK
from core.process import run
from wheels.canonical import EARLIEST
from wheels.images.image import Wanted, extract_files
from wheels.images.oci import open_image
from wheels.installed import rebuild

RESULTS = Path(__file__).parent / "results"
PLATFORM = "linux/amd64"
LAYERS = (
    ("flashinfer-python==0.7.2.post1", "lxml==6.1.3"),
    ("numpy==2.4.6", "debugpy==1.8.22"),
    ("scipy==1.17.1",),
    ("opencv-python-headless==5.0.0.93",),
    ("scikit-learn==1.9.1", "grpcio==1.85.1"),
    ("pandas==3.1.1", "matplotlib==3.11.2"),
    ("ray==2.60.0",),
    ("jupyterlab==4.6.6", "cmake==4.4.4"),
)
"""What each layer holds, the lowest first."""
CASES = {"top": "cmake", "middle": "scikit-learn", "bottom": "flashinfer-python"}
TARGETS = {"top": 0.5, "middle": 0.5, "bottom": 1.15}
"""What ours may take of theirs, in the median."""
MOST_MEMORY = 200
"""MB that ours may take, also for a layer of two GB."""
LARGE = 2 * 1024**3


@dataclass(frozen=True)
class Run:
    """One run: seconds of wall clock; bytes fetched; memory at its most, in MB, and seconds without the wheel for ours.

    ``load`` is the machine's before it began.
    """

    kind: str
    case: str
    seconds: float
    fetched: int
    load: float
    memory: int = 0
    files_seconds: float = 0.0


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write; return 0 when time, bytes and memory are as promised."""
    wish = _arguments(argv)
    if wish.take:
        return _take(*wish.take)
    shop = WORK / "benchmark" / "images"
    shutil.rmtree(shop, ignore_errors=True)
    with registry.running(shop / "registry") as host:
        _say("making the images")
        _push(_image(shop), f"{host}/made:eight")
        _push(_large(shop), f"{host}/made:large")
        _say("once each, not counted")
        _round(shop, host, "middle", 0)
        runs = [run for number in range(wish.rounds) for case in CASES for run in _round(shop, host, case, number)]
        large = _ours(shop, f"{host}/made:large", "large", "large")
    result = _result(runs, large, _sizes(shop))
    wish.output.parent.mkdir(parents=True, exist_ok=True)
    wish.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(shop)
    sys.stdout.write(table(result))
    return 0 if result["as_promised"] else 1


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.image_extract", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="pairs of runs of each case that are timed (3)")
    parser.add_argument("--output", type=Path, default=RESULTS / "image_extract.json", help="where the result goes")
    parser.add_argument("--take", nargs=3, metavar=("IMAGE", "NAME", "FOLDER"), help="what one run of ours does")
    return parser.parse_args(argv)


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


# images


def _image(shop: Path) -> str:
    """Make the image of eight layers and return its reference."""
    image = f"{shop / 'eight'}:made"
    run(["umoci", "init", "--layout", str(shop / "eight")])
    run(["umoci", "new", "--image", image])
    for number, pins in enumerate(LAYERS):
        root = shop / f"root-{number}"
        flags = ("--quiet", "--no-deps", "--no-compile", "--ignore-installed", "--only-binary=:all:")
        places = ("--prefix", "/usr/local", "--root", str(root))
        run([sys.executable, "-m", "pip", "install", *flags, *places, *pins], timeout=900)
        _add(image, root, shop / "bundle")
    return f"oci:{image}"


def _add(image: str, root: Path, bundle: Path) -> None:
    """Make what is in a folder the next layer."""
    run(["umoci", "unpack", "--image", image, str(bundle)], timeout=600)
    run(["cp", "--archive", f"{root}/.", str(bundle / "rootfs")])
    run(["umoci", "repack", "--image", image, str(bundle)], timeout=1200)
    shutil.rmtree(bundle)
    shutil.rmtree(root)


def _large(shop: Path) -> str:
    """Make an image of one layer of two GB, a distribution among what the other image holds, again and again."""
    image, root = f"{shop / 'large'}:made", shop / "large-root"
    site = root / "usr/lib/python3/dist-packages"
    (site / "large-1.0.dist-info").mkdir(parents=True)
    rows = [f"large/{number},," for number in range(2)]
    (site / "large-1.0.dist-info" / "RECORD").write_text("\n".join([*rows, "large-1.0.dist-info/RECORD,,", ""]))
    (site / "large").mkdir()
    run(["umoci", "init", "--layout", str(shop / "large")])
    run(["umoci", "new", "--image", image])
    size, number = 0, 0
    blobs = sorted((shop / "eight" / "blobs" / "sha256").iterdir(), key=lambda path: -path.stat().st_size)
    while size < LARGE:
        target = site / "large" / str(number)
        content = bytes(range(256)) * 4096 if number % 4 == 3 else blobs[number % 8].read_bytes()
        target.write_bytes(content)
        size, number = size + len(content), number + 1
    _add(image, root, shop / "bundle")
    return f"oci:{image}"


def _push(source: str, target: str) -> None:
    run(["skopeo", "--insecure-policy", "copy", "--dest-tls-verify=false", source, f"docker://{target}"], timeout=900)


def _sizes(shop: Path) -> list[int]:
    """Return the stored bytes of the eight layers, the lowest first."""
    with open_image(f"oci:{shop / 'eight'}:made", _say) as blobs:
        return [layer.blob.size for layer in blobs.image(PLATFORM).layers]


# runs


def _round(shop: Path, host: str, case: str, number: int) -> Iterator[Run]:
    """Yield one run of each, in the order that the round before had not."""
    both = (_ours, _theirs) if number % 2 else (_theirs, _ours)
    made = [one(shop, f"{host}/made:eight", case, CASES[case]) for one in both]
    _say(f"{case}: " + ", ".join(f"{one.kind} {one.seconds:.1f} s" for one in made))
    yield from made


def _ours(shop: Path, reference: str, case: str, name: str) -> Run:
    folder, before = shop / "ours", load()
    start = time.monotonic()
    done = run([sys.executable, "-m", "benchmarks.image_extract", "--take", reference, name, str(folder)])
    seconds = time.monotonic() - start
    said = json.loads(done.out.splitlines()[-1])
    fetched = sum(path.stat().st_size for path in (folder / "work" / "blobs" / "sha256").iterdir())
    shutil.rmtree(folder)
    without = round(seconds - said["wheel_seconds"], 2)
    return Run("ours", case, round(seconds, 2), fetched, before, said["memory"], without)


def _take(reference: str, name: str, place: str) -> int:
    """Do what one run of ours does: take the files out, make the wheel of them; say what that took."""
    folder = Path(place)
    with open_image(reference, _say, work=folder / "work") as blobs:
        image = blobs.image(PLATFORM)
        (found,) = extract_files(blobs, image, [Wanted(name)], folder / "root", _say)
    start = time.monotonic()
    if found.name != "large":  # its files have no hashes: no wheel can be made of them
        rebuild(folder / "root", found, folder / "wheels", epoch=EARLIEST)
    said = {"memory": _memory(), "wheel_seconds": time.monotonic() - start}
    sys.stdout.write(json.dumps(said) + "\n")
    return 0


def _memory() -> int:
    """Return the most memory of this process so far, in MB; getrusage() would count what its parent had, too."""
    found = re.search(r"^VmHWM:\s*(\d+) kB$", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    assert found
    return int(found[1]) // 1000


def _theirs(shop: Path, reference: str, case: str, name: str) -> Run:
    folder, before = shop / "theirs", load()
    folder.mkdir()
    layout = f"{folder / 'layout'}:made"
    start = time.monotonic()
    copy = ("copy", "--src-tls-verify=false", f"docker://{reference}", f"oci:{layout}")
    run(["skopeo", "--insecure-policy", *copy], timeout=900)
    run(["umoci", "unpack", "--image", layout, str(folder / "bundle")], timeout=900)
    seconds = time.monotonic() - start
    site = folder / "bundle" / "rootfs" / "usr" / "local" / "lib"
    if not any(site.glob(f"*/*/{name.replace('-', '_')}-*.dist-info")):
        raise ValueError(f"{name} is not where it should be")
    fetched = sum(path.stat().st_size for path in (folder / "layout" / "blobs" / "sha256").iterdir())
    shutil.rmtree(folder)
    return Run("theirs", case, round(seconds, 2), fetched, before)


# result


def _result(runs: Sequence[Run], large: Run, sizes: Sequence[int]) -> dict[str, Any]:
    cases = {case: _case([one for one in runs if one.case == case], TARGETS[case]) for case in CASES}
    memory = max(one.memory for one in (*runs, large))
    promised = memory < MOST_MEMORY and all(
        case["files_ratio"]["median"] <= case["target"] and case["fetched_ours"] <= case["layers_needed"]
        for case in (dict(cases[name], layers_needed=_needed(name, sizes)) for name in CASES)
    )
    return {
        "measured": datetime.now(UTC).strftime("%Y-%m"),
        "machine": machine(),
        "tools": {tool: run([tool, "--version"]).out.strip() for tool in ("skopeo", "umoci")},
        "layers": [{"pins": pins, "bytes": size} for pins, size in zip(LAYERS, sizes, strict=True)],
        "cases": cases,
        "memory_mb": memory,
        "large_layer": {**asdict(large), "most_mb": MOST_MEMORY},
        "as_promised": promised,
        "runs": [asdict(one) for one in runs],
    }


def _needed(case: str, sizes: Sequence[int]) -> int:
    """Return the bytes of the layers from the top to the one that holds it; documents are some kilobytes."""
    (lowest,) = [number for number, pins in enumerate(LAYERS) if any(CASES[case] == pin.split("==")[0] for pin in pins)]
    return sum(sizes[lowest:]) + 100_000


def _case(runs: Sequence[Run], target: float) -> dict[str, Any]:
    ours = [one for one in runs if one.kind == "ours"]
    theirs = [one for one in runs if one.kind == "theirs"]
    pairs = list(zip(ours, theirs, strict=True))
    return {
        "target": target,
        "files_ratio": _spread([mine.files_seconds / other.seconds for mine, other in pairs]),
        "wheel_ratio": _spread([mine.seconds / other.seconds for mine, other in pairs]),
        "ours_seconds": _spread([one.files_seconds for one in ours]),
        "wheel_seconds": _spread([one.seconds for one in ours]),
        "theirs_seconds": _spread([one.seconds for one in theirs]),
        "fetched_ours": max(one.fetched for one in ours),
        "fetched_theirs": max(one.fetched for one in theirs),
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 3),
        "least": round(min(values), 3),
        "most": round(max(values), 3),
    }


def table(result: dict[str, Any]) -> str:
    """Return the result for people, as tables of the README."""
    lines = [
        "| wanted in | ours, s | to a wheel, s | theirs, s | ours to theirs | target | fetched, MB | theirs, MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, case in result["cases"].items():
        ratio = case["files_ratio"]
        seconds = (case[key]["median"] for key in ("ours_seconds", "wheel_seconds", "theirs_seconds"))
        lines.append(
            f"| {name} | "
            + " | ".join(f"{value:.1f}" for value in seconds)
            + f" | {ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f}) | {case['target']} | "
            + f"{case['fetched_ours'] / 1e6:.0f} | {case['fetched_theirs'] / 1e6:.0f} |"
        )
    large = result["large_layer"]
    lines.append(
        f"\nmemory at most {result['memory_mb']} MB; a layer of 2 GB: {large['memory']} MB, {large['seconds']} s"
    )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
