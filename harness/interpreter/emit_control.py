"""Emitters: branches, the end of a program, and exchange between the lanes of a warp (PTX ISA 9.7.9, 9.7.12, 9.7.13)."""

from __future__ import annotations

from harness.interpreter.emit import Emit, Modifiers, emits


@emits("shfl.sync")
def _shuffle(e: Emit, mods: Modifiers, operands: tuple[str, ...]) -> None:
    mods.need("sync")
    mode = mods.need("idx", "up", "down", "bfly")
    mods.need("b32")
    mods.done()
    a, b, c, members = e.sources(operands[1:])
    first, _, second = operands[0].partition("|")
    e.add(f"w.whole({mods.op!r}, {members})")
    e.add(f"t0, t1 = shuffle({mode!r}, {a}, {b}, {c})")
    e.assign(first, "t0")
    if second:
        e.assign(second, "t1")


@emits("elect.sync")
def _elect(e: Emit, mods: Modifiers, operands: tuple[str, ...]) -> None:
    mods.need("sync")
    mods.done()
    first, _, second = operands[0].partition("|")
    e.add(f"w.whole('elect.sync', {e.source(operands[1])})")
    e.add("t0, t1 = w.elect()")
    e.assign(first, "t0")
    e.assign(second, "t1")


@emits("bra")
def _branch(e: Emit, mods: Modifiers, operands: tuple[str, ...]) -> None:
    mods.drop("uni")
    mods.done()
    at = e.targets[operands[0]]
    e.finish(f"return {at}", successors={at})


@emits("bra_if")
def _branch_if(e: Emit, mods: Modifiers, operands: tuple[str, ...]) -> None:
    """A guarded branch: the guard is the first operand."""
    mods.drop("uni")
    mods.done()
    p = e.source(operands[0])
    at, following = e.targets[operands[1]], e.following
    e.finish(
        f"t0 = {p}",
        f"if t0 is True: return {at}",
        f"if t0 is False: return {following}",
        f"return w.diverge(t0, {at}, {following})",
        successors={at, following},
    )


@emits("ret", "exit")
def _return(e: Emit, mods: Modifiers, _: tuple[str, ...]) -> None:
    mods.done()
    e.finish("return w.leave()", successors=set())


@emits("trap")
def _trap(e: Emit, mods: Modifiers, _: tuple[str, ...]) -> None:
    mods.done()
    e.finish("w.trap()", successors=set())
