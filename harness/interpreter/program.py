"""A kernel as basic blocks of generated Python, compiled when they are first run.

A block is a function `f(w, R, mask)` that loads the registers it needs from the list R into local variables, runs, stores
what is still needed, and returns the index of the next block. In a diverged warp only the active lanes may change: registers
that waiting lanes still need are merged, which liveness analysis keeps to a few.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.interpreter import (
    emit_async,
    emit_control,
    emit_float,
    emit_integer,
    emit_memory,
    floats,
    lanes,
    warp_memory,
    warp_tensor,
    warp_tma,
)
from harness.interpreter.emit import EMITTERS, Emit, Modifiers, find_emitter, waits
from harness.interpreter.errors import UnsupportedPtxError
from harness.interpreter.parser import Instruction, Kernel, Label
from harness.interpreter.tensor_core import KINDS

# emitters: imported for what they register
_REGISTERED = (emit_async, emit_control, emit_float, emit_integer, emit_memory)
# what generated code calls by name
CALLED = (lanes, floats, warp_memory, warp_tensor, warp_tma)
Function = Callable[[Any, list[Any], Any], int]


@dataclass
class Block:
    """One basic block.

    Attributes:
        code: its instructions.
        emitted: the generated lines with what they read and write.
        live_in: registers that are needed from here on, as a bit set.
        live_out: registers needed behind it.
    """

    code: list[Instruction]
    emitted: Emit
    live_in: int = 0
    live_out: int = 0


class Program:
    """A kernel ready to run.

    Args:
        kernel: the parsed entry.

    Raises:
        UnsupportedPtxError: an instruction is not modelled; the message has its line.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.numbers = {name: number for number, name in enumerate(kernel.registers)}
        self.register_count = len(self.numbers)
        self._kinds = list(kernel.registers.values())
        self._names = list(kernel.registers)
        codes, targets = _blocks(kernel)
        self.blocks = [self._emit(code, number, targets, len(codes)) for number, code in enumerate(codes)]
        self._liveness()
        self._functions: dict[tuple[int, int], Function] = {}
        self._full: list[Function | None] = [None] * len(self.blocks)
        self._namespace = self._names_in_code()

    def block(self, number: int) -> Function:
        """Return the code of a block for a warp whose lanes are all active."""
        found = self._full[number]
        if found is None:
            found = self._full[number] = self._compile(number, 0)
        return found

    def partial_block(self, number: int, others: list[tuple[int, Any]]) -> Function:
        """Return the code of a block while lanes wait at other blocks.

        Args:
            number: the block.
            others: (block, mask) of the waiting lanes.
        """
        needed = 0
        for at, _ in others:
            needed |= self.blocks[at].live_in
        key = (number, needed)
        if key not in self._functions:
            self._functions[key] = self._compile(number, needed)
        return self._functions[key]

    def where(self, number: int) -> str:
        """Return the line of the PTX where a block starts, in words."""
        code = self.blocks[number].code if number < len(self.blocks) else []
        return f"line {code[0].line}: {code[0]}" if code else "the end"

    def undefined(self, number: int, registers: list[Any]) -> list[str]:
        """Return names of registers that a block reads and nobody has written."""
        return [self._names[r] for r in sorted(self.blocks[number].emitted.reads) if registers[r] is None]

    def _emit(self, code: list[Instruction], number: int, targets: dict[str, int], count: int) -> Block:
        emitted = Emit(self.kernel, self.numbers, number + 1, targets)
        for instruction in code:
            try:
                find_emitter(instruction)(emitted, Modifiers(instruction.op), instruction.operands)
            except (UnsupportedPtxError, ValueError, KeyError, IndexError) as error:
                message = (
                    str(error)
                    if isinstance(error, UnsupportedPtxError)
                    else f"operands not understood ({error!r})"
                )
                raise UnsupportedPtxError(f"line {instruction.line}: {instruction}: {message}") from error
        if not emitted.ended:
            if number + 1 >= count:
                raise UnsupportedPtxError("the program runs past its end")
            emitted.finish(f"return {number + 1}", successors={number + 1})
        return Block(code, emitted)

    def _liveness(self) -> None:
        reads = [_bits(block.emitted.reads) for block in self.blocks]
        keeps = [~_bits(block.emitted.writes) for block in self.blocks]
        changed = True
        while changed:
            changed = False
            for number in range(len(self.blocks) - 1, -1, -1):
                block = self.blocks[number]
                out = 0
                for successor in block.emitted.successors:
                    out |= self.blocks[successor].live_in
                live = reads[number] | (out & keeps[number])
                if live != block.live_in or out != block.live_out:
                    block.live_in, block.live_out, changed = live, out, True

    def _compile(self, number: int, needed: int) -> Function:
        block = self.blocks[number]
        emitted = block.emitted
        lines = [f"x{r} = R[{r}]" for r in sorted(emitted.reads)]
        for line in emitted.lines:
            if line != "#leave":
                lines.append(line)
                continue
            for register in sorted(emitted.writes):
                if not block.live_out >> register & 1:
                    continue
                if needed >> register & 1:
                    lines.append(
                        f"R[{register}] = merge(mask, x{register}, R[{register}], {self._kinds[register]!r})"
                    )
                else:
                    lines.append(f"R[{register}] = x{register}")
        source = "def f(w, R, mask):\n    " + "\n    ".join(lines)
        scope: dict[str, Any] = {}
        exec(compile(source, f"<block {number} of {self.kernel.name[:40]}>", "exec"), self._namespace, scope)  # noqa: S102 - our own text
        function: Function = scope["f"]
        return function

    @staticmethod
    def _names_in_code() -> dict[str, Any]:
        found: dict[str, Any] = {"KINDS": KINDS, "np": np}
        for module in CALLED:
            found |= {name: value for name, value in vars(module).items() if not name.startswith("_")}
        return found


def _bits(registers: set[int]) -> int:
    bits = 0
    for register in registers:
        bits |= 1 << register
    return bits


def _blocks(kernel: Kernel) -> tuple[list[list[Instruction]], dict[str, int]]:  # noqa: C901 - one pass over the body
    """Return basic blocks and the block of each label. Guards become branches around one instruction."""
    blocks: list[list[Instruction]] = [[]]
    targets: dict[str, int] = {}

    def start() -> int:
        if blocks[-1]:
            blocks.append([])
        return len(blocks) - 1

    skips = 0
    for item in kernel.body:
        if isinstance(item, Label):
            targets[item.name] = start()
            continue
        name = item.op.split(".")[0]
        if item.guard and name == "bra":
            blocks[-1].append(Instruction("bra_if", (item.guard, *item.operands), line=item.line))
            blocks.append([])
            continue
        if item.guard:
            skips += 1
            guard = item.guard[1:] if item.guard.startswith("!") else f"!{item.guard}"
            blocks[-1].append(Instruction("bra_if", (guard, f".skip{skips}"), line=item.line))
            blocks.append([])
        blocks[-1].append(Instruction(item.op, item.operands, line=item.line))
        if name in {"bra", "ret", "exit", "trap"} or waits(item.op):
            blocks.append([])
            if "_wait" in item.op and name == "mbarrier":
                blocks[-1].append(Instruction("_result", (item.operands[0],), line=item.line))
        if item.guard:
            targets[f".skip{skips}"] = start()
    if not blocks[-1]:
        blocks.pop()
    if EMITTERS and targets and max(targets.values()) >= len(blocks):
        blocks.append([Instruction("ret", ())])
    return blocks, targets
