"""Lengths, areas and weights."""

from harness.canary.problems.story import Story, template
from harness.canary.problems.vocabulary import CONTAINERS, FRUIT, STATIONERY, TIMES


@template
def fence(s: Story) -> None:
    """The perimeter of a rectangle at a price for a meter."""
    p = s.person()
    a, b, price = s.number(3, 40), s.number(3, 40), s.number(2, 9)
    s.need(a > b)
    place = s.pick(("garden", "field", "yard", "pen"))
    s.ask(
        f"{p} puts a fence around a {place} that is {a} meters long and {b} meters wide. One meter of fence costs ${price}. How much does the fence cost?",
        f"A {place} is {b} meters wide and {a} meters long. {p} needs a fence all around it at ${price} per meter. How many dollars does {p.he} pay?",
    )
    half = s.add(a, b, "Length and width are @ meters.")
    around = s.mul(2, half, "The fence is @ meters long.")
    s.mul(price, around, "The fence costs $@.")


@template
def floor_tiles(s: Story) -> None:
    """The area of a floor at a price for a square meter."""
    p = s.person()
    a, b, price = s.number(3, 12), s.number(3, 12), s.number(2, 9)
    room = s.pick(("kitchen", "bedroom", "hall", "workshop", "classroom"))
    s.ask(
        f"The floor of {p}'s {room} is {a} meters wide and {b} meters long. New tiles cost ${price} per square meter. How much do the tiles for the floor cost?",
        f"{p} wants new tiles in a {room} that measures {a} meters by {b} meters. A square meter of tiles costs ${price}. How many dollars does {p.he} need?",
    )
    area = s.mul(a, b, "The floor has @ square meters.")
    s.mul(price, area, "The tiles cost $@.")


@template
def ribbon(s: Story) -> None:
    """Pieces cut from a ribbon after some was used."""
    p = s.person()
    used, piece, count = s.number(5, 60), s.number(3, 12), s.number(3, 20)
    what = s.pick(("ribbon", "rope", "wire", "string", "tape"))
    total = used + piece * count
    s.ask(
        f"{p} has a {what} of {total} inches. {p.he} uses {used} inches for a gift and cuts the rest into pieces of {piece} inches. How many pieces does {p.he} get?",
        f"From a {what} that is {total} inches long, {p} cuts off {used} inches. {p.he} cuts what is left into pieces of {piece} inches each. How many pieces are there?",
    )
    rest = s.sub(total, used, "There are @ inches left.")
    s.div(rest, piece, f"{p} gets @ pieces.")


@template
def laps(s: Story) -> None:
    """Laps on some days, in meters."""
    p = s.person()
    length, laps_, days = s.number(20, 90, 10), s.number(3, 9), s.number(2, 5)
    verb, where = s.pick((("swims", "the pool"), ("runs", "the hall"), ("walks", "the yard")))
    s.ask(
        f"One lap of {where} is {length} meters. {p} {verb} {laps_} laps a day. How many meters does {p.he} cover in {days} days?",
        f"{p} {verb} {laps_} laps of {where} every day, and each lap is {length} meters. How many meters is that in {days} days?",
    )
    day = s.mul(laps_, length, "One day is @ meters.")
    s.mul(days, day, f"{days} days are @ meters.")


@template
def full_weight(s: Story) -> None:
    """The weight of containers with what is in them."""
    p, fruit, box = s.person(), s.noun(FRUIT), s.noun(CONTAINERS)
    empty, inside, count = s.number(2, 6), s.number(4, 30), s.number(2, 9)
    s.ask(
        f"An empty {box.one} weighs {empty} pounds. {p} fills each {box.one} with {inside} pounds of {fruit.many}. How much do {count} full {box.many} weigh, in pounds?",
        f"{p} carries {box(count)} of {fruit.many}. Each {box.one} weighs {empty} pounds when it is empty and holds {inside} pounds of {fruit.many}. How many pounds is that in all?",
    )
    one = s.add(empty, inside, f"A full {box.one} weighs @ pounds.")
    s.mul(count, one, "They weigh @ pounds.")


@template
def longer_rope(s: Story) -> None:
    """Two lengths, one a multiple of the other, tied together with a loss."""
    p = s.person()
    a, k, knot = s.number(4, 60), s.number(2, 6), s.number(2, 6)
    what = s.pick(("rope", "chain", "scarf", "cable", "hose"))
    s.ask(
        f"{p} has a {what} of {a} feet and another {what} that is {TIMES[k]} as long. When {p.he} joins them, {knot} feet are lost. How many feet long is the new {what}?",
        f"One {what} is {a} feet long, and a second one is {TIMES[k]} as long. {p} joins the two and loses {knot} feet. What is the length of the result in feet?",
    )
    b = s.mul(k, a, f"The other {what} has @ feet.")
    both = s.add(a, b, "Together they have @ feet.")
    s.sub(both, knot, f"The new {what} has @ feet.")


@template
def stack(s: Story) -> None:
    """Two stacks of things and their heights."""
    p, first, second = s.person(), s.noun(STATIONERY), s.noun(STATIONERY)
    a, x, b, y = s.number(2, 12), s.number(2, 9), s.number(2, 12), s.number(2, 9)
    s.ask(
        f"A {first.one} weighs {x} ounces and a {second.one} weighs {y} ounces. {p} puts {first(a)} and {second(b)} into {p.his} bag. How many ounces do these things weigh together?",
        f"{p} mails {first(a)} and {second(b)}. Each {first.one} weighs {x} ounces, and each {second.one} weighs {y} ounces. What is the total weight in ounces?",
    )
    u = s.mul(a, x, f"The {first.many} weigh @ ounces.")
    v = s.mul(b, y, f"The {second.many} weigh @ ounces.")
    s.add(u, v, "Together that is @ ounces.")
