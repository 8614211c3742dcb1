"""Credentials: every node gets what it lacks, what works stays, nothing shows them; the API's key can be replaced."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import NotServing
from core.facts import NodeFacts
from core.plan import Run, Step, Write, as_data, as_text, make_plan
from serve.api.keys import (
    API_KEY,
    FINGERPRINTS,
    LINK_KEY,
    MONITOR_KEY,
    OF_ALL,
    RAY_TOKEN,
    Secrets,
    credential_steps,
    fingerprint,
    fingerprints,
    lacking,
    plan_rotate,
    rotate_steps,
)
from tests.unit.samples import lab_facts, local

FRESH = Secrets("1" * 64, "2" * 64, "3" * 64, "4" * 64)
OLD = {API_KEY: "a" * 64, MONITOR_KEY: "b" * 64, LINK_KEY: "c" * 64, RAY_TOKEN: "d" * 64}
HEAD, WORKER = OLD, {name: OLD[name] for name in OF_ALL}
EVERYTHING = {"lab-a": (API_KEY, MONITOR_KEY, LINK_KEY, RAY_TOKEN), "lab-b": (LINK_KEY, RAY_TOKEN)}
Facts = dict[str, NodeFacts]


def with_keys(**keys: Mapping[str, str]) -> Facts:
    """Return two machines that have these credentials; an underscore stands for the dash of a name."""
    facts = lab_facts()
    for name, held in keys.items():
        node = name.replace("_", "-")
        text = json.dumps({key: fingerprint(value) for key, value in held.items()})
        facts[node] = replace(facts[node], files={str(FINGERPRINTS): text})
    return facts


def written(steps: Iterable[Step]) -> dict[str, dict[str, str]]:
    """Return node to credential to what is written into its file."""
    found: dict[str, dict[str, str]] = {}
    for step in steps:
        if isinstance(step, Write) and step.secret:
            found.setdefault(step.node, {})[step.path.name] = step.content
    return found


def after(facts: Facts, steps: Iterable[Step]) -> Facts:
    """Return the facts as they are when the steps have run."""
    found = dict(facts)
    for step in steps:
        if isinstance(step, Write) and step.path == FINGERPRINTS:
            found[step.node] = replace(found[step.node], files={str(FINGERPRINTS): step.content})
    return found


def test_new_nodes_get_all_that_they_need_and_the_workers_no_key_of_the_api() -> None:
    steps = list(credential_steps(local(), lab_facts(), FRESH))
    assert written(steps) == {
        node: {name: f"{FRESH.text(name)}\n" for name in names} for node, names in EVERYTHING.items()
    }


def test_credentials_are_roots_alone_and_their_fingerprints_everybodys() -> None:
    steps = list(credential_steps(local(), lab_facts(), FRESH))
    assert all(step.privileged for step in steps)
    for step in steps:
        if isinstance(step, Write):
            public = step.path == FINGERPRINTS
            assert (step.mode, step.secret) == ((0o644, False) if public else (0o600, True))
    folders = [step for step in steps if isinstance(step, Run)]
    assert [step.argv for step in folders] == [("install", "-d", "-m", "700", "/etc/sparkstack/credentials")] * 2
    assert [steps.index(step) for step in folders] == [0, 6], "the folder is there before a credential is"


def test_the_fingerprints_come_last_so_that_a_cut_is_seen() -> None:
    steps = [step for step in credential_steps(local(), lab_facts(), FRESH) if step.node == "lab-a"]
    last = steps[-1]
    assert isinstance(last, Write)
    assert fingerprints(last.content) == {name: fingerprint(FRESH.text(name)) for name in EVERYTHING["lab-a"]}


def test_nodes_that_have_everything_are_left_alone() -> None:
    assert not list(credential_steps(local(), with_keys(lab_a=HEAD, lab_b=WORKER), FRESH))


LACKING = {
    "a worker that is new": ({"lab_a": HEAD}, {"lab-a": OF_ALL, "lab-b": OF_ALL}),
    "a head that is new": ({"lab_b": WORKER}, EVERYTHING),
    "another link key": (
        {"lab_a": HEAD, "lab_b": {**WORKER, LINK_KEY: "e" * 64}},
        {"lab-a": (LINK_KEY,), "lab-b": (LINK_KEY,)},
    ),
    "no Ray token on the head": (
        {"lab_a": {name: HEAD[name] for name in (API_KEY, MONITOR_KEY, LINK_KEY)}, "lab_b": WORKER},
        {"lab-a": (RAY_TOKEN,), "lab-b": (RAY_TOKEN,)},
    ),
    "no key of the monitor": (
        {"lab_a": {name: HEAD[name] for name in (API_KEY, *OF_ALL)}, "lab_b": WORKER},
        {"lab-a": (MONITOR_KEY,)},
    ),
}


@pytest.mark.parametrize("case", LACKING)
def test_what_lacks_or_differs_is_given_and_nothing_else(case: str) -> None:
    keys, expected = LACKING[case]
    facts = with_keys(**keys)
    assert lacking(local(), facts) == expected
    steps = list(credential_steps(local(), facts, FRESH))
    assert {node: tuple(names) for node, names in written(steps).items()} == expected
    assert not lacking(local(), after(facts, steps))


def test_a_key_of_the_api_that_the_head_has_stays() -> None:
    facts = with_keys(lab_a={API_KEY: OLD[API_KEY]})
    seen = after(facts, credential_steps(local(), facts, FRESH))["lab-a"]
    assert fingerprints(seen.files[str(FINGERPRINTS)])[API_KEY] == fingerprint(OLD[API_KEY])


def test_a_worker_that_was_the_head_loses_the_keys_of_the_api() -> None:
    facts = with_keys(lab_a=HEAD, lab_b=HEAD)
    steps = list(credential_steps(local(), facts, FRESH))
    (removal,) = [step for step in steps if isinstance(step, Run)]
    folder = "/etc/sparkstack/credentials"
    assert removal.node == "lab-b"
    assert removal.argv == ("rm", "-f", "--", f"{folder}/api-key", f"{folder}/monitor-key")
    seen = after(facts, steps)["lab-b"].files[str(FINGERPRINTS)]
    assert fingerprints(seen).keys() == WORKER.keys()
    assert not written(steps)


def test_one_node_alone_has_everything_itself() -> None:
    alone = local().model_copy(update={"nodes": local().nodes[:1]})
    facts = {"lab-a": lab_facts()["lab-a"]}
    steps = list(credential_steps(alone, facts, FRESH))
    assert written(steps).keys() == {"lab-a"}
    assert not lacking(alone, after(facts, steps))


HELD = st.dictionaries(st.sampled_from(sorted(OLD)), st.sampled_from(["a" * 64, "e" * 64]))


@given(HELD, HELD)
def test_whatever_the_nodes_have_afterwards_all_is_there_and_the_same(
    head: dict[str, str], worker: dict[str, str]
) -> None:
    facts = with_keys(lab_a=head, lab_b=worker)
    found = after(facts, credential_steps(local(), facts, FRESH))
    known = {node: fingerprints(found[node].files[str(FINGERPRINTS)]) for node in found}
    assert {node: known[node].keys() for node in known} == {node: set(names) for node, names in EVERYTHING.items()}
    assert all(known["lab-a"][name] == known["lab-b"][name] for name in OF_ALL)
    if API_KEY in head:
        assert known["lab-a"][API_KEY] == fingerprint(head[API_KEY])
    assert not list(credential_steps(local(), found, FRESH))


class TestRotation:
    def test_the_head_gets_a_new_key_and_keeps_all_else(self) -> None:
        facts = with_keys(lab_a=HEAD, lab_b=WORKER)
        steps = list(rotate_steps(local(), facts, FRESH))
        assert written(steps) == {"lab-a": {API_KEY: f"{FRESH.api_key}\n"}}
        seen = fingerprints(after(facts, steps)["lab-a"].files[str(FINGERPRINTS)])
        assert seen == {name: fingerprint(key) for name, key in {**OLD, API_KEY: FRESH.api_key}.items()}

    def test_nothing_restarts(self) -> None:
        plan = plan_rotate(local(), with_keys(lab_a=HEAD, lab_b=WORKER), FRESH)
        assert [step.argv[0] for step in plan.steps if isinstance(step, Run)] == ["install"]

    def test_looking_again_finds_nothing_to_do_and_the_next_rotation_does(self) -> None:
        facts = with_keys(lab_a=HEAD, lab_b=WORKER)
        found = after(facts, rotate_steps(local(), facts, FRESH))
        assert plan_rotate(local(), found, FRESH).empty
        assert not plan_rotate(local(), found, Secrets.fresh()).empty

    @pytest.mark.parametrize("facts", [lab_facts(), with_keys(lab_a=WORKER, lab_b=WORKER)])
    def test_without_a_key_there_is_nothing_to_replace(self, facts: Facts) -> None:
        with pytest.raises(NotServing) as caught:
            plan_rotate(local(), facts, FRESH)
        assert (caught.value.node, caught.value.next_move) == ("lab-a", "invoke serve --cluster local")


def test_nothing_shows_a_credential() -> None:
    secrets = Secrets.fresh()
    plan = make_plan("serve", [("configure", credential_steps(local(), lab_facts(), secrets))])
    for shown in (repr(secrets), str(secrets), as_text(plan), json.dumps(as_data(plan)), repr(plan)):
        assert not re.search(secrets.api_key, shown)
        assert not any(secrets.text(name) in shown for name in OLD)


def test_fresh_credentials_are_256_random_bits_each() -> None:
    made = [Secrets.fresh() for _ in range(3)]
    texts = {secrets.text(name) for secrets in made for name in OLD}
    assert len(texts) == 12
    assert all(re.fullmatch("[0-9a-f]{64}", text) for text in texts)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"api-key": 1}', '{"api-key": ""}', '{"api-key": "x"}', f'{{"api-key": "{"A" * 64}"}}'],
)
def test_what_is_no_fingerprint_is_none(text: str) -> None:
    assert fingerprints(text) == {}


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    assert isinstance(fingerprints(text), dict)
