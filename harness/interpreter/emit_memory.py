"""Emitters: ld, st, atom, cvta, mapa, stmatrix, fences (PTX ISA 9.7.9)."""

from __future__ import annotations

from harness.interpreter.emit import WIDTH, Emit, Modifiers, emits
from harness.interpreter.errors import UnsupportedPtxError
from harness.interpreter.memory import RANK_SHIFT, SHARED_OFFSET, SHARED_WINDOW

_TYPES = ("b8", "u8", "s8", "b16", "u16", "s16", "b32", "u32", "s32", "b64", "u64", "s64", "f32", "f64")
# Ordering and cache hints: global memory is coherent here and every access is in order.
_HINTS = (
    "weak", "relaxed", "acquire", "release", "volatile", "cta", "cluster", "gpu", "sys", "nc", "ca", "cg", "cs", "lu", "cv",
    "wb", "wt", "L1::no_allocate", "L1::evict_last", "L1::evict_first", "L2::64B", "L2::128B", "L2::256B",
)  # fmt: skip


@emits("ld")
def _load(e: Emit, mods: Modifiers, operands: tuple[str, ...]) -> None:
    space = mods.need("param", "global", "shared", "shared::cta")
    mods.drop(*_HINTS)
    count = {"": 1, "v2": 2, "v4": 4, "v8": 8}[mods.take("v2", "v4", "v8")]
    kind = mods.need(*_TYPES)
    mods.done()
    if kind[0] == "s" and WIDTH[kind] < 32 and (space != "param" or kind != "s8"):
        raise UnsupportedPtxError(f"{mods.op}: sign extension is not modelled")
    size = WIDTH[kind] // 8
    names = e.elements(operands[0])
    if len(names) != count:
        raise UnsupportedPtxError(f"{mods.op}: {len(names)} destinations")
    if space == "param":
        base, offset = _parameter(e, operands[1])
        for number, name in enumerate(names):
            at = base + offset + number * size
            if at + size > e.kernel.parameter_bytes:
                raise UnsupportedPtxError(f"{mods.op} {operands[1]} is outside the parameters")
            value = f"int.from_bytes(w.parameters[{at}:{at + size}], 'little')"
            e.assign(name, f"sign_extend8({value})" if kind == "s8" else value)
        return
    address = e.address(operands[1], 64 if space == "global" else 32)
    call = "w.memory.load(" if space == "global" else "shared_load(w, "
    e.add(f"t0 = {address}")
    for number, name in enumerate(names):
        place = f"t0 + {number * size}" if number else "t0"
        e.assign(name, f"{call}{place}, {size}, mask)")


def _parameter(e: Emit, text: str) -> tuple[int, int]:
    inner = text.strip("[] ")
    name, _, offset = inner.partition("+")
    for parameter in e.kernel.parameters:
        if parameter.name == name:
            return parameter.offset, int(offset or "0", 0)
    raise UnsupportedPtxError(f"ld.param of {text}: no such parameter")


@emits("st")
def _store(e: Emit, mods: Modifiers, operands: tuple[str, ...]) -> None:
    space = mods.need("global", "shared", "shared::cta")
    mods.drop(*_HINTS)
    mods.take("v2", "v4", "v8")
    kind = mods.need(*_TYPES)
    mods.done()
    size = WIDTH[kind] // 8
    address = e.address(operands[0], 64 if space == "global" else 32)
    values = e.sources(tuple(e.elements(operands[1])), max(WIDTH[kind], 16))
    if space == "global":
        e.add(f"t0 = {address}")
        for number, value in enumerate(values):
            e.add(f"w.memory.store(t0 + {number * size}, {value}, {size}, mask)")
        return
    if len(values) > 1 and size == 8:
        values = [f"{half}_half({value})" for value in values for half in ("low", "high")]
        size = 4
    if len(values) > 1 and size != 4:
        raise UnsupportedPtxError(f"{mods.op}: vectors of {size} bytes are not modelled")
    e.add(f"shared_store(w, {address}, [{', '.join(values)}], {size}, mask)")


@emits("atom", "red")
def _atomic(e: Emit, mods: Modifiers, operands: tuple[str, ...]) -> None:
    mods.need("global")
    mods.drop(*_HINTS)
    how = mods.need("add", "or", "and", "max", "min", "exch")
    kind = mods.need("s32", "u32", "b32", "u64")
    mods.done()
    if mods.name == "red":
        operands = ("_", *operands)
    address, value = e.address(operands[1]), e.source(operands[2], WIDTH[kind])
    e.assign(operands[0], f"atomic(w, {how!r}, {kind!r}, {address}, {value})")


@emits("cvta")
def _generic(e: Emit, mods: Modifiers, operands: tuple[str, ...]) -> None:
    to_space = mods.take("to")
    space = mods.need("param", "global", "shared", "shared::cluster", "const")
    mods.need("u64")
    mods.done()
    value = e.source(operands[1], 64)
    if space.startswith("shared"):
        value = f"{value} & M32" if to_space else f"{value} | {SHARED_WINDOW}"
    e.assign(operands[0], value)


@emits("mapa")
def _map_shared(e: Emit, mods: Modifiers, operands: tuple[str, ...]) -> None:
    mods.need("shared::cluster")
    mods.need("u32")
    mods.done()
    address, rank = e.sources(operands[1:])
    e.assign(operands[0], f"({address} & {SHARED_OFFSET}) | ({rank} << {RANK_SHIFT})")


@emits("stmatrix")
def _store_matrix(e: Emit, mods: Modifiers, operands: tuple[str, ...]) -> None:
    mods.need("sync")
    mods.need("aligned")
    mods.need("m8n8")
    count = {"x1": 1, "x2": 2, "x4": 4}[mods.need("x1", "x2", "x4")]
    transposed = bool(mods.take("trans"))
    mods.drop("shared", "shared::cta")
    mods.need("b16")
    mods.done()
    values = e.sources(tuple(e.elements(operands[1])))
    if len(values) != count:
        raise UnsupportedPtxError(f"{mods.op}: {len(values)} registers")
    e.add(f"store_matrix(w, {e.address(operands[0], 32)}, [{', '.join(values)}], transposed={transposed})")


@emits("prefetch", "prefetchu", "applypriority", "discard")
def _prefetch(e: Emit, mods: Modifiers, operands: tuple[str, ...]) -> None:
    mods.drop("tensormap", "param", "global", "L1", "L2")
    mods.done()
    e.add(f"{e.address(operands[0])}")


@emits("fence", "membar")
def _fence(e: Emit, mods: Modifiers, _: tuple[str, ...]) -> None:
    """Generic accesses are in order here; only the fence towards the asynchronous proxy does something."""
    if mods.take("proxy"):
        mods.need("async", "async::generic")
        mods.drop(
            "shared::cta",
            "shared::cluster",
            "acquire",
            "release",
            "sync_restrict::shared::cluster",
            "cluster",
            "global",
        )
        mods.done()
        e.add("publish(w)")
        return
    mods.drop(
        "mbarrier_init", "release", "acquire", "acq_rel", "sc", "cta", "cluster", "gpu", "sys", "gl", "view"
    )
    mods.done()
