"""How a service is kept up on the nodes of a cluster."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from core.fields import Model


class Supervision(Model):
    """How long a service is kept up, and what is done when it is given up. Times in seconds."""

    port: Annotated[int, Field(ge=1, le=65535)] = 29779
    """Of the line between the supervisors, on the head's fabric address."""
    attempts: Annotated[int, Field(ge=1)] = 5
    """Failures in a row after which it is given up."""
    delays: Annotated[tuple[float, ...], Field(min_length=1)] = (2, 10, 30, 60, 120)
    """Rest before each further start; the last one stays."""
    lost: Annotated[float, Field(ge=3)] = 12
    """Silence after which a node counts as lost."""
    hook: tuple[str, ...] = ()
    """Program and arguments that are run on the head when it is given up, with its state as JSON on stdin (a mail, a
    webhook)."""
