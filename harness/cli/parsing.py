"""What click does not do: the nearest command for a misspelt one, and numbers of ASCII digits that fit into 64 bits."""

from __future__ import annotations

from typing import Any

import click

from harness.verdict import unknown_name

LARGEST = (1 << 63) - 1
MOST_THREADS = 1024  # of torch


class Whole(click.types.IntParamType):
    """A whole number. Python's own `int` takes the digits of every script, and any number of them."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number. Raises click.BadParameter where it is none, or too large."""
        if isinstance(value, str) and not value.isascii():
            self.fail(f"{value!r} is not a valid integer; digits are 0 to 9", param, ctx)
        if isinstance(value, str) and len(value) > 40:
            self.fail(f"{value[:20]}... has {len(value)} digits; the largest is {LARGEST}", param, ctx)
        number: int = super().convert(value, param, ctx)
        if abs(number) > LARGEST:
            self.fail(f"{number} is too large; the largest is {LARGEST}", param, ctx)
        return number


class Number(click.types.FloatParamType):
    """A number of ASCII digits."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number. Raises click.BadParameter where it is none."""
        if isinstance(value, str) and not value.isascii():
            self.fail(f"{value!r} is not a valid float; digits are 0 to 9", param, ctx)
        number: float = super().convert(value, param, ctx)
        return number


def with_our_numbers(command: click.Command) -> click.Command:
    """Return a command, its own commands included, whose options take numbers as `Whole` and `Number` do."""
    for parameter in command.params:
        if parameter.type is click.INT:
            parameter.type = Whole()
        elif parameter.type is click.FLOAT:
            parameter.type = Number()
    if isinstance(command, click.Group):
        for each in command.commands.values():
            with_our_numbers(each)
    return command


class NearestGroup(click.Group):
    """A group that names the nearest command to a misspelt one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that the first word names. Raises UsageError where there is none."""
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            raise unknown_name("command", name, self.list_commands(ctx))
        return super().resolve_command(ctx, args)
