"""Tasks of deploy/care: doctor, report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task

from core.choice import chosen_cluster, stack_of
from core.command import Options, answer, answer_json, asking, command, converge, look
from core.config import Cluster, Profile, Stack, load_profile
from core.errors import UsageError
from core.facts import Facts, gather_each
from core.question import Question
from core.remote import Hosts
from core.screen import Screen
from deploy.care import link as way
from deploy.care import report as bundle
from deploy.care.fix import plan_fix
from deploy.checks.case import Case
from deploy.doctor import diagnose
from deploy.page import as_data, case_of, exit_code, page


@dataclass(frozen=True)
class Asked:
    """What is to be judged."""

    cluster: Cluster
    stack: Stack
    profile: Profile

    @property
    def question(self) -> Question:
        """What the probe is asked for it."""
        return Question(self.profile, self.stack.packages, whole=True)

    def case(self, facts: Facts) -> Case:
        """Return the case where all nodes answered."""
        return case_of(self.cluster, self.stack, self.profile, facts)


def _asked(cluster: str, profile: str) -> Asked:
    chosen = chosen_cluster(cluster)
    return Asked(chosen, stack_of(chosen), load_profile(profile or chosen.profile))


@task(
    help={
        "cluster": "which machines (config/clusters)",
        "profile": "which model, and how (config/profiles)",
        "link": "measure the fabric between each pair of nodes too: rates, small messages, the largest packet",
        "fix": "end what our services left behind, install missing packages, let their user linger; shows a plan, asks",
        "yes": "with --fix: do not ask",
        "dry-run": "with --fix: show the plan and stop",
        "json": "answer as JSON",
        "facts": "judge a saved look (invoke facts --save), without touching a node",
    }
)
@command
def doctor(
    _: Context,
    cluster: str = "",
    profile: str = "",
    link: bool = False,
    fix: bool = False,
    yes: bool = False,
    dry_run: bool = False,
    json: bool = False,
    facts: str = "",
) -> None:
    """Say whether these machines can serve this profile; the exit code tells the worst finding."""
    asked, options = _asked(cluster, profile), Options(dry_run, json, Path(facts) if facts else None)
    _refuse_flags(link=link, fix=fix, yes=yes, options=options)
    if fix:
        _fix(asked, options, yes=yes)
        if options.plan_only or json:
            return
    case = _case(asked, options, link=link)
    found = diagnose(case)
    answer_json(as_data(case, found)) if json else answer(page(case, found))
    if code := exit_code(found):
        raise Exit(code=code)


def _refuse_flags(*, link: bool, fix: bool, yes: bool, options: Options) -> None:
    if (yes or options.dry_run) and not fix:
        raise UsageError("--yes and --dry-run belong to --fix", next_move="say --fix too, or leave them out")
    if link and options.plan_only:
        raise UsageError("--link measures on the nodes", next_move="leave out --facts and --dry-run, or --link")


def _case(asked: Asked, options: Options, *, link: bool) -> Case:
    """Look at the nodes; one that says nothing that can be read is a finding, and the page is of the others."""
    with Hosts(asked.cluster) as hosts:
        if options.facts:
            return asked.case(look(asked.cluster, asked.question, options, hosts))
        captures, silent = gather_each(hosts, asked.cluster, asked.question)
        seen, unread = captures.parsed_each()
        measured = way.measure(asked.cluster, hosts, seen) if link else ()
    return case_of(asked.cluster, asked.stack, asked.profile, seen, silent=silent | unread, measured=measured)


def _fix(asked: Asked, options: Options, *, yes: bool) -> None:
    """Mend what is ours to mend; only what was shown is done, where somebody was asked."""
    agree = None if yes else asking("Do this on the nodes?", options)
    converge("doctor", asked.cluster, asked.question, lambda seen: plan_fix(asked.case(seen)), options, agree=agree)


@task(
    help={
        "cluster": "which machines (config/clusters)",
        "profile": "which model, and how (config/profiles)",
        "to": "the file that is written; without it one in .work/reports",
        "private": "addresses and names are replaced too, each by the same word everywhere",
        "json": "answer as JSON",
    }
)
@command
def report(
    _: Context, cluster: str = "", profile: str = "", to: str = "", private: bool = False, json: bool = False
) -> None:
    """Bundle evidence for a bug report into one file here; secrets are taken out, and what is in it is listed."""
    asked = _asked(cluster, profile)
    made = bundle.make(
        asked.cluster, asked.stack, asked.profile, Path(to) if to else None, private=private, say=Screen().line
    )
    answer_json(made.as_data()) if json else answer(made.as_text())
