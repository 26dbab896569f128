"""Schedules: minutes, hours, days and weeks."""

from harness.canary.problems.story import Story, template
from harness.canary.problems.vocabulary import DAYS

_PRACTICE = ("the piano", "the violin", "the guitar", "chess", "basketball", "tennis", "the drums", "soccer")


@template
def minutes_in_weeks(s: Story) -> None:
    """Some minutes on some days of each week."""
    p, what = s.person(), s.pick(_PRACTICE)
    minutes, days, weeks = s.number(10, 60, 5), s.number(2, 6), s.number(2, 8)
    s.ask(
        f"{p} plays {what} for {minutes} minutes a day on {days} days of every week. How many minutes does {p.he} play in {weeks} weeks?",
        f"Every week, {p} practices on {days} days. Each time {p.he} plays {what} for {minutes} minutes. How many minutes of practice is that in {weeks} weeks?",
    )
    week = s.mul(days, minutes, "One week is @ minutes.")
    s.mul(weeks, week, f"{weeks} weeks are @ minutes.")


@template
def hours_to_minutes(s: Story) -> None:
    """Hours and minutes divided by the time for one task, on top of what is done."""
    p = s.person()
    hours, per, count, done = s.number(2, 6), s.one_of(5, 10, 15, 20, 30), s.number(4, 30), s.number(2, 20)
    minutes = per * count - 60 * hours
    s.need(2 <= minutes < 60)
    task = s.pick(("puzzle", "homework problem", "drawing", "song", "chapter", "model"))
    s.ask(
        f"{p} has finished {done} {task}s and has {hours} hours and {minutes} minutes for more of them. One {task} takes {p.him} {per} minutes. How many {task}s will {p.he} have finished then?",
        f"It takes {p} {per} minutes to finish one {task}, and {p.he} has finished {done} already. How many {task}s are finished after another {hours} hours and {minutes} minutes?",
    )
    x = s.mul(hours, 60, f"{hours} hours are @ minutes.")
    total = s.add(x, minutes, f"{p} has @ minutes.")
    new = s.div(total, per, f"{p} finishes @ new {task}s.")
    s.add(done, new, f"Then there are @ {task}s.")


@template
def episodes(s: Story) -> None:
    """Episodes of a show and something else, in hours."""
    p = s.person()
    count, minutes, more = s.number(3, 12), s.one_of(10, 15, 20, 30, 40, 45, 50), s.number(2, 12)
    s.need(count * minutes % 60 == 0 and count * minutes >= 120)
    parts, show, follows = s.pick(
        (
            ("episodes", "show", "watches"),
            ("parts", "radio play", "listens to"),
            ("lessons", "course", "takes"),
        )
    )
    s.ask(
        f"In one month {p} {follows} {count} {parts} of a {show}. Each of them lasts {minutes} minutes. {p.he} also spends {more} hours on sports. How many hours is that altogether?",
        f"A {show} has {count} {parts} of {minutes} minutes each. {p} {follows} all of them and then works in the garden for {more} hours. How many hours does all of this take?",
        aside=None,
    )
    total = s.mul(count, minutes, f"The {parts} take @ minutes.")
    hours = s.div(total, 60, "That is @ hours.")
    s.add(hours, more, "Altogether it is @ hours.")


@template
def time_left(s: Story) -> None:
    """What is left of some time after two things."""
    p, what = s.person(), s.pick(_PRACTICE)
    hours, a, b = s.number(2, 5), s.number(10, 80, 5), s.number(10, 80, 5)
    s.need(60 * hours - a - b >= 5)
    s.ask(
        f"{p} has {hours} hours before dinner. {p.he} does homework for {a} minutes and plays {what} for {b} minutes. How many minutes are left?",
        f"Dinner is in {hours} hours. {p} wants to clean {p.his} room for {a} minutes and then play {what} for {b} minutes. How many minutes will {p.he} have left before dinner?",
    )
    total = s.mul(hours, 60, f"{hours} hours are @ minutes.")
    used = s.add(a, b, f"{p} uses @ minutes.")
    s.sub(total, used, f"{p} has @ minutes left.")


@template
def days_to_finish(s: Story) -> None:
    """Pages in the morning and in the evening until a book is read."""
    p = s.person()
    a, b, days = s.number(3, 20), s.number(3, 20), s.number(3, 14)
    pages = (a + b) * days
    s.need(pages <= 400)
    s.ask(
        f"{p} reads {a} pages every morning and {b} pages every evening. How many days does {p.he} need for a book of {pages} pages?",
        f"A book has {pages} pages. {p} reads {a} pages before school and {b} pages before bed each day. After how many days has {p.he} finished the book?",
    )
    day = s.add(a, b, f"{p} reads @ pages a day.")
    s.div(pages, day, f"{p} needs @ days.")


@template
def longer_each_day(s: Story) -> None:
    """Some minutes more on each of three days."""
    p, what, first = s.person(), s.pick(_PRACTICE), s.pick(range(len(DAYS) - 2))
    a, more, extra = s.number(10, 60, 5), s.number(5, 30, 5), s.number(5, 30, 5)
    one, two, three = DAYS[first : first + 3]
    s.ask(
        f"On {one}, {p} plays {what} for {a} minutes. On {two} {p.he} plays {more} minutes longer than on {one}, and on {three} {extra} minutes longer than on {two}. How many minutes does {p.he} play on {three}?",
        f"{p} plays {what} for {a} minutes on {one}. Each day after that {p.he} plays longer: {more} minutes more on {two}, and another {extra} minutes more on {three}. How long does {p.he} play on {three}, in minutes?",
    )
    x = s.add(a, more, f"On {two} {p} plays @ minutes.")
    s.add(x, extra, f"On {three} {p} plays @ minutes.")


@template
def more_hours(s: Story) -> None:
    """Sleep or work in hours over weeks, compared between two people."""
    p, q = s.person(), s.person()
    a, d, weeks = s.number(3, 12), s.number(2, 9), s.number(2, 9)
    b = a + d
    does = s.pick(
        ("works in the garden", "studies", "helps at the library", "trains with the team", "paints")
    )
    s.ask(
        f"{p} {does} {a} hours a week. {q} {does} {b} hours a week. How many more hours does {q} spend on this than {p} in {weeks} weeks?",
        f"Every week, {p} {does} for {a} hours and {q} {does} for {b} hours. In {weeks} weeks, how many hours more does {q} spend on this?",
    )
    x = s.mul(weeks, b, f"{q} spends @ hours.")
    y = s.mul(weeks, a, f"{p} spends @ hours.")
    s.sub(x, y, "The difference is @ hours.")
