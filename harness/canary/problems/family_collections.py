"""Collections: won and lost, albums, gifts and trades."""

from harness.canary.problems.story import Story, template
from harness.canary.problems.vocabulary import COLLECTIBLES, COLORS, DAYS, READING, TIMES


@template
def won_and_lost(s: Story) -> None:
    """Some lost, then some found."""
    p, item = s.person(), s.noun(COLLECTIBLES)
    have, lost, won = s.number(20, 150), s.number(3, 60), s.number(3, 60)
    s.need(have - lost >= 2)
    s.ask(
        f"{p} had {item(have)}. {p.he} gave {lost} of them away and later found {won} new ones. How many {item.many} does {p.he} have now?",
        f"There were {item(have)} in {p}'s collection. {p.he} lost {lost} on a trip and got {won} as a gift. How many {item.many} are in the collection now?",
    )
    rest = s.sub(have, lost, f"Then {p} has @ {item.many}.")
    s.add(rest, won, f"Now {p} has @ {item.many}.")


@template
def album_space(s: Story) -> None:
    """Free places in an album."""
    p, item = s.person(), s.noun(COLLECTIBLES)
    pages, places, used = s.number(4, 20), s.number(3, 9), s.number(5, 90)
    s.need(pages * places - used >= 2)
    s.ask(
        f"{p} has an album with {pages} pages. Each page holds {item(places)}. {p.he} has already filled in {item(used)}. How many more {item.many} fit into the album?",
        f"{item(places)} fit on each of the {pages} pages of {p}'s album. There are {item(used)} in it now. How many places are still free?",
    )
    total = s.mul(pages, places, f"The album holds @ {item.many}.")
    s.sub(total, used, "There are @ free places.")


@template
def gifts_to_friends(s: Story) -> None:
    """The same number given to each of several friends."""
    p, item = s.person(), s.noun(COLLECTIBLES)
    friends, each, left = s.number(2, 9), s.number(2, 12), s.number(2, 60)
    have = friends * each + left
    s.ask(
        f"{p} has {item(have)}. {p.he} gives {item(each)} to each of {friends} friends. How many {item.many} does {p.he} have left?",
        f"Each of {friends} friends gets {item(each)} from {p}, who had {item(have)}. How many {item.many} does {p} keep?",
    )
    given = s.mul(friends, each, f"{p} gives away @ {item.many}.")
    s.sub(have, given, f"{p} has @ {item.many} left.")


@template
def found_each_day(s: Story) -> None:
    """Some each day on top of a beginning."""
    p, item = s.person(), s.noun(COLLECTIBLES)
    have, each, days = s.number(5, 80), s.number(2, 12), s.number(3, 12)
    s.ask(
        f"{p} starts with {item(have)} and finds {each} more every day. How many {item.many} does {p.he} have after {days} days?",
        f"For {days} days {p} adds {item(each)} a day to {p.his} collection of {have}. How big is the collection then?",
    )
    found = s.mul(days, each, f"{p} finds @ {item.many}.")
    s.add(have, found, f"{p} has @ {item.many}.")


@template
def after_a_gift(s: Story) -> None:
    """How many more one has after the other has given some."""
    p, q, item = s.person(), s.person(), s.noun(COLLECTIBLES)
    a, b, gift = s.number(10, 60), s.number(30, 90), s.number(2, 12)
    s.need(b - gift - (a + gift) >= 2)
    s.ask(
        f"{p} has {item(a)} and {q} has {item(b)}. {q} gives {item(gift)} to {p}. How many more {item.many} than {p} does {q} have now?",
        f"{q} owns {item(b)}, and {p} owns {item(a)}. After {q} has given {gift} of them to {p}, how many more {item.many} does {q} own than {p}?",
    )
    x = s.sub(b, gift, f"{q} now has @ {item.many}.")
    y = s.add(a, gift, f"{p} now has @ {item.many}.")
    s.sub(x, y, f"{q} has @ more.")


@template
def three_colors(s: Story) -> None:
    """Three colors, of which one is the rest."""
    p, item = s.person(), s.noun(COLLECTIBLES)
    one, two, three = s.pick(COLORS[:3]), s.pick(COLORS[3:5]), s.pick(COLORS[5:])
    a, k, c = s.number(3, 30), s.number(2, 4), s.number(2, 60)
    total = a + k * a + c
    s.ask(
        f"{p} has {item(total)}. {a} of them are {one}, {TIMES[k]} as many are {two}, and the rest are {three}. How many {item.many} are {three}?",
        f"Of {p}'s {item(total)}, {a} are {one}. {TIMES[k]} as many as that are {two}, and all the others are {three}. How many {three} {item.many} does {p} have?",
    )
    b = s.mul(k, a, f"There are @ {two} {item.many}.")
    both = s.add(a, b, f"The {one} and {two} ones are @.")
    s.sub(total, both, f"There are @ {three} {item.many}.")


@template
def shelves(s: Story) -> None:
    """Books on shelves, some lent."""
    p, item, day = s.person(), s.noun(READING), s.pick(DAYS)
    shelves_, each, lent, back = s.number(3, 9), s.number(8, 30), s.number(5, 30), s.number(2, 20)
    s.need(shelves_ * each - lent >= 5 and back < lent)
    s.ask(
        f"{p}'s small library has {shelves_} shelves with {item(each)} on each. On {day}, people borrow {item(lent)} and bring {item(back)} back. How many {item.many} are in the library then?",
        f"{p} runs a library with {shelves_} shelves of {item(each)}. On {day} {item(lent)} are lent out and {back} come back. How many {item.many} are there at the end of the day?",
    )
    total = s.mul(shelves_, each, f"The shelves hold @ {item.many}.")
    rest = s.sub(total, lent, f"After lending there are @ {item.many}.")
    s.add(rest, back, f"At the end there are @ {item.many}.")
