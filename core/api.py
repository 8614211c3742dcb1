"""Where the head answers OpenAI requests, and with which certificate."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from core.fields import Folder, Model, Name
from core.mistakes import tag


class Tls(Model):
    """A certificate of your own: files on the head in PEM, read by systemd, so that root alone need be able to."""

    certificate: Folder
    """With the intermediate ones behind it."""
    key: Folder
    name: Name | None = None
    """The host name in the certificate, which clients then have to use; without it they use the head's address."""


Certificate = Annotated[
    Annotated[Literal["internal"], Tag(tag("word"))] | Annotated[Tls, Tag(tag("files"))],
    Discriminator(lambda value: tag("word" if isinstance(value, str) else "files")),
]
"""By an authority that the proxy makes for itself, or yours; told apart, so that a mistake is named once."""


class Api(Model):
    """Where the head answers OpenAI requests."""

    listen: Literal["management", "loopback"] = "management"
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    tls: Certificate | None = None
    """HTTPS, by a proxy on the head; without the key it is plain HTTP."""

    @model_validator(mode="after")
    def _tls_has_a_network(self) -> Self:
        if self.tls is not None and self.listen == "loopback":
            raise ValueError('tls goes with listen = "management": nothing else reaches the loopback, or sees it')
        return self
