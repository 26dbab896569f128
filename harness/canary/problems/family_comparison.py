"""Comparison: twice as many, 5 fewer than, together."""

from harness.canary.problems.story import Story, template
from harness.canary.problems.vocabulary import COLLECTIBLES, FRUIT, READING, TIMES, TOYS


@template
def times_as_many(s: Story) -> None:
    """One has k times as many as the other; together."""
    p, q, item = s.person(), s.person(), s.noun(COLLECTIBLES)
    a, k = s.number(4, 60), s.number(2, 6)
    s.ask(
        f"{p} has {item(a)}. {q} has {TIMES[k]} as many {item.many} as {p}. How many {item.many} do they have together?",
        f"{q} collects {item.many} and has {TIMES[k]} as many as {p}. If {p} has {item(a)}, how many {item.many} do {p} and {q} have in total?",
        f"{p} found {item(a)} last year. {q} found {TIMES[k]} as many {item.many} as {p} did. How many {item.many} did the two of them find?",
    )
    b = s.mul(k, a, f"{q} has @ {item.many}.")
    s.add(a, b, f"Together they have @ {item.many}.")


@template
def fewer(s: Story) -> None:
    """One has some fewer than the other; together."""
    p, q, item = s.person(), s.person(), s.noun(FRUIT)
    a, d = s.number(12, 90), s.number(2, 30)
    s.need(a - d >= 3)
    s.ask(
        f"{p} picks {item(a)}. {q} picks {d} fewer {item.many} than {p}. How many {item.many} do they pick altogether?",
        f"{q} has {d} fewer {item.many} in {q.his} basket than {p}, who has {item(a)}. How many {item.many} are in the two baskets together?",
    )
    b = s.sub(a, d, f"{q} has @ {item.many}.")
    s.add(a, b, f"Together they have @ {item.many}.")


@template
def more(s: Story) -> None:
    """One has some more than the other; together."""
    p, q, item = s.person(), s.person(), s.noun(READING)
    a, d = s.number(5, 80), s.number(2, 40)
    s.ask(
        f"{p} read {item(a)} last year, and {q} read {d} more than {p}. How many {item.many} did they read in all?",
        f"{q} owns {d} more {item.many} than {p}. {p} owns {item(a)}. How many {item.many} do the two friends own together?",
    )
    b = s.add(a, d, f"{q} has @ {item.many}.")
    s.add(a, b, f"Together they have @ {item.many}.")


@template
def chain_of_three(s: Story) -> None:
    """A second has k times as many, a third some more than the second."""
    p, q, r, item = s.person(), s.person(), s.person(), s.noun(COLLECTIBLES)
    a, k, d = s.number(3, 40), s.number(2, 5), s.number(2, 25)
    s.ask(
        f"{p} has {item(a)}. {q} has {TIMES[k]} as many {item.many} as {p}. {r} has {d} more {item.many} than {q}. How many {item.many} does {r} have?",
        f"{r} has {d} more {item.many} than {q}, and {q} has {TIMES[k]} as many as {p}. If {p} has {item(a)}, how many {item.many} does {r} have?",
    )
    b = s.mul(k, a, f"{q} has @ {item.many}.")
    s.add(b, d, f"{r} has @ {item.many}.")


@template
def difference(s: Story) -> None:
    """How many more the one has who has k times as many."""
    p, q, item = s.person(), s.person(), s.noun(TOYS)
    a, k = s.number(3, 50), s.number(3, 6)
    s.ask(
        f"{p} made {item(a)} for the school fair, and {q} made {TIMES[k]} as many. How many more {item.many} did {q} make than {p}?",
        f"There are {item(a)} in {p}'s room. {q} has {TIMES[k]} as many {item.many} in {q.his} room. How many fewer {item.many} does {p} have than {q}?",
    )
    b = s.mul(k, a, f"{q} has @ {item.many}.")
    s.sub(b, a, f"The difference is @ {item.many}.")


@template
def known_from_larger(s: Story) -> None:
    """The larger count is given as k times the smaller; together."""
    p, q, item = s.person(), s.person(), s.noun(COLLECTIBLES)
    b, k = s.number(3, 40), s.number(2, 6)
    a = b * k
    s.ask(
        f"{p} has {item(a)}, which is {TIMES[k]} as many as {q} has. How many {item.many} do they have together?",
        f"{p} has {TIMES[k]} as many {item.many} as {q}. {p} counts {p.his} {item.many} and finds {a}. How many {item.many} do {p} and {q} have in total?",
    )
    small = s.div(a, k, f"{q} has @ {item.many}.")
    s.add(a, small, f"Together they have @ {item.many}.")


@template
def fewer_than_both(s: Story) -> None:
    """A third has some fewer than the other two together."""
    p, q, r, item = s.person(), s.person(), s.person(), s.noun(FRUIT)
    a, b, d = s.number(5, 60), s.number(5, 60), s.number(2, 30)
    s.ask(
        f"{p} picked {item(a)} and {q} picked {item(b)}. {r} picked {d} fewer {item.many} than {p} and {q} together. How many {item.many} did {r} pick?",
        f"{p} and {q} brought {item(a)} and {item(b)} to the picnic. {r} brought {d} fewer {item.many} than the two of them together. How many {item.many} did {r} bring?",
    )
    both = s.add(a, b, f"{p} and {q} have @ {item.many}.")
    s.sub(both, d, f"{r} has @ {item.many}.")
