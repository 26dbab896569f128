"""Tanks: filling, emptying and leaking. Never trained on."""

from harness.canary.problems.story import Story, template

_TANKS = ("tank", "pool", "barrel", "bathtub", "pond")


@template
def fill_and_leak(s: Story) -> None:
    """Water that runs in and out for some minutes."""
    p, tank = s.person(), s.pick(_TANKS)
    into, out, minutes = s.number(6, 30), s.number(2, 5), s.number(3, 9)
    s.ask(
        f"Water runs into {p}'s {tank} at {into} gallons a minute, but {out} gallons a minute leak out. How many gallons are in the {tank} after {minutes} minutes if it was empty at first?",
        f"{p} fills an empty {tank} with {into} gallons of water per minute. Each minute it loses {out} gallons through a hole. How many gallons does the {tank} hold after {minutes} minutes?",
    )
    net = s.sub(into, out, f"The {tank} gains @ gallons a minute.")
    s.mul(minutes, net, "It holds @ gallons.")


@template
def time_to_fill(s: Story) -> None:
    """How long the rest takes to fill."""
    p, tank = s.person(), s.pick(_TANKS)
    has, rate, minutes = s.number(5, 60), s.number(3, 12), s.number(3, 15)
    s.ask(
        f"{p}'s {tank} holds {has + rate * minutes} gallons and has {has} gallons in it. A hose adds {rate} gallons every minute. How many minutes does it take to fill the {tank}?",
        f"There are {has} gallons in a {tank} that holds {has + rate * minutes} gallons. {p} adds {rate} gallons a minute. After how many minutes is the {tank} full?",
    )
    rest = s.sub(has + rate * minutes, has, "There is space for @ gallons.")
    s.div(rest, rate, "It takes @ minutes.")


@template
def buckets(s: Story) -> None:
    """Buckets taken out of a full one."""
    p, tank = s.person(), s.pick(_TANKS)
    bucket, count, left = s.number(2, 6), s.number(4, 15), s.number(5, 90)
    s.ask(
        f"A {tank} has {bucket * count + left} gallons of water. {p} takes out {count} buckets of {bucket} gallons each. How many gallons are left?",
        f"{p} waters plants with {count} buckets from a {tank} of {bucket * count + left} gallons. Each bucket holds {bucket} gallons. How many gallons remain in the {tank}?",
    )
    out = s.mul(count, bucket, f"{p} takes out @ gallons.")
    s.sub(bucket * count + left, out, "There are @ gallons left.")


@template
def two_hoses(s: Story) -> None:
    """Two hoses at once."""
    p, tank = s.person(), s.pick(_TANKS)
    a, b, minutes = s.number(3, 20), s.number(3, 20), s.number(3, 12)
    s.ask(
        f"{p} fills a {tank} with two hoses. One gives {a} gallons a minute and the other gives {b} gallons a minute. How many gallons are in the {tank} after {minutes} minutes?",
        f"Two hoses run into {p}'s empty {tank}, one with {a} and one with {b} gallons per minute. How many gallons have run in after {minutes} minutes?",
    )
    both = s.add(a, b, "Together they give @ gallons a minute.")
    s.mul(minutes, both, f"The {tank} has @ gallons.")


@template
def part_full(s: Story) -> None:
    """A part of it is full, more is added."""
    p, tank = s.person(), s.pick(_TANKS)
    k, part, more = s.one_of(2, 3, 4, 5), s.number(6, 30), s.number(2, 25)
    word = {2: "half", 3: "a third", 4: "a quarter", 5: "a fifth"}[k]
    s.ask(
        f"{p}'s {tank} holds {k * part} gallons, and {word} of it is full. Then {p} adds {more} gallons. How many gallons are in the {tank} now?",
        f"A {tank} that holds {k * part} gallons is filled to {word}. {p} pours in {more} gallons more. How many gallons does the {tank} have now?",
    )
    s.need(more <= (k - 1) * part)
    has = s.div(k * part, k, "At first it has @ gallons.")
    s.add(has, more, "Now it has @ gallons.")
