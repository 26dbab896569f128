"""The people, things and places that stories are told with."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Person:
    """A name with its pronouns. In an f-string it reads as the name."""

    name: str
    he: str
    him: str
    his: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Noun:
    """A thing that can be counted. `noun(3)` reads "3 apples", `noun(1)` "1 apple"."""

    one: str
    many: str

    def __call__(self, count: int) -> str:
        """Return the count with the right form of the word."""
        return f"{count} {self.one if count == 1 else self.many}"


def _women(names: str) -> list[Person]:
    return [Person(name, "she", "her", "her") for name in names.split()]


def _men(names: str) -> list[Person]:
    return [Person(name, "he", "him", "his") for name in names.split()]


PEOPLE = (
    *_women("Anna Maria Lucy Emma Sara Nina Olivia Grace Mia Julia Hannah Priya Aisha Elena Zoe Rosa Leila Mei Ella Clara"),
    *_men("Tom James Ben Leo Omar David Sam Peter Lucas Max Carlos Ravi Noah Jack Ivan Daniel Kenji Hugo Felix Adam"),
)  # fmt: skip


def _nouns(words: str) -> tuple[Noun, ...]:
    """Read "one/many" pairs; a plural that only adds an s is left out."""
    pairs = (word.strip().partition("/") for word in words.split(","))
    return tuple(Noun(one, many or one + "s") for one, _, many in pairs)


FRUIT = _nouns("apple, orange, peach/peaches, pear, mango/mangoes, plum, lemon, banana, melon, fig")
VEGETABLES = _nouns("carrot, potato/potatoes, tomato/tomatoes, onion, pumpkin, pepper, cabbage, cucumber")
BAKED = _nouns("muffin, cookie, cupcake, bagel, pie, roll, brownie, pancake, scone, tart")
STATIONERY = _nouns("pencil, notebook, pen, eraser, marker, folder, crayon, ruler, brush/brushes, envelope")
TOYS = _nouns("toy car, puzzle, doll, kite, ball, yo-yo, board game, robot, puppet, model plane")
COLLECTIBLES = _nouns("stamp, coin, marble, shell, sticker, card, postcard, badge, bead, button")
CLOTHES = _nouns("shirt, hat, scarf/scarves, sweater, jacket, belt, tie, dress/dresses, cap, vest")
CONTAINERS = _nouns("box/boxes, bag, basket, crate, carton, sack, bucket")
PACKS = _nouns("pack, box/boxes, bag, set, packet")
FLOWERS = _nouns("rose, tulip, daisy/daisies, lily/lilies, sunflower, violet, orchid, poppy/poppies")
TREES = _nouns("oak tree, apple tree, pine tree, cherry tree, maple tree, olive tree, palm tree, pear tree")
ANIMALS = _nouns("cow, goat, horse, sheep/sheep, pig, rabbit, donkey, llama")
BIRDS = _nouns("hen, duck, goose/geese, turkey, quail/quails, swan")
DRINKS = _nouns("juice, tea, coffee, lemonade, milkshake, soda, smoothie, water/waters")
READING = _nouns("book, comic, magazine, novel, guidebook, picture book")
FOOD = (*FRUIT, *BAKED)
GOODS = (*STATIONERY, *TOYS, *CLOTHES, *BAKED)

SHOPS = (
    "the market",
    "the corner shop",
    "the store",
    "the mall",
    "the fair",
    "a stall in town",
    "the village shop",
)
TOWNS = ("Riverton", "Oakville", "Milford", "Ashland", "Greenfield", "Brookside", "Lakewood", "Hillcrest")
STREETS = ("Maple Street", "Oak Lane", "Mill Road", "Park Avenue", "River Street", "Church Lane")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
COLORS = ("red", "blue", "green", "yellow", "white", "purple", "black", "orange")

TIMES = {2: "twice", 3: "three times", 4: "four times", 5: "five times", 6: "six times"}
"""2: "twice" and so on, for "twice as many"."""

PART = {2: "half", 3: "a third", 4: "a quarter", 5: "a fifth", 6: "a sixth", 8: "an eighth", 10: "a tenth"}
"""3: "a third" and so on, for "a third of the eggs"."""
