"""Takes out of texts what must not leave: tokens, keys, passwords; and on demand addresses and names, consistently.

What looks like a secret anywhere is first collected from everything, then replaced everywhere: a token that stands in
an environment file under its name is found in a journal line too, where nothing names it. A secret that is named
nowhere and has no known form is not found; nor is one in another encoding. Pure.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

GONE = "(taken-out)"
LEAST = 6
"""Letters of a value that is looked for elsewhere: shorter ones are replaced only where their name stands."""
NO_SECRETS = frozenset({"disabled", "enabled", "required", "optional", "unlimited", "password", "secret", GONE})

_SUBJECT = (
    r"(?:token(?!s\b|iz)|secret|passw(?:or)?d(?!_sudo)|passphrase|api[_-]?key|access[_-]?key|private[_-]?key|signing[_-]?key"
    r"|credential|authorization|cookie)"
)
# bounded: a node's log may hold one word of half a million letters, and a search begins anew at each of them
_TAIL = r"[A-Za-z0-9_-]{0,64}"
_NAME = rf"[A-Za-z0-9_.-]{{0,64}}?{_SUBJECT}{_TAIL}"
NAMED = re.compile(rf"[A-Za-z0-9_.-]*{_SUBJECT}[A-Za-z0-9_-]*", re.IGNORECASE)
"""What a key is called whose value is a secret."""

_PATTERNS = tuple(
    re.compile(pattern, re.IGNORECASE | re.MULTILINE)
    for pattern in (
        rf"^[ \t]*(?:export[ \t]+)?{_NAME}[ \t]*=[ \t]*(?P<secret>[^\r\n]+)",
        rf"(?P<quote>[\"']){_NAME}=(?P<secret>(?:(?!(?P=quote)).)+)(?P=quote)",
        rf"{_SUBJECT}{_TAIL}[\"']?[ \t]*[:=][ \t]*\"(?P<secret>(?:[^\"\\\r\n]|\\.)+)\"",
        rf"{_SUBJECT}{_TAIL}[\"']?[ \t]*[:=][ \t]*'(?P<secret>[^'\r\n]+)'",
        r"authorization[\"']?[ \t]*[:=][ \t]*[\"']?(?P<secret>[^\r\n\"']+)",
        rf"{_SUBJECT}{_TAIL}[ \t]*[:=][ \t]*(?P<secret>[^\s\"',;&{{}}\[\]()]+)",
        rf"(?<!-)--{_NAME}[ \t]+(?P<secret>\"[^\"\r\n]+\"|'[^'\r\n]+'|(?!-)[^\s\"']+)",
        r"\b(?:bearer|basic)[ \t]+(?P<secret>[A-Za-z0-9._~+/=-]{8,})",
    )
)
_FORMS = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|\b(?:hf|api_org)_[A-Za-z0-9]{16,}|\bsk-[A-Za-z0-9_-]{16,}|\bgh[pousr]_[A-Za-z0-9]{20,}"
    r"|\bgithub_pat_[A-Za-z0-9_]{20,}|\bglpat-[A-Za-z0-9_-]{16,}|\bnvapi-[A-Za-z0-9_-]{16,}|\bxox[a-z]-[A-Za-z0-9-]{10,}"
    r"|\bAKIA[0-9A-Z]{16}\b|\beyJ[A-Za-z0-9_-]{8,2048}+\.[A-Za-z0-9_-]{8,}+\.[A-Za-z0-9_-]*",
    re.DOTALL,
)
_CUT_KEY = re.compile(r"\A.*-----END [A-Z ]*PRIVATE KEY-----", re.DOTALL)
"""A private key whose first line was cut off with what stood before it."""
_USERINFO = re.compile(r"(?<=://)[^/\s@\"']+(?=@)")
_HOME = re.compile(r"(/home/|/Users/)([A-Za-z0-9_][A-Za-z0-9._-]*)")
_IPV4 = re.compile(r"(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?![\d.]*\d)")
_MAC = re.compile(r"(?<![0-9a-fA-F:])(?:[0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}(?![0-9a-fA-F:])")
_IPV6 = re.compile(r"(?<![0-9A-Za-z:.])(?:[0-9a-fA-F]{0,4}:){2,7}(?:\d+(?:\.\d+){3}|[0-9a-fA-F]{0,4})(?![0-9A-Za-z:.])")


def named_out(text: str, take: Callable[[str], object]) -> str:
    """Return a text without what looks like a secret by its name, form or place; hand each one to ``take``.

    What one pattern has taken no other sees: the first word of a secret is none of its own.
    """

    def whole(match: re.Match[str]) -> str:
        take(match[0])
        return GONE

    def value(match: re.Match[str]) -> str:
        found = match["secret"].strip().strip("\"'")
        if not found or GONE in found:
            return match[0]
        take(found)
        begin, end = (place - match.start() for place in match.span("secret"))
        return match[0][:begin] + GONE + match[0][end:]

    text = _USERINFO.sub(whole, _CUT_KEY.sub(whole, _FORMS.sub(whole, text)))
    for pattern in _PATTERNS:
        text = pattern.sub(value, text)
    return text


def secrets_in(text: str) -> set[str]:
    """Return what looks like a secret in a text."""
    found: set[str] = set()
    named_out(text, found.add)
    return found


def secrets_of(data: Any, name: str = "") -> set[str]:
    """Return what looks like a secret in data that JSON can hold; ``name`` is the key that it stands under."""
    if isinstance(data, Mapping):
        return set().union(*(secrets_of(value, str(key)) for key, value in data.items()))
    if isinstance(data, list | tuple):
        return set().union(*(secrets_of(value, name) for value in data))
    if not isinstance(data, str):
        return set()
    return ({data} if NAMED.fullmatch(name) and data.strip() else set()) | secrets_in(data)


@dataclass
class Redactor:
    """Replaces ``secrets``, home folders of others than ``keep``, and with ``names`` and ``networks`` what identifies.

    ``names`` are words and what stands for them; of addresses only those of ``networks`` (/24) are replaced: four
    numbers with dots may be a version too. ``replaced`` counts.
    """

    secrets: frozenset[str]
    keep: frozenset[str] = frozenset()
    names: Mapping[str, str] = field(default_factory=dict)
    networks: tuple[ipaddress.IPv4Network, ...] = ()
    private: bool = False
    replaced: int = 0
    _given: dict[str, dict[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        long = sorted((one for one in self.secrets if len(one) >= LEAST and one.lower() not in NO_SECRETS), key=len)
        self._everywhere = _any_of(reversed(long))
        self._words = _any_of(sorted(self.names, key=len, reverse=True), r"(?<![A-Za-z0-9_])(?:", r")(?![A-Za-z0-9_])")

    def text(self, text: str) -> str:
        """Return a text without what must not leave."""
        text = named_out(text, self._count)
        if self._everywhere:
            text = self._everywhere.sub(self._gone, text)
        text = _HOME.sub(self._home, text)
        return self._privately(text) if self.private else text

    def data(self, data: Any, name: str = "") -> Any:
        """Return data that JSON can hold without what must not leave."""
        if isinstance(data, Mapping):
            return {self.text(str(key)): self.data(value, str(key)) for key, value in data.items()}
        if isinstance(data, list | tuple):
            return [self.data(value, name) for value in data]
        if not isinstance(data, str):
            return data
        if NAMED.fullmatch(name) and data.strip():
            self.replaced += 1
            return GONE
        return self.text(data)

    def lines(self, text: str) -> str:
        """Return JSON lines without what must not leave; a line that is cut off is a text."""
        return "".join(f"{self._line(line)}\n" for line in text.splitlines())

    def _line(self, line: str) -> str:
        try:
            return json.dumps(self.data(json.loads(line)))
        except ValueError:
            return self.text(line)

    def _count(self, _: str) -> None:
        self.replaced += 1

    def _gone(self, match: re.Match[str]) -> str:
        self._count(match[0])
        return GONE

    def _home(self, match: re.Match[str]) -> str:
        name = match[2]
        return match[0] if name in self.keep else match[1] + self._same("home", name, "user-{}")

    def _same(self, kind: str, value: str, form: str) -> str:
        """Return what stands for a value: the same word each time."""
        given = self._given.setdefault(kind, {})
        return given.setdefault(value, form.format(len(given) + 1))

    def _privately(self, text: str) -> str:
        text = _MAC.sub(lambda found: self._same("mac", found[0].lower(), "02:00:00:00:00:{:02x}"), text)
        text = _IPV6.sub(self._ipv6, text)
        text = _IPV4.sub(self._ipv4, text)
        return self._words.sub(lambda found: self.names[found[0]], text) if self._words else text

    def _ipv4(self, match: re.Match[str]) -> str:
        try:
            address = ipaddress.IPv4Address(match[0])
        except ValueError:
            return match[0]
        network = next((one for one in self.networks if address in one), None)
        if network is None:
            return match[0]
        first = self._same("network", str(network), "10.255.{}")
        return f"{first}.{match[0].rpartition('.')[2]}"

    def _ipv6(self, match: re.Match[str]) -> str:
        try:
            address = ipaddress.IPv6Address(match[0])
        except ValueError:
            return match[0]
        if int(address) <= 1:  # unspecified, loopback
            return match[0]
        if address.ipv4_mapped:
            return "::ffff:" + _IPV4.sub(self._ipv4, str(address.ipv4_mapped))
        return self._same("ipv6", str(address), "fd00::{:x}")


def _any_of(words: Iterable[str], before: str = "(?:", after: str = ")") -> re.Pattern[str] | None:
    listed = [re.escape(word) for word in words]
    return re.compile(before + "|".join(listed) + after) if listed else None
