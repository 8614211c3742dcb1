"""Sets of wheels that do not fit each other, and what the fewest changes are; the guide's own set among them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.config import load_stack
from tests.unit.samples import SPARK, TABLES, X86
from wheels.requirements import Change, Member, Rules, Wish, conflicts, cure, wishes

GUIDE = json.loads((TABLES / "guide_requirements.json").read_text(encoding="utf-8"))
METADATA = {(name, version): tuple(requires) for name, version, requires in GUIDE["members"]}
LOCKED = {name: version for name, version, _ in GUIDE["members"] if version != GUIDE["guide"].get(name)}
"""The versions of our own stack."""
WHOLE = Rules()


def guide(**changes: str) -> tuple[Member, ...]:
    """Return the guide's set: its own versions, and what else vLLM and the others require; "" leaves one out."""
    versions = {**LOCKED, **GUIDE["guide"], "torchvision": "", "torchaudio": "", **changes}
    return tuple(
        Member(name, version, METADATA[name, version if (name, version) in METADATA else GUIDE["built_from"][name]])
        for name, version in versions.items()
        if version
    )


def rules_of_the_guide() -> Rules:
    stack = load_stack("guide")
    return Rules.of(stack.without, stack.overrides)


def words(members: tuple[Member, ...], rules: Rules = WHOLE) -> list[str]:
    return [str(one) for one in conflicts(members, X86, rules)]


def cures(members: tuple[Member, ...], rules: Rules = WHOLE) -> list[str]:
    return [str(one) for one in cure(members, X86, rules)]


def member(text: str, *requires: str) -> Member:
    name, _, version = text.partition(" ")
    return Member(name, version, requires)


def test_the_guides_own_pins_do_not_fit_each_other():
    assert [str(one) for one in conflicts(guide(), SPARK, rules_of_the_guide())] == [
        "vllm requires flashinfer-python==0.5.2, the set has 0.5.1",
        "vllm requires torchaudio==2.9.0, the set has none",
        "vllm requires torchvision==0.24.0, the set has none",
    ]


def test_the_smallest_cure_of_the_guides_pins_changes_one_component_and_adds_two():
    assert [str(one) for one in cure(guide(), SPARK, rules_of_the_guide())] == [
        "flashinfer-python 0.5.1 must be ==0.5.2 (vllm requires flashinfer-python==0.5.2)",
        "torchaudio must be added: ==2.9.0 (vllm requires torchaudio==2.9.0)",
        "torchvision must be added: ==0.24.0 (vllm requires torchvision==0.24.0)",
    ]


def test_the_guides_pins_fit_once_they_are_cured():
    versions = {one.name: one.specifier.removeprefix("==") for one in cure(guide(), SPARK, rules_of_the_guide())}
    assert not conflicts(guide(**versions), SPARK, rules_of_the_guide())


def test_what_the_stack_of_the_guide_leaves_out_is_missing_where_it_does_not_say_so():
    assert "ray requires cupy-cuda12x, the set has none" in [str(one) for one in conflicts(guide(), SPARK, Rules())]


def test_versions_of_a_build_of_ones_own_count_as_the_versions_that_they_are():
    assert not words((member("torch 2.9.0+cu130"), member("vllm 1", "torch==2.9.0")))
    assert not words((member("a 1.1.dev0+g27"), member("b 1", "a>1.0")))


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ((member("a 1", "b>=2"), member("b 1")), ["a requires b>=2, the set has 1"]),
        ((member("a 1", "b>=2"), member("b 2")), []),
        ((member("a 1", "B_c.d>=2"), member("b-c-d 1")), ["a requires b-c-d>=2, the set has 1"]),
        ((member("a 1", "b"),), ["a requires b, the set has none"]),
        ((member("a 1", 'b; python_version < "3.11"', 'c; sys_platform == "win32"'),), []),
        ((member("a 1", 'b; platform_machine == "x86_64"'),), ["a requires b, the set has none"]),
        ((member("a 1", 'b; extra == "more"'),), []),
        ((member("a 1", 'b; extra == "more"'), member("c 1", "a[More]")), ["a requires b, the set has none"]),
        (
            (member("d 1", "c[x]"), member("c 1", 'a[more]; extra == "x"'), member("a 1", 'b; extra == "more"')),
            ["a requires b, the set has none"],
        ),
        ((member("a 1", "this is none !"), member("b 1")), []),
        ((member("a 1", "b>=1"), member("b 2.0rc1")), []),
    ],
)
def test_what_is_required_and_not_there_is_found(members: tuple[Member, ...], expected: list[str]):
    assert words(members) == expected


def test_what_a_stack_leaves_out_or_overrides_is_no_conflict():
    members = (member("a 1", "b>=2", "c==1"), member("b 1"))
    assert words(members, Rules.of(["C"], ["b"])) == []
    assert words(members, Rules.of(["c"], ["b<1"])) == ["a requires b<1, the set has 1"]


def test_files_that_are_no_whole_set_lack_nothing():
    assert words((member("a 1", "b>=2", "c"), member("b 1")), Rules(complete=False)) == [
        "a requires b>=2, the set has 1"
    ]


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ((member("a 1"),), []),
        # what all who ask for it agree on
        (
            (member("a 1", "x>=2"), member("b 1", "x<4"), member("x 1")),
            ["x 1 must be <4,>=2 (a requires x>=2; b requires x<4)"],
        ),
        ((member("a 1", "x"),), ["x must be added: any version (a requires x)"]),
        # one change cures two
        (
            (member("a 1", "x==2"), member("b 1", "x>=2"), member("x 1")),
            ["x 1 must be ==2 (a requires x==2; b requires x>=2)"],
        ),
        # they cannot agree: the one without whom most may stay
        (
            (member("a 1", "x==1"), member("b 1", "x==2"), member("x 1")),
            ["b 1 must be another version, or overridden: what it asks cannot be (b requires x==2)"],
        ),
        (
            (member("a 1", "x==1"), member("b 1", "x==2"), member("c 1", "x>=2"), member("x 1")),
            [
                "x 1 must be ==2 (b requires x==2; c requires x>=2)",
                "a 1 must be another version, or overridden: what it asks cannot be (a requires x==1)",
            ],
        ),
        # one who disputes twice is the one to change
        (
            (member("a 1", "x==1", "y==1"), member("b 1", "x==2"), member("c 1", "y==2"), member("x 2"), member("y 2")),
            [
                "a 1 must be another version, or overridden: what it asks cannot be (a requires x==1; a requires y==1)",
            ],
        ),
    ],
)
def test_the_cure_is_the_smallest(members: tuple[Member, ...], expected: list[str]):
    assert cures(members) == expected


NAMES = st.sampled_from("abcd")
SPECIFIERS = st.sampled_from(["", "==1", "==2", ">=2", "<2", "!=1", ">=1,<3"])
SETS = st.dictionaries(
    NAMES, st.tuples(st.sampled_from("123"), st.lists(st.tuples(NAMES, SPECIFIERS), max_size=3)), min_size=1
)


@given(made=SETS)
def test_a_set_whose_cure_is_followed_has_no_conflict_left(made: dict[str, tuple[str, list[tuple[str, str]]]]):
    members = tuple(
        Member(name, version, tuple(f"{other}{spec}" for other, spec in requires))
        for name, (version, requires) in made.items()
    )
    found = cure(members, X86, Rules())
    assert bool(found) == bool(conflicts(members, X86, Rules()))
    followed = {one.name: one for one in members}
    for change in found:
        followed[change.name] = _followed(change, followed.get(change.name))
    left = conflicts(tuple(followed.values()), X86, Rules())
    assert not left, f"{found} leaves {left}"


def _followed(change: Change, before: Member | None) -> Member:
    """Return the component as the change says: in a version that fits, or without the wishes that cannot be."""
    requires = before.requires if before else ()
    if before and not change.specifier:
        gone = {f"{wish.of}{wish.specifier}" for wish in change.because}
        return Member(change.name, before.version, tuple(one for one in requires if _plain(one) not in gone))
    wish = Wish("", change.name, change.specifier)
    version = next(version for version in ("1", "2", "3", "0", "4", "1.5", "2.5") if wish.accepts(version))
    return Member(change.name, version, requires)


def _plain(requirement: str) -> str:
    (wish,) = wishes((Member("x", "1", (requirement,)),), X86, Rules())
    return f"{wish.of}{wish.specifier}"
