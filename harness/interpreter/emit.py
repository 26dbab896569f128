"""What emitters work with: operands to Python expressions, modifiers that must all be understood, the table of opcodes."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from harness.interpreter.errors import UnsupportedPtxError
from harness.interpreter.parser import Instruction, Kernel

WIDTH = {
    "b8": 8, "u8": 8, "s8": 8, "b16": 16, "u16": 16, "s16": 16, "f16": 16, "bf16": 16,
    "b32": 32, "u32": 32, "s32": 32, "f32": 32, "f16x2": 32, "bf16x2": 32,
    "b64": 64, "u64": 64, "s64": 64, "f64": 64, "f32x2": 64,
}  # fmt: skip
_IMMEDIATE = re.compile(r"-?(?:0[xX][0-9a-fA-F]+|\d+)U?")
_FLOAT = re.compile(r"0[fF][0-9a-fA-F]{8}|0[dD][0-9a-fA-F]{16}")
_ADDRESS = re.compile(r"\[\s*(?P<base>[%\w$]+)\s*(?:\+\s*(?P<offset>-?\w+))?\s*\]")


class Modifiers:
    """The parts of an opcode behind its name; whatever nobody took is an error that names it."""

    def __init__(self, op: str) -> None:
        self.op = op
        self.name, *self._left = op.split(".")

    def take(self, *options: str) -> str:
        """Remove and return the first part that is one of the options, "" if none is there."""
        for part in self._left:
            if part in options:
                self._left.remove(part)
                return part
        return ""

    def need(self, *options: str) -> str:
        """Remove and return the part that is one of the options.

        Raises:
            UnsupportedPtxError: none is there.
        """
        if found := self.take(*options):
            return found
        raise UnsupportedPtxError(
            f"{self.op}: one of .{', .'.join(options)} is expected and nothing else is modelled"
        )

    def drop(self, *options: str) -> None:
        """Remove every part that is one of the options: they change speed, not results."""
        self._left = [part for part in self._left if part not in options]

    def done(self) -> None:
        """Check that every part was understood.

        Raises:
            UnsupportedPtxError: one was not; it is named.
        """
        if self._left:
            raise UnsupportedPtxError(f"{self.op}: modifier .{self._left[0]} is not modelled")


@dataclass
class Emit:
    """The code of one basic block while it is generated.

    Attributes:
        kernel: for registers, parameters and shared symbols.
        numbers: register name to index.
        following: index of the block behind this one.
        targets: label to block index.
        lines: generated lines.
        reads: registers read before they are written.
        writes: registers written.
        successors: blocks that may come next.
        ended: the last line returns.
    """

    kernel: Kernel
    numbers: dict[str, int]
    following: int
    targets: dict[str, int]
    lines: list[str] = field(default_factory=list)
    reads: set[int] = field(default_factory=set)
    writes: set[int] = field(default_factory=set)
    successors: set[int] = field(default_factory=set)
    ended: bool = False

    def add(self, line: str) -> None:
        """Append a line."""
        self.lines.append(line)

    def finish(self, *lines: str, successors: set[int]) -> None:
        """Append the lines that leave the block."""
        self.lines += ["#leave", *lines]
        self.successors = successors
        self.ended = True

    def source(self, text: str, width: int = 32) -> str:
        """Return an operand that is read, as an expression of lane values.

        Raises:
            UnsupportedPtxError: it is neither register, immediate, special register nor known symbol.
        """
        if text in self.numbers:
            number = self.numbers[text]
            if number not in self.writes:
                self.reads.add(number)
            return f"x{number}"
        if text.startswith("!"):
            return f"({self.source(text[1:], width)} ^ True)"
        if _IMMEDIATE.fullmatch(text):
            return str(int(text.rstrip("U"), 0) & ((1 << width) - 1))
        if _FLOAT.fullmatch(text):
            return str(_float_bits(text, width))
        if text.startswith("%"):
            return f"w.special({text!r})"
        return self._symbol(text)

    def _symbol(self, text: str) -> str:
        """Return the address of a shared variable or of a parameter."""
        if text in self.kernel.shared:
            return f"(w.cta.address + {shared_offset(self.kernel, text)})"
        for parameter in self.kernel.parameters:
            if parameter.name == text:
                return f"(w.parameter_address + {parameter.offset})"
        raise UnsupportedPtxError(f"operand {text!r} is not understood")

    def sources(self, operands: tuple[str, ...], width: int = 32) -> list[str]:
        """Return several operands that are read."""
        return [self.source(text, width) for text in operands]

    def target(self, text: str) -> str:
        """Return the variable that an instruction writes; `_` is a sink."""
        if text == "_":
            return "_"
        if text not in self.numbers:
            raise UnsupportedPtxError(f"destination {text!r} is no declared register")
        number = self.numbers[text]
        self.writes.add(number)
        return f"x{number}"

    def assign(self, text: str, expression: str) -> None:
        """Append `destination = expression`; the expression must have been made before."""
        self.add(f"{self.target(text)} = {expression}")

    def address(self, text: str, width: int = 64) -> str:
        """Return the address in brackets as an expression."""
        match = _ADDRESS.fullmatch(text)
        if not match:
            raise UnsupportedPtxError(f"address {text!r} is not understood")
        base = self.source(match["base"], width)
        offset = int(match["offset"] or "0", 0)
        return f"(({base} + {offset & ((1 << width) - 1)}) & M{width})" if offset else base

    def elements(self, text: str) -> list[str]:
        """Return the texts inside the braces of a vector operand, or the operand itself."""
        if not text.startswith("{"):
            return [text]
        return [part.strip() for part in text.strip("{}").split(",")]


def set_predicates(e: Emit, operands: tuple[str, ...], test: str, combine: str) -> None:
    """Write the one or two predicates of a setp, combined with another one where the opcode says so."""
    first, _, second = operands[0].partition("|")
    join = ""
    if combine:
        join = f" { ({'and': '&', 'or': '|', 'xor': '^'}[combine]) } {e.source(operands[3])}"
    e.add(f"t0 = {test}")
    if second:
        e.add(f"t1 = (t0 ^ True){join}")
        e.assign(second, "t1")
    e.assign(first, f"t0{join}")


def _float_bits(text: str, width: int) -> int:
    """Return the bits of 0fXXXXXXXX or 0dXXXXXXXXXXXXXXXX; a double is rounded where 32 bits are wanted."""
    bits = int.from_bytes(bytes.fromhex(text[2:]), "big")
    if text[1] in "dD" and width == 32:
        value = struct.unpack("<d", bits.to_bytes(8, "little"))[0]
        bits = struct.unpack("<I", struct.pack("<f", value))[0]
    return bits


def shared_offset(kernel: Kernel, name: str) -> int:
    """Return where a shared variable lies behind the start of shared memory: static ones in order, then the dynamic one."""
    offset = 0
    for variable, (align, size) in sorted(kernel.shared.items(), key=lambda item: item[1][1] is None):
        offset = -(-offset // align) * align
        if variable == name:
            return offset
        offset += size or 0
    raise UnsupportedPtxError(f"shared variable {name} is not declared")


Emitter = Callable[[Emit, Modifiers, tuple[str, ...]], None]
EMITTERS: dict[str, Emitter] = {}
# Opcodes after which a warp may have to wait: they end a basic block.
WAITING: set[str] = set()


def emits(*names: str) -> Callable[[Emitter], Emitter]:
    """Register the emitter of opcodes, by what stands before their first modifier or by that and the modifier."""

    def register(function: Emitter) -> Emitter:
        for name in names:
            EMITTERS[name] = function
        return function

    return register


def find_emitter(instruction: Instruction) -> Emitter:
    """Return the emitter of an instruction.

    Raises:
        UnsupportedPtxError: the opcode is not modelled.
    """
    parts = instruction.op.split(".")
    for length in range(min(len(parts), 4), 0, -1):
        if found := EMITTERS.get(".".join(parts[:length])):
            return found
    raise UnsupportedPtxError(f"line {instruction.line}: opcode {instruction.op} is not modelled")


def waits(op: str) -> bool:
    """Return whether a warp may have to wait at this opcode."""
    parts = op.split(".")
    return any(".".join(parts[:length]) in WAITING for length in range(1, min(len(parts), 4) + 1))
