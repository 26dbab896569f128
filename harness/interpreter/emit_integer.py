"""Emitters: integers, bits, predicates, moves, conversions between integers (PTX ISA 9.7.1, 9.7.7, 9.7.9).

An opcode that integers and floats share stands here; with a float type it is handed to emit_float.
"""

from __future__ import annotations

from harness.interpreter.emit import WIDTH, Emit, Modifiers, emits, set_predicates
from harness.interpreter.emit_float import (
    float_add,
    float_compare,
    float_convert,
    float_divide,
    float_extreme,
    float_multiply,
    float_sign,
)
from harness.interpreter.errors import UnsupportedPtxError

_INTEGERS = ("s16", "u16", "s32", "u32", "s64", "u64")
_BITS = ("b16", "b32", "b64")


def _integer(mods: Modifiers) -> tuple[str, int, bool]:
    kind = mods.need(*_INTEGERS)
    return kind, WIDTH[kind], kind[0] == "s"


@emits("add", "sub")
def _add(e: Emit, mods: Modifiers, operands: tuple[str, ...]) -> None:
    kind = mods.take(*_INTEGERS)
    if not kind:
        float_add(e, mods, operands)
        return
    mods.done()
    width = WIDTH[kind]
    a, b = e.sources(operands[1:], width)
    e.assign(operands[0], f"({a} {'+' if mods.name == 'add' else '-'} {b}) & M{width}")


@emits("mul", "mad")
def _multiply(e: Emit, mods: Modifiers, operands: tuple[str, ...]) -> None:
    part = mods.take("lo", "hi", "wide")
    if not part:
        float_multiply(e, mods, operands)
        return
    _, width, is_signed = _integer(mods)
    mods.done()
    a, b = e.sources(operands[1:3], width)
    if part == "wide":
        if width == 64:
            raise UnsupportedPtxError(f"{mods.op} is not modelled")
        if width == 16:
            if is_signed:
                a, b = (f"bits32(signed16({x}))" for x in (a, b))
            product, total = f"({a} * {b}) & M32", 32
        else:
            product, total = f"multiply_wide({a}, {b}, is_signed={is_signed})", 64
    elif part == "hi":
        product, total = f"multiply_high({a}, {b}, {width}, is_signed={is_signed})", width
    else:
        product = f"multiply_low64({a}, {b})" if width == 64 else f"({a} * {b}) & M{width}"
        total = width
    if mods.name == "mad":
        product = f"(({product}) + {e.source(operands[3], total)}) & M{total}"
    e.assign(operands[0], product)


@emits("div", "rem")
def _divide(e: Emit, mods: Modifiers, operands: tuple[str, ...]) -> None:
    if mods.name == "div" and (rounding := mods.take("rn", "full", "approx")):
        float_divide(e, mods, operands, rounding)
        return
    _, width, is_signed = _integer(mods)
    mods.done()
    a, b = e.sources(operands[1:], width)
    e.assign(operands[0], f"divide({a}, {b}, {width}, is_signed={is_signed}, remainder={mods.name == 'rem'})")


@emits("min", "max")
def _extreme(e: Emit, mods: Modifiers, operands: tuple[str, ...]) -> None:
    kind = mods.take(*_INTEGERS)
    if not kind:
        float_extreme(e, mods, operands)
        return
    mods.done()
    a, b = e.sources(operands[1:], WIDTH[kind])
    e.assign(
        operands[0],
        f"extreme({a}, {b}, largest={mods.name == 'max'}, width={WIDTH[kind]}, is_signed={kind[0] == 's'})",
    )


@emits("and", "or", "xor")
def _bitwise(e: Emit, mods: Modifiers, operands: tuple[str, ...]) -> None:
    kind = mods.need("pred", *_BITS)
    mods.done()
    a, b = e.sources(operands[1:], WIDTH.get(kind, 1))
    sign = {"and": "&", "or": "|", "xor": "^"}[mods.name]
    if kind == "pred":
        a, b = (f"bool({x})" if x.isdigit() else x for x in (a, b))
    e.assign(operands[0], f"{a} {sign} {b}")


@emits("not")
def _not(e: Emit, mods: Modifiers, operands: tuple[str, ...]) -> None:
    kind = mods.need("pred", *_BITS)
    mods.done()
    a = e.source(operands[1], WIDTH.get(kind, 1))
    e.assign(operands[0], f"{a} ^ True" if kind == "pred" else f"{a} ^ M{WIDTH[kind]}")


@emits("neg", "abs")
def _negate(e: Emit, mods: Modifiers, operands: tuple[str, ...]) -> None:
    kind = mods.take("s16", "s32", "s64")
    if not kind:
        float_sign(e, mods, operands)
        return
    mods.done()
    width = WIDTH[kind]
    a = e.source(operands[1], width)
    negated = f"((0 - {a}) & M{width})" if width != 64 else f"((({a}) ^ M64) + 1) & M64"
    if mods.name == "abs":
        negated = f"select(({a}) >= {1 << (width - 1)}, {negated}, {a}, 'b{width}')"
    e.assign(operands[0], negated)


@emits("shl")
def _shift_left(e: Emit, mods: Modifiers, operands: tuple[str, ...]) -> None:
    width = WIDTH[mods.need(*_BITS)]
    mods.done()
    a, b = e.source(operands[1], width), e.source(operands[2], 32)
    if b.isdigit() and int(b) < width:
        e.assign(operands[0], f"({a} << {b}) & M{width}")
    else:
        e.assign(operands[0], f"shift_left({a}, {b}, {width})")


@emits("shr")
def _shift_right(e: Emit, mods: Modifiers, operands: tuple[str, ...]) -> None:
    kind = mods.need(*_INTEGERS, *_BITS)
    mods.done()
    width, is_signed = WIDTH[kind], kind[0] == "s"
    a, b = e.source(operands[1], width), e.source(operands[2], 32)
    if b.isdigit() and int(b) < width and not is_signed:
        e.assign(operands[0], f"{a} >> {b}")
    else:
        e.assign(operands[0], f"shift_right({a}, {b}, {width}, is_signed={is_signed})")


@emits("mov")
def _move(e: Emit, mods: Modifiers, operands: tuple[str, ...]) -> None:
    kind = mods.need("pred", "u16", "s16", "u32", "s32", "u64", "s64", "f32", "f64", *_BITS)
    mods.done()
    to, source = operands
    width = WIDTH.get(kind, 1)
    if to.startswith("{"):
        value = e.source(source, width)
        low, high = e.elements(to)
        expressions = (
            (f"low_half({value})", f"high_half({value})")
            if width == 64
            else (f"{value} & M16", f"{value} >> 16")
        )
        if value.startswith("x") and low != "_" and high != "_":  # the source may be one of the destinations
            e.add(f"t0, t1 = {expressions[0]}, {expressions[1]}")
            expressions = ("t0", "t1")
        for name, expression in zip((low, high), expressions, strict=True):
            if name != "_":
                e.assign(name, expression)
        return
    if source.startswith("{"):
        parts = e.elements(source)
        if len(parts) == 4:
            bytes_of = e.sources(tuple(parts), 16)
            e.assign(to, " | ".join(f"({part} << {8 * at})" for at, part in enumerate(bytes_of)))
            return
        low, high = e.sources(tuple(parts), width // 2)
        e.assign(to, f"pack({low}, {high})" if width == 64 else f"{low} | ({high} << 16)")
        return
    value = e.source(source, width)
    e.assign(to, f"bool({value})" if kind == "pred" and value.isdigit() else value)


@emits("selp")
def _select(e: Emit, mods: Modifiers, operands: tuple[str, ...]) -> None:
    kind = mods.need(*_INTEGERS, *_BITS, "f32", "f64")
    mods.done()
    width = WIDTH[kind]
    a, b = e.sources(operands[1:3], width)
    p = e.source(operands[3])
    e.assign(
        operands[0], f"{a} if {p} is True else {b} if {p} is False else select({p}, {a}, {b}, 'b{width}')"
    )


@emits("setp")
def _compare(e: Emit, mods: Modifiers, operands: tuple[str, ...]) -> None:
    kind = mods.take(*_INTEGERS, *_BITS)
    if not kind:
        float_compare(e, mods, operands)
        return
    how = mods.need("eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs")
    combine = mods.take("and", "or", "xor")
    mods.done()
    width = WIDTH[kind]
    a, b = e.sources(operands[1:3], width)
    if kind[0] == "s" and how not in {"eq", "ne"}:
        flip = 1 << (width - 1)
        a, b = (str(int(x) ^ flip) if x.isdigit() else f"({x} ^ {flip})" for x in (a, b))
    sign = {
        "eq": "==",
        "ne": "!=",
        "lt": "<",
        "le": "<=",
        "gt": ">",
        "ge": ">=",
        "lo": "<",
        "ls": "<=",
        "hi": ">",
        "hs": ">=",
    }
    set_predicates(e, operands, f"({a} {sign[how]} {b})", combine)


@emits("cvt")
def _convert(e: Emit, mods: Modifiers, operands: tuple[str, ...]) -> None:
    parts = mods.op.split(".")
    if len(parts) != 3 or not {parts[1], parts[2]} <= {*_INTEGERS, "u8", "s8"}:
        float_convert(e, mods, operands)
        return
    to, source = parts[1], parts[2]
    width, narrow = WIDTH[to], WIDTH[source]
    a = e.source(operands[1], max(narrow, 16))
    if "s8" in {to, source}:
        # registers of 16 bits hold them sign-extended
        if WIDTH[to] > 16 or WIDTH[source] > 32:
            raise UnsupportedPtxError(f"{mods.op} is not modelled")
        e.assign(operands[0], f"sign_extend8({a})")
        return
    if narrow < width:
        if source[0] == "u":
            low = f"{a} & 255" if narrow == 8 else a
            e.assign(operands[0], f"wide({low})" if width == 64 else low)
        elif narrow == 8:
            raise UnsupportedPtxError(f"{mods.op} is not modelled")
        elif width == 64:
            e.assign(operands[0], f"bits64(signed{narrow}({a}))")
        else:
            e.assign(operands[0], f"bits32(signed{narrow}({a}))")
    else:
        e.assign(
            operands[0],
            f"narrow({a}) & {(1 << width) - 1}"
            if narrow == 64 and width < 64
            else f"{a} & {(1 << width) - 1}",
        )


@emits("popc")
def _population(e: Emit, mods: Modifiers, operands: tuple[str, ...]) -> None:
    width = WIDTH[mods.need("b32", "b64")]
    mods.done()
    e.assign(operands[0], f"population({e.source(operands[1], width)}, {width})")


@emits("prmt")
def _permute(e: Emit, mods: Modifiers, operands: tuple[str, ...]) -> None:
    mods.need("b32")
    mods.done()
    a, b, c = e.sources(operands[1:])
    e.assign(operands[0], f"byte_permute({a}, {b}, {c})")
