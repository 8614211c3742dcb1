"""What is wrong with a configuration file, in words: the key, what was expected, the nearest spelling."""

from __future__ import annotations

import difflib
import reprlib
from typing import get_origin

from pydantic import BaseModel, ValidationError

from core.errors import ConfigError


def nearest(word: str, words: list[str]) -> str:
    """Return " (did you mean X?)" when one of ``words`` is near, else nothing."""
    near = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    return f" (did you mean {near[0]}?)" if near else ""


def tag(kind: str) -> str:
    """Return what pydantic calls one kind of a value that may be of several (`Tag`); a reader does not see it."""
    return f"={kind}"


def explain(path: str, model: type[BaseModel], error: ValidationError) -> ConfigError:
    """Return the error for a file that is no ``model``: each wrong key with what was expected, a line each."""
    lines = []
    for detail in error.errors(include_url=False):
        place = tuple(part for part in detail["loc"] if not str(part).startswith(tag("")))
        key = ".".join(map(str, place))
        if detail["type"] == "extra_forbidden":
            hint = nearest(str(place[-1]), _keys(model, place[:-1]))
            lines.append(f"{key}: unknown key{hint}")
        elif detail["type"] == "missing":
            lines.append(f"{key}: missing")
        else:
            given = "" if detail["type"] == "value_error" else f", not {reprlib.repr(detail['input'])}"
            lines.append(f"{key + ': ' if key else ''}{detail['msg'].removeprefix('Value error, ')}{given}")
    cause = f"{path} is not a {model.__name__.lower()}"
    return ConfigError(cause, next_move="correct the file", evidence="\n".join(lines))


def _keys(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Return the keys that the model at ``location`` knows; follows nested models through tuples, dicts and unions."""
    parts = iter(location)
    for part in parts:
        annotation = model.model_fields[str(part)].annotation
        found = _inner_model(annotation)
        if found is None:
            return []
        model = found
        if get_origin(annotation) in {dict, tuple}:
            next(parts, None)  # the key or the position in it
    return list(model.model_fields)


def _inner_model(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (_inner_model(argument) for argument in getattr(annotation, "__args__", ()))
    return next((found for found in inner if found), None)
