"""Plans of models: fetched once, relayed, followed where they go on, and nothing secret in what anybody can read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

import pytest

import tasks
from core.config import ROOT, Profile, load_cluster, load_profile
from core.errors import CommandFailed, LockHeld, ModelRefused, RegistryRefused, UnfitNode, UsageError
from core.facts import NodeFacts, parse
from core.host import Host
from core.plan import Job, Plan, Poll, Write, as_data, as_text, command_of
from core.process import Completed
from core.question import MODEL_MANIFEST, Question, probe_request
from deploy.models import keeping
from deploy.models.fetching import HUBS, PACKAGES, PORT, SERVER, UNIT, Wanted, failure, plan_fetch, wanted
from deploy.models.onnode import take
from deploy.models.onnode.files import MANIFEST
from tests.unit.modelhub import COMMIT, OLDER, REPOSITORY
from tests.unit.samples import lab_captures, lab_facts, local, spark_captures, tiny, unit

SECRET = "5c" * 32
TOKEN = "hf_abcdefghijklmnop"
FOLDER = f"/opt/sparkstack/models/{REPOSITORY}"
QWEN = "Qwen/Qwen2.5-32B-Instruct"


def asked(
    repository: str = REPOSITORY,
    revision: str = "",
    source: str = "huggingface",
    environ: Mapping[str, str] | None = None,
    profile: Profile | None = None,
) -> Wanted:
    made = wanted(local(), profile or tiny(), repository, revision=revision, source=source, environ=environ or {})
    return replace(made, secret=SECRET)


def manifest(**changes: Any) -> dict[str, Any]:
    files = [
        {"path": "config.json", "size": 10, "sha256": "0" * 64},
        {"path": "w", "size": 5_000_000, "sha256": "1" * 64},
    ]
    base = {"repository": REPOSITORY, "hub": "huggingface", "revision": "main", "commit": COMMIT, "files": files}
    return {**base, **changes}


def facts(*having: str, units: Mapping[str, tuple[str, ...]] | None = None, **changes: Any) -> dict[str, NodeFacts]:
    """Return two machines with a root; ``having`` have the model, ``units`` run on them."""
    found = lab_facts(root_owner="spark")
    return {
        name: replace(
            seen,
            models={FOLDER: manifest(**changes)} if name in having else {},
            units={one: unit(one) for one in (units or {}).get(name, ())},
        )
        for name, seen in found.items()
    }


def plan(wish: Wanted, seen: dict[str, NodeFacts], on: str = "lab-a") -> Plan:
    return plan_fetch(wish, local().node(on), seen)


def stages(found: Plan) -> dict[str, list[tuple[str, str]]]:
    return {stage.title: [(step.node, step.title) for step in stage.steps] for stage in found.stages}


class TestPlan:
    def test_one_node_fetches_and_the_others_take_it_from_there(self) -> None:
        found = stages(plan(asked(), facts()))
        assert list(found) == ["prepare", "fetch", "offer", "relay", "end the offer"]
        assert found["fetch"] == [
            ("lab-a", "write what to fetch"),
            ("lab-a", f"fetch {REPOSITORY} from huggingface"),
        ]
        assert found["offer"] == [
            ("lab-a", "write what to offer"),
            ("lab-a", "offer the model at 198.18.100.1:29777"),
            ("lab-a", "wait until it listens"),
        ]
        assert found["relay"] == [("lab-b", "write what to take"), ("lab-b", f"take {REPOSITORY} from lab-a")]
        assert found["end the offer"] == [("lab-a", "stop sparkstack-relay")]

    def test_another_node_fetches_where_that_is_asked_for(self) -> None:
        found = stages(plan(asked(), facts(), on="lab-b"))
        assert {node for node, _ in found["fetch"]} == {"lab-b"}
        assert {node for node, _ in found["relay"]} == {"lab-a"}

    def test_a_node_that_has_it_gives_it_and_no_hub_is_asked(self) -> None:
        found = stages(plan(asked(), facts("lab-b")))
        assert "fetch" not in found
        assert found["relay"][-1] == ("lab-a", f"take {REPOSITORY} from lab-b")

    def test_where_all_have_it_nothing_is_to_do(self) -> None:
        assert plan(asked(), facts("lab-a", "lab-b")).empty
        assert plan(asked(revision=COMMIT), facts("lab-a", "lab-b")).empty

    @pytest.mark.parametrize(
        "changes", [{"repository": "Qwen/Other"}, {"commit": OLDER}, {"hub": "modelscope"}, {"commit": None}]
    )
    def test_another_model_in_its_place_is_not_it(self, changes: dict[str, Any]) -> None:
        assert "fetch" in stages(plan(asked(revision=COMMIT), facts("lab-a", "lab-b", **changes)))

    def test_a_damaged_manifest_is_no_model(self) -> None:
        seen = facts()
        seen = {name: replace(one, models={FOLDER: {}}) for name, one in seen.items()}
        assert "fetch" in stages(plan(asked(), seen))

    def test_again_looks_at_every_node(self) -> None:
        found = stages(plan(replace(asked(), again=True), facts("lab-a", "lab-b")))
        assert {"fetch", "relay"} <= set(found)

    def test_one_node_alone_needs_no_relay(self) -> None:
        cluster = local().model_copy(update={"nodes": local().nodes[:1]})
        found = stages(plan_fetch(replace(asked(), cluster=cluster), cluster.head, facts()))
        assert list(found) == ["prepare", "fetch"]

    def test_a_folder_on_the_node_is_named_in_the_request(self) -> None:
        found = plan(asked(source="/data/Tiny"), facts())
        (request,) = [step for step in found.steps if isinstance(step, Write) and "fetch" in step.title]
        assert (json.loads(request.content)["hub"], json.loads(request.content)["folder"]) == ("folder", "/data/Tiny")

    def test_the_others_ask_once_it_listens(self) -> None:
        (wait,) = [step for step in plan(asked(), facts()).steps if isinstance(step, Poll)]
        assert wait.accept(Completed((), 0, "LISTEN 0 5 198.18.100.1:29777 0.0.0.0:*\n"))
        assert not wait.accept(Completed((), 0, ""))
        assert "journalctl -u sparkstack-relay" in str(wait.failure(Completed((), 0, "")))

    def test_the_work_is_a_unit_of_the_clusters_user_that_reads_the_nodes_own_proxies(self) -> None:
        (job,) = [step for step in plan(asked(), facts()).steps if isinstance(step, Job) and step.node == "lab-a"]
        assert (job.user, job.privileged) == ("spark", True)
        assert "EnvironmentFile=-/etc/environment" in job.properties
        assert job.argv[:5] == ("/usr/bin/python3", "-E", "-s", "-m", "deploy.models.onnode.fetch")


class TestInterrupted:
    def test_a_fetch_that_goes_on_is_followed_and_not_started_again(self) -> None:
        wish = asked()
        found = stages(plan(wish, facts(units={"lab-a": (wish.unit,)})))
        assert found["fetch"] == [("lab-a", f"fetch {REPOSITORY} from huggingface")]
        assert {node for node, _ in found["prepare"]} == {"lab-b"}

    def test_a_relay_that_goes_on_is_followed(self) -> None:
        wish = asked()
        found = stages(plan(wish, facts("lab-a", units={"lab-a": (SERVER,), "lab-b": (wish.unit,)})))
        assert "offer" not in found
        assert found["relay"] == [("lab-b", f"take {REPOSITORY} from lab-a")]

    def test_what_is_left_of_a_relay_is_ended_first(self) -> None:
        wish = asked()
        found = stages(plan(wish, facts("lab-a", units={"lab-a": (SERVER,)})))
        assert found["offer"][0] == ("lab-a", f"stop {SERVER}")
        found = stages(plan(wish, facts("lab-a", units={"lab-b": (wish.unit,)})))
        assert found["offer"][0] == ("lab-b", f"stop {wish.unit}")

    def test_another_models_work_has_another_unit(self) -> None:
        units = {asked(**changes).unit for changes in ({}, {"revision": "v1"}, {"repository": "a/b"}, {"source": "/x"})}  # type: ignore[arg-type]
        assert len(units) == 4


class TestSecrets:
    def test_nothing_secret_is_in_what_anybody_can_read(self) -> None:
        environ = {"HF_TOKEN": TOKEN, "https_proxy": "http://me:pass-word@proxy:3128"}
        wish = asked(environ=environ)
        found = plan(wish, facts())
        shown = as_text(found) + json.dumps(as_data(found)) + repr(found) + repr(wish)
        shown += "".join(map(command_of, found.steps))
        assert not [secret for secret in (TOKEN, SECRET, "pass-word") if secret in shown]
        assert "with HF_TOKEN, https_proxy" in shown

    def test_it_goes_to_files_for_one_reader(self) -> None:
        found = plan(asked(environ={"HF_TOKEN": TOKEN}), facts())
        writes = [step for step in found.steps if isinstance(step, Write)]
        assert [(step.mode, step.secret) for step in writes] == [(0o600, True)] * 3
        assert json.loads(writes[0].content)["environment"] == {"HF_TOKEN": TOKEN}

    def test_a_hub_is_given_its_own_token_only(self) -> None:
        environ = {"HF_TOKEN": TOKEN, "MODELSCOPE_API_TOKEN": "ms", "HF_ENDPOINT": "https://mirror", "HOME": "/x"}
        assert dict(asked(environ=environ).environment) == {"HF_TOKEN": TOKEN, "HF_ENDPOINT": "https://mirror"}
        assert dict(asked(environ=environ, source="modelscope").environment) == {"MODELSCOPE_API_TOKEN": "ms"}
        assert dict(asked(environ=environ, source="/data").environment) == {}

    @pytest.mark.parametrize(
        "own", ["http://127.0.0.1:3128", "localhost:3128", "http://[::1]:1", "http://u:p@localhost"]
    )
    def test_a_proxy_of_this_hosts_loopback_is_none_on_a_node(self, own: str) -> None:
        environ = {"https_proxy": own, "HTTP_PROXY": "http://proxy:3128", "no_proxy": "localhost"}
        assert dict(asked(environ=environ).environment) == {"HTTP_PROXY": "http://proxy:3128", "no_proxy": "localhost"}

    @pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"])
    def test_it_is_left_out_by_each_of_its_names(self, name: str) -> None:
        environ = {name: "http://127.0.0.1:3128", "no_proxy": "127.0.0.1"}
        assert dict(asked(environ=environ).environment) == {"no_proxy": "127.0.0.1"}

    def test_an_address_that_is_none_is_passed_on_as_it_is(self) -> None:
        environ = {"https_proxy": "http://[::1:3128"}
        assert dict(asked(environ=environ).environment) == environ


class TestWanted:
    def test_the_profiles_own_model_goes_where_it_is_served_from_at_its_revision(self) -> None:
        cluster, profile = load_cluster("spark"), load_profile("qwen2.5-32b")
        wish = wanted(cluster, profile, QWEN, revision="", source="huggingface", environ={})
        assert wish.target == PurePosixPath(profile.model)
        assert wish.revision == profile.revision == "5ede1c97bbab6ce5cda5812749b4c0bdf79b18dd"

    def test_the_profiles_revision_is_that_of_its_own_hub(self) -> None:
        cluster, profile = load_cluster("spark"), load_profile("qwen2.5-32b")
        assert wanted(cluster, profile, QWEN, revision="", source="modelscope", environ={}).revision == "main"

    def test_any_other_model_goes_below_the_root_at_main(self) -> None:
        assert (str(asked().target), asked().revision) == (FOLDER, "main")

    @pytest.mark.parametrize(
        "repository", ["", "/x", "a/b/c", "../x", "a/..", "a b/c", "-a/b", "https://huggingface.co/a/b", "a/b\n"]
    )
    def test_a_repository_is_owner_and_name(self, repository: str) -> None:
        with pytest.raises(UsageError):
            asked(repository)

    @pytest.mark.parametrize(("revision", "source"), [("-x", "huggingface"), ("a..b", "huggingface"), ("", "hugging")])
    def test_other_flags_are_looked_at_too(self, revision: str, source: str) -> None:
        with pytest.raises(UsageError):
            asked(revision=revision, source=source)


class TestFailure:
    @pytest.mark.parametrize(
        ("kind", "error"),
        [
            ("network", RegistryRefused),
            ("access", RegistryRefused),
            ("damaged", ModelRefused),
            ("disk", UnfitNode),
            ("busy", LockHeld),
        ],
    )
    def test_what_the_script_says_last_is_the_error(self, kind: str, error: type[Exception]) -> None:
        lines = ["3 of 5 GB", json.dumps({"error": kind, "cause": "it is so", "next": "do this"})]
        found = failure("fetch x", "lab-a", "it ended with 1", lines)
        assert type(found) is error
        assert str(found) == "lab-a: fetch x: it is so\n  next: do this"

    def test_without_such_a_line_its_last_lines_are_shown(self) -> None:
        found = failure("fetch x", "lab-a", "it was ended for memory (oom-kill)", ["[]", "Traceback", "MemoryError"])
        assert type(found) is CommandFailed
        assert "oom-kill" in str(found)
        assert "MemoryError" in str(found)


class TestFacts:
    def test_models_are_read_by_their_folder_and_a_damaged_manifest_is_an_empty_one(self) -> None:
        capture = dict(lab_captures().nodes["lab-a"])
        texts = {f"{FOLDER}/sparkstack-model.json": json.dumps(manifest()), "/m/x/sparkstack-model.json": "{half"}
        capture["models"] = {"code": 0, "files": texts}
        assert parse("lab-a", capture).models == {FOLDER: manifest(), "/m/x": {}}

    def test_the_probe_looks_where_models_are_and_where_they_arrive(self) -> None:
        asked_for = probe_request(local(), local().head, Question(load_profile("qwen2.5-32b")))["files"]["models"]
        assert [path.removesuffix("/sparkstack-model.json") for path in asked_for] == [
            "/home/gx10/models/Qwen2.5-32B-Instruct",
            "/home/gx10/models/.Qwen2.5-32B-Instruct.incoming",
            "/opt/sparkstack/models/*",
            "/opt/sparkstack/models/.*.incoming",
            "/opt/sparkstack/models/*/*",
            "/opt/sparkstack/models/*/.*.incoming",
        ]

    def test_an_older_capture_has_none(self) -> None:
        assert spark_captures().parsed()["gx10-beee"].models == {}


class FakeHost:
    """A node whose answers to the verification are given."""

    def __init__(self, name: str, out: str, code: int = 0) -> None:
        self.name, self._out, self._code = name, out, code
        self.argv: tuple[str, ...] = ()
        self.pushed: list[PurePosixPath] = []

    def run(self, argv: tuple[str, ...], **_: Any) -> Completed:
        self.argv = argv
        return Completed(argv, self._code, self._out)

    def push(self, _: object, place: PurePosixPath, *__: Any) -> None:
        self.pushed.append(place)


GOOD = '3 MB of 5 MB\n{"files": 2, "bytes": 5000010, "damaged": [], "missing": []}\n'
BAD = '{"files": 2, "bytes": 5000010, "damaged": ["w"], "missing": ["config.json"]}\n'


def verified(**answers: tuple[str, int]) -> list[dict[str, Any]]:
    hosts: dict[str, Host] = {
        name.replace("_", "-"): FakeHost(name.replace("_", "-"), *answer)  # type: ignore[dict-item]
        for name, answer in answers.items()
    }
    found = list(keeping.kept_models(facts("lab-a", "lab-b")))
    return keeping.verify(local(), tiny(), hosts, found, lambda _: None)  # type: ignore[arg-type]


class TestKept:
    def test_models_are_listed_by_node_with_commit_and_size(self) -> None:
        found = list(keeping.kept_models(facts("lab-a")))
        assert [(one.node, one.repository, one.commit, one.files, one.size) for one in found] == [
            ("lab-a", REPOSITORY, COMMIT, 2, 5_000_010)
        ]
        assert all(word in keeping.table(found) for word in ("lab-a", REPOSITORY, COMMIT[:12], "5 MB", FOLDER))

    @pytest.mark.parametrize("files", [None, 3, {"a": 1}, [1], [{"size": "x"}]])
    def test_a_manifest_that_holds_something_else_is_listed_as_it_is(self, files: object) -> None:
        (found,) = keeping.kept_models(facts("lab-a", files=files))
        assert (found.files, found.size) == (0, 0)

    def test_good_models_are_said_to_be_so(self) -> None:
        assert [one["files"] for one in verified(lab_a=(GOOD, 0), lab_b=(GOOD, 0))] == [2, 2]

    def test_a_damaged_one_is_an_error_with_what_mends_it(self) -> None:
        with pytest.raises(ModelRefused) as caught:
            verified(lab_a=(GOOD, 0), lab_b=(BAD, 1))
        assert caught.value.node == "lab-b"
        assert "damaged files: 1, missing: 1, the first: w" in caught.value.cause
        assert caught.value.next_move == (
            f"invoke model.fetch {REPOSITORY} --revision main --from huggingface --again --cluster local --profile tiny"
        )

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"hub": "modelscope", "revision": "v1"}, "--revision v1 --from modelscope --again"),
            ({"hub": "folder"}, "--revision main --from /FOLDER --again"),
            ({"repository": "", "hub": "", "revision": ""}, "invoke model.fetch REPOSITORY --again --cluster"),
        ],
    )
    def test_what_mends_it_brings_the_same_from_where_it_came(self, changes: dict[str, str], says: str) -> None:
        found = list(keeping.kept_models(facts("lab-a", **changes)))
        hosts: Any = {"lab-a": FakeHost("lab-a", BAD, 1)}
        with pytest.raises(ModelRefused) as caught:
            keeping.verify(local(), tiny(), hosts, found, lambda _: None)
        assert says in caught.value.next_move
        in_words = caught.value.next_move.endswith(", where /FOLDER is the folder on the node that it was taken from")
        assert in_words == (changes["hub"] == "folder")

    def test_the_scripts_go_to_a_node_once_for_all_its_models(self) -> None:
        seen = facts("lab-a")
        seen["lab-a"] = replace(seen["lab-a"], models={"/m/a": manifest(), "/m/b": manifest(), "/m/c": manifest()})
        host = FakeHost("lab-a", GOOD)
        hosts: Any = {"lab-a": host}
        found = list(keeping.kept_models(seen))
        assert len(keeping.verify(local(), tiny(), hosts, found, lambda _: None)) == 3
        assert host.pushed == [PurePosixPath(f"/opt/sparkstack/tools/{one.replace('.', '/')}") for one in PACKAGES]

    def test_a_manifest_that_cannot_be_read_is_one_too(self) -> None:
        line = json.dumps({"error": "damaged", "cause": "the manifest is damaged", "next": "x"})
        with pytest.raises(ModelRefused, match="the manifest is damaged"):
            verified(lab_a=(line, 1), lab_b=(GOOD, 0))

    def test_a_script_that_says_nothing_failed(self) -> None:
        with pytest.raises(CommandFailed):
            verified(lab_a=("Traceback\n", 1), lab_b=(GOOD, 0))

    def test_removing_takes_it_off_the_nodes_that_have_it(self) -> None:
        found = keeping.plan_remove(local(), tiny(), REPOSITORY, facts("lab-b"))
        assert [(step.node, command_of(step)) for step in found.steps] == [("lab-b", f"rm -rf -- {FOLDER}")]
        assert keeping.plan_remove(local(), tiny(), "Qwen/Other", facts("lab-b")).empty

    def test_what_is_left_of_a_fetch_that_was_cut_off_is_listed_and_removed_too(self) -> None:
        incoming = "/opt/sparkstack/models/Qwen/.Tiny.incoming"
        seen = facts()
        seen["lab-a"] = replace(seen["lab-a"], models={incoming: manifest(partial=True, files=[])})
        assert "arriving" in keeping.table(list(keeping.kept_models(seen)))
        hosts: Any = {}
        assert keeping.verify(local(), tiny(), hosts, list(keeping.kept_models(seen)), lambda _: None) == []
        found = keeping.plan_remove(local(), tiny(), REPOSITORY, seen)
        assert [command_of(step) for step in found.steps] == [f"rm -rf -- {incoming}"]
        assert "fetch" in stages(plan(asked(), seen))
        seen["lab-a"] = replace(seen["lab-a"], units={asked().unit: unit(asked().unit)})
        with pytest.raises(UnfitNode, match="brings a model just now"):
            keeping.plan_remove(local(), tiny(), REPOSITORY, seen)

    def test_a_model_that_is_served_stays(self) -> None:
        profile = tiny().model_copy(update={"model": REPOSITORY})
        seen = facts("lab-a", units={"lab-a": ("sparkstack-vllm",)})
        with pytest.raises(UnfitNode, match="is being served"):
            keeping.plan_remove(local(), profile, REPOSITORY, seen)

    def test_a_model_of_nobody_is_named(self) -> None:
        with pytest.raises(UsageError, match="no node of local has a/b"):
            keeping.require_some([], "a/b", local())


class TestDocs:
    """docs/models.md tells the truth."""

    TEXT = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")

    def test_hubs_and_their_variables_are_listed(self) -> None:
        rows = re.findall(r"^\| `([a-z]+)` \|[^|]*\|([^|]*)\|$", self.TEXT, flags=re.MULTILINE)
        assert {name: tuple(re.findall(r"`(\w+)`", cell)) for name, cell in rows} == HUBS

    def test_commands_names_and_the_port_are_those_that_are(self) -> None:
        assert set(re.findall(r"invoke (model\.\w+)", self.TEXT)) <= set(tasks.ns.task_names)
        assert f"port {PORT}" in self.TEXT
        assert f"`{UNIT}*`" in self.TEXT
        assert f"`{MODEL_MANIFEST}`" in self.TEXT
        assert (
            f"Ranges of {take.RANGE >> 20} MiB travel in {['no', 'one', 'two', 'three', 'four'][take.STREAMS]}"
            in self.TEXT
        )

    def test_the_manifest_has_one_name(self) -> None:
        assert MODEL_MANIFEST == MANIFEST
