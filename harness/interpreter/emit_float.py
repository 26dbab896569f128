"""Emitters: floating point and conversions to and from it (PTX ISA 9.7.3 to 9.7.5, 9.7.9.21)."""

from __future__ import annotations

from harness.interpreter.emit import Emit, Modifiers, emits, set_predicates
from harness.interpreter.errors import UnsupportedPtxError


def _wrapped(mods: Modifiers, expression: str) -> str:
    """Apply .ftz and .sat to a float32 result and return its bits."""
    if mods.take("ftz"):
        expression = f"flush({expression})"
    if mods.take("sat"):
        expression = f"saturate({expression})"
    return f"raw({expression})"


def _input(mods: Modifiers, value: str) -> str:
    return f"flush(f32({value}))" if "ftz" in mods.op.split(".") else f"f32({value})"


def float_add(e: Emit, mods: Modifiers, operands: tuple[str, ...]) -> None:
    """Emit add.f32 and sub.f32, and the packed forms of two."""
    _two_operands(e, mods, operands, "+" if mods.name == "add" else "-")


def float_multiply(e: Emit, mods: Modifiers, operands: tuple[str, ...]) -> None:
    """Emit mul.f32 and its packed forms."""
    _two_operands(e, mods, operands, "*")


def _two_operands(e: Emit, mods: Modifiers, operands: tuple[str, ...], sign: str) -> None:
    mods.take("rn")
    kind = mods.need("f32", "f32x2", "bf16x2", "bf16", "f16x2")
    if kind == "f32x2":
        mods.done()
        a, b = e.sources(operands[1:], 64)
        e.assign(operands[0], f"raw_pairs(pairs({a}) {sign} pairs({b}))")
        return
    a, b = e.sources(operands[1:])
    if kind == "f32":
        result = _wrapped(mods, f"{_input(mods, a)} {sign} {_input(mods, b)}")
        mods.done()
        e.assign(operands[0], result)
        return
    mods.done()
    e.assign(operands[0], f"halves({kind!r}, lambda a, b: a {sign} b, {a}, {b})")


@emits("fma")
def _fused(e: Emit, mods: Modifiers, operands: tuple[str, ...]) -> None:
    mods.need("rn")
    kind = mods.need("f32", "f32x2", "bf16x2", "f16x2")
    if kind == "f32x2":
        mods.done()
        a, b, c = e.sources(operands[1:], 64)
        e.assign(operands[0], f"raw_pairs(fused(pairs({a}), pairs({b}), pairs({c})))")
        return
    a, b, c = e.sources(operands[1:])
    if kind == "f32":
        result = _wrapped(mods, f"fused({', '.join(_input(mods, x) for x in (a, b, c))})")
        mods.done()
        e.assign(operands[0], result)
        return
    mods.done()
    e.assign(operands[0], f"halves({kind!r}, fused_half, {a}, {b}, {c})")


def float_divide(e: Emit, mods: Modifiers, operands: tuple[str, ...], rounding: str) -> None:
    """Emit div.f32: .full and .approx are assumed correctly rounded."""
    del rounding
    mods.need("f32")
    a, b = e.sources(operands[1:])
    result = _wrapped(mods, f"{_input(mods, a)} / {_input(mods, b)}")
    mods.done()
    e.assign(operands[0], result)


def float_extreme(e: Emit, mods: Modifiers, operands: tuple[str, ...]) -> None:
    """Emit min and max of floats."""
    kind = mods.need("f32", "bf16x2", "bf16", "f16x2", "f16")
    nan = bool(mods.take("NaN"))
    function = {"min": "minimum", "max": "maximum"}[mods.name]
    sources = e.sources(operands[1:])
    if kind != "f32":
        mods.done()
        e.assign(
            operands[0], f"halves({kind!r}, lambda a, b: {function}(a, b, nan={nan}), {', '.join(sources)})"
        )
        return
    values = [_input(mods, x) for x in sources]
    nested = values[0]
    for value in values[1:]:  # three operands: the larger of the larger
        nested = f"{function}({nested}, {value}, nan={nan})"
    result = _wrapped(mods, nested)
    mods.done()
    e.assign(operands[0], result)


def float_sign(e: Emit, mods: Modifiers, operands: tuple[str, ...]) -> None:
    """Emit neg and abs of floats: bit operations."""
    mods.take("ftz")
    kind = mods.need("f32", "bf16x2", "f16x2", "bf16", "f16")
    mods.done()
    sign = {"f32": 0x8000_0000, "bf16x2": 0x8000_8000, "f16x2": 0x8000_8000, "bf16": 0x8000, "f16": 0x8000}[
        kind
    ]
    a = e.source(operands[1])
    e.assign(operands[0], f"{a} ^ {sign}" if mods.name == "neg" else f"{a} & {sign ^ 0xFFFF_FFFF}")


def float_compare(e: Emit, mods: Modifiers, operands: tuple[str, ...]) -> None:
    """Emit setp on floats."""
    kinds = ("eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan")
    how = mods.need(*kinds)
    combine = mods.take("and", "or", "xor")
    kind = mods.need("f32", "bf16", "f16")
    a, b = e.sources(operands[1:3])
    if kind == "f32":
        a, b = _input(mods, a), _input(mods, b)
    else:
        a, b = (f"f32({x} << 16)" if kind == "bf16" else f"f32(from_f16({x}))" for x in (a, b))
    mods.take("ftz")
    mods.done()
    set_predicates(e, operands, f"compare({how!r}, {a}, {b})", combine)


@emits("rcp", "ex2", "lg2", "sqrt")
def _special(e: Emit, mods: Modifiers, operands: tuple[str, ...]) -> None:
    rounding = mods.need("approx", "rn")
    mods.need("f32")
    a = e.source(operands[1])
    value = _input(mods, a)
    flushes = "ftz" in mods.op.split(".")
    known = {
        ("rcp", "approx"): f"reciprocal_approx(f32({a}))",
        ("rcp", "rn"): f"np.float32(1) / {value}",
        ("ex2", "approx"): f"exp2_approx(f32({a}), ftz={flushes})",
        ("lg2", "approx"): f"log2_approx(f32({a}), ftz={flushes})",
        ("sqrt", "rn"): f"np.sqrt({value})",
    }
    if (mods.name, rounding) not in known:
        raise UnsupportedPtxError(f"{mods.op} is not modelled")
    if mods.name == "rcp" and rounding == "approx" and not flushes:
        raise UnsupportedPtxError(f"{mods.op} without .ftz is not modelled")
    result = _wrapped(mods, known[mods.name, rounding])
    mods.done()
    e.assign(operands[0], result)


def float_convert(e: Emit, mods: Modifiers, operands: tuple[str, ...]) -> None:
    """Emit cvt with a float on at least one side: exactly the forms listed here."""
    form = mods.op.removeprefix("cvt.")
    a = e.source(operands[1])
    if len(operands) == 3:
        b = e.source(operands[2])
        two = {
            # the first operand goes to the upper half
            "rn.bf16x2.f32": f"pair16(to_bf16({a}), to_bf16({b}))",
            "rn.f16x2.f32": f"pair16(to_f16({a}), to_f16({b}))",
            "rn.satfinite.e2m1x2.f32": f"(to_e2m1({a}) << 4) | to_e2m1({b})",
            "rn.satfinite.e4m3x2.f32": f"(to_e4m3({a}) << 8) | to_e4m3({b})",
        }
        if form not in two:
            raise UnsupportedPtxError(f"{mods.op} with two sources is not modelled")
        e.assign(operands[0], two[form])
        return
    one = {
        "f32.bf16": f"{a} << 16",
        "f32.f16": f"from_f16({a})",
        "rn.bf16.f32": f"to_bf16({a})",
        "rn.f16.f32": f"to_f16({a})",
        "rn.f32.s32": f"from_integer(signed32({a}))",
        "rn.f32.u32": f"from_integer({a})",
        "rn.f16x2.e4m3x2": f"pair16(to_f16(from_e4m3({a} >> 8)), to_f16(from_e4m3({a} & 255)))",
        "rp.satfinite.ue8m0x2.f32": "",
        "rzi.s32.f32": f"to_integer({a}, 'trunc')",
        "rni.s32.f32": f"to_integer({a}, 'rint')",
    }
    if not one.get(form):
        raise UnsupportedPtxError(f"{mods.op} is not modelled")
    e.assign(operands[0], one[form])
