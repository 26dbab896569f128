"""Unit prices: packs, dozens, kilograms, what one costs."""

from harness.canary.problems.story import Story, template
from harness.canary.problems.vocabulary import BAKED, COLLECTIBLES, FRUIT, PACKS, STATIONERY, VEGETABLES


@template
def one_from_pack(s: Story) -> None:
    """The price of some from the price of a pack."""
    p, item = s.person(), s.noun(STATIONERY)
    size, price, count = s.number(3, 10), s.number(2, 9), s.number(2, 12)
    s.need(count != size)
    pack = size * price
    s.ask(
        f"A pack of {item(size)} costs ${pack}. All {item.many} have the same price. How much would {p} pay for {item(count)}?",
        f"{p} sees that {size} {item.many} cost ${pack}. At the same price for each one, how many dollars do {item(count)} cost?",
    )
    one = s.div(pack, size, f"One {item.one} costs $@.")
    s.mul(count, one, f"{count} {item.many} cost $@.")


@template
def dozens(s: Story) -> None:
    """Some dozens at a price for each thing, and a delivery fee."""
    p, item = s.person(), s.noun(BAKED)
    count, price, fee = s.number(2, 9), s.number(2, 5), s.number(3, 20)
    s.ask(
        f"{p} orders {count} dozen {item.many} for a party. Each {item.one} costs ${price}, and bringing them to {p.his} house costs ${fee}. How much does {p.he} pay in all?",
        f"A baker sells {item.many} for ${price} each and asks for ${fee} to deliver an order. {p} orders {count} dozen {item.many}. How many dollars does {p.he} pay?",
    )
    many = s.mul(12, count, f"{p} orders @ {item.many}.")
    cost = s.mul(price, many, f"The {item.many} cost $@.")
    s.add(cost, fee, f"{p} pays $@.")


@template
def pack_or_single(s: Story) -> None:
    """What a box saves against buying one by one."""
    p, item, box = s.person(), s.noun(STATIONERY), s.noun(PACKS)
    size, price, saved, boxes = s.number(4, 12), s.number(2, 6), s.number(2, 9), s.number(2, 6)
    pack = size * price - saved
    s.need(pack > size)
    s.ask(
        f"One {item.one} costs ${price}, but a {box.one} of {item(size)} costs only ${pack}. {p} buys {box(boxes)} of {item.many}. How much does {p.he} save compared with buying the same {item.many} one by one?",
        f"{p} can buy {item.many} for ${price} each or in a {box.one} of {size} for ${pack}. {p.he} takes {box(boxes)}. How many dollars does {p.he} save against the price of single {item.many}?",
    )
    singly = s.mul(size, price, f"{size} single {item.many} cost $@.")
    one = s.sub(singly, pack, f"One {box.one} saves $@.")
    s.mul(boxes, one, f"{p} saves $@.")


@template
def profit_each(s: Story) -> None:
    """Bought at one price and sold at another."""
    p, item = s.person(), s.noun(COLLECTIBLES)
    cost, gain, count = s.number(2, 20), s.number(2, 12), s.number(3, 40)
    sold = cost + gain
    s.ask(
        f"{p} buys old {item.many} for ${cost} each and sells them for ${sold} each. How much profit does {p.he} make on {item(count)}?",
        f"At a flea market, {p} sold {item(count)} for ${sold} each. {p.he} had bought each {item.one} for ${cost}. How many dollars of profit did {p.he} make?",
    )
    one = s.sub(sold, cost, f"The profit on one {item.one} is $@.")
    s.mul(one, count, "The profit is $@.")


@template
def by_weight(s: Story) -> None:
    """Two weights at two prices for a kilogram."""
    p, first, second = s.person(), s.noun(FRUIT), s.noun(VEGETABLES)
    a, price_a, b, price_b = s.number(2, 12), s.number(2, 9), s.number(2, 12), s.number(2, 9)
    s.ask(
        f"{first.many} cost ${price_a} per kilogram and {second.many} cost ${price_b} per kilogram. {p} buys {a} kilograms of {first.many} and {b} kilograms of {second.many}. How much does {p.he} pay?",
        f"{p} buys {a} kilograms of {first.many} at ${price_a} per kilogram. {p.he} also buys {b} kilograms of {second.many} at ${price_b} per kilogram. What is the bill in dollars?",
    )
    x = s.mul(a, price_a, f"The {first.many} cost $@.")
    y = s.mul(b, price_b, f"The {second.many} cost $@.")
    s.add(x, y, "The total is $@.")


@template
def bulk_discount(s: Story) -> None:
    """A lower price after the first few."""
    p, item = s.person(), s.noun(STATIONERY)
    first, price, lower, rest = s.number(3, 10), s.number(5, 12), s.number(2, 4), s.number(2, 12)
    count = first + rest
    s.ask(
        f"A shop sells {item.many} for ${price} each. If someone buys more than {first}, every {item.one} after the first {first} costs only ${lower}. How much does {p} pay for {item(count)}?",
        f"The first {first} {item.many} of an order cost ${price} each, and the others cost ${lower} each. {p} orders {item(count)}. How many dollars is {p.his} order?",
    )
    x = s.mul(first, price, f"The first {first} cost $@.")
    others = s.sub(count, first, f"There are @ other {item.many}.")
    y = s.mul(others, lower, "The others cost $@.")
    s.add(x, y, f"{p} pays $@.")


@template
def packs_needed(s: Story) -> None:
    """How many packs are needed, and what they cost."""
    p, item, box = s.person(), s.noun(COLLECTIBLES), s.noun(PACKS)
    size, packs, price = s.number(3, 12), s.number(2, 12), s.number(2, 9)
    need = size * packs
    s.ask(
        f"{p} needs {item(need)} for an art project. They are sold in {box.many} of {size}, and each {box.one} costs ${price}. How much does {p} spend on {item.many}?",
        f"A {box.one} with {item(size)} costs ${price}. How many dollars must {p} spend to get {item(need)}?",
    )
    count = s.div(need, size, f"{p} needs @ {box.many}.")
    s.mul(count, price, f"{p} spends $@.")
