"""How every command runs: facts, plan, apply, look again; and how its errors and answers reach the user."""

from __future__ import annotations

import functools
import json
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from invoke.exceptions import Exit

from core.apply import Context, Journal, apply
from core.config import WORK, Cluster
from core.errors import Interrupted, NotConverged, SparkstackError, UsageError
from core.facts import Facts, gather, load_captures, require_nodes
from core.host import CONTROLLER
from core.lock import locked
from core.nodelock import held
from core.plan import Call, Plan, Report, as_data, as_text, make_plan
from core.question import Question
from core.remote import Hosts
from core.screen import Screen

P = ParamSpec("P")
T = TypeVar("T")
Planner = Callable[[Facts], Plan]


@dataclass(frozen=True)
class Options:
    """What every planning command takes: show only, answer as JSON, plan from saved facts."""

    dry_run: bool = False
    as_json: bool = False
    facts: Path | None = None

    @property
    def plan_only(self) -> bool:
        """Whether nothing may be changed; saved facts imply it."""
        return self.dry_run or self.facts is not None


def command(body: Callable[P, T]) -> Callable[P, T]:
    """Turn our errors into one message and an exit code; the traceback goes to .work/logs."""

    @functools.wraps(body)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return body(*args, **kwargs)
        except KeyboardInterrupt:
            error: SparkstackError = Interrupted("interrupted", next_move="the same command goes on from here")
            raise Exit(f"error: {error}", code=error.exit_code) from None
        except SparkstackError as found:
            log = _keep_traceback(body.__name__)
            raise Exit(f"error: {found}\n  log: {log}", code=found.exit_code) from found

    return wrapped


def _keep_traceback(name: str) -> Path:
    folder = WORK / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{name}.log"
    path.write_text(traceback.format_exc(), encoding="utf-8")
    return path


def answer(text: str) -> None:
    """Print what a command answers, to stdout."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")
    sys.stdout.flush()


def answer_json(data: Any) -> None:
    """Print an answer for programs."""
    answer(json.dumps(data, indent=1, default=str))


def ask(
    question: str,
    *,
    shown: str = "",
    node: str | None = None,
    next_move: str = "look at the plan with --dry-run, then say --yes",
) -> bool:
    """Show something, ask on the terminal, and say whether the answer is yes. Raises UsageError without a terminal."""
    if not sys.stdin.isatty():
        raise UsageError("there is no terminal to ask on", node=node, next_move=next_move)
    if shown:
        answer(shown)
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:  # Ctrl-D
        return False


def asking(prompt: str, options: Options, *, contents: bool = True) -> Callable[[Plan], bool]:
    """Return what shows a plan and asks whether it is agreed to. It raises UsageError where nobody can be asked."""

    def agree(plan: Plan) -> bool:
        if options.as_json:
            raise UsageError("--json asks nothing", next_move="look at the plan with --dry-run, then say --yes")
        return ask(prompt, shown=as_text(plan, contents=contents))

    return agree


def show_plan(plan: Plan, options: Options) -> None:
    """Print a plan in the form asked for."""
    answer_json(as_data(plan)) if options.as_json else answer(as_text(plan))


def look(cluster: Cluster, question: Question, options: Options, hosts: Hosts) -> Facts:
    """Return the facts of all nodes: from the nodes, or from the saved file without touching one."""
    captures = load_captures(options.facts) if options.facts else gather(hosts, cluster, question)
    facts = captures.parsed()
    require_nodes(facts, cluster.nodes)
    return facts


def converge(
    name: str,
    cluster: Cluster,
    question: Question,
    planner: Planner,
    options: Options,
    *,
    again: Planner | None = None,
    agree: Callable[[Plan], bool] | None = None,
) -> Plan:
    """Run a command the whole way: look, plan, apply, look again. Returns the plan that was shown or applied.

    ``planner`` is pure; ``again`` takes its place after applying where the command does something in any case. What
    ``agree`` says no to is not applied; it is asked of the very plan that would be, while the nodes are held.
    Raises NotConverged when the second plan is not empty, LockHeld when another command works on the cluster, from here
    or from elsewhere.
    """
    if options.plan_only:
        with Hosts(cluster) as hosts:
            plan = planner(look(cluster, question, options, hosts))
        show_plan(plan, options)
        return plan
    said = f"invoke {name}"
    with locked(cluster, said), Hosts(cluster) as hosts, held(cluster, hosts, said, report=Screen().line) as guard:
        plan = planner(look(cluster, question, options, hosts))
        if not plan.empty and agree is not None and not agree(plan):
            raise Exit("nothing was changed", code=0)
        if not plan.empty:
            checker = again or planner
            apply_and_check(name, plan, lambda: checker(look(cluster, question, options, hosts)), hosts, guard)
    _answer_done(plan, options)
    return plan


def apply_and_check(
    name: str, plan: Plan, again: Callable[[], Plan], hosts: Hosts, guard: Callable[[], None] = lambda: None
) -> None:
    """Apply a plan, then plan once more: the new plan must be empty."""
    screen = Screen()
    screen.line(plan.title)
    journal = Journal(name)
    try:
        apply(plan, Context(hosts, screen, journal, guard))
    finally:
        screen.line(f"journal: {journal.path}", style="dim")
    _require_empty(again())
    screen.line("looked again: nothing left to do")


def mend(title: str, pending: Callable[[], list[str]], action: Callable[[Report], object], options: Options) -> None:
    """Run a command that works on this host only: say what is pending, do it in one action, look again.

    ``pending`` looks and changes nothing. Raises NotConverged when something is left.
    """

    def plan() -> Plan:
        return make_plan(title, ((title, [_pending_step(word, action) for word in pending()]),))

    first = plan()
    if options.plan_only:
        show_plan(first, options)
        return
    if not first.empty:
        action(Screen().line)
        _require_empty(plan())
    _answer_done(first, options)


def _pending_step(word: str, action: Callable[[Report], object]) -> Call:
    return Call(node=CONTROLLER, title=word, reason="it is not so yet", shown="", action=action)


def _require_empty(rest: Plan) -> None:
    if not rest.empty:
        raise NotConverged(
            "everything ran, and there is still something to do",
            next_move="run it again; if this stays, it is a bug: report the plan below",
            evidence=as_text(rest, contents=False),
        )


def _answer_done(plan: Plan, options: Options) -> None:
    if options.as_json:
        answer_json({"changed": not plan.empty, **as_data(plan)})
    elif plan.empty:
        answer("nothing to do")
