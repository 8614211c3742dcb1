"""Names that libraries exchange: those of PyTorch, those of Python, and what the stable ABI says of the latter."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache

from abi3info import DATAS, FUNCTIONS

TORCH = re.compile(
    # mangled: a member of one of PyTorch's namespaces, its vtable or type information, a guard, a thunk, a local name
    r"_Z(?:T[VTISWH]|G[VR]|Th?n?\d+_|Tvn?\d+_n?\d+_)?Z?N?[rVK]*[RO]?(?:2at|3c10|5torch|6caffe2)"
    r"|_Z\d+THP|THP[A-Z]|aoti_torch_|torch_"
)
"""Begins a name that PyTorch's libraries give to extensions: C++ ones, and C ones of its stable ABI."""
PYTHON = re.compile(r"_?Py[A-Z_]")
"""Begins a name of CPython."""
_PART = re.compile(r"\d+")


def of_torch(names: Iterable[str]) -> tuple[str, ...]:
    """Return those of the names that are PyTorch's, sorted."""
    return tuple(sorted(name for name in names if TORCH.match(name)))


def of_python(names: Iterable[str]) -> tuple[str, ...]:
    """Return those of the names that are CPython's, sorted."""
    return tuple(sorted(name for name in names if PYTHON.match(name)))


@cache
def stable_abi() -> Mapping[str, tuple[int, int]]:
    """Return every symbol of the stable ABI of CPython with the version that it is there since."""
    return {symbol.name: (one.added.major, one.added.minor) for symbol, one in (FUNCTIONS | DATAS).items()}


def readable_name(mangled: str) -> str:
    """Return the qualified name in a mangled C++ name, like `c10::cuda::current_device`; others as they are.

    For messages: no parameters, and the whole mangled name where it is not a plain nested one.
    """
    start = re.match(r"_Z(?:T[VTIS])?(N?)[rVK]*[RO]?(?=\d)", mangled)
    if start is None:
        return mangled
    parts: list[str] = []
    at = start.end()
    while (length := _PART.match(mangled, at)) and len(parts) < 9:
        at = length.end() + int(length[0])
        parts.append(mangled[length.end() : at])
    return "::".join(parts) if len(parts) > bool(start[1]) else mangled
