"""One step: the operation has to be found in the story."""

from harness.canary.problems.story import Story, template
from harness.canary.problems.vocabulary import (
    ANIMALS,
    COLLECTIBLES,
    CONTAINERS,
    FOOD,
    GOODS,
    READING,
    TIMES,
    TOWNS,
    TREES,
)


@template
def some_more(s: Story) -> None:
    """Addition by comparison."""
    p, q, item = s.person(), s.person(), s.noun(COLLECTIBLES)
    a, d = s.number(5, 150), s.number(2, 90)
    s.ask(
        f"{p} counted the {item.many} in {p.his} room and found {a}. {q} has {d} more than that. How many {item.many} does {q} have?",
        f"{q} has {d} more {item.many} than {p}. There are {item(a)} in {p}'s collection. How many {item.many} are in {q}'s collection?",
    )
    s.add(a, d, f"{q} has @ {item.many}.")


@template
def some_left(s: Story) -> None:
    """Subtraction: what is left of a stock."""
    p, item = s.person(), s.noun(GOODS)
    left, sold = s.number(2, 150), s.number(5, 150)
    s.ask(
        f"{p} has a small shop with {item(left + sold)}. By the end of the week {p.he} has sold {sold} of them. How many {item.many} are left in the shop?",
        f"At the start of the week there are {item(left + sold)} in {p}'s shop. Customers buy {sold} of them. How many {item.many} does {p.he} still have?",
    )
    s.sub(left + sold, sold, f"There are @ {item.many} left.")


@template
def full_containers(s: Story) -> None:
    """Multiplication: things in containers."""
    p, item, box = s.person(), s.noun(FOOD), s.noun(CONTAINERS)
    boxes, each = s.number(2, 12), s.number(3, 60)
    s.ask(
        f"{p} carries {box(boxes)} into the kitchen. There are {item(each)} in each {box.one}. How many {item.many} does {p.he} carry?",
        f"In {p}'s kitchen there are {box(boxes)}, and every {box.one} has {item(each)} in it. How many {item.many} are there in all?",
    )
    s.mul(boxes, each, f"There are @ {item.many}.")


@template
def equal_parts(s: Story) -> None:
    """Division: an equal share."""
    p, item = s.person(), s.noun(READING)
    people, each = s.number(2, 12), s.number(2, 40)
    s.ask(
        f"A school gives {p}'s class {item(people * each)}. The class has {people} groups, and every group gets the same number of {item.many}. How many {item.many} does one group get?",
        f"{p} puts {item(people * each)} on {people} shelves so that every shelf has the same number. How many {item.many} are on one shelf?",
    )
    s.div(people * each, people, f"Each one gets @ {item.many}.")


@template
def distance(s: Story) -> None:
    """Multiplication: speed and time."""
    p, town, vehicle = s.person(), s.pick(TOWNS), s.pick(("car", "bus", "train", "truck"))
    speed, hours = s.number(15, 90), s.number(2, 9)
    s.ask(
        f"{p} takes a {vehicle} to {town}. The {vehicle} goes {speed} miles per hour, and the trip takes {hours} hours. How many miles away is {town}?",
        f"A {vehicle} to {town} needs {hours} hours at {speed} miles per hour. How long is the way to {town}, in miles?",
    )
    s.mul(hours, speed, "The way is @ miles.")


@template
def times_as_big(s: Story) -> None:
    """Multiplication by comparison."""
    p, q, animal = s.person(), s.person(), s.noun(ANIMALS)
    a, k = s.number(3, 90), s.number(2, 6)
    s.ask(
        f"{p} has a farm with {animal(a)}. {q}'s farm is bigger and has {TIMES[k]} as many {animal.many}. How many {animal.many} are on {q}'s farm?",
        f"On {q}'s farm there are {TIMES[k]} as many {animal.many} as on {p}'s farm. {p} has {animal(a)}. How many does {q} have?",
    )
    s.mul(k, a, f"{q} has @ {animal.many}.")


@template
def rows_of_trees(s: Story) -> None:
    """Division: how many rows."""
    p, tree = s.person(), s.noun(TREES)
    rows, row = s.number(2, 20), s.number(3, 12)
    s.ask(
        f"{p} wants to plant {tree(rows * row)} in rows. There is space for {row} trees in each row. How many rows does {p.he} need?",
        f"There are {tree(rows * row)} in {p}'s orchard, with {row} trees in every row. How many rows are there?",
    )
    s.div(rows * row, row, "There are @ rows.")
