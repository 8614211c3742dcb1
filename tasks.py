"""What sparkstack can do: `invoke --list`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module

from invoke.collection import Collection

TASKS: Mapping[str, str] = {
    "build-wheels": "build.tasks:build_wheels",
    "publish": "wheels.tasks:publish",
    "facts": "deploy.tasks:facts",
    "trust": "deploy.access.tasks:trust",
    "doctor": "deploy.care.tasks:doctor",
    "report": "deploy.care.tasks:report",
    "deploy": "deploy.tasks:deploy",
    "rollback": "deploy.tasks:rollback",
    "releases": "deploy.tasks:releases",
    "remove": "deploy.tasks:remove",
    "probe": "deploy.tasks:probe",
    "network": "deploy.network.tasks:network",
    "serve": "serve.tasks:serve",
    "restart": "serve.tasks:restart",
    "stop": "serve.tasks:stop",
    "status": "serve.view.tasks:status",
    "logs": "serve.view.tasks:logs",
    "chat": "serve.api.tasks:chat",
    "key.show": "serve.api.tasks:show",
    "key.rotate": "serve.api.tasks:rotate",
    "monitor": "serve.monitor.tasks:monitor",
    "bench.measure": "serve.bench.tasks:measure_suite",
    "bench.compare": "serve.bench.tasks:compare",
    "bench.report": "serve.bench.tasks:report",
    "tune": "serve.bench.tasks:tune",
    "demo": "lab.tasks:demo",
    "build.lock": "build.tasks:lock",
    "build.bundle": "build.tasks:bundle",
    "build.unbundle": "build.tasks:unbundle",
    "build.stop": "build.tasks:stop",
    "wheels.extract": "wheels.tasks:extract",
    "wheels.inspect": "wheels.tasks:inspect",
    "wheels.sign": "wheels.tasks:sign",
    "wheels.verify": "wheels.tasks:verify",
    "lab.up": "lab.tasks:up",
    "lab.down": "lab.tasks:down",
    "lab.clean": "lab.tasks:clean",
    "lab.status": "lab.tasks:status",
    "lab.cut": "lab.tasks:cut",
    "lab.heal": "lab.tasks:heal",
    "lab.kill": "lab.tasks:kill",
    "lab.boot": "lab.tasks:boot",
    "lab.model": "lab.tasks:model",
    "model.fetch": "deploy.models.tasks:fetch",
    "model.list": "deploy.models.tasks:list_models",
    "model.verify": "deploy.models.tasks:verify",
    "model.remove": "deploy.models.tasks:remove",
}
"""What is said on the command line, to module and function."""

SHORT: Mapping[str, str] = {"bench": "bench.measure"}
"""What a room's name alone means."""


def asked(words: Sequence[str]) -> Mapping[str, str]:
    """Return the tasks that a command line can mean: to load all of them takes longer than many a command.

    All of them unless it begins with one, and no word of it asks for the list.
    """
    if (
        not words
        or SHORT.get(words[0], words[0]) not in TASKS
        or any(word.startswith(("-l", "--list", "--complete")) for word in words)
    ):
        return TASKS
    return {name: place for name, place in TASKS.items() if name in {SHORT.get(word, word) for word in words}}


def collection(wanted: Mapping[str, str]) -> Collection:
    """Load the tasks; a name with a dot lies in a collection of its own."""
    rooms: dict[str, Collection] = {"": Collection()}
    for name, place in wanted.items():
        room, _, own = name.rpartition(".")
        module, _, function = place.partition(":")
        found = getattr(import_module(module), function)
        rooms.setdefault(room, Collection(room)).add_task(found, name=own, default=SHORT.get(room) == name)
    top = rooms.pop("")
    for one in rooms.values():
        top.add_collection(one)
    return top


ns = collection(asked(sys.argv[1:]))
