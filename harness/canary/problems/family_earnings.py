"""Earnings and savings."""

from harness.canary.problems.story import Story, template
from harness.canary.problems.vocabulary import BAKED, CLOTHES, DRINKS, TOYS

_WORK = (
    "washes cars",
    "walks dogs",
    "mows lawns",
    "waits tables",
    "paints fences",
    "babysits",
    "picks berries",
)


@template
def weekly_wage(s: Story) -> None:
    """Hours a day, days, dollars an hour."""
    p, work = s.person(), s.pick(_WORK)
    hours, days, wage = s.number(2, 8), s.number(2, 6), s.number(5, 20)
    s.ask(
        f"{p} {work} for ${wage} an hour. {p.he} works {hours} hours a day on {days} days of the week. How much does {p.he} earn in a week?",
        f"On {days} days of each week {p} {work} for {hours} hours. {p.he} gets ${wage} per hour. How many dollars does {p.he} earn each week?",
    )
    day = s.mul(hours, wage, "One day pays $@.")
    s.mul(days, day, f"{p} earns $@.")


@template
def two_jobs(s: Story) -> None:
    """Two jobs at two wages."""
    p, first, second = s.person(), s.pick(_WORK[:3]), s.pick(_WORK[3:])
    a, x, b, y = s.number(2, 9), s.number(5, 20), s.number(2, 9), s.number(5, 20)
    s.ask(
        f"{p} {first} for {a} hours and {second} for {b} hours. The first job pays ${x} an hour and the second pays ${y} an hour. How much does {p.he} earn in all?",
        f"{p} {first} for ${x} an hour, and {p.he} {second} for ${y} an hour. Last week {p.he} spent {a} hours on the first job and {b} hours on the second. How many dollars did {p.he} earn?",
    )
    u = s.mul(a, x, "The first job pays $@.")
    v = s.mul(b, y, "The second job pays $@.")
    s.add(u, v, f"{p} earns $@.")


@template
def savings_goal(s: Story) -> None:
    """Weeks until there is enough money."""
    p, item = s.person(), s.noun(TOYS)
    have, each, weeks = s.number(5, 60), s.number(3, 15), s.number(2, 15)
    goal = have + each * weeks
    s.ask(
        f"{p} wants to buy a {item.one} that costs ${goal}. {p.he} has ${have} and saves ${each} every week. How many weeks does {p.he} have to save?",
        f"A {item.one} costs ${goal}. {p} already has ${have}. If {p.he} saves ${each} a week, after how many weeks can {p.he} buy it?",
    )
    need = s.sub(goal, have, f"{p} needs $@ more.")
    s.div(need, each, f"{p} has to save for @ weeks.")


@template
def overtime(s: Story) -> None:
    """A higher wage after some hours."""
    p, work = s.person(), s.pick(_WORK)
    base, more, wage, extra = s.number(5, 12), s.number(2, 8), s.number(6, 15), s.number(2, 6)
    high = wage + extra
    s.ask(
        f"{p} {work} and gets ${wage} an hour for the first {base} hours of the week and ${high} for every hour after that. This week {p.he} works {base + more} hours. How much does {p.he} earn?",
        f"For {base} hours a week {p} is paid ${wage} per hour. Every further hour pays ${high}. How many dollars does {p.he} earn in a week with {base + more} hours?",
    )
    x = s.mul(base, wage, "The first hours pay $@.")
    hours = s.sub(base + more, base, "There are @ more hours.")
    y = s.mul(hours, high, "They pay $@.")
    s.add(x, y, f"{p} earns $@.")


@template
def saved_each_week(s: Story) -> None:
    """Pocket money less what is spent, over weeks."""
    p, drink = s.person(), s.noun(DRINKS)
    spent, keep, weeks = s.number(2, 12), s.number(2, 15), s.number(3, 12)
    gets = spent + keep
    s.ask(
        f"{p} gets ${gets} of pocket money every week. {p.he} spends ${spent} a week on {drink.one} and saves the rest. How much money does {p.he} save in {weeks} weeks?",
        f"Each week {p} earns ${gets} and spends ${spent} of it. How many dollars has {p.he} saved after {weeks} weeks?",
    )
    week = s.sub(gets, spent, f"{p} saves $@ a week.")
    s.mul(weeks, week, f"{p} saves $@.")


@template
def stall_profit(s: Story) -> None:
    """What a stall takes in less its costs."""
    p, item = s.person(), s.noun(BAKED)
    count, price, cost = s.number(8, 60), s.number(2, 6), s.number(5, 40)
    s.need(count * price - cost >= 5)
    s.ask(
        f"{p} sells {item(count)} at a bake sale for ${price} each. The ingredients cost {p.him} ${cost}. How much profit does {p.he} make?",
        f"To make {item(count)}, {p} spends ${cost} on ingredients. {p.he} sells every {item.one} for ${price}. How many dollars of profit does {p.he} make?",
    )
    taken = s.mul(price, count, f"{p} takes in $@.")
    s.sub(taken, cost, "The profit is $@.")


@template
def partners_share(s: Story) -> None:
    """Income shared equally after a cost."""
    p, item = s.person(), s.noun(CLOTHES)
    people, share, cost, count = s.number(2, 6), s.number(5, 40), s.number(5, 40), s.number(3, 12)
    s.need((people * share + cost) % count == 0)
    price = (people * share + cost) // count
    s.need(2 <= price <= 40)
    s.ask(
        f"{p} and {p.his} friends, {people} people in all, sell {item(count)} for ${price} each. They pay ${cost} for the stand and share the rest equally. How much does each of them get?",
        f"A group of {people} friends led by {p} sold {item(count)} at ${price} each. After paying ${cost} for their stand, they divided the money equally. How many dollars did each friend get?",
    )
    taken = s.mul(count, price, "They take in $@.")
    rest = s.sub(taken, cost, "They have $@ left.")
    s.div(rest, people, "Each one gets $@.")
