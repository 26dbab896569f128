"""Games: points for wins and goals. Never trained on."""

from harness.canary.problems.story import Story, template
from harness.canary.problems.vocabulary import TIMES


@template
def wins_and_draws(s: Story) -> None:
    """Points for wins and for draws."""
    p = s.person()
    wins, draws, win, draw = s.number(3, 15), s.number(2, 9), s.number(4, 9), s.number(2, 3)
    s.ask(
        f"{p}'s team gets {win} points for a win and {draw} points for a draw. The team has {wins} wins and {draws} draws. How many points does the team have?",
        f"With {wins} wins and {draws} draws, how many points does {p}'s team have if a win gives {win} points and a draw gives {draw}?",
    )
    x = s.mul(wins, win, "The wins give @ points.")
    y = s.mul(draws, draw, "The draws give @ points.")
    s.add(x, y, "The team has @ points.")


@template
def levels(s: Story) -> None:
    """Points of levels less a penalty."""
    p = s.person()
    levels_, points, lost = s.number(3, 12), s.number(5, 30), s.number(3, 30)
    s.need(levels_ * points - lost >= 2)
    s.ask(
        f"{p} plays a computer game and gets {points} points for each level. {p.he} finishes {levels_} levels but loses {lost} points at the end. What is {p.his} score?",
        f"Each level of a game is worth {points} points. {p} completes {levels_} levels and then loses {lost} points. How many points does {p.he} have?",
    )
    got = s.mul(levels_, points, f"{p} gets @ points.")
    s.sub(got, lost, f"{p} has @ points.")


@template
def beats_friend(s: Story) -> None:
    """By how much one score beats a multiple of another."""
    p, q = s.person(), s.person()
    a, k, extra = s.number(5, 40), s.number(2, 5), s.number(2, 30)
    s.ask(
        f"{q} scores {a} points in a game. {p} scores {extra} points more than {TIMES[k]} as many as {q}. How many points does {p} score?",
        f"{p}'s score is {extra} points higher than {TIMES[k]} the score of {q}. {q} has {a} points. What is {p}'s score?",
    )
    x = s.mul(k, a, f"{TIMES[k]} the points of {q} are @.")
    s.add(x, extra, f"{p} scores @ points.")


@template
def goals_per_game(s: Story) -> None:
    """Goals in two halves of several games."""
    p = s.person()
    a, b, games = s.number(2, 9), s.number(2, 9), s.number(3, 12)
    s.ask(
        f"In every game {p}'s team scores {a} goals in the first half and {b} goals in the second half. How many goals does the team score in {games} games?",
        f"{p}'s team plays {games} games. In each of them it scores {a} goals before the break and {b} after it. How many goals is that in all?",
    )
    game = s.add(a, b, "One game has @ goals.")
    s.mul(games, game, f"{games} games have @ goals.")


@template
def points_to_record(s: Story) -> None:
    """Games needed to reach a record."""
    p = s.person()
    has, each, games = s.number(10, 90), s.number(4, 12), s.number(2, 12)
    s.ask(
        f"The club record is {has + each * games} points. {p} has {has} points and gets {each} points in every game. In how many games will {p.he} reach the record?",
        f"{p} has {has} points and wants to have {has + each * games}. {p.he} gets {each} points per game. How many more games does {p.he} need?",
    )
    need = s.sub(has + each * games, has, f"{p} needs @ points.")
    s.div(need, each, f"{p} needs @ games.")
