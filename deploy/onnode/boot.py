"""Runs modules that come over stdin, so that nothing has to lie on a node before or after: `python3 -c` THIS TEXT.

First a line with a number of bytes, then so many bytes of JSON:

    {"modules": [["deploy.onnode.common", SOURCE], ...], "main": "deploy.onnode.receive", "request": {...}}

Modules come in the order in which they import each other. What follows on stdin is theirs.
"""

from __future__ import annotations

import json
import os
import sys
import types


def exactly(count: int) -> bytes:
    """Read so many bytes, and none of those behind them."""
    found = b""
    while len(found) < count:
        block = os.read(0, count - len(found))
        if not block:
            sys.exit("the connection ended before all was said")
        found += block
    return found


def line() -> bytes:
    """Read a line, and nothing behind it."""
    found = b""
    while not found.endswith(b"\n"):
        found += exactly(1)
    return found


def load(name: str, source: str) -> None:
    """Make a module of a text; packages above it are empty."""
    parent, _, child = name.rpartition(".")
    if parent and parent not in sys.modules:
        load(parent, "")
    module = sys.modules[name] = types.ModuleType(name)
    module.__path__ = []  # a package may hold modules
    if parent:
        setattr(sys.modules[parent], child, module)
    exec(compile(source, name, "exec"), module.__dict__)  # noqa: S102 - what the controller says is what we are here for


def main() -> int:
    """Take what is said, and run it."""
    told = json.loads(exactly(int(line())))
    for name, source in told["modules"]:
        load(name, source)
    code: int = sys.modules[told["main"]].main(told["request"])
    return code


if __name__ == "__main__":
    sys.exit(main())
