"""Ages: older and younger, in some years, some years ago."""

from harness.canary.problems.story import Story, template
from harness.canary.problems.vocabulary import PART, TIMES


@template
def older_together(s: Story) -> None:
    """The sum of two ages."""
    p, q = s.person(), s.person()
    a, d = s.number(4, 40), s.number(2, 20)
    s.ask(
        f"{p} is {a} years old. {q} is {d} years older than {p}. What is the sum of their ages?",
        f"{q} is {d} years older than {p}, who is {a}. How old are the two of them together?",
        aside=f"They have been friends for {s.unused(2, 15)} months.",
    )
    b = s.add(a, d, f"{q} is @ years old.")
    s.add(a, b, "Together they are @ years old.")


@template
def times_in_years(s: Story) -> None:
    """K times as old now; how old in some years."""
    p = s.person()
    a, k, years = s.number(4, 14), s.number(3, 6), s.number(2, 20)
    elder = s.pick(("mother", "father", "aunt", "uncle", "teacher"))
    s.need(k * a <= 75)
    s.ask(
        f"{p} is {a} years old, and {p.his} {elder} is {TIMES[k]} as old. How old will {p}'s {elder} be in {years} years?",
        f"{p}'s {elder} is {TIMES[k]} as old as {p}. If {p} is {a} now, how old will the {elder} be {years} years from now?",
        aside=f"{p} lives on floor {s.unused(2, 12)}.",
    )
    b = s.mul(k, a, f"The {elder} is @ years old.")
    s.add(b, years, f"In {years} years the {elder} will be @.")


@template
def part_as_old(s: Story) -> None:
    """A part of someone's age, and younger than that."""
    p, q, r = s.person(), s.person(), s.person()
    k, b, d = s.one_of(2, 3, 4), s.number(6, 25), s.number(2, 9)
    s.need(b - d >= 2 and k * b <= 80)
    s.ask(
        f"{p} is {k * b} years old. {q} is {PART[k]} as old as {p}, and {r} is {d} years younger than {q}. How old is {r}?",
        f"{r} is {d} years younger than {q}. {q} is {PART[k]} as old as {p}. {p} is {k * b} years old. What is {r}'s age?",
        aside=f"{p} has {s.unused(2, 9)} pets.",
    )
    age = s.div(k * b, k, f"{q} is @ years old.")
    s.sub(age, d, f"{r} is @ years old.")


@template
def years_ago(s: Story) -> None:
    """An age some years ago, against another's age now."""
    p, q = s.person(), s.person()
    a, ago, d = s.number(20, 60), s.number(2, 10), s.number(2, 10)
    s.need(a - ago - d >= 3)
    s.ask(
        f"{p} is {a} years old. {ago} years ago, {p} was {d} years older than {q} is now. How old is {q}?",
        f"{q} is {d} years younger than {p} was {ago} years ago. {p} is {a} now. How old is {q} now?",
        aside=f"{p} has {s.unused(2, 9)} children.",
    )
    then = s.sub(a, ago, f"{p} was @ years old.")
    s.sub(then, d, f"{q} is @ years old.")


@template
def three_siblings(s: Story) -> None:
    """Three ages from one; their sum."""
    p, q, r = s.person(), s.person(), s.person()
    a, d, e = s.number(3, 15), s.number(2, 9), s.number(2, 9)
    s.ask(
        f"{p}, {q} and {r} are siblings. {p} is {a} years old, {q} is {d} years older than {p}, and {r} is {e} years older than {q}. What is the sum of their ages?",
        f"The youngest of three siblings, {p}, is {a}. {q} is {d} years older than {p}, and {r} is {e} years older than {q}. How old are the three together?",
        aside=f"The family has lived here for {s.unused(2, 15)} years.",
    )
    b = s.add(a, d, f"{q} is @ years old.")
    c = s.add(b, e, f"{r} is @ years old.")
    x = s.add(a, b, f"{p} and {q} are @ together.")
    s.add(x, c, "All three are @ together.")


@template
def sum_in_years(s: Story) -> None:
    """The sum of two ages in some years."""
    p, q = s.person(), s.person()
    a, b, years = s.number(3, 40), s.number(3, 40), s.number(2, 15)
    s.ask(
        f"{p} is {a} years old and {q} is {b} years old. What will the sum of their ages be in {years} years?",
        f"Today {p} is {a} and {q} is {b}. How old will they be together {years} years from now?",
        aside=f"They live {s.unused(2, 19)} miles apart.",
    )
    x = s.add(a, years, f"{p} will be @.")
    y = s.add(b, years, f"{q} will be @.")
    s.add(x, y, "Together they will be @.")
