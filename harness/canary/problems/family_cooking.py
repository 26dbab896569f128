"""Cooking and baking: recipes, batches, trays."""

from harness.canary.problems.story import Story, template
from harness.canary.problems.vocabulary import BAKED, CONTAINERS, FRUIT, VEGETABLES

_MEASURED = (
    "cups of flour",
    "cups of sugar",
    "spoons of honey",
    "cups of milk",
    "cups of oats",
    "spoons of butter",
)


@template
def scaled_recipe(s: Story) -> None:
    """A recipe for some people made for more."""
    p, what = s.person(), s.pick(_MEASURED)
    people, times, amount = s.number(2, 8), s.number(2, 6), s.number(2, 12)
    s.ask(
        f"A recipe for {people} people needs {amount} {what}. {p} cooks for {people * times} people. How many {what} does {p.he} need?",
        f"{p} uses {amount} {what} when {p.he} cooks for {people} people. How many {what} are needed for {people * times} people?",
    )
    factor = s.div(people * times, people, "The recipe is made @ times.")
    s.mul(factor, amount, f"{p} needs @ {what}.")


@template
def batches(s: Story) -> None:
    """Batches for a number of things, and what they need."""
    p, item, what = s.person(), s.noun(BAKED), s.pick(_MEASURED)
    size, count, amount = s.number(4, 15), s.number(2, 9), s.number(2, 9)
    s.ask(
        f"{p} needs {item(size * count)} for a party. One batch makes {item(size)} and takes {amount} {what}. How many {what} does {p.he} need?",
        f"One batch of {item(size)} takes {amount} {what}. How many {what} does {p} use to bake {item(size * count)}?",
    )
    many = s.div(size * count, size, f"{p} makes @ batches.")
    s.mul(many, amount, f"{p} needs @ {what}.")


@template
def trays(s: Story) -> None:
    """Trays with rows, some eaten."""
    p, item = s.person(), s.noun(BAKED)
    tray, rows, row, eaten = s.number(2, 6), s.number(2, 6), s.number(3, 8), s.number(2, 15)
    s.need(tray * rows * row - eaten >= 2)
    s.ask(
        f"{p} bakes {tray} trays of {item.many}. Each tray has {rows} rows of {item(row)}. {p.his} family eats {eaten} of them. How many {item.many} are left?",
        f"There are {rows} rows with {item(row)} on each of {p}'s {tray} trays. After {eaten} have been eaten, how many {item.many} are left?",
    )
    one = s.mul(rows, row, f"One tray has @ {item.many}.")
    total = s.mul(tray, one, f"All trays have @ {item.many}.")
    s.sub(total, eaten, f"There are @ {item.many} left.")


@template
def jars_of_jam(s: Story) -> None:
    """Fruit into jars of jam, sold at a price."""
    p, fruit = s.person(), s.noun(FRUIT)
    per, jars, price = s.number(3, 12), s.number(3, 15), s.number(3, 9)
    s.ask(
        f"{p} makes jam from {fruit(per * jars)}. Every jar takes {fruit(per)}. {p.he} sells the jars for ${price} each. How much money does {p.he} get?",
        f"One jar of jam needs {fruit(per)} and sells for ${price}. How many dollars does {p} get for the jam from {fruit(per * jars)}?",
    )
    count = s.div(per * jars, per, f"{p} makes @ jars.")
    s.mul(count, price, f"{p} gets $@.")


@template
def soup(s: Story) -> None:
    """Vegetables for each pot, and how many more are needed."""
    p, first = s.person(), s.noun(VEGETABLES)
    pots, each, have = s.number(3, 9), s.number(4, 15), s.number(3, 40)
    s.need(pots * each - have >= 2)
    s.ask(
        f"{p} cooks {pots} pots of soup. Each pot needs {first(each)}. {p.he} already has {first(have)}. How many more {first.many} does {p.he} have to buy?",
        f"For one pot of soup {p} needs {first(each)}. {p.he} has {first(have)} at home and wants to cook {pots} pots. How many {first.many} are missing?",
    )
    need = s.mul(pots, each, f"The soup needs @ {first.many}.")
    s.sub(need, have, f"{p} has to buy @ {first.many}.")


@template
def flour_left(s: Story) -> None:
    """What two kinds of baking leave of some cups."""
    p, first, second, what = s.person(), s.noun(BAKED), s.noun(BAKED), s.pick(_MEASURED)
    a, x, b, left = s.number(2, 9), s.number(2, 8), s.number(3, 25), s.number(2, 30)
    have = a * x + b + left
    s.ask(
        f"{p} has {have} {what}. {p.he} makes {a} batches of {first.many} with {x} {what} each, and then uses {b} {what} for {second.many}. How many {what} are left?",
        f"Each batch of {first.many} takes {x} {what}. {p} starts with {have} {what}, makes {a} batches, and uses {b} more for {second.many}. How many {what} does {p.he} have left?",
    )
    used = s.mul(a, x, f"The {first.many} take @ {what}.")
    rest = s.sub(have, used, f"Then there are @ {what}.")
    s.sub(rest, b, f"There are @ {what} left.")


@template
def lunch_boxes(s: Story) -> None:
    """Pieces in each of many containers over some days."""
    p, item, box = s.person(), s.noun(FRUIT), s.noun(CONTAINERS)
    boxes, each, days = s.number(2, 8), s.number(2, 6), s.number(2, 9)
    s.ask(
        f"Every day {p} fills {box(boxes)} for school lunches. {p.he} puts {item(each)} into each {box.one}. How many {item.many} does {p.he} use in {days} days?",
        f"{p} puts {item(each)} into every {box.one} and fills {box(boxes)} a day. How many {item.many} are used in {days} days?",
    )
    day = s.mul(boxes, each, f"One day takes @ {item.many}.")
    s.mul(days, day, f"{days} days take @ {item.many}.")
