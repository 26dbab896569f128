"""Tickets: adults and children, what a show takes in. Never trained on."""

from harness.canary.problems.story import Story, template

_SHOWS = ("the circus", "the school play", "the museum", "the zoo", "the concert", "the movie theater")


@template
def family_visit(s: Story) -> None:
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
