"""What a template is written with: draw people and numbers, tell the question, work out the answer step by step."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from harness.canary.problems.vocabulary import DAYS, PEOPLE, STREETS, TOWNS, Noun, Person

T = TypeVar("T")

ASIDE_SHARE = 0.25
"""Share of problems with a sentence whose number is not needed."""

OPENING_SHARE = 0.3
"""Share of problems with a sentence before the story that says nothing of use."""

_SENTENCE_START = re.compile(r"(?:^|(?<=[.?!] ))[a-z]")
_BEFORE_VOWEL = re.compile(r"\b([Aa])(?= (?:[aeio]|\$?8|\$?1[18]\b))")
"""An "a" that is read before a vowel: an apple, an 8, an $11. Words such as "unit" and "one" do not follow an "a" here."""


class RedrawError(Exception):
    """The numbers drawn do not make a good problem; the template is told again with others."""


class Story:
    """One problem while it is told. A template calls `number`, `person`, ... then `ask`, then one step after another.

    Steps put a calculation where their text has an `@`: `mul(4, 12, "Anna buys @ eggs.")` writes
    "Anna buys 4 * 12 = <<4*12=48>>48 eggs." and returns 48; `$@` writes the result as money. The result of the last
    step is the answer. Every step has two operands and every result is a whole number of at least 2: a template that
    comes to less is told again, so no sentence has to say "1 apple" for a result.
    """

    __slots__ = ("_nouns", "_people", "_random", "lines", "numbers", "question", "value")

    def __init__(self, seeded: random.Random) -> None:
        self._random = seeded.random
        self._people: list[Person] = []
        self._nouns: list[Noun] = []
        self.numbers: list[int] = []
        self.lines: list[str] = []
        self.question = ""
        self.value = 0

    # What is drawn. random() alone is used: it gives the same numbers in every Python version.

    def pick(self, options: Sequence[T]) -> T:
        """Return one of several options. What is picked is wording: it does not count as a number of the problem."""
        return options[int(self._random() * len(options))]

    def number(self, low: int, high: int, step: int = 1) -> int:
        """Draw a number of the problem: low, low + step, ... up to high."""
        value = low + step * int(self._random() * ((high - low) // step + 1))
        self.numbers.append(value)
        return value

    def one_of(self, *values: int) -> int:
        """Draw a number of the problem from a list."""
        value = values[int(self._random() * len(values))]
        self.numbers.append(value)
        return value

    def payment(self, cost: int) -> int:
        """Draw a round sum of money that covers a cost."""
        enough = [
            sum_ for sum_ in (10, 20, 30, 40, 50, 60, 80, 100, 150, 200, 300, 400, 500, 800) if sum_ > cost
        ]
        if not enough:
            raise RedrawError
        return self.one_of(*enough[:2])

    def person(self) -> Person:
        """Draw a person who is not in the story yet."""
        while (person := self.pick(PEOPLE)) in self._people:
            pass
        self._people.append(person)
        return person

    def noun(self, kind: Sequence[Noun]) -> Noun:
        """Draw a thing that is not in the story yet."""
        while (noun := self.pick(kind)) in self._nouns:
            pass
        self._nouns.append(noun)
        return noun

    def need(self, good: bool) -> None:
        """Have the story told again with other numbers unless these are good."""
        if not good:
            raise RedrawError

    # The question.

    def ask(self, *phrasings: str, aside: str | None = "") -> None:
        """Tell the question in one of several phrasings. Sentences are capitalized here.

        `aside` is the distractor sentence that some of the problems get before their last sentence: "" for one about
        the first person of the story, None for never, or the sentence itself.
        """
        text = self.pick(phrasings)
        if self._people and self._random() < OPENING_SHARE:
            text = f"{self._opening(self._people[0])} {text}"
        if aside is not None and self._random() < ASIDE_SHARE:
            last = text.rfind(". ")
            sentence = aside or self._aside()
            text = f"{text[: last + 1]} {sentence} {text[last + 2 :]}" if last > 0 else f"{sentence} {text}"
        text = _BEFORE_VOWEL.sub(r"\1n", text)
        self.question = _SENTENCE_START.sub(lambda found: found.group().upper(), text)

    def unused(self, low: int, high: int) -> int:
        """Draw the number of a distractor sentence. It does not count as a number of the problem."""
        return low + int(self._random() * (high - low + 1))

    def _opening(self, p: Person) -> str:
        return self.pick(
            (
                f"it is a sunny {self.pick(DAYS)} in {self.pick(TOWNS)}.",
                f"{p} lives in {self.pick(TOWNS)} with {p.his} family.",
                f"{p} is busy this week.",
                f"{p} likes to plan everything carefully.",
                f"{p} tells {p.his} friends about {p.his} week.",
                f"{p}'s teacher asks {p.him} a question.",
                f"{p} writes in {p.his} diary.",
            )
        )

    def _aside(self) -> str:
        n = self.unused(2, 19)
        if not self._people:
            return self.pick((f"It is {n} degrees outside.", f"It is day {n} of the month."))
        p = self._people[0]
        return self.pick(
            (
                f"{p} lives at number {n} on {self.pick(STREETS)}.",
                f"{p}'s backpack has {n} pockets.",
                f"{p} takes bus number {n} home.",
                f"{p}'s favorite number is {n}.",
                f"it is {n} degrees outside.",
                f"{p} moved to this town {n} years ago.",
                f"{p}'s lucky shirt has the number {n} on it.",
            )
        )

    # The worked answer.

    def add(self, a: int, b: int, text: str) -> int:
        """Work out a + b."""
        return self._step(f"{a} + {b}", a + b, text)

    def sub(self, a: int, b: int, text: str) -> int:
        """Work out a - b."""
        return self._step(f"{a} - {b}", a - b, text)

    def mul(self, a: int, b: int, text: str) -> int:
        """Work out a * b."""
        return self._step(f"{a} * {b}", a * b, text)

    def div(self, a: int, b: int, text: str) -> int:
        """Work out a / b; the story is told again when that leaves a remainder."""
        self.need(a % b == 0)
        return self._step(f"{a} / {b}", a // b, text)

    def percent(self, percent: int, of: int, text: str) -> int:
        """Work out a percentage; the story is told again when it is no whole number."""
        self.need(percent * of % 100 == 0)
        return self._step(f"{of} * {percent} / 100", of * percent // 100, text)

    def _step(self, expression: str, value: int, text: str) -> int:
        self.need(value >= 2)
        before, _, after = text.partition("@")
        dollar = ""
        if before.endswith("$"):
            before, dollar = before[:-1], "$"
        line = f"{before}{expression} = {dollar}<<{expression.replace(' ', '')}={value}>>{value}{after}"
        self.lines.append(line[0].upper() + line[1:])
        self.value = value
        return value


Template = Callable[[Story], None]
TEMPLATES: dict[str, dict[str, Template]] = {}
"""Family to template id to template, in the order of `families.py`. Filled by `template` as the modules are imported."""


def template(tell: Template) -> Template:
    """Register a function of a `family_NAME.py` as a template of that family; its id is "NAME/function"."""
    family = tell.__module__.rpartition(".family_")[2]
    TEMPLATES.setdefault(family, {})[f"{family}/{tell.__name__}"] = tell
    return tell
