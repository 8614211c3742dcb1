"""Readiness is a generated token through every rank (core/token.py asks), and what stands in its way if none comes."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from core.errors import NotServing
from core.process import Completed


@dataclass(frozen=True)
class Readiness:
    """The answer of one question for a token."""

    tokens: int
    error: str
    units: dict[str, str]
    log: str

    @property
    def failed(self) -> list[str]:
        """Units that have given up."""
        return [unit for unit, state in self.units.items() if state == "failed"]


def parse(text: str) -> Readiness:
    """Parse what the question printed; anything that is not its JSON reads as no token, with the text as the error."""
    try:
        data: dict[str, Any] = json.loads(text)
        return Readiness(int(data["tokens"]), str(data["error"]), dict(data["units"]), str(data["log"]))
    except (ValueError, KeyError, TypeError):
        return Readiness(0, text.strip() or "no answer", {}, "")


def has_token(done: Completed) -> bool:
    """Whether a token came. Raises NotServing as soon as a unit has failed: waiting longer would not help."""
    found = parse(done.out)
    if found.failed:
        raise NotServing(
            f"{', '.join(found.failed)} failed: {real_error(found.log)}",
            next_move="invoke logs shows all of it; correct the cause, then run the same command again",
        )
    return found.tokens > 0


def no_token(done: Completed) -> NotServing:
    """Return the error for a wait that came to its end."""
    found = parse(done.out)
    states = ", ".join(f"{unit} {state}" for unit, state in found.units.items())
    return NotServing(
        f"no token came in time ({found.error or 'the API answers without tokens'}; {states})",
        next_move="invoke logs shows what it waits for; invoke restart begins anew",
    )


def real_error(log: str) -> str:
    """Return the first exception of a log that names a cause; the ones that point elsewhere come last.

    Without one: the first line of a failed check, of a tool's fatal error or of the loader, else the last line.
    """
    lines = re.findall(r"(?:^|[ \]])((?:\w+\.)*\w*(?:Error|Exception)\b: .+)", log, re.MULTILINE)
    telling = [line for line in lines if "See root cause above" not in line and "Engine core proc" not in line]
    other = re.findall(r"(Check failed: .+|\w+ fatal +: .+|.*error while loading shared libraries.*)", log)
    last = (log.strip().splitlines() or ["it left no line in the journal"])[-1]
    return str((telling or other or lines or [last])[0]).strip()
