"""Plans of five and six steps: parties, trips, sales, harvests."""

from harness.canary.problems.story import Story, template
from harness.canary.problems.vocabulary import (
    BAKED,
    BIRDS,
    COLLECTIBLES,
    DRINKS,
    STATIONERY,
    TIMES,
    TOWNS,
    VEGETABLES,
)


@template
def party_budget(s: Story) -> None:
    """Food and drinks for guests, a cake, and what is left of the budget."""
    p, food, drink = s.person(), s.noun(BAKED), s.noun(DRINKS)
    guests, x, y, cake, left = (
        s.number(3, 12),
        s.number(2, 6),
        s.number(2, 5),
        s.number(8, 30),
        s.number(3, 40),
    )
    have = guests * x + guests * y + cake + left
    s.ask(
        f"{p} has ${have} for a party with {guests} guests. Each guest gets a {food.one} for ${x} and a {drink.one} for ${y}. {p.he} also buys a cake for ${cake}. How much money is left?",
        f"For a party, {p} buys a ${cake} cake, and a {food.one} and a {drink.one} for each of {guests} guests. A {food.one} costs ${x} and a {drink.one} costs ${y}. How many dollars of {p.his} ${have} are left?",
    )
    a = s.mul(guests, x, f"The {food.many} cost $@.")
    b = s.mul(guests, y, f"The {drink.many} cost $@.")
    both = s.add(a, b, "That is $@.")
    total = s.add(both, cake, "With the cake it is $@.")
    s.sub(have, total, f"{p} has $@ left.")


@template
def bus_trip(s: Story) -> None:
    """Children and adults in buses, and an entrance fee for everybody."""
    p, town = s.person(), s.pick(TOWNS)
    seats, buses, adults = s.one_of(8, 10, 12, 20), s.number(2, 5), s.number(3, 9)
    price, fee = s.number(20, 90, 10), s.number(2, 9)
    children = seats * buses - adults
    s.ask(
        f"{children} children and {adults} adults go to {town} in buses with {seats} seats, and every seat is taken. {p} pays ${price} for each bus and ${fee} entrance for each person. How much does {p.he} pay in all?",
        f"{p} plans a trip to {town} for {children} children and {adults} adults. They fill buses of {seats} people that cost ${price} each. The entrance is ${fee} per person. How many dollars does the trip cost?",
    )
    people = s.add(children, adults, "There are @ people.")
    need = s.div(people, seats, "They need @ buses.")
    a = s.mul(need, price, "The buses cost $@.")
    b = s.mul(fee, people, "The entrance costs $@.")
    s.add(a, b, "The trip costs $@.")


@template
def bake_sale(s: Story) -> None:
    """Trays less what is burnt, sold, less costs, shared."""
    p, item = s.person(), s.noun(BAKED)
    trays, tray, burnt, price = s.number(2, 6), s.number(6, 12), s.number(2, 9), s.number(2, 5)
    cost, people = s.number(2, 8), s.number(2, 6)
    taken = (trays * tray - burnt) * price
    s.need((taken - trays * cost) > 0 and (taken - trays * cost) % people == 0)
    s.ask(
        f"{p} and {p.his} friends bake {trays} trays of {tray} {item.many}, but {burnt} {item.many} burn. They sell the others for ${price} each. One tray costs ${cost} to make. If {people} people share the profit equally, how much does each get?",
        f"A class with {p} in it bakes {trays} trays with {item(tray)} on each. A tray costs ${cost} to make. {burnt} {item.many} burn, and the rest are sold for ${price} each. The profit is shared by {people} students. How many dollars does each student get?",
    )
    made = s.mul(trays, tray, f"They bake @ {item.many}.")
    good = s.sub(made, burnt, "They can sell @.")
    money = s.mul(price, good, "They take in $@.")
    costs = s.mul(trays, cost, "The trays cost $@.")
    profit = s.sub(money, costs, "The profit is $@.")
    s.div(profit, people, "Each one gets $@.")


@template
def eggs_to_market(s: Story) -> None:
    """Eggs of two kinds of birds, in cartons, at a price."""
    p, first, second = s.person(), s.noun(BIRDS), s.noun(BIRDS)
    a, x, b, y = s.number(3, 12), s.number(2, 7), s.number(3, 12), s.number(2, 7)
    eaten, size, price = s.number(2, 12), s.one_of(4, 6, 10, 12), s.number(2, 9)
    s.need((a * x + b * y - eaten) % size == 0)
    s.ask(
        f"Every week each of {p}'s {first(a)} lays {x} eggs and each of {p.his} {second(b)} lays {y} eggs. The family eats {eaten} eggs. The others are sold in cartons of {size} for ${price} per carton. How much money does {p} get in a week?",
        f"{p} has {first(a)} that lay {x} eggs each per week, and {second(b)} that lay {y} eggs each. {p.he} keeps {eaten} eggs and fills cartons of {size} with the rest. A carton sells for ${price}. How many dollars is that per week?",
    )
    one = s.mul(a, x, f"The {first.many} lay @ eggs.")
    two = s.mul(b, y, f"The {second.many} lay @ eggs.")
    total = s.add(one, two, "Together that is @ eggs.")
    sold = s.sub(total, eaten, f"{p} sells @ eggs.")
    cartons = s.div(sold, size, "They fill @ cartons.")
    s.mul(cartons, price, f"{p} gets $@.")


@template
def two_fields(s: Story) -> None:
    """Two fields, a loss, and what one person gets."""
    p, plant = s.person(), s.noun(VEGETABLES)
    a, x, b, y = s.number(2, 9), s.number(4, 15), s.number(2, 9), s.number(4, 15)
    lost, people = s.number(2, 20), s.number(2, 8)
    s.need((a * x + b * y - lost) > 0 and (a * x + b * y - lost) % people == 0)
    s.ask(
        f"{p} has one field with {a} rows of {plant(x)} and another with {b} rows of {plant(y)}. After a storm, {lost} {plant.many} are lost. {p} divides the rest equally among {people} families. How many {plant.many} does each family get?",
        f"There are {a} rows of {plant(x)} on {p}'s first field and {b} rows of {plant(y)} on the second. {lost} of them spoil. The others go in equal parts to {people} families. How many {plant.many} is that for each family?",
    )
    one = s.mul(a, x, f"The first field has @ {plant.many}.")
    two = s.mul(b, y, f"The second field has @ {plant.many}.")
    total = s.add(one, two, f"Together they have @ {plant.many}.")
    good = s.sub(total, lost, f"There are @ good {plant.many}.")
    s.div(good, people, f"Each family gets @ {plant.many}.")


@template
def average_of_friends(s: Story) -> None:
    """Three counts from one, and their average."""
    p, q, r, item = s.person(), s.person(), s.person(), s.noun(COLLECTIBLES)
    a, k, d = s.number(4, 30), s.number(2, 5), s.number(2, 20)
    s.need((a + 2 * k * a - d) % 3 == 0 and k * a > d + 2)
    s.ask(
        f"{p} has {item(a)}. {q} has {TIMES[k]} as many as {p}, and {r} has {d} fewer than {q}. What is the average number of {item.many} that the three friends have?",
        f"{q} found {TIMES[k]} as many {item.many} as {p}. {r} found {d} fewer than {q}. If {p} found {item(a)}, how many {item.many} did the three find on average?",
    )
    b = s.mul(k, a, f"{q} has @.")
    c = s.sub(b, d, f"{r} has @.")
    two = s.add(a, b, f"{p} and {q} have @.")
    total = s.add(two, c, "All three have @.")
    s.div(total, 3, f"The average is @ {item.many}.")


@template
def pages_of_three_days(s: Story) -> None:
    """Pages on three days, each from the one before, and what is left."""
    p = s.person()
    a, k, d, left = s.number(5, 30), s.number(2, 4), s.number(2, 20), s.number(5, 90)
    pages = a + k * a + k * a + d + left
    s.ask(
        f"{p} reads a book with {pages} pages. {p.he} reads {a} pages on Monday, {TIMES[k]} as many on Tuesday, and {d} pages more on Wednesday than on Tuesday. How many pages are left?",
        f"On Monday, {p} reads {a} pages of a book. On Tuesday {p.he} reads {TIMES[k]} as many pages as on Monday, and on Wednesday {d} more than on Tuesday. The book has {pages} pages. How many pages are still to read?",
    )
    b = s.mul(k, a, "Tuesday is @ pages.")
    c = s.add(b, d, "Wednesday is @ pages.")
    two = s.add(a, b, "Two days are @ pages.")
    total = s.add(two, c, "Three days are @ pages.")
    s.sub(pages, total, "There are @ pages left.")


@template
def month_of_work(s: Story) -> None:
    """Wages of two jobs, a cost each week, over several weeks, towards a goal."""
    p = s.person()
    a, x, b, y = s.number(2, 8), s.number(6, 15), s.number(2, 8), s.number(6, 15)
    spent, weeks = s.number(5, 40), s.number(2, 5)
    s.need(a * x + b * y - spent >= 10)
    s.ask(
        f"Each week {p} works {a} hours in a shop for ${x} an hour and {b} hours in a cafe for ${y} an hour. {p.he} spends ${spent} a week and saves the rest. How much does {p.he} save in {weeks} weeks?",
        f"{p} earns ${x} an hour in a shop and ${y} an hour in a cafe. Every week {p.he} spends {a} hours in the shop and {b} hours in the cafe, and {p.he} needs ${spent} for food. How many dollars are left after {weeks} weeks?",
    )
    shop = s.mul(a, x, "The shop pays $@.")
    cafe = s.mul(b, y, "The cafe pays $@.")
    week = s.add(shop, cafe, "A week brings $@.")
    saved = s.sub(week, spent, f"{p} saves $@ a week.")
    s.mul(weeks, saved, f"{p} saves $@.")


@template
def school_supplies(s: Story) -> None:
    """Two things for each student, a discount, and the change."""
    p, first, second = s.person(), s.noun(STATIONERY), s.noun(STATIONERY)
    students, a, x, y, off = s.number(3, 12), s.number(2, 4), s.number(2, 4), s.number(2, 5), s.number(3, 15)
    cost = students * (a * x + y) - off
    s.need(cost >= 10)
    s.ask(
        f"{p} buys {first(a)} for ${x} each and one {second.one} for ${y} for every one of {students} students. The shop takes ${off} off the bill. How much does {p.he} pay?",
        f"Every one of {p}'s {students} students needs {first(a)} and a {second.one}. A {first.one} costs ${x} and a {second.one} costs ${y}. {p} has a coupon for ${off} off. How many dollars does {p.he} pay for all of it?",
    )
    one = s.mul(a, x, f"The {first.many} of one student cost $@.")
    each = s.add(one, y, "One student costs $@.")
    total = s.mul(students, each, "All students cost $@.")
    s.sub(total, off, f"{p} pays $@.")
