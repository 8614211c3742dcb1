"""Access to a capture: the raw answers of one probe, read by pure parsers; what cannot be read names node and fact."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any, TypeVar

from core import parsers
from core.errors import FactsError

T = TypeVar("T")
Raw = Mapping[str, Any]
"""One fact of a capture: {"code": exit code, "out": text} or, of files, {"files": {path: text}}."""
Capture = Mapping[str, Raw]
"""All facts of one node, by name."""

NOT_ASKED: Raw = {"code": 127, "out": "", "files": {}}


class Reader:
    """Access to a capture: needed facts must be there, others read as empty where they were not asked or failed."""

    def __init__(self, node: str, capture: Capture) -> None:
        self._node = node
        self._capture = capture

    def files(self, fact: str) -> Mapping[str, str]:
        """Return path and content of every file of a fact."""
        found: Mapping[str, str] = self._capture.get(fact, NOT_ASKED).get("files", {})
        return found

    def file(self, fact: str) -> str:
        """Return the content of a fact's first file, or nothing."""
        return next(iter(self.files(fact).values()), "")

    def needed(self, fact: str, parser: Callable[[str], T]) -> T:
        """Parse what a command printed. Raises FactsError where it printed nothing."""
        if not self._text(fact).strip():
            raise self._unread(fact, "the node did not answer it", str(self._capture.get(fact, {}).get("error", "")))
        return self.out(fact, parser)

    def out(self, fact: str, parser: Callable[[str], T]) -> T:
        """Parse what a command printed, or nothing."""
        return self.parsed(fact, parser, self._text(fact))

    def asked(self, fact: str, parser: Callable[[str], T]) -> T | None:
        """Return None for what an older capture was not asked."""
        return self.out(fact, parser) if fact in self._capture else None

    def by_name(self, kind: str, parser: Callable[[str], T]) -> dict[str, T]:
        """Parse every fact that is called `KIND NAME`; by that name."""
        found = (fact for fact in self._capture if fact.startswith(f"{kind} "))
        return {fact.removeprefix(f"{kind} "): self.out(fact, parser) for fact in found}

    def memory(self) -> parsers.Memory:
        """Return the machine's memory: the host's, or that of its cgroup where this is smaller."""
        host = self.parsed("meminfo", parsers.meminfo, self.file("meminfo"))
        usage, stat = self.file("cgroup_usage"), self.file("cgroup_stat")
        return self.parsed(
            "cgroup_usage", lambda text: parsers.smaller_memory(host, self.files("cgroup").values(), text, stat), usage
        )

    def records(self, fact: str) -> dict[str, Mapping[str, Any]]:
        """Return the JSON objects of a fact that is files, by the name of each file's folder."""
        found = self.files(fact).items()
        return {PurePosixPath(path).parent.name: self.parsed(fact, parsers.record, text) for path, text in found}

    def parsed(self, fact: str, parser: Callable[[str], T], text: str) -> T:
        """Parse a text that belongs to a fact. Raises FactsError."""
        try:
            return parser(text)
        except (ValueError, IndexError, KeyError, TypeError, RecursionError) as error:
            raise self._unread(fact, str(error), text) from error

    def _text(self, fact: str) -> str:
        return str(self._capture.get(fact, NOT_ASKED).get("out", ""))

    def _unread(self, fact: str, why: str, text: str) -> FactsError:
        return FactsError(
            f"the fact {fact!r} cannot be read: {why}",
            node=self._node,
            next_move="look at it on the node by hand; if it is well formed, report it as a bug",
            evidence=text[:500],
        )
