"""Units and other files for nodes, out of templates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "units"),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    autoescape=False,  # noqa: S701 - unit files, not HTML; whoever gives values quotes them
)


def render(name: str, /, **values: Any) -> str:
    """Return the file that `units/NAME.j2` makes of these values; every value that it names has to be there."""
    return _TEMPLATES.get_template(f"{name}.j2").render(values)
