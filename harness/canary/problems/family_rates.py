"""Rates: speed, work per hour, use per mile."""

from harness.canary.problems.story import Story, template
from harness.canary.problems.vocabulary import COLLECTIBLES, TOWNS, TOYS

_VEHICLES = ("car", "bus", "train", "truck")


@template
def two_legs(s: Story) -> None:
    """A trip with two speeds."""
    p, vehicle, town = s.person(), s.pick(_VEHICLES), s.pick(TOWNS)
    v, t, w, u = s.number(20, 80, 5), s.number(2, 6), s.number(20, 80, 5), s.number(2, 6)
    s.ask(
        f"{p} travels to {town} by {vehicle}. For {t} hours the {vehicle} goes {v} miles per hour, and then it goes {w} miles per hour for {u} hours. How many miles is the trip?",
        f"A {vehicle} to {town} drives {t} hours at {v} miles per hour and {u} hours at {w} miles per hour. How far does the {vehicle} travel in all, in miles?",
    )
    x = s.mul(t, v, "The first part is @ miles.")
    y = s.mul(u, w, "The second part is @ miles.")
    s.add(x, y, "The trip is @ miles.")


@template
def machine_with_faults(s: Story) -> None:
    """What a machine makes, less what is broken."""
    p, item = s.person(), s.noun(TOYS)
    rate, hours, broken = s.number(6, 60), s.number(2, 9), s.number(2, 12)
    s.ask(
        f"A machine in {p}'s factory makes {item(rate)} every hour. It runs for {hours} hours, and {broken} of the {item.many} are broken. How many good {item.many} does the machine make?",
        f"In {hours} hours, a machine makes {rate} {item.many} per hour. {p} checks them and throws {broken} away. How many {item.many} are good?",
    )
    made = s.mul(hours, rate, f"The machine makes @ {item.many}.")
    s.sub(made, broken, f"There are @ good {item.many}.")


@template
def time_for_the_rest(s: Story) -> None:
    """How long the rest of the work takes."""
    p = s.person()
    work, verb, done_verb = s.pick(
        (("pages", "type", "typed"), ("letters", "sort", "sorted"), ("plates", "wash", "washed"), ("walls", "paint", "painted"), ("toys", "wrap", "wrapped"))
    )  # fmt: skip
    rate, hours, done = s.number(3, 12), s.number(2, 12), s.number(3, 40)
    total = rate * hours + done
    s.ask(
        f"{p} has to {verb} {total} {work}. {p.he} has already {done_verb} {done} and can {verb} {rate} {work} per hour. How many more hours does {p.he} need?",
        f"Of {total} {work}, {p} {done_verb} {done} yesterday. Today {p.he} can {verb} {rate} {work} in an hour. How many hours will the rest take?",
        aside=None,
    )
    rest = s.sub(total, done, f"There are @ {work} left.")
    s.div(rest, rate, f"{p} needs @ hours.")


@template
def two_workers(s: Story) -> None:
    """What two people make together in some time."""
    p, q, item = s.person(), s.person(), s.noun(COLLECTIBLES)
    a, b, t = s.number(3, 25), s.number(3, 25), s.number(2, 9)
    s.ask(
        f"{p} finds {item(a)} in an hour and {q} finds {item(b)} in an hour. How many {item.many} do they find together in {t} hours?",
        f"At a flea market, {p} collects {a} {item.many} per hour while {q} collects {b} per hour. How many {item.many} do they collect in {t} hours?",
    )
    both = s.add(a, b, f"In an hour they find @ {item.many}.")
    s.mul(t, both, f"In {t} hours they find @ {item.many}.")


@template
def faster_by(s: Story) -> None:
    """How much farther the faster one gets."""
    p, q = s.person(), s.person()
    v, d, t = s.number(4, 20), s.number(2, 9), s.number(2, 9)
    s.ask(
        f"{p} rides a bike at {v} miles per hour. {q} rides {d} miles per hour faster. How many miles does {q} ride in {t} hours?",
        f"{q} cycles {d} miles per hour faster than {p}, who cycles {v} miles per hour. How far does {q} get in {t} hours, in miles?",
    )
    w = s.add(v, d, f"{q} rides @ miles per hour.")
    s.mul(t, w, f"{q} rides @ miles.")


@template
def fuel(s: Story) -> None:
    """Miles for a gallon, price of a gallon."""
    p, town = s.person(), s.pick(TOWNS)
    per, gallons, price = s.number(10, 40, 5), s.number(2, 12), s.number(2, 6)
    miles = per * gallons
    s.ask(
        f"{p}'s car goes {per} miles on one gallon of gas. {p} drives {miles} miles to {town}. Gas costs ${price} per gallon. How much does {p.he} spend on gas?",
        f"It is {miles} miles to {town}. {p}'s car needs one gallon of gas for every {per} miles, and a gallon costs ${price}. How many dollars does the gas for the trip cost?",
    )
    need = s.div(miles, per, "The trip takes @ gallons.")
    s.mul(need, price, "The gas costs $@.")


@template
def rate_from_total(s: Story) -> None:
    """The rate from one run, used for another time."""
    p, vehicle = s.person(), s.pick(_VEHICLES)
    rate, t, u = s.number(20, 80, 5), s.number(2, 6), s.number(3, 9)
    s.need(t != u)
    s.ask(
        f"A {vehicle} travels {rate * t} miles in {t} hours. At the same speed, how many miles will {p} travel in the {vehicle} in {u} hours?",
        f"{p}'s {vehicle} went {rate * t} miles in {t} hours. How far does the {vehicle} go in {u} hours at the same speed, in miles?",
    )
    speed = s.div(rate * t, t, "The speed is @ miles per hour.")
    s.mul(u, speed, "The answer is @ miles.")
