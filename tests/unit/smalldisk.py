"""A disk that is soon full."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from core.process import run


@contextmanager
def mounted(place: Path, size: str = "400k") -> Iterator[Path]:
    """Mount a file system of that size; skip the test where this host does not let us."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    place.mkdir()
    if run(["mount", "-t", "tmpfs", "-o", f"size={size}", "sparkstack-test", str(place)], check=False).code:
        pytest.skip("this host does not let us mount")
    try:
        yield place
    finally:
        run(["umount", "--lazy", str(place)])
