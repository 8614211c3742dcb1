"""What configuration is made of: frozen models that refuse unknown keys, and the kinds of their values."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|KiB|MiB|GiB|TiB)")
_UNITS = {"B": 0, "KiB": 1, "MiB": 2, "GiB": 3, "TiB": 4}


def parse_size(value: object) -> object:
    """Turn "12 GiB" into bytes; leave whole numbers as they are."""
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        raise ValueError('expected a size like "12 GiB"')
    return int(float(match[1]) * 1024 ** _UNITS[match[2]])


def check_folder(path: Path) -> Path:
    """Refuse a folder on a node that is not absolute, is the root itself or needs quoting in a unit file."""
    if not re.fullmatch(r"(/[A-Za-z0-9_][A-Za-z0-9._-]*)+", str(path)):
        raise ValueError("expected an absolute folder of plain characters, like /opt/sparkstack")
    return path


Size = Annotated[int, BeforeValidator(parse_size), Field(gt=0)]
"""Bytes; in TOML a text like "12 GiB" or a whole number."""

Folder = Annotated[Path, AfterValidator(check_folder)]
"""A folder on a node."""
Address = ipaddress.IPv4Address
Subnet = ipaddress.IPv4Network
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$", max_length=63)]
Environment = dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], str]


class Model(BaseModel):
    """Frozen, and refuses keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)
