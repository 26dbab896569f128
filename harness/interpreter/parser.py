"""PTX text to a list of instructions. Knows the syntax only: what an opcode means is the business of `emit_*.py`.

Source: PTX ISA 9.0, chapters 4 (syntax) and 5 (state spaces).
"""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass, field

from harness.interpreter.errors import UnsupportedPtxError

_STATEMENT = re.compile(
    r"\s*(?:(?P<brace>[{}])|(?P<label>[\w$]+):(?!:)|(?P<text>[^;{}]*(?:\{[^{}]*\}[^;{}]*)*);)"
)
_ENTRY = re.compile(r"\.entry\s+(?P<name>[\w$]+)\s*\((?P<params>[^)]*)\)(?P<directives>[^{]*)\{")
_PARAM = re.compile(
    r"\.param(?:\s+\.align\s+(?P<align>\d+))?\s+\.(?P<type>\w+)(?:\s+\.ptr(?:\s+\.\w+)?(?:\s+\.align\s+\d+)?)?\s+(?P<name>[\w$]+)(?:\[(?P<count>\d+)\])?"
)
_SHARED = re.compile(
    r"(?:\.extern\s+)?\.shared\s+\.align\s+(?P<align>\d+)\s+\.b8\s+(?P<name>[\w$]+)\[(?P<size>\d*)\]"
)
_REGISTERS = re.compile(r"\.reg\s+\.(?P<type>\w+)\s+(?P<names>.+)")
_GUARD = re.compile(r"@(?P<guard>!?[%\w$]+)\s+(?P<rest>.*)", re.DOTALL)
_IGNORED = re.compile(r"^\s*\.(?:loc|file|version|target|address_size)\b.*$", re.MULTILINE)
_TYPE_BYTES = {"b8": 1, "u8": 1, "s8": 1, "b16": 2, "u16": 2, "s16": 2, "b32": 4, "u32": 4, "s32": 4, "f32": 4,
               "b64": 8, "u64": 8, "s64": 8, "f64": 8}  # fmt: skip


@dataclass(frozen=True)
class Instruction:
    """One instruction: opcode with its modifiers, operands as written, guard such as "!%p1", and the line in the text."""

    op: str
    operands: tuple[str, ...]
    guard: str = ""
    line: int = 0

    def __str__(self) -> str:
        guard = f"@{self.guard} " if self.guard else ""
        return f"{guard}{self.op} {', '.join(self.operands)};"


@dataclass(frozen=True)
class Label:
    """A place in the program that branches name."""

    name: str


@dataclass(frozen=True)
class Parameter:
    """Where a kernel parameter lies in the parameter block."""

    name: str
    offset: int
    size: int


@dataclass
class Kernel:
    """A parsed `.entry`.

    Attributes:
        name: entry name.
        parameters: in order, with their place in the parameter block.
        registers: register name to its width class: "pred", "b16", "b32" or "b64".
        body: instructions and labels in program order.
        shared: statically declared shared variables, name to (alignment, bytes); None for the dynamic one.
        threads: `.reqntid` or `.maxntid`, (0, 0, 0) if absent.
    """

    name: str
    parameters: list[Parameter] = field(default_factory=list)
    registers: dict[str, str] = field(default_factory=dict)
    body: list[Instruction | Label] = field(default_factory=list)
    shared: dict[str, tuple[int, int | None]] = field(default_factory=dict)
    threads: tuple[int, int, int] = (0, 0, 0)

    @property
    def parameter_bytes(self) -> int:
        """Size of the parameter block."""
        last = self.parameters[-1] if self.parameters else Parameter("", 0, 0)
        return last.offset + last.size


def parse_ptx(text: str, entry: str | None = None) -> Kernel:
    """Return one entry of a PTX module.

    Args:
        text: the module.
        entry: name of the entry; None: the only one.

    Raises:
        UnsupportedPtxError: the text has something that is not understood, or not exactly one such entry.
    """
    text = re.sub(r"//[^\n]*|/\*.*?\*/", lambda m: "\n" * m[0].count("\n"), text, flags=re.DOTALL)
    text = _IGNORED.sub("", text)
    entries = [m for m in _ENTRY.finditer(text) if entry in {None, m["name"]}]
    if len(entries) != 1:
        found = ", ".join(m["name"] for m in _ENTRY.finditer(text)) or "none"
        raise UnsupportedPtxError(f"one entry {entry or ''} was expected in the PTX, found: {found}")
    match = entries[0]
    kernel = Kernel(match["name"], _parameters(match["params"]))
    for shared in _SHARED.finditer(text):
        kernel.shared[shared["name"]] = (
            int(shared["align"]),
            int(shared["size"]) if shared["size"] else None,
        )
    if threads := re.search(
        r"\.(?:reqntid|maxntid)\s+(\d+)(?:\s*,\s*(\d+))?(?:\s*,\s*(\d+))?", match["directives"]
    ):
        x, y, z = (int(n or 1) for n in threads.groups())
        kernel.threads = (x, y, z)
    _Body(kernel, text).read(match.end())
    return kernel


def split_operands(text: str) -> tuple[str, ...]:
    """Split operands at commas that stand outside braces and brackets."""
    parts, depth, start = [], 0, 0
    for at, char in enumerate(text):
        if char in "{[(":
            depth += 1
        elif char in "}])":
            depth -= 1
        elif char == "," and depth == 0:
            parts.append(text[start:at].strip())
            start = at + 1
    parts.append(text[start:].strip())
    return tuple(part for part in parts if part)


def _parameters(text: str) -> list[Parameter]:
    found, offset = [], 0
    for declaration in split_operands(text):
        match = _PARAM.fullmatch(declaration.strip())
        if not match or match["type"] not in _TYPE_BYTES:
            raise UnsupportedPtxError(f"parameter declaration not understood: {declaration!r}")
        unit = _TYPE_BYTES[match["type"]]
        size = unit * int(match["count"] or 1)
        align = int(match["align"] or unit)
        offset = -(-offset // align) * align
        found.append(Parameter(match["name"], offset, size))
        offset += size
    return found


class _Body:
    """Reads the statements of one entry; names declared in an inner `{ }` are made unique when it closes."""

    def __init__(self, kernel: Kernel, text: str) -> None:
        self._kernel = kernel
        self._text = text
        self._scopes: list[tuple[int, list[str]]] = []
        self._closed = 0
        # the position of each line's start, to say where an instruction stands
        self._line_ends = [m.start() for m in re.finditer("\n", text)]

    def read(self, at: int) -> None:
        self._scopes.append((0, []))
        while self._scopes:
            statement = _STATEMENT.match(self._text, at)
            if not statement:
                raise UnsupportedPtxError(f"statement not understood: {self._text[at : at + 120].strip()!r}")
            at = statement.end()
            if statement["brace"] == "{":
                self._scopes.append((len(self._kernel.body), []))
            elif statement["brace"] == "}":
                self._close()
            elif statement["label"]:
                self._scopes[-1][1].append(statement["label"])
                self._kernel.body.append(Label(statement["label"]))
            else:
                self._statement(" ".join(statement["text"].split()), statement.start("text"))

    def _statement(self, text: str, at: int) -> None:
        if match := _REGISTERS.fullmatch(text):
            self._declare(match["type"], match["names"])
            return
        if not text or text.startswith((".pragma", ".shared")):
            return
        if text.startswith("."):
            raise UnsupportedPtxError(f"directive not understood: {text!r}")
        guard = ""
        if match := _GUARD.fullmatch(text):
            guard, text = match["guard"], match["rest"]
        op, _, operands = text.partition(" ")
        self._kernel.body.append(Instruction(op, split_operands(operands), guard, self._line(at)))

    def _declare(self, kind: str, names: str) -> None:
        width = {"pred": "pred", "f32": "b32", "f64": "b64"}.get(kind, f"b{kind[1:]}")
        width = "b16" if width == "b8" else width  # inline assembly only; held like 16 bits
        if width not in {"pred", "b16", "b32", "b64"}:
            raise UnsupportedPtxError(f"register type .{kind} is not modelled")
        for name in split_operands(names):
            many = re.fullmatch(r"(%?[\w$]+)<(\d+)>", name)
            for register in [f"{many[1]}{i}" for i in range(int(many[2]))] if many else [name]:
                self._kernel.registers[register] = width
                if len(self._scopes) > 1:
                    self._scopes[-1][1].append(register)

    def _close(self) -> None:
        """Rename what an inner block declared: inline assembly repeats the same labels and registers."""
        start, names = self._scopes.pop()
        if not self._scopes or not names:
            return
        self._closed += 1
        new = {name: f"{name}__{self._closed}" for name in names}
        pattern = re.compile("|".join(rf"(?<![\w$%]){re.escape(n)}(?![\w$])" for n in names))
        for name in names:
            if name in self._kernel.registers:
                self._kernel.registers[new[name]] = self._kernel.registers.pop(name)

        def renamed(text: str) -> str:
            return pattern.sub(lambda m: new[m[0]], text)

        for at in range(start, len(self._kernel.body)):
            item = self._kernel.body[at]
            if isinstance(item, Label):
                self._kernel.body[at] = Label(renamed(item.name))
            else:
                operands = tuple(renamed(o) for o in item.operands)
                self._kernel.body[at] = Instruction(item.op, operands, renamed(item.guard), item.line)

    def _line(self, at: int) -> int:
        return bisect_left(self._line_ends, at) + 1
