"""A command's way from facts to answer, and its errors to exit codes."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from invoke.exceptions import Exit

from core import apply, command, config
from core.command import Options, converge, mend
from core.config import Cluster, load_cluster
from core.errors import FactsError, Interrupted, NotConverged, UnfitNode, UsageError
from core.facts import Facts
from core.plan import Call, Plan, make_plan
from core.question import Question
from tests.unit.samples import LAB_PAIR, SPARK_PAIR, lab_captures


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for module in (config, command):
        monkeypatch.setattr(module, "WORK", tmp_path)
    monkeypatch.setattr(command, "Journal", lambda name: apply.Journal(name, tmp_path / "journal"))
    return tmp_path


@pytest.fixture
def cluster() -> Cluster:
    return load_cluster("local")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Question]:
    """Answer every probe with the saved facts, and note what was asked."""
    questions: list[Question] = []

    def gather(_hosts: object, _cluster: Cluster, question: Question) -> Any:
        questions.append(question)
        return lab_captures()

    monkeypatch.setattr(command, "gather", gather)
    monkeypatch.setattr(command, "held", lambda *_, **__: nullcontext(lambda: None))
    return questions


def failing(error: BaseException) -> Callable[[], None]:
    @command.command
    def my_task() -> None:
        """Fail."""
        raise error

    return my_task


def planner(*plans: Plan) -> Callable[[Facts], Plan]:
    """Return a planner that gives these plans one after the other, the last one again and again."""
    left: Iterator[Plan] = iter(plans)

    def give(_: Facts) -> Plan:
        return next(left, plans[-1])

    return give


EMPTY = make_plan("as it should be", [])


def doing(action: Callable[[], object], title: str = "do it") -> Plan:
    step = Call(node="controller", title=title, reason="r", shown="", action=lambda _: action() and None)
    return make_plan("a plan", [("stage", [step])])


def test_our_error_becomes_its_exit_code_and_one_message(work: Path) -> None:
    with pytest.raises(Exit) as caught:
        failing(UnfitNode("the disk is full", node="lab-a", next_move="free space"))()
    assert caught.value.code == UnfitNode.exit_code
    log = re.fullmatch(
        r"error: lab-a: the disk is full\n  next: free space\n  log: (.+-my_task\.log)", str(caught.value.message)
    )
    assert log
    assert Path(log[1]).parent == work / "logs"
    text = Path(log[1]).read_text()
    assert text.startswith("Traceback (most recent call last)")
    assert "in my_task" in text


def test_ctrl_c_is_130_and_no_traceback(work: Path) -> None:
    with pytest.raises(Exit) as caught:
        failing(KeyboardInterrupt())()
    assert caught.value.code == Interrupted.exit_code == 130
    assert caught.value.message == "error: interrupted\n  next: the same command goes on from here"
    assert not (work / "logs").exists()


def test_a_bug_is_not_dressed_up() -> None:
    with pytest.raises(ZeroDivisionError):
        failing(ZeroDivisionError())()


def test_a_wrapped_task_keeps_name_flags_and_help() -> None:
    wrapped = failing(ValueError())
    assert (wrapped.__name__, wrapped.__doc__) == ("my_task", "Fail.")
    assert not inspect.signature(wrapped).parameters


def test_an_answer_ends_with_one_line_break(capsys: pytest.CaptureFixture[str]) -> None:
    command.answer("a")
    command.answer("b\n")
    command.answer_json({"path": Path("x")})
    assert capsys.readouterr().out == 'a\nb\n{\n "path": "x"\n}\n'


def test_nothing_is_done_when_all_is_as_it_should_be(
    cluster: Cluster, asked: list[Question], capsys: pytest.CaptureFixture[str]
) -> None:
    converge("deploy", cluster, Question(packages=("gcc",)), planner(EMPTY), Options())
    assert capsys.readouterr().out == "nothing to do\n"
    assert asked == [Question(packages=("gcc",))], "looked once"


def test_a_plan_is_applied_and_looked_at_again(
    cluster: Cluster, asked: list[Question], capsys: pytest.CaptureFixture[str], work: Path
) -> None:
    done: list[str] = []
    converge("deploy", cluster, Question(), planner(doing(lambda: done.append("x")), EMPTY), Options())
    assert done == ["x"]
    assert len(asked) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert "looked again: nothing left to do" in output.err
    assert len(list((work / "journal").glob("*-deploy-*.jsonl"))) == 1


@pytest.mark.usefixtures("asked")
def test_a_second_plan_that_is_not_empty_is_an_error_that_shows_what_is_left(cluster: Cluster) -> None:
    with pytest.raises(NotConverged) as caught:
        converge("deploy", cluster, Question(), planner(doing(int), doing(int, "still to do")), Options())
    assert "controller: still to do — r" in caught.value.evidence


@pytest.mark.usefixtures("asked")
def test_a_command_that_always_does_something_looks_again_with_another_planner(cluster: Cluster) -> None:
    converge("restart", cluster, Question(), planner(doing(int)), Options(), again=planner(EMPTY))


@pytest.mark.usefixtures("asked")
def test_a_dry_run_shows_the_plan_of_the_real_facts_and_changes_nothing(
    cluster: Cluster, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    converge("deploy", cluster, Question(), planner(doing(lambda: pytest.fail("done"))), Options(dry_run=True))
    assert capsys.readouterr().out.startswith("a plan\n\n1. stage\n   controller: do it — r")
    assert not list(work.iterdir())


def test_saved_facts_imply_a_dry_run_and_touch_no_node(
    cluster: Cluster, asked: list[Question], capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Facts] = []

    def plan(facts: Facts) -> Plan:
        seen.append(facts)
        return doing(lambda: pytest.fail("done"))

    converge("deploy", cluster, Question(), plan, Options(facts=LAB_PAIR, as_json=True))
    assert json.loads(capsys.readouterr().out)["title"] == "a plan"
    assert asked == []
    assert seen[0]["lab-a"].hostname == "lab-a"


def test_facts_of_other_machines_are_refused(cluster: Cluster) -> None:
    with pytest.raises(Exception, match="the facts hold gx10-beee"):
        converge("deploy", cluster, Question(), planner(EMPTY), Options(facts=SPARK_PAIR))


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("plan", [EMPTY, doing(int)], ids=["empty", "not empty"])
def test_json_says_whether_something_was_changed(
    plan: Plan, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    converge("deploy", cluster, Question(), planner(plan, EMPTY), Options(as_json=True))
    data = json.loads(capsys.readouterr().out)
    assert (data["changed"], data["title"]) == (not plan.empty, plan.title)


@pytest.mark.usefixtures("asked")
def test_an_error_while_applying_leaves_the_journals_path_on_screen(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise FactsError("broken", next_move="mend")

    with pytest.raises(FactsError):
        converge("deploy", cluster, Question(), planner(doing(fail)), Options())
    assert "journal: " in capsys.readouterr().err


class TestOnThisHostOnly:
    def test_what_is_pending_is_done_in_one_go(self, capsys: pytest.CaptureFixture[str]) -> None:
        pending = ["make a", "make b"]
        mend("lab", lambda: list(pending), lambda _: pending.clear(), Options())
        assert not pending
        mend("lab", lambda: list(pending), lambda _: pytest.fail("done"), Options())
        assert capsys.readouterr().out == "nothing to do\n"

    def test_a_dry_run_shows_it(self, capsys: pytest.CaptureFixture[str]) -> None:
        mend("lab", lambda: ["make a"], lambda _: pytest.fail("done"), Options(dry_run=True))
        assert "controller: make a" in capsys.readouterr().out

    def test_what_is_left_is_an_error(self) -> None:
        with pytest.raises(NotConverged):
            mend("lab", lambda: ["make a"], lambda _: None, Options())


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], list[str]]:
    """Give a terminal on which somebody answers, or with None presses Ctrl-D; what was asked is noted."""

    def give(said: str | None) -> list[str]:
        questions: list[str] = []

        def read(question: str) -> str:
            questions.append(question)
            if said is None:
                raise EOFError
            return said

        monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
        monkeypatch.setattr("builtins.input", read)
        return questions

    return give


@pytest.mark.parametrize(("said", "agrees"), [("y", True), (" YES ", True), ("", False), ("n", False), (None, False)])
def test_only_a_yes_is_one(
    said: str | None,
    agrees: bool,  # noqa: FBT001 - a table
    terminal: Callable[[str | None], list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    questions = terminal(said)
    assert command.ask("So?", shown="a plan") is agrees
    assert questions == ["So? [y/N] "]
    assert capsys.readouterr().out == "a plan\n"


def test_without_a_terminal_nobody_is_asked_and_the_next_move_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="no terminal to ask on") as caught:
        command.ask("So?", shown="a plan", node="lab-a", next_move="say --yes")
    assert (caught.value.node, caught.value.next_move) == ("lab-a", "say --yes")
    assert capsys.readouterr().out == ""


def counted(done: list[str]) -> Callable[[Facts], Plan]:
    """Plan one step until it was done."""

    def plan(_: Facts) -> Plan:
        step = Call(node="lab-a", title="do it", reason="asked for", shown="", action=lambda _: done.append("done"))
        return make_plan("a plan", [("stage", [] if done else [step])])

    return plan


@pytest.mark.parametrize("said", ["y", "n"])
def test_the_plan_that_was_shown_is_the_one_that_is_applied_or_nothing_is(
    said: str,
    asked: list[Question],
    cluster: Cluster,
    terminal: Callable[[str | None], list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    questions, done = terminal(said), list[str]()
    agree = command.asking("So?", Options())
    refused: Any = pytest.raises(Exit, match="nothing was changed") if said == "n" else nullcontext()
    with refused as caught:
        converge("x", cluster, Question(), counted(done), Options(), agree=agree)
    assert done == (["done"] if said == "y" else [])
    assert len(questions) == 1
    assert len(asked) == 1 + len(done), "one look before, and one after what was done"
    assert "do it" in capsys.readouterr().out
    assert said == "y" or caught.value.code == 0


@pytest.mark.usefixtures("asked")
def test_nobody_is_asked_where_nothing_is_to_do_and_json_asks_nobody(
    cluster: Cluster, terminal: Callable[[str | None], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    questions = terminal("y")
    options = Options(as_json=True)
    with pytest.raises(UsageError, match="--json asks nothing"):
        converge("x", cluster, Question(), counted([]), options, agree=command.asking("So?", options))
    assert capsys.readouterr().out == ""
    converge("x", cluster, Question(), counted(["done"]), options, agree=command.asking("So?", options))
    assert questions == []
