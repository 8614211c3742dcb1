"""Work on a stream in a thread of its own, while we go on fetching it: what inflates and hashes lets others run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from threading import Semaphore
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")
DEPTH = 8
"""Blocks that wait between two threads."""


class Behind(Generic[T]):
    """Runs ``work`` on an iterator of the blocks that are put in; its error comes out of put() or result().

    As a context manager: left by an error, the work gets no more blocks and is waited for.
    """

    def __init__(self, work: Callable[[Iterator[bytes]], T]) -> None:
        self._queue: SimpleQueue[bytes | None] = SimpleQueue()
        self._room = Semaphore(DEPTH)
        self._over = False
        self._pool = ThreadPoolExecutor(1)
        self._future: Future[T] = self._pool.submit(self._run, work)

    def __enter__(self) -> Behind[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over = True
        self._queue.put(None)
        self._pool.shutdown()

    def put(self, block: bytes) -> None:
        """Hand a block over, waiting while enough of them wait already. Raises what the work has raised."""
        self._room.acquire()
        if self._over:
            self._room.release()
            self._future.result()
        self._queue.put(block)

    def result(self) -> T:
        """Say that there are no more blocks; return what the work returns."""
        self._queue.put(None)
        return self._future.result()

    def _run(self, work: Callable[[Iterator[bytes]], T]) -> T:
        try:
            return work(self._blocks())
        finally:
            self._over = True
            self._room.release(DEPTH)  # whoever waits to put a block in is not to wait for ever

    def _blocks(self) -> Iterator[bytes]:
        while (block := self._queue.get()) is not None:
            self._room.release()
            if self._over:
                return
            yield block
