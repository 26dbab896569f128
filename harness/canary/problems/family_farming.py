"""Farms and gardens: harvests, animals, rows of plants."""

from harness.canary.problems.story import Story, template
from harness.canary.problems.vocabulary import ANIMALS, BIRDS, COLORS, CONTAINERS, FLOWERS, TREES, VEGETABLES


@template
def eggs_per_week(s: Story) -> None:
    """Eggs of some birds in a week, less those eaten."""
    p, bird = s.person(), s.noun(BIRDS)
    birds, each, eaten = s.number(3, 20), s.number(3, 7), s.number(2, 20)
    s.need(birds * each - eaten >= 2)
    s.ask(
        f"{p} keeps {bird(birds)}. Each {bird.one} lays {each} eggs a week. The family eats {eaten} eggs a week and sells the rest. How many eggs do they sell every week?",
        f"Each of {p}'s {bird(birds)} lays {each} eggs per week. If {eaten} eggs are used at home, how many eggs are left to sell each week?",
    )
    laid = s.mul(birds, each, f"The {bird.many} lay @ eggs.")
    s.sub(laid, eaten, "There are @ eggs to sell.")


@template
def rows_of_plants(s: Story) -> None:
    """Rows of plants, so many vegetables on each."""
    p, plant = s.person(), s.noun(VEGETABLES)
    rows, row, each = s.number(2, 9), s.number(3, 9), s.number(2, 9)
    s.ask(
        f"{p} plants {rows} rows with {row} plants in each row. Every plant gives {plant(each)}. How many {plant.many} does {p.he} harvest?",
        f"In {p}'s garden there are {rows} rows of {row} plants. {p.he} picks {plant(each)} from every plant. How many {plant.many} are picked?",
    )
    plants = s.mul(rows, row, "There are @ plants.")
    s.mul(each, plants, f"They give @ {plant.many}.")


@template
def legs(s: Story) -> None:
    """Legs of animals and birds."""
    p, animal, bird = s.person(), s.noun(ANIMALS), s.noun(BIRDS)
    a, b = s.number(2, 30), s.number(2, 30)
    s.ask(
        f"{p} has {animal(a)} and {bird(b)} on {p.his} farm. How many legs do all these animals have together?",
        f"On {p}'s farm there are {animal(a)} with four legs each and {bird(b)} with two legs each. How many legs is that in total?",
    )
    x = s.mul(4, a, f"The {animal.many} have @ legs.")
    y = s.mul(2, b, f"The {bird.many} have @ legs.")
    s.add(x, y, "Together that is @ legs.")


@template
def growing_tree(s: Story) -> None:
    """A tree that grows each year."""
    p, tree = s.person(), s.noun(TREES)
    start, each, years = s.number(3, 60), s.number(2, 15), s.number(2, 9)
    s.ask(
        f"{p} plants a {tree.one} that is {start} inches tall. It grows {each} inches every year. How many inches tall is the tree after {years} years?",
        f"a {tree.one} in {p}'s garden was {start} inches tall and has grown {each} inches a year since then. What is the height of the tree after {years} years, in inches?",
    )
    grown = s.mul(years, each, "The tree grows @ inches.")
    s.add(start, grown, "Then it is @ inches tall.")


@template
def harvest_into_crates(s: Story) -> None:
    """A harvest less what is spoiled, packed into containers."""
    p, plant, box = s.person(), s.noun(VEGETABLES), s.noun(CONTAINERS)
    spoiled, size, boxes = s.number(2, 30), s.number(4, 12), s.number(3, 20)
    total = spoiled + size * boxes
    s.ask(
        f"{p} harvests {plant(total)}, but {spoiled} of them are spoiled. {p.he} packs the good ones into {box.many} of {size}. How many {box.many} does {p.he} fill?",
        f"Of {plant(total)} on {p}'s field, {spoiled} are eaten by rabbits. The others are packed with {size} in each {box.one}. How many {box.many} are needed?",
    )
    good = s.sub(total, spoiled, f"There are @ good {plant.many}.")
    s.div(good, size, f"They fill @ {box.many}.")


@template
def milk(s: Story) -> None:
    """Milk of some animals over days, at a price."""
    p = s.person()
    cows, liters, price, days = s.number(2, 9), s.number(3, 9), s.number(2, 4), s.number(2, 5)
    kind = s.pick(("cows", "goats"))
    s.ask(
        f"{p} has {cows} {kind}. Each one gives {liters} liters of milk a day, and a liter sells for ${price}. How much money does the milk of {days} days bring?",
        f"A liter of milk sells for ${price}. Each of {p}'s {cows} {kind} gives {liters} liters a day. How many dollars does {p} get for the milk of {days} days?",
    )
    day = s.mul(cows, liters, f"The {kind} give @ liters a day.")
    total = s.mul(days, day, f"In {days} days they give @ liters.")
    s.mul(price, total, "The milk brings $@.")


@template
def flower_beds(s: Story) -> None:
    """Beds with flowers of two colors."""
    p, flower, first, second = s.person(), s.noun(FLOWERS), s.pick(COLORS[:4]), s.pick(COLORS[4:])
    beds, a, b = s.number(2, 9), s.number(3, 20), s.number(3, 20)
    s.ask(
        f"{p} has {beds} flower beds. In each bed {p.he} plants {a} {first} {flower.many} and {b} {second} {flower.many}. How many {flower.many} does {p.he} plant in all?",
        f"Every bed in {p}'s garden has {a} {first} and {b} {second} {flower.many}. There are {beds} beds. How many {flower.many} are in the garden?",
    )
    bed = s.add(a, b, f"One bed has @ {flower.many}.")
    s.mul(beds, bed, f"All beds have @ {flower.many}.")
