"""Buses, trains and vans: who gets on and off, seats, how many trips."""

from harness.canary.problems.story import Story, template
from harness.canary.problems.vocabulary import TOWNS


@template
def bus_stops(s: Story) -> None:
    """Passengers over two stops."""
    p, town = s.person(), s.pick(TOWNS)
    start, off, on, last = s.number(15, 60), s.number(2, 14), s.number(2, 20), s.number(2, 14)
    s.need(start - off + on - last >= 2)
    s.ask(
        f"A bus leaves {town} with {start} passengers. At the first stop {off} get off and {on} get on. At the second stop {last} get off. How many passengers are on the bus then?",
        f"{p} drives a bus with {start} passengers. First {off} people leave and {on} come in, and later {last} people leave. How many passengers are still on the bus?",
    )
    x = s.sub(start, off, "Then there are @ passengers.")
    y = s.add(x, on, "Then there are @ passengers.")
    s.sub(y, last, "At the end there are @ passengers.")


@template
def vans(s: Story) -> None:
    """Vans for a trip and what they cost."""
    p, town = s.person(), s.pick(TOWNS)
    seats, count, price = s.number(4, 12), s.number(2, 12), s.number(20, 60, 5)
    s.ask(
        f"{p} plans a trip to {town} for {seats * count} people. A van has {seats} seats for passengers and costs ${price}. How much do the vans for all of them cost?",
        f"{seats * count} people travel to {town} in vans that hold {seats} people each. {p} pays ${price} for each van. How many dollars does {p.he} pay in all?",
    )
    need = s.div(seats * count, seats, "They need @ vans.")
    s.mul(need, price, "The vans cost $@.")


@template
def empty_seats(s: Story) -> None:
    """Cars of a train with rows of seats, some taken."""
    p = s.person()
    cars, rows, row, taken = s.number(2, 6), s.number(4, 9), s.one_of(2, 3, 4, 5, 6), s.number(5, 90)
    s.need(cars * rows * row - taken >= 2)
    s.ask(
        f"{p} takes a train with {cars} cars. Each car has {rows} rows of {row} seats, and {taken} seats on the train are taken. How many seats are free?",
        f"A train has {cars} cars with {rows} rows of {row} seats in each car. {p} counts {taken} people who are sitting. How many empty seats are there?",
    )
    car = s.mul(rows, row, "One car has @ seats.")
    total = s.mul(cars, car, "The train has @ seats.")
    s.sub(total, taken, "There are @ free seats.")


@template
def parking(s: Story) -> None:
    """Levels of a parking garage."""
    p = s.person()
    levels, places, out, came = s.number(2, 6), s.number(15, 60), s.number(5, 40), s.number(2, 20)
    s.need(levels * places - out >= 20)
    s.ask(
        f"A parking garage has {levels} levels with {places} cars on each level. {p} sees {out} cars leave and {came} cars come in. How many cars are in the garage now?",
        f"{p} works at a garage with {levels} full levels of {places} cars. In the evening {out} cars leave, and then {came} arrive. How many cars are there now?",
    )
    total = s.mul(levels, places, "At first there are @ cars.")
    rest = s.sub(total, out, "Then there are @ cars.")
    s.add(rest, came, "Now there are @ cars.")


@template
def trips(s: Story) -> None:
    """Trips of a truck and the miles they take."""
    p, town = s.person(), s.pick(TOWNS)
    load, count, miles = s.number(4, 20), s.number(2, 12), s.number(4, 30)
    goods = s.pick(("sofas", "logs", "bricks", "boxes", "chairs", "barrels"))
    s.ask(
        f"{p}'s truck carries {load} {goods} at a time. {p} has to bring {load * count} {goods} to {town}, and each trip there and back is {miles} miles. How many miles does {p.he} drive?",
        f"A truck takes {load} {goods} to {town} on each trip of {miles} miles. How many miles does {p} drive to move {load * count} {goods}?",
    )
    need = s.div(load * count, load, f"{p} makes @ trips.")
    s.mul(need, miles, f"{p} drives @ miles.")


@template
def miles_left(s: Story) -> None:
    """What is left of a way after two days."""
    p, town = s.person(), s.pick(TOWNS)
    way, first, less = s.number(200, 600, 10), s.number(60, 250), s.number(5, 50)
    s.need(way - 2 * first + less >= 10)
    s.ask(
        f"It is {way} miles to {town}. {p} drives {first} miles on the first day and {less} miles less on the second day. How many miles are left?",
        f"{p} drives to {town}, which is {way} miles away. On the first day {p.he} drives {first} miles. On the second day {p.he} drives {less} miles fewer than on the first. How many miles does {p.he} still have to go?",
    )
    second = s.sub(first, less, "The second day is @ miles.")
    both = s.add(first, second, f"{p} drives @ miles.")
    s.sub(way, both, "There are @ miles left.")
