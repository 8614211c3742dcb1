"""What sparkstack can do: `invoke --list`."""

from invoke.collection import Collection

import build.tasks
import deploy.models.tasks
import deploy.tasks
import lab.tasks
import serve.tasks
import wheels.tasks

ns = Collection(
    build.tasks.build_wheels,
    wheels.tasks.publish,
    deploy.tasks.facts,
    deploy.tasks.trust,
    deploy.tasks.doctor,
    deploy.tasks.deploy,
    deploy.tasks.rollback,
    deploy.tasks.releases,
    deploy.tasks.remove,
    deploy.tasks.probe,
    serve.tasks.serve,
    serve.tasks.restart,
    serve.tasks.stop,
    serve.tasks.status,
    serve.tasks.logs,
    serve.tasks.chat,
    lab.tasks.demo,
)
ns.add_collection(
    Collection(
        "build",
        build.tasks.lock,
        build.tasks.bundle,
        build.tasks.unbundle,
        build.tasks.stop,
    )
)
ns.add_collection(
    Collection(
        "wheels",
        wheels.tasks.extract,
        wheels.tasks.inspect,
        wheels.tasks.sign,
        wheels.tasks.verify,
    )
)
ns.add_collection(
    Collection(
        "lab",
        lab.tasks.up,
        lab.tasks.down,
        lab.tasks.clean,
        lab.tasks.status,
        lab.tasks.cut,
        lab.tasks.heal,
        lab.tasks.kill,
        lab.tasks.boot,
        lab.tasks.model,
    )
)
ns.add_collection(
    Collection(
        "model",
        deploy.models.tasks.fetch,
        deploy.models.tasks.list_models,
        deploy.models.tasks.verify,
        deploy.models.tasks.remove,
    )
)
