"""Percentages of money and of groups."""

from harness.canary.problems.story import Story, template
from harness.canary.problems.vocabulary import CLOTHES, COLLECTIBLES, READING, TOYS, TREES

_PERCENTS = (10, 20, 25, 30, 40, 50, 60, 75)


@template
def percent_off(s: Story) -> None:
    """A price with a discount."""
    p, item = s.person(), s.noun(CLOTHES)
    percent, price = s.one_of(*_PERCENTS), s.number(20, 200, 10)
    s.ask(
        f"A {item.one} costs ${price}. Today it is on sale with {percent}% off. How much does {p} pay for the {item.one}?",
        f"{p} wants a {item.one} with a price of ${price}. The shop takes {percent}% off. How many dollars does {p.he} pay?",
        f"The price of a {item.one} was ${price}. It went down by {percent}% before {p} bought it. How many dollars did {p} pay?",
    )
    off = s.percent(percent, price, "The discount is $@.")
    s.sub(price, off, f"{p} pays $@.")


@template
def tip(s: Story) -> None:
    """Two dishes and a tip."""
    p = s.person()
    percent, a, b = s.one_of(10, 20, 25, 50), s.number(5, 40), s.number(5, 40)
    s.need((a + b) % 10 == 0 and (a + b) * percent % 100 == 0)
    s.ask(
        f"{p} has dinner at a restaurant. The main dish costs ${a} and the dessert and drinks cost ${b}. {p.he} leaves a tip of {percent}%. How much does {p.he} pay in total?",
        f"A meal for {p} costs ${a}, and the meal for {p.his} friend costs ${b}. {p} pays for both and adds a {percent}% tip. How many dollars does {p.he} pay?",
    )
    total = s.add(a, b, "The food costs $@.")
    extra = s.percent(percent, total, "The tip is $@.")
    s.add(total, extra, f"{p} pays $@.")


@template
def percent_of_group(s: Story) -> None:
    """A percentage of a collection; how many are the others."""
    p, item = s.person(), s.noun(COLLECTIBLES)
    percent, count = s.one_of(*_PERCENTS), s.number(20, 300, 10)
    kind = s.pick(("old", "red", "blue", "from other countries", "very small", "broken"))
    s.ask(
        f"{p} has {item(count)}. {percent}% of them are {kind}. How many of the {item.many} are not {kind}?",
        f"Of the {item(count)} in {p}'s collection, {percent}% are {kind}. How many {item.many} in the collection are not {kind}?",
    )
    part = s.percent(percent, count, f"There are @ {item.many} that are {kind}.")
    s.sub(count, part, f"The others are @ {item.many}.")


@template
def more_trees(s: Story) -> None:
    """A number grows by a percentage."""
    p, tree = s.person(), s.noun(TREES)
    percent, count = s.one_of(*_PERCENTS), s.number(20, 400, 20)
    s.ask(
        f"{p} looks after a park with {tree(count)}. This year the number of {tree.many} grows by {percent}%. How many {tree.many} are in the park now?",
        f"Last year there were {tree(count)} in a park. Since then {p} planted {percent}% more. How many {tree.many} are there now?",
    )
    new = s.percent(percent, count, f"There are @ new {tree.many}.")
    s.add(count, new, f"Now there are @ {tree.many}.")


@template
def pages_read(s: Story) -> None:
    """A percentage of a book on the first day, then some pages."""
    p, item = s.person(), s.noun(READING)
    percent, pages, then = s.one_of(10, 20, 25, 40, 50), s.number(40, 300, 20), s.number(5, 40)
    s.need(pages - pages * percent // 100 - then >= 2)
    s.ask(
        f"{p} is reading a {item.one} with {pages} pages. On Monday {p.he} read {percent}% of it, and on Tuesday {p.he} read {then} pages. How many pages are left to read?",
        f"{p} started a {item.one} with {pages} pages. After {percent}% of the pages on the first day and {then} pages on the second day, how many pages does {p.he} still have to read?",
    )
    first = s.percent(percent, pages, "The first day was @ pages.")
    read = s.add(first, then, f"{p} read @ pages.")
    s.sub(pages, read, "There are @ pages left.")


@template
def discount_on_several(s: Story) -> None:
    """Several things with a percentage off the total."""
    p, item = s.person(), s.noun(TOYS)
    count, price, percent = s.number(2, 9), s.number(5, 40, 5), s.one_of(10, 20, 25, 40, 50)
    s.need(count * price * percent % 100 == 0)
    s.ask(
        f"{p} buys {item(count)} for ${price} each. Because {p.he} is a member, {p.he} gets {percent}% off the total. How much does {p.he} pay?",
        f"Each {item.one} costs ${price}, and {p} needs {count} of them. The shop gives {percent}% off the whole order. How many dollars is the order?",
    )
    total = s.mul(count, price, f"The {item.many} cost $@.")
    off = s.percent(percent, total, "The discount is $@.")
    s.sub(total, off, f"{p} pays $@.")


@template
def test_questions(s: Story) -> None:
    """Right answers as a percentage, points for each."""
    p = s.person()
    percent, count, points = s.one_of(40, 50, 60, 75, 80, 90), s.number(20, 100, 20), s.number(2, 5)
    s.ask(
        f"A quiz has {count} questions. {p} answers {percent}% of them correctly and gets {points} points for every correct answer. How many points does {p} get?",
        f"{p} got {percent}% of the {count} questions in a quiz right. Each right answer is worth {points} points. What is {p.his} score?",
    )
    right = s.percent(percent, count, f"{p} has @ right answers.")
    s.mul(points, right, f"{p} gets @ points.")
