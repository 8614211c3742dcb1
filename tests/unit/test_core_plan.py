"""Plans as data: how they read on screen and for programs."""

from __future__ import annotations

import json
import shlex
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import NotServing
from core.plan import (
    Call,
    Later,
    Plan,
    Poll,
    Pull,
    Push,
    Run,
    Step,
    Write,
    as_data,
    as_text,
    command_of,
    make_plan,
    megabytes,
    shortened,
)

COMMON: dict[str, Any] = {"node": "lab-a", "title": "do it", "reason": "it is not done"}
SCRIPT = "\nimport sys\nprint(sys.argv)\n"


def poll(**more: Any) -> Poll:
    return Poll(
        **{
            **COMMON,
            "argv": ("true",),
            "accept": lambda _: True,
            "failure": lambda _: NotServing("late", next_move="wait"),
            "timeout": 90,
            **more,
        }
    )


STEPS: dict[str, tuple[Step, str]] = {
    "run": (Run(**COMMON, argv=("echo", "two words")), "echo 'two words'"),
    "run as root": (Run(**COMMON, argv=("id",), privileged=True), "sudo id"),
    "run as a unit": (
        Run(**COMMON, argv=("id",), unit="u", user="spark", privileged=True),
        (
            "sudo systemd-run --unit=u --uid=spark --collect --wait --pipe --quiet "
            "--property=KillMode=control-group --property=OOMPolicy=kill id"
        ),
    ),
    "write": (Write(**COMMON, path=PurePosixPath("/a"), content="ü\n", mode=0o600), "write /a (mode 600, 3 bytes)"),
    "push": (
        Push(**COMMON, sources=tuple(Path("w") / c for c in "abcde"), destination=PurePosixPath("/w"), size=2_500_000),
        "rsync a, b, c and 2 more (2 MB) to /w",
    ),
    "push of unknown size": (
        Push(**COMMON, sources=(Path("w/a"),), destination=PurePosixPath("/w"), size=0),
        "rsync a to /w",
    ),
    "pull": (Pull(**COMMON, source=PurePosixPath("/m"), destination=Path("here")), "rsync lab-a:/m/ to here"),
    "poll": (poll(privileged=True), "every 1 s, up to 90 s: sudo true"),
    "call": (Call(**COMMON, shown="write manifest.json", action=lambda _: None), "write manifest.json"),
    "later": (Later(**COMMON, command="invoke wheels.extract", shown="extract"), "extract"),
}


def plan_of(*steps: Step, notes: tuple[str, ...] = ()) -> Plan:
    return make_plan("a plan", [("stage", steps)], notes)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_says_what_it_runs(name: str) -> None:
    step, command = STEPS[name]
    assert command_of(step) == command


def test_an_empty_plan_prints_exactly_nothing_to_do() -> None:
    empty = make_plan("title", [("one", []), ("two", ())], ["a note"])
    assert empty.empty
    assert as_text(empty) == "nothing to do"
    assert list(empty.steps) == []


def test_stages_without_steps_are_left_out_and_the_others_numbered() -> None:
    step = Run(**COMMON, argv=("true",))
    text = as_text(make_plan("t", [("first", [step]), ("none", []), ("second", iter([step]))]))
    assert "\n1. first\n" in text
    assert "\n2. second\n" in text
    assert "none" not in text


def test_a_plan_reads_as_title_stages_steps_reasons_commands_and_notes() -> None:
    write = Write(**COMMON, path=PurePosixPath("/etc/a"), content="A=1\nB=2\n", privileged=True)
    assert as_text(plan_of(Run(**COMMON, argv=("true",)), write, notes=("careful",))).splitlines() == [
        "a plan",
        "",
        "1. stage",
        "   lab-a: do it — it is not done",
        "      $ true",
        "   lab-a: do it — it is not done",
        "      $ sudo write /etc/a (mode 644, 8 bytes)",
        "      | A=1",
        "      | B=2",
        "",
        "note: careful",
    ]


def test_contents_can_be_left_out() -> None:
    write = Write(**COMMON, path=PurePosixPath("/a"), content="secret line\n")
    assert "secret line" not in as_text(plan_of(write), contents=False)


def test_a_secret_content_is_shown_to_nobody() -> None:
    write = Write(**COMMON, path=PurePosixPath("/a"), content="secret line\n", secret=True)
    shown = as_text(plan_of(write)) + json.dumps(as_data(plan_of(write))) + repr(write) + command_of(write)
    assert "secret line" not in shown
    assert "12 bytes" in shown


def test_a_file_of_100_lines_is_shown_whole_and_of_a_longer_one_the_beginning() -> None:
    def shown(lines: int) -> list[str]:
        content = "".join(f"line {number}\n" for number in range(lines))
        text = as_text(plan_of(Write(**COMMON, path=PurePosixPath("/a"), content=content)))
        return [line.strip() for line in text.splitlines() if line.startswith("      |")]

    assert len(shown(100)) == 100
    assert shown(101)[9:] == ["| line 9", "| … 91 more lines, whole in --json"]


def test_a_long_line_is_cut_and_many_hashes_are_counted() -> None:
    digest = " --hash=sha256:" + "a" * 64
    text = as_text(
        plan_of(Write(**COMMON, path=PurePosixPath("/a"), content=f"x==1{digest * 3}\n{'y' * 200}\nz==1{digest}"))
    )
    assert "| x==1 (3 hashes)\n" in text
    assert f"| {'y' * 160}…\n" in text
    assert text.endswith(f"| z==1{digest}")


def test_a_script_within_a_command_is_named_in_text_and_whole_in_json() -> None:
    plan = plan_of(Run(**COMMON, argv=("python3", "-c", SCRIPT, "x y")), poll(argv=("python3", "-c", SCRIPT)))
    assert "$ python3 -c '(script of 2 lines, whole in --json)' 'x y'\n" in as_text(plan)
    assert "import sys" not in as_text(plan)
    assert json.dumps(as_data(plan)).count("import sys") == 2


def test_what_stands_in_the_way_is_shown_behind_a_step() -> None:
    absent = Later(**COMMON, command="invoke build-wheels", shown="one\ntwo")
    other = Later(**COMMON, command="invoke deploy")
    text = as_text(plan_of(absent, other))
    assert "do it — it is not done  [comes first: invoke build-wheels]\n      $ one\n        two\n" in text
    assert text.endswith("do it — it is not done  [comes first: invoke deploy]")


def test_json_holds_everything() -> None:
    write = Write(**COMMON, path=PurePosixPath("/a"), content="x\n" * 500, privileged=True)
    later = [Later(**COMMON, command="invoke build-wheels"), Later(**COMMON, command="invoke deploy")]
    data = json.loads(json.dumps(as_data(plan_of(write, *later, notes=("n",)))))
    assert (data["title"], data["notes"]) == ("a plan", ["n"])
    (stage,) = data["stages"]
    first, second, third = stage["steps"]
    assert first == {
        "kind": "write",
        **COMMON,
        "privileged": True,
        "command": "sudo write /a (mode 644, 1000 bytes)",
        "content": "x\n" * 500,
    }
    assert (second["comes_first"], third["comes_first"]) == ("invoke build-wheels", "invoke deploy")


def test_steps_of_a_stage_are_kept_in_order_by_node() -> None:
    steps = [Run(node=node, title=title, reason="", argv=("true",)) for node, title in zip("abab", "1234", strict=True)]
    stage = make_plan("t", [("s", steps)]).stages[0]
    assert {node: [step.title for step in own] for node, own in stage.by_node.items()} == {
        "a": ["1", "3"],
        "b": ["2", "4"],
    }


def test_plans_are_equal_when_they_do_the_same() -> None:
    assert plan_of(poll()) == plan_of(poll())
    assert plan_of(poll(timeout=1)) != plan_of(poll())


@given(st.text(max_size=5000))
def test_a_long_command_loses_its_middle_and_says_how_much(command: str) -> None:
    short = shortened(command, 100)
    assert (short == command) == (len(command) <= 100)
    if len(command) > 100:
        assert short == f"{command[:50]} …({len(command) - 100} characters)… {command[-50:]}"


@given(st.lists(st.text(st.characters(exclude_characters="\n"), max_size=20), min_size=1).map(tuple))
def test_a_command_can_be_pasted(argv: tuple[str, ...]) -> None:
    run = Run(**COMMON, argv=argv)
    assert shlex.split(command_of(run)) == list(argv)
    assert command_of(run, whole=False) == command_of(run)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (2.5e6, "2 MB"), (3.21e9, "3.2 GB"), (5e12, "5000.0 GB")],
)
def test_sizes_read_in_powers_of_1000(size: float, text: str) -> None:
    assert megabytes(size) == text


def test_what_takes_a_stage_back_is_shown_below_it_and_in_json() -> None:
    step = Run(node="a", title="switch", reason="r", argv=("true",))
    back = Run(node="a", title="switch back", reason="all or none", argv=("mv", "old", "new"))
    plan = make_plan("t", [("one", [step]), ("two", [step])], undo={"one": [back], "three": [back]})
    assert "   a: if this or a later stage fails: switch back\n\n2. two" in as_text(plan)
    one, two = as_data(plan)["stages"]  # type: ignore[misc]
    assert one["undo"][0]["command"] == "mv old new"
    assert "undo" not in two


def test_a_file_that_takes_a_stage_back_is_shown_with_what_it_holds_in_json() -> None:
    step = Run(node="a", title="note", reason="r", argv=("true",))
    back = Write(node="a", title="take it back", reason="r", path=PurePosixPath("/x"), content="old\n")
    (one,) = as_data(make_plan("t", [("one", [step])], undo={"one": [back]}))["stages"]  # type: ignore[misc]
    assert (one["undo"][0]["kind"], one["undo"][0]["content"]) == ("write", "old\n")


def test_of_a_program_of_ours_people_see_where_it_goes_and_programs_all_of_it() -> None:
    plan = plan_of(Write(**COMMON, path=PurePosixPath("/lib/a.py"), content="import os\n", code=True))
    assert "write /lib/a.py" in as_text(plan)
    assert "import os" not in as_text(plan)
    assert "import os" in json.dumps(as_data(plan))
