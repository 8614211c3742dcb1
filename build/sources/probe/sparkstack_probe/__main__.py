"""`python -m sparkstack_probe`: one JSON object on standard output."""

from __future__ import annotations

import argparse
import json
import platform
import re
import sys

from sparkstack_probe import ProbeError, __version__, default_threads, devices, memory

_UNITS = {"": 0, "KiB": 1, "MiB": 2, "GiB": 3}


def size(text: str) -> int:
    """Turn "256MiB" into bytes."""
    match = re.fullmatch(r"(\d+)\s*(KiB|MiB|GiB|)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size like 256MiB")
    return int(match[1]) * 1024 ** _UNITS[match[2]]


def main() -> int:
    """Measure what the command line asks for; 1 when it cannot be measured."""
    parser = argparse.ArgumentParser(prog="sparkstack-probe", description=__doc__)
    parser.add_argument("--size", type=size, default="256MiB", help="bytes of each array (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=default_threads(), help="default: every CPU, here %(default)s")
    parser.add_argument("--repeats", type=int, default=10, help="default: %(default)s")
    parser.add_argument("--device", action=argparse.BooleanOptionalAction, default=True, help="measure GPUs too")
    given = parser.parse_args()
    if given.threads < 1 or given.repeats < 1:
        parser.error("--threads and --repeats start at 1")
    result = {"probe": __version__, "machine": platform.machine()}
    try:
        result["memory"] = memory(given.size, given.threads, given.repeats)
        if given.device:
            result["devices"] = devices(given.size, given.repeats)
    except ProbeError as error:
        print(f"sparkstack-probe: {error}", file=sys.stderr)
        return 1
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
