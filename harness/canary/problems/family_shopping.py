"""Shopping: totals, change, what is left of some money."""

from harness.canary.problems.story import Story, template
from harness.canary.problems.vocabulary import BAKED, CLOTHES, GOODS, SHOPS, STATIONERY, TOYS


@template
def change_from_payment(s: Story) -> None:
    """Several of one thing, paid with a round sum."""
    p, item, shop = s.person(), s.noun(GOODS), s.pick(SHOPS)
    count, price = s.number(2, 9), s.number(2, 25)
    paid = s.payment(count * price)
    s.ask(
        f"{p} buys {item(count)} at {shop}. Each {item.one} costs ${price}. {p.he} pays with ${paid}. How much change does {p.he} get back?",
        f"At {shop}, one {item.one} costs ${price}. {p} takes {item(count)} and hands over ${paid}. How many dollars of change should {p.he} get?",
        f"{p} goes to {shop} with ${paid} and buys {item(count)} for ${price} each. How much money does {p.he} have left?",
    )
    cost = s.mul(count, price, f"The {item.many} cost $@.")
    s.sub(paid, cost, f"{p} has $@ left.")


@template
def two_kinds(s: Story) -> None:
    """Two kinds of things, each with its price."""
    p, first, second, shop = s.person(), s.noun(GOODS), s.noun(GOODS), s.pick(SHOPS)
    a, price_a, b, price_b = s.number(2, 9), s.number(2, 15), s.number(2, 9), s.number(2, 15)
    s.ask(
        f"{p} buys {first(a)} for ${price_a} each and {second(b)} for ${price_b} each at {shop}. How much does {p.he} spend in total?",
        f"At {shop}, a {first.one} costs ${price_a} and a {second.one} costs ${price_b}. {p} buys {first(a)} and {second(b)}. How many dollars does {p.he} pay altogether?",
        f"{p} needs {first(a)} and {second(b)}. The {first.many} are ${price_a} each. The {second.many} are ${price_b} each. What is the total cost?",
    )
    x = s.mul(a, price_a, f"The {first.many} cost $@.")
    y = s.mul(b, price_b, f"The {second.many} cost $@.")
    s.add(x, y, "The total is $@.")


@template
def money_left(s: Story) -> None:
    """Two purchases and what is left."""
    p, first, second = s.person(), s.noun(CLOTHES), s.noun(TOYS)
    a, b, rest = s.number(5, 60), s.number(5, 60), s.number(2, 60)
    have = a + b + rest
    s.ask(
        f"{p} has ${have}. {p.he} spends ${a} on a {first.one} and ${b} on a {second.one}. How much money does {p.he} have left?",
        f"{p} got ${have} for {p.his} birthday. A {first.one} for {p.him} costs ${a}, and a {second.one} for {p.his} brother costs ${b}. How many dollars are left after {p.he} buys both?",
        f"After buying a {first.one} for ${a} and a {second.one} for ${b}, how much of {p.his} ${have} does {p} still have?",
    )
    spent = s.add(a, b, f"{p} spends $@.")
    s.sub(have, spent, f"{p} has $@ left.")


@template
def reduced_price(s: Story) -> None:
    """Each thing is cheaper by an amount."""
    p, item, shop = s.person(), s.noun(CLOTHES), s.pick(SHOPS)
    price, off, count = s.number(12, 60), s.number(2, 9), s.number(2, 9)
    s.ask(
        f"A {item.one} usually costs ${price}, but today every {item.one} at {shop} is ${off} cheaper. {p} buys {item(count)}. How much does {p.he} pay?",
        f"{p} has a coupon that takes ${off} off the price of each {item.one}. The normal price is ${price}. How many dollars do {item(count)} cost {p.him} with the coupon?",
    )
    new = s.sub(price, off, f"One {item.one} now costs $@.")
    s.mul(count, new, f"{p} pays $@.")


@template
def one_of_each_for_friends(s: Story) -> None:
    """One of each of two things for several friends."""
    p, first, second = s.person(), s.noun(BAKED), s.noun(STATIONERY)
    a, b, friends = s.number(2, 14), s.number(2, 14), s.number(3, 9)
    s.ask(
        f"{p} wants to give each of {p.his} {friends} friends a {first.one} and a {second.one}. A {first.one} costs ${a} and a {second.one} costs ${b}. How much will {p.he} spend?",
        f"A {first.one} is ${a} and a {second.one} is ${b}. {p} buys one of each for every one of {friends} friends. How many dollars does {p.he} spend in all?",
    )
    each = s.add(a, b, "One friend costs $@.")
    s.mul(friends, each, f"{p} spends $@.")


@template
def how_many_more(s: Story) -> None:
    """How many things the rest of the money buys."""
    p, first, item, shop = s.person(), s.noun(CLOTHES), s.noun(TOYS), s.pick(SHOPS)
    spent, price, count = s.number(5, 40), s.number(3, 12), s.number(2, 12)
    have = spent + price * count
    s.ask(
        f"{p} takes ${have} to {shop}. {p.he} buys a {first.one} for ${spent} and spends the rest on {item.many} that cost ${price} each. How many {item.many} does {p.he} buy?",
        f"{p} has ${have}. First {p.he} pays ${spent} for a {first.one}. If one {item.one} costs ${price}, how many {item.many} can {p.he} buy with the money that is left?",
    )
    rest = s.sub(have, spent, f"{p} has $@ left.")
    s.div(rest, price, f"{p} buys @ {item.many}.")


@template
def coupon_on_total(s: Story) -> None:
    """Two kinds of things with an amount taken off the total."""
    p, first, second = s.person(), s.noun(BAKED), s.noun(STATIONERY)
    a, price_a, b, price_b = s.number(2, 8), s.number(2, 12), s.number(2, 8), s.number(2, 12)
    off = s.number(2, 10)
    s.ask(
        f"{p} buys {first(a)} for ${price_a} each and {second(b)} for ${price_b} each. {p.he} has a coupon for ${off} off the whole bill. How much does {p.he} pay?",
        f"A {first.one} costs ${price_a} and a {second.one} costs ${price_b}. {p} orders {first(a)} and {second(b)}, and the seller takes ${off} off the total. How many dollars does {p} pay?",
    )
    x = s.mul(a, price_a, f"The {first.many} cost $@.")
    y = s.mul(b, price_b, f"The {second.many} cost $@.")
    total = s.add(x, y, "The total is $@.")
    s.sub(total, off, f"{p} pays $@.")


@template
def cheaper_shop(s: Story) -> None:
    """The same things in two shops."""
    p, item = s.person(), s.noun(TOYS)
    count, low, more = s.number(2, 9), s.number(4, 30), s.number(2, 9)
    high = low + more
    s.ask(
        f"{p} needs {item(count)}. One shop sells a {item.one} for ${high}, and another shop sells the same {item.one} for ${low}. How much does {p.he} save by going to the cheaper shop?",
        f"The same {item.one} costs ${high} at the mall and ${low} at the market. {p} buys {item(count)} at the market. How many dollars less does {p.he} pay than at the mall?",
    )
    x = s.mul(count, high, "The expensive shop asks for $@.")
    y = s.mul(count, low, "The cheap shop asks for $@.")
    s.sub(x, y, f"{p} saves $@.")
