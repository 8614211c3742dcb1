"""The members of a wheel, several at once: what inflates and hashes them lets other threads run meanwhile."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
MOST = 4
"""Members at once: each may take some memory (wheels/elf.py, IN_MEMORY)."""
SMALL = 256 * 1024
"""Bytes up to which members are worked on by one thread, one after another: handing them out costs more."""


def of_each(members: Sequence[zipfile.ZipInfo], work: Callable[[zipfile.ZipInfo], T]) -> list[T]:
    """Return what ``work`` makes of each member, in their order. The first error that it raises ends all.

    The largest begin first, so that none of them is left for one thread at the end. ``work`` may open members of one
    ZipFile in several threads: zipfile locks what they share.
    """
    order = sorted(range(len(members)), key=lambda place: -members[place].file_size)
    large = [[place] for place in order if members[place].file_size > SMALL]
    groups = [[place for place in order if members[place].file_size <= SMALL], *large]
    pool = ThreadPoolExecutor(max_workers=min(MOST, os.cpu_count() or 1))
    made: dict[int, T] = {}
    try:
        for done in pool.map(lambda group: [(place, work(members[place])) for place in group], groups):
            made.update(done)
    finally:
        pool.shutdown(cancel_futures=True)
    return [made[place] for place in range(len(members))]
