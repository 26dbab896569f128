"""Sharing and packing without a remainder."""

from harness.canary.problems.story import Story, template
from harness.canary.problems.vocabulary import BAKED, COLLECTIBLES, CONTAINERS, FLOWERS, FOOD, FRUIT, TOYS


@template
def boxes_for_friends(s: Story) -> None:
    """Several containers shared among several people."""
    p, item, box = s.person(), s.noun(FOOD), s.noun(CONTAINERS)
    boxes, size, friends = s.number(2, 9), s.number(4, 20), s.number(2, 9)
    s.need(boxes * size % friends == 0)
    s.ask(
        f"{p} has {box(boxes)} with {item(size)} in each {box.one}. {p.he} shares all of them equally among {friends} friends. How many {item.many} does each friend get?",
        f"There are {item(size)} in every {box.one}. {p} opens {box(boxes)} and divides the {item.many} equally between {friends} neighbors. How many {item.many} does one neighbor get?",
    )
    total = s.mul(boxes, size, f"There are @ {item.many}.")
    s.div(total, friends, f"Each one gets @ {item.many}.")


@template
def after_some_are_gone(s: Story) -> None:
    """Some are used first, the rest is shared."""
    p, item = s.person(), s.noun(BAKED)
    gone, people, each = s.number(2, 15), s.number(2, 9), s.number(2, 12)
    have = gone + people * each
    s.ask(
        f"{p} baked {item(have)}. The family ate {gone} of them, and {p} packed the rest into {people} bags with the same number in each bag. How many {item.many} are in one bag?",
        f"There were {item(have)} on a table. After {gone} were eaten, {people} children shared the rest equally. How many {item.many} did each child get?",
    )
    left = s.sub(have, gone, f"There are @ {item.many} left.")
    s.div(left, people, f"Each share is @ {item.many}.")


@template
def two_kinds_into_bags(s: Story) -> None:
    """Two kinds together fill bags."""
    p, first, second, box = s.person(), s.noun(FRUIT), s.noun(FRUIT), s.noun(CONTAINERS)
    a, size, count = s.number(5, 40), s.number(3, 9), s.number(3, 12)
    b = size * count - a
    s.need(b >= 3)
    s.ask(
        f"{p} has {first(a)} and {second(b)}. {p.he} puts {size} pieces of fruit into each {box.one}. How many {box.many} does {p.he} fill?",
        f"{first(a)} and {second(b)} are packed into {box.many} that hold {size} pieces of fruit each. How many full {box.many} does {p} get?",
    )
    total = s.add(a, b, "There are @ pieces of fruit.")
    s.div(total, size, f"{p} fills @ {box.many}.")


@template
def share_and_own(s: Story) -> None:
    """An equal share added to what one had before."""
    p, item = s.person(), s.noun(COLLECTIBLES)
    people, each, own = s.number(2, 9), s.number(3, 20), s.number(2, 40)
    total = people * each
    s.ask(
        f"{total} {item.many} are shared equally among {people} children. {p} is one of them and already had {item(own)} at home. How many {item.many} does {p} have now?",
        f"{p} had {item(own)}. Then {p.he} and the other members of a club shared {item(total)} equally among all {people} members. How many {item.many} does {p} have after that?",
    )
    share = s.div(total, people, f"Each one gets @ {item.many}.")
    s.add(own, share, f"{p} now has @ {item.many}.")


@template
def teams(s: Story) -> None:
    """Girls and boys make teams."""
    p = s.person()
    girls, size, count = s.number(6, 40), s.number(3, 8), s.number(4, 12)
    boys = size * count - girls
    s.need(boys >= 4)
    s.ask(
        f"{girls} girls and {boys} boys come to {p}'s sports day. They make teams of {size}. How many teams are there?",
        f"A coach named {p} trains {girls} girls and {boys} boys. If every team has {size} players, how many teams can {p} make?",
    )
    total = s.add(girls, boys, "There are @ children.")
    s.div(total, size, "There are @ teams.")


@template
def how_many_at_start(s: Story) -> None:
    """From the shares and what was left over back to the start."""
    p, item = s.person(), s.noun(TOYS)
    people, each, left = s.number(3, 12), s.number(2, 12), s.number(2, 20)
    s.ask(
        f"{p} gave {item(each)} to each of {people} children and had {item(left)} left. How many {item.many} did {p.he} have at the start?",
        f"Each of {people} children got {item(each)} from {p}. After that, {item(left)} remained. How many {item.many} were there before?",
    )
    given = s.mul(people, each, f"{p} gave away @ {item.many}.")
    s.add(given, left, f"At the start there were @ {item.many}.")


@template
def vases(s: Story) -> None:
    """Bunches of flowers put into vases."""
    p, flower = s.person(), s.noun(FLOWERS)
    bunches, size, vases_ = s.number(2, 9), s.number(4, 15), s.number(2, 8)
    s.need(bunches * size % vases_ == 0)
    s.ask(
        f"{p} buys {bunches} bunches of {flower.many} with {size} flowers in each bunch. {p.he} puts the same number into each of {vases_} vases. How many {flower.many} are in one vase?",
        f"A florist has {bunches} bunches of {flower(size)} and {vases_} empty vases. {p} spreads all {flower.many} evenly over the vases. How many {flower.many} go into each vase?",
    )
    total = s.mul(bunches, size, f"There are @ {flower.many}.")
    s.div(total, vases_, f"Each vase has @ {flower.many}.")
