"""Averages: of several values, a missing value, what an average comes to in total."""

from harness.canary.problems.story import Story, template
from harness.canary.problems.vocabulary import COLLECTIBLES, DAYS, FRUIT

_GAMES = ("basketball", "bowling", "darts", "handball", "quiz", "card")


@template
def of_three(s: Story) -> None:
    """The average of three scores."""
    p, game = s.person(), s.pick(_GAMES)
    a, b, c = s.number(5, 60), s.number(5, 60), s.number(5, 60)
    s.need((a + b + c) % 3 == 0)
    s.ask(
        f"{p} scored {a}, {b} and {c} points in three {game} games. What was {p.his} average score?",
        f"In the first {game} game {p} got {a} points, in the second {b} and in the third {c}. How many points did {p.he} get on average?",
    )
    x = s.add(a, b, "Two games give @ points.")
    total = s.add(x, c, "Three games give @ points.")
    s.div(total, 3, "The average is @ points.")


@template
def of_four(s: Story) -> None:
    """The average of four days."""
    p, item, day = s.person(), s.noun(FRUIT), s.pick(range(len(DAYS) - 3))
    a, b, c, d = s.number(4, 40), s.number(4, 40), s.number(4, 40), s.number(4, 40)
    s.need((a + b + c + d) % 4 == 0)
    first, last = DAYS[day], DAYS[day + 3]
    s.ask(
        f"From {first} to {last}, {p} sold {a}, {b}, {c} and {item(d)}. How many {item.many} did {p.he} sell per day on average?",
        f"{p} picked {a}, {b}, {c} and {item(d)} on the four days from {first} to {last}. What is the average number of {item.many} per day?",
    )
    x = s.add(a, b, "Two days give @.")
    y = s.add(x, c, "Three days give @.")
    total = s.add(y, d, "Four days give @.")
    s.div(total, 4, f"The average is @ {item.many}.")


@template
def missing_value(s: Story) -> None:
    """The last score that gives an average."""
    p, game = s.person(), s.pick(_GAMES)
    average, a, b = s.number(10, 60), s.number(5, 80), s.number(5, 80)
    s.need(3 * average - a - b >= 2)
    s.ask(
        f"{p} wants an average of {average} points in three {game} games. {p.he} scored {a} points in the first game and {b} in the second. How many points does {p.he} need in the third game?",
        f"After three {game} games {p}'s average is {average} points. The first two games gave {p.him} {a} and {b} points. How many points did {p.he} get in the third game?",
    )
    total = s.mul(3, average, "Three games need @ points.")
    got = s.add(a, b, "Two games give @ points.")
    s.sub(total, got, "The third game gives @ points.")


@template
def total_from_average(s: Story) -> None:
    """Days with one average and days with another."""
    p, item = s.person(), s.noun(COLLECTIBLES)
    a, x, b, y = s.number(2, 7), s.number(4, 30), s.number(2, 7), s.number(4, 30)
    s.ask(
        f"For {a} days {p} found {x} {item.many} a day on average. In the next {b} days the average was {y} {item.many} a day. How many {item.many} did {p.he} find in all?",
        f"{p} sold an average of {x} {item.many} per day in the first {a} days of a fair and {y} per day in the last {b} days. How many {item.many} did {p.he} sell in total?",
    )
    u = s.mul(a, x, f"The first days give @ {item.many}.")
    v = s.mul(b, y, f"The other days give @ {item.many}.")
    s.add(u, v, f"In all there are @ {item.many}.")


@template
def per_person(s: Story) -> None:
    """The average of what two groups bring."""
    p, item = s.person(), s.noun(FRUIT)
    people, average, girls = s.number(3, 10), s.number(3, 20), s.number(5, 90)
    boys = people * average - girls
    s.need(boys >= 5)
    s.ask(
        f"There are {people} children in {p}'s group. The girls bring {item(girls)} and the boys bring {item(boys)}. How many {item.many} does a child bring on average?",
        f"The girls in {p}'s group picked {item(girls)}, and the boys picked {item(boys)}. The group has {people} children. What is the average number of {item.many} per child?",
    )
    total = s.add(girls, boys, f"Together there are @ {item.many}.")
    s.div(total, people, f"The average is @ {item.many}.")


@template
def above_average(s: Story) -> None:
    """How far one value is above the average of two others."""
    p, q, r = s.person(), s.person(), s.person()
    a, b, c = s.number(20, 90), s.number(20, 90), s.number(30, 99)
    s.need((a + b) % 2 == 0)
    s.ask(
        f"{p} and {q} jumped {a} and {b} inches. {r} jumped {c} inches. How many inches farther did {r} jump than {p} and {q} did on average?",
        f"{q} threw a ball {b} feet and {p} threw it {a} feet. {r} threw it {c} feet. By how many feet did {r} beat the average of the other two?",
    )
    total = s.add(a, b, "The two together have @.")
    average = s.div(total, 2, "Their average is @.")
    s.sub(c, average, "The difference is @.")
