"""Fractions: a third of, two thirds of, what remains."""

from harness.canary.problems.story import Story, template
from harness.canary.problems.vocabulary import BAKED, COLLECTIBLES, FOOD, FRUIT, PART

_SEVERAL = {(2, 3): "two thirds", (3, 4): "three quarters", (2, 5): "two fifths", (3, 5): "three fifths", (4, 5): "four fifths"}  # fmt: skip


@template
def part_given_away(s: Story) -> None:
    """A part is given away; what is left."""
    p, q, item = s.person(), s.person(), s.noun(COLLECTIBLES)
    k, each = s.one_of(3, 4, 5, 6, 8, 10), s.number(2, 40)
    have = k * each
    s.ask(
        f"{p} has {item(have)}. {p.he} gives {PART[k]} of them to {q}. How many {item.many} does {p} have left?",
        f"{q} gets {PART[k]} of {p}'s {item.many}. {p} had {have} before that. How many {item.many} does {p} keep?",
    )
    part = s.div(have, k, f"{p} gives away @ {item.many}.")
    s.sub(have, part, f"{p} has @ {item.many} left.")


@template
def part_then_part(s: Story) -> None:
    """A part, and then a part of the rest."""
    p, item = s.person(), s.noun(FRUIT)
    k, m, x = s.one_of(2, 3, 4, 5), s.one_of(2, 3, 4), s.number(2, 12)
    s.need(m * x % (k - 1) == 0 and (m > 2 or x > 2))
    have = m * x // (k - 1) * k
    s.need(have <= 200)
    s.ask(
        f"{p} picked {item(have)}. {p.he} sold {PART[k]} of them and gave {PART[m]} of the rest to {p.his} neighbor. How many {item.many} did the neighbor get?",
        f"Of {item(have)}, {p} puts {PART[k]} in the kitchen. {PART[m]} of the remaining {item.many} go to the neighbor. How many {item.many} does the neighbor get?",
    )
    first = s.div(have, k, f"The first part is @ {item.many}.")
    rest = s.sub(have, first, f"There are @ {item.many} left.")
    s.div(rest, m, f"The neighbor gets @ {item.many}.")


@template
def several_parts(s: Story) -> None:
    """Two thirds, three quarters and so on."""
    p, item = s.person(), s.noun(FOOD)
    top, bottom = s.pick(tuple(_SEVERAL))
    s.numbers += [top, bottom]
    each = s.number(2, 30)
    have = bottom * each
    s.ask(
        f"{p} brings {item(have)} to school. The children eat {_SEVERAL[top, bottom]} of them. How many {item.many} do the children eat?",
        f"{_SEVERAL[top, bottom]} of the {item(have)} in {p}'s kitchen are for the party. How many {item.many} are for the party?",
    )
    part = s.div(have, bottom, f"One part is @ {item.many}.")
    s.mul(top, part, f"The answer is @ {item.many}.")


@template
def part_spent_and_more(s: Story) -> None:
    """A part of the money is spent, then a fixed sum."""
    p = s.person()
    k, each, more = s.one_of(2, 3, 4, 5), s.number(6, 30), s.number(2, 30)
    have = k * each
    s.need(have - each - more >= 2)
    s.ask(
        f"{p} saved ${have}. {p.he} spent {PART[k]} of it on a gift and then ${more} on lunch. How much money does {p.he} have left?",
        f"With ${have} in {p.his} pocket, {p} goes to town. A train ticket takes {PART[k]} of the money, and a meal costs ${more}. How many dollars are left?",
    )
    part = s.div(have, k, f"{PART[k]} of the money is $@.")
    rest = s.sub(have, part, f"Then {p} has $@.")
    s.sub(rest, more, f"{p} has $@ left.")


@template
def rest_is_sold(s: Story) -> None:
    """A part is kept, the rest is sold at a price."""
    p, item = s.person(), s.noun(BAKED)
    k, each, price = s.one_of(2, 3, 4, 5), s.number(3, 15), s.number(2, 6)
    have = k * each
    s.ask(
        f"{p} baked {item(have)}. {p.he} kept {PART[k]} of them for {p.his} family and sold the others for ${price} each. How much money did {p.he} earn?",
        f"{PART[k]} of the {item(have)} that {p} made were for {p.his} family. {p.he} sold all the others for ${price} each. How many dollars did {p.he} get?",
    )
    kept = s.div(have, k, f"{p} kept @ {item.many}.")
    sold = s.sub(have, kept, f"{p} sold @ {item.many}.")
    s.mul(price, sold, f"{p} earned $@.")


@template
def whole_from_part(s: Story) -> None:
    """The whole from a part, and how many others there are."""
    p, item = s.person(), s.noun(COLLECTIBLES)
    k, part = s.one_of(3, 4, 5, 6, 8), s.number(3, 50)
    s.ask(
        f"{p} lost {item(part)}, which was {PART[k]} of {p.his} collection. How many {item.many} does {p.he} still have?",
        f"{item(part)} are {PART[k]} of all the {item.many} that {p} owns. {p.he} gives those {part} away. How many {item.many} remain?",
    )
    whole = s.mul(k, part, f"At first there were @ {item.many}.")
    s.sub(whole, part, f"There are @ {item.many} left.")


@template
def part_of_class(s: Story) -> None:
    """A part of a class is girls, a part of the girls does something."""
    p = s.person()
    k, m, x = s.one_of(2, 3, 4, 5), s.one_of(2, 3, 4, 5), s.number(2, 12)
    s.need(k * m * x <= 200)
    total = k * m * x
    does = s.pick(("play the piano", "wear glasses", "walk to school", "like chess", "have a pet"))
    s.ask(
        f"There are {total} students in {p}'s school club. {PART[k]} of them are girls, and {PART[m]} of the girls {does}. How many girls in the club {does}?",
        f"{p} teaches {total} students. {PART[k]} of the students are girls. If {PART[m]} of the girls {does}, how many girls is that?",
    )
    girls = s.div(total, k, "There are @ girls.")
    s.div(girls, m, "The answer is @ girls.")
