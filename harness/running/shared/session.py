"""A candidate that several workers judge, as one session. Imports no torch.

A run of rules is a function of the outcomes of its problems: what it judges next, counts, shrinks and says follows from
them alone (harness.running.runner). So the record of a shared run is that of one run, whoever made the outcomes: the
planned problems are judged ahead by all workers, and `RuleRun` reads their outcomes here in its own order. What it asks
beside the plan, since a problem failed or could not be judged, is judged when it asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from harness.rules import Rule
from harness.running.outcome import Description, Outcome, Status
from harness.running.shared.crew import Crew, WorkerLostError
from harness.running.shared.plan import Plan
from harness.running.shared.tasks import Task, in_ranges

# Of a task: whoever waits for a worker waits that long, and that much is judged again when it is lost.
MOST_PROBLEMS, MOST_HERE = 10, 3  # on a cluster, where handing it out costs something; on this machine
_TASKS_EACH = 4  # of the smallest rule, for each worker, so that all end at about the same time
_AHEAD = 4  # tasks for each worker, below which the next rule is planned: that takes the time of drawing its problems


class _Ahead:
    """The tasks of one rule that were handed out, and the outcomes that are not read yet."""

    def __init__(self, without: tuple[str, ...]) -> None:
        self.without = without
        self.tasks: list[Future[list[Outcome]]] = []
        self._places: dict[str, tuple[Future[list[Outcome]], int]] = {}

    def add(self, problems: Sequence[str], answer: Future[list[Outcome]]) -> None:
        """Note who judges which problems."""
        self.tasks.append(answer)
        self._places |= {problem: (answer, place) for place, problem in enumerate(problems)}

    def take(self, problem: str) -> tuple[Future[list[Outcome]], int] | None:
        """Return where a problem's outcome will be, once: who asks again wants another."""
        return self._places.pop(problem, None)


class SharedSession:
    """As harness.running.session.Session; `prepare` comes before the first problem.

    Args:
        crew: who judges.
    """

    def __init__(self, crew: Crew) -> None:
        self.left_out: dict[str, str] = {}
        self.tasks = 0  # handed out
        self._crew = crew
        self._rules: list[Rule] = []
        self._ahead: dict[str, _Ahead] = {}
        self._rule = ""  # whose outcomes are read
        self._next: list[Rule] = []  # those after it whose tasks may not be handed out yet

    @property
    def crew(self) -> Crew:
        """Who judges."""
        return self._crew

    def prepare(self, plan: Plan, rules: Sequence[Rule], seconds: float, *, limited: bool = False) -> None:
        """Say what will be asked.

        Args:
            plan: the problems.
            rules: in the order in which they are judged.
            seconds: limit of a problem.
            limited: a rule may end before all its problems are judged: then nobody is to be long at others of them.
        """
        most = MOST_PROBLEMS if self._crew.nodes else MOST_HERE
        self._most = 1 if limited else most
        self._plan, self._rules, self._seconds = plan, [rule for rule in rules if plan.able(rule)], seconds

    def describe(self) -> Description:
        """Return traits, measurements and stages."""
        return self._crew.description

    def judge(self, rule_id: str, problem: str, seconds: float) -> Outcome:
        """Return the outcome of a problem: of the plan, or judged now."""
        if rule_id != self._rule:
            self._begin(rule_id)
        self._top_up()
        place = self._ahead[rule_id].take(problem) if rule_id in self._ahead else None
        try:
            if place is not None:
                found: list[Outcome] = self._crew.wait(place[0])
                if place[1] < len(found):
                    return found[place[1]]
            task = Task(rule_id, (problem,), seconds, tuple(self.left_out))
            outcomes: list[Outcome] = self._crew.ask(lambda worker: worker.run(task))
        except WorkerLostError as error:
            return Outcome(Status.SLOW, f"no answer: {error}")
        return outcomes[0]

    def diagnose(
        self, rule_id: str, problem: str, command: str, seconds: float, likely: Sequence[str] = ()
    ) -> list[dict[str, Any]]:
        """Return which known faults explain a failure; nothing where no worker is left to say."""
        asked = (rule_id, problem, command, seconds, likely)
        try:
            found: list[dict[str, Any]] = self._crew.ask(lambda worker: worker.diagnose(*asked))
        except WorkerLostError:
            return []
        return found

    def close(self) -> None:
        """End all workers."""
        self._crew.close()

    def _begin(self, rule_id: str) -> None:
        """Read the outcomes of this rule from now on: drop what is queued for those before it, and what is out of date."""
        self._rule = rule_id
        self._crew.relax()
        place = next((n for n, rule in enumerate(self._rules) if rule.id == rule_id), len(self._rules))
        without = tuple(self.left_out)
        for rule in self._rules:
            if rule in self._rules[:place] or self._ahead.get(rule.id, _Ahead(without)).without != without:
                self._drop(rule)
        self._next = self._rules[place + 1 :]
        for rule in self._rules[place : place + 1]:
            self._hand_out(rule)

    def _top_up(self) -> None:
        """Queue the tasks of the rules that come next until all workers have enough to do."""
        while self._next and self._crew.queued < _AHEAD * self._crew.size:
            self._hand_out(self._next.pop(0))

    def _drop(self, rule: Rule) -> None:
        for task in self._ahead.pop(rule.id, _Ahead(())).tasks:
            task.cancel()

    def _hand_out(self, rule: Rule) -> None:
        """Queue a rule's tasks where they are not queued yet."""
        if rule.id in self._ahead:
            return
        self._ahead[rule.id] = ahead = _Ahead(tuple(self.left_out))
        problems = self._plan.own(rule)
        size = max(1, min(self._most, len(problems) // (_TASKS_EACH * self._crew.size)))
        for part in in_ranges(problems, size):
            ahead.add(part, self._crew.submit(Task(rule.id, part, self._seconds, ahead.without)))
        self.tasks += len(ahead.tasks)
