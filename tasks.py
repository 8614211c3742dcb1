"""What sparkstack can do: `invoke --list`."""

from invoke.collection import Collection

import build.tasks
import deploy.tasks
import lab.tasks
import serve.tasks

ns = Collection(
    build.tasks.build_wheels,
    deploy.tasks.facts,
    deploy.tasks.trust,
    deploy.tasks.deploy,
    serve.tasks.serve,
    serve.tasks.restart,
    serve.tasks.stop,
    serve.tasks.status,
    serve.tasks.logs,
    serve.tasks.chat,
)
ns.add_collection(Collection.from_module(lab.tasks, name="lab"))
