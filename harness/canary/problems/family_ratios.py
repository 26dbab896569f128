"""Ratios: so many of one for every so many of another. Never trained on."""

from harness.canary.problems.story import Story, template
from harness.canary.problems.vocabulary import COLLECTIBLES, COLORS, FLOWERS, FRUIT


@template
def other_from_one(s: Story) -> None:
    """For every a there are b; how many of the second."""
    p, item, one, two = s.person(), s.noun(COLLECTIBLES), s.pick(COLORS[:4]), s.pick(COLORS[4:])
    a, b, times = s.number(2, 6), s.number(2, 9), s.number(3, 12)
    s.need(a != b)
    s.ask(
        f"In {p}'s box there are {b} {two} {item.many} for every {a} {one} {item.many}. The box has {a * times} {one} {item.many}. How many {two} {item.many} are in it?",
        f"For every {a} {one} {item.many}, {p} has {b} {two} {item.many}. If {p.he} has {a * times} {one} {item.many}, how many {two} {item.many} does {p.he} have?",
    )
    groups = s.div(a * times, a, "There are @ groups.")
    s.mul(groups, b, f"There are @ {two} {item.many}.")


@template
def total_of_groups(s: Story) -> None:
    """How many in all from the number of groups."""
    p, first, second = s.person(), s.noun(FLOWERS), s.noun(FLOWERS)
    a, b, groups = s.number(2, 9), s.number(2, 9), s.number(3, 12)
    s.ask(
        f"{p} makes bunches of flowers. For every {first(a)} {p.he} takes {second(b)}, and that is one bunch. How many flowers are in {groups} bunches?",
        f"Each bunch that {p} ties has {first(a)} and {second(b)}. How many flowers does {p.he} need for {groups} bunches?",
    )
    bunch = s.add(a, b, "One bunch has @ flowers.")
    s.mul(groups, bunch, "They have @ flowers.")


@template
def parts_of_total(s: Story) -> None:
    """A total divided in a ratio."""
    p, q, item = s.person(), s.person(), s.noun(FRUIT)
    a, b, each = s.number(2, 5), s.number(2, 5), s.number(3, 15)
    s.need(a != b)
    total = (a + b) * each
    s.ask(
        f"{p} and {q} share {item(total)} in the ratio {a} to {b}. How many {item.many} does {p} get?",
        f"{item(total)} are divided between {p} and {q} so that {p} gets {a} parts and {q} gets {b} parts. How many {item.many} does {p} get?",
    )
    parts = s.add(a, b, "There are @ parts.")
    part = s.div(total, parts, f"One part is @ {item.many}.")
    s.mul(a, part, f"{p} gets @ {item.many}.")


@template
def paint(s: Story) -> None:
    """Paint mixed from two colors."""
    p, one, two = s.person(), s.pick(COLORS[:4]), s.pick(COLORS[4:])
    a, b, times = s.number(2, 5), s.number(2, 5), s.number(3, 9)
    s.ask(
        f"{p} mixes {a} cans of {one} paint with {b} cans of {two} paint for one wall. How many cans of paint does {p.he} need for {times} walls?",
        f"One wall takes {a} cans of {one} paint and {b} cans of {two} paint. How many cans does {p} use for {times} walls?",
    )
    wall = s.add(a, b, "One wall takes @ cans.")
    s.mul(times, wall, f"{p} needs @ cans.")


@template
def teachers(s: Story) -> None:
    """One adult for every few children, all together."""
    p = s.person()
    each, adults = s.number(3, 12), s.number(2, 12)
    s.ask(
        f"On {p}'s school trip there must be one adult for every {each} children. {each * adults} children go on the trip. How many children and adults go in all?",
        f"{each * adults} children visit a farm with {p}'s school. There is one adult for every {each} children. How many people is that together?",
    )
    count = s.div(each * adults, each, "There are @ adults.")
    s.add(each * adults, count, "Together there are @ people.")
