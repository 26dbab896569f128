"""Tickets: adults and children, what a show takes in. Never trained on."""

from harness.canary.problems.story import Story, template

_SHOWS = ("the circus", "the school play", "the museum", "the zoo", "the concert", "the movie theater")


@template
def group_visit(s: Story) -> None:
    """Adults and children at their prices."""
    p, show = s.person(), s.pick(_SHOWS)
    adults, children, price_a, price_c = s.number(2, 5), s.number(2, 7), s.number(8, 20), s.number(3, 7)
    s.ask(
        f"A ticket for {show} costs ${price_a} for an adult and ${price_c} for a child. {p} goes with a group of {adults} adults and {children} children. How much do the tickets cost in total?",
        f"{p} buys {adults} adult tickets and {children} child tickets for {show}. An adult ticket is ${price_a} and a child ticket is ${price_c}. How many dollars does {p.he} pay?",
    )
    x = s.mul(adults, price_a, "The adult tickets cost $@.")
    y = s.mul(children, price_c, "The child tickets cost $@.")
    s.add(x, y, "The total is $@.")


@template
def two_evenings(s: Story) -> None:
    """What two evenings take in."""
    p, show = s.person(), s.pick(_SHOWS)
    first, more, price = s.number(20, 70), s.number(5, 40), s.number(3, 9)
    s.ask(
        f"On Friday {p} sold {first} tickets for {show}. On Saturday {p.he} sold {more} more than on Friday. Each ticket costs ${price}. How much did the tickets of Saturday bring?",
        f"{p} sells tickets for {show} at ${price} each. {p.he} sold {first} on Friday and {more} more than that on Saturday. How many dollars did {p.he} take in on Saturday?",
    )
    count = s.add(first, more, "On Saturday @ tickets were sold.")
    s.mul(price, count, "They bring $@.")


@template
def unsold(s: Story) -> None:
    """Seats in rows that were not sold."""
    p, show = s.person(), s.pick(_SHOWS[1:2] + _SHOWS[4:])
    rows, row, sold = s.number(5, 12), s.number(8, 20), s.number(20, 90)
    s.need(rows * row - sold >= 2)
    s.ask(
        f"There are {rows} rows with {row} seats each for {show}. {p} sells {sold} tickets. How many seats stay empty?",
        f"{p} prepares {rows} rows of {row} seats for {show}. If {sold} tickets are sold, how many seats are not sold?",
    )
    seats = s.mul(rows, row, "There are @ seats.")
    s.sub(seats, sold, "There are @ empty seats.")


@template
def money_for_rides(s: Story) -> None:
    """How many rides there is money for after the entrance."""
    p = s.person()
    entrance, price, rides = s.number(4, 20), s.number(2, 6), s.number(2, 12)
    have = entrance + price * rides
    s.ask(
        f"{p} has ${have} for the amusement park. The entrance costs ${entrance}, and every ride costs ${price}. How many rides can {p.he} take?",
        f"At the amusement park, {p} pays ${entrance} to get in. {p.he} came with ${have} and spends all the rest on rides for ${price} each. How many rides does {p.he} take?",
    )
    rest = s.sub(have, entrance, f"{p} has $@ left.")
    s.div(rest, price, f"{p} takes @ rides.")


@template
def group_discount(s: Story) -> None:
    """A group ticket against single ones."""
    p, show = s.person(), s.pick(_SHOWS)
    people, price, saved = s.number(3, 12), s.number(4, 15), s.number(3, 20)
    s.need(people * price - saved >= 10)
    s.ask(
        f"A single ticket for {show} is ${price}. A group ticket for {people} people is ${people * price - saved}. How much do {people} people save when {p} buys the group ticket?",
        f"{p} pays ${people * price - saved} for a group ticket to {show} for {people} people. Single tickets would cost ${price} each. How many dollars does the group save?",
    )
    singly = s.mul(people, price, "Single tickets cost $@.")
    s.sub(singly, people * price - saved, "The group saves $@.")
