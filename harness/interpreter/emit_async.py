"""Emitters: barriers, mbarriers, TMA, tcgen05, cluster (PTX ISA 9.7.9.25 to 27, 9.7.13, 9.7.16)."""

from __future__ import annotations

from harness.interpreter.emit import WAITING, Emit, Modifiers, emits
from harness.interpreter.errors import UnsupportedPtxError
from harness.interpreter.tensor_core import KINDS

WAITING |= {
    "bar", "barrier", "mbarrier.try_wait", "mbarrier.test_wait", "cp.async.bulk.wait_group", "tcgen05.alloc",
}  # fmt: skip
_SHARED = ("shared", "shared::cta", "shared::cluster")
_ORDER = ("acquire", "release", "relaxed", "cta", "cluster")


def _wait(e: Emit, call: str) -> None:
    e.finish(f"return {call}", successors={e.following})


@emits("bar", "barrier")
def _barrier(e: Emit, mods: Modifiers, operands: tuple[str, ...]) -> None:
    if mods.take("cluster"):
        how = mods.need("arrive", "wait")
        mods.drop("aligned", *_ORDER)
        mods.done()
        if how == "arrive":
            e.add("cluster_arrive(w)")
            e.finish(f"return {e.following}", successors={e.following})
        else:
            _wait(e, f"cluster_wait(w, {e.following})")
        return
    how = mods.need("sync", "arrive")
    mods.drop("aligned", "cta")
    mods.done()
    number = e.source(operands[0])
    threads = e.source(operands[1]) if len(operands) > 1 else "w.cta.threads"
    if how == "sync":
        _wait(e, f"sync(w, {number}, {threads}, {e.following})")
    else:
        e.add(f"sync_arrive(w, {number}, {threads})")
        e.finish(f"return {e.following}", successors={e.following})


@emits("mbarrier")
def _mbarrier(e: Emit, mods: Modifiers, operands: tuple[str, ...]) -> None:
    how = mods.need("init", "inval", "arrive", "expect_tx", "try_wait", "test_wait")
    announces = how == "arrive" and mods.take("expect_tx")
    space = mods.take(*_SHARED)
    parity = mods.take("parity")
    mods.drop(*_ORDER)
    if how != "expect_tx":
        mods.need("b64")
    else:
        mods.take("b64")
    mods.done()
    if not space:
        raise UnsupportedPtxError(f"{mods.op}: generic addresses are not modelled")
    if how in {"try_wait", "test_wait"}:
        if not parity:
            raise UnsupportedPtxError(f"{mods.op}: waiting by state is not modelled, only .parity")
        address, phase = e.address(operands[1], 32), e.source(operands[2])
        blocking = how == "try_wait"
        _wait(e, f"mbarrier_wait(w, {address}, {phase}, {e.following}, blocking={blocking})")
    elif how == "init":
        e.add(f"mbarrier_init(w, {e.address(operands[0], 32)}, {e.source(operands[1])})")
    elif how == "inval":
        e.add(f"mbarrier_invalidate(w, {e.address(operands[0], 32)})")
    elif how == "expect_tx":
        e.add(f"mbarrier_expect(w, {e.address(operands[0], 32)}, {e.source(operands[1])})")
    else:
        address = e.address(operands[1], 32)
        extra = e.source(operands[2]) if len(operands) > 2 else ("0" if announces else "1")
        name = "expect" if announces else "count"
        e.assign(operands[0], f"mbarrier_arrive(w, {address}, {name}={extra})")


@emits("_result")
def _result(e: Emit, mods: Modifiers, operands: tuple[str, ...]) -> None:
    """What the wait at the end of the block before said; not a PTX opcode."""
    mods.done()
    e.assign(operands[0], "w.result")


def _coordinates(e: Emit, text: str) -> tuple[str, str]:
    """Return address and coordinates of `[map, {c0, c1}]`."""
    inner = text.strip()[1:-1]
    tensor, _, rest = inner.partition(",")
    values = e.sources(tuple(e.elements(rest.strip())))
    return e.source(tensor.strip(), 64), f"[{', '.join(values)}]"


@emits("cp.async.bulk")
def _bulk(e: Emit, mods: Modifiers, operands: tuple[str, ...]) -> None:
    mods.need("async")
    mods.need("bulk")
    if mods.take("commit_group"):
        mods.done()
        e.add("bulk_commit(w)")
        return
    if mods.take("wait_group"):
        read = bool(mods.take("read"))
        mods.done()
        _wait(e, f"bulk_wait(w, {e.source(operands[0])}, {e.following}, read={read})")
        return
    if mods.take("prefetch"):
        raise UnsupportedPtxError(f"{mods.op} is not modelled")
    mods.need("tensor")
    rank = int(mods.need("1d", "2d", "3d", "4d", "5d")[0])
    to = mods.need("shared::cta", "shared::cluster", "global")
    mods.take("tile")
    if to == "global":
        mods.need("shared::cta")
        mods.need("bulk_group")
        mods.drop("L2::cache_hint")
        mods.done()
        tensor, at = _coordinates(e, operands[0])
        _check_rank(mods, at, rank)
        e.add(f"tma_store(w, {tensor}, {at}, {e.address(operands[1], 32)})")
        return
    # order of the modifiers: destination first, so the first of the two was taken above
    mods.need("global")
    mods.need("mbarrier::complete_tx::bytes")
    multicast = mods.take("multicast::cluster")
    hint = mods.take("L2::cache_hint")
    pair = mods.take("cta_group::1", "cta_group::2") == "cta_group::2"
    mods.done()
    tensor, at = _coordinates(e, operands[1])
    _check_rank(mods, at, rank)
    target, barrier = e.address(operands[0], 32), e.address(operands[2], 32)
    rest = list(operands[3:])
    ctas = e.source(rest.pop(0), 16) if multicast else "None"
    if hint:
        rest.pop(0)
    if rest:
        raise UnsupportedPtxError(f"{mods.op}: operands {rest} are not understood")
    e.add(f"tma_load(w, {target}, {tensor}, {at}, {barrier}, ctas={ctas}, pair={pair})")


def _check_rank(mods: Modifiers, at: str, rank: int) -> None:
    if at.count(",") + 1 != rank:
        raise UnsupportedPtxError(f"{mods.op}: {at.count(',') + 1} coordinates")


@emits("tcgen05")
def _tensor(e: Emit, mods: Modifiers, operands: tuple[str, ...]) -> None:
    how = mods.need("alloc", "dealloc", "relinquish_alloc_permit", "cp", "mma", "commit", "ld", "wait::ld", "wait::st", "fence::before_thread_sync", "fence::after_thread_sync")  # fmt: skip
    if how.startswith(("fence", "wait")):
        # tcgen05.ld and st complete at once here; commit and mbarriers order the rest
        mods.drop("sync", "aligned")
        mods.done()
        return
    if how == "ld":
        _tensor_load(e, mods, operands)
        return
    group = int(mods.need("cta_group::1", "cta_group::2")[-1])
    if how in {"alloc", "dealloc", "relinquish_alloc_permit"}:
        mods.need("sync")
        mods.need("aligned")
        if how == "relinquish_alloc_permit":
            mods.done()
            e.add("w.cta.tensor.may_allocate = False")
            return
        mods.drop("shared::cta")
        mods.need("b32")
        mods.done()
        if how == "alloc":
            _wait(
                e, f"tensor_allocate(w, {e.address(operands[0], 32)}, {e.source(operands[1])}, {e.following})"
            )
        else:
            address, columns = e.sources(operands)
            e.add(f"w.cta.tensor.free(w.one({address}, 'address'), w.one({columns}, 'columns'))")
    elif how == "cp":
        mods.need("32x128b")
        mods.need("warpx4")
        mods.done()
        e.add(f"tensor_copy(w, {group}, {e.address(operands[0], 32)}, {e.source(operands[1], 64)})")
    elif how == "commit":
        mods.need("mbarrier::arrive::one")
        mods.need("shared::cluster")
        multicast = mods.take("multicast::cluster")
        mods.need("b64")
        mods.done()
        ctas = e.source(operands[1], 16) if multicast else "None"
        e.add(f"tensor_commit(w, {group}, {e.address(operands[0], 32)}, {ctas})")
    else:
        _tensor_multiply(e, mods, operands, group)


def _tensor_multiply(e: Emit, mods: Modifiers, operands: tuple[str, ...], group: int) -> None:
    kind = mods.need("kind::mxf4nvf4", "kind::mxf4", "kind::mxf8f6f4").removeprefix("kind::")
    mods.need("block_scale")
    block = mods.need("block16", "block32", "scale_vec::1X", "scale_vec::2X", "scale_vec::4X")
    block = {"scale_vec::1X": "block32", "scale_vec::2X": "block32", "scale_vec::4X": "block16"}.get(
        block, block
    )
    mods.drop("collector::a::discard", "collector::a::fill", "collector::a::use", "collector::a::lastuse")
    mods.done()
    if (kind, block) not in KINDS:
        raise UnsupportedPtxError(f"{mods.op}: {kind} with {block} is not modelled")
    if len(operands) != 7:
        raise UnsupportedPtxError(f"{mods.op}: {len(operands)} operands, 7 are modelled")
    result, a_scale, b_scale = (e.address(operands[i], 32) for i in (0, 4, 5))
    a, b = e.sources(operands[1:3], 64)
    descriptor, accumulate = e.source(operands[3]), e.source(operands[6])
    e.add(
        f"tensor_multiply(w, {group}, KINDS[{(kind, block)!r}], {result}, {a}, {b}, {descriptor}, {a_scale}, {b_scale}, "
        f"{accumulate})"
    )


def _tensor_load(e: Emit, mods: Modifiers, operands: tuple[str, ...]) -> None:
    mods.need("sync")
    mods.need("aligned")
    shape = mods.need("32x32b", "16x256b")
    count = int(mods.need(*(f"x{1 << i}" for i in range(8)))[1:])
    mods.need("b32")
    mods.done()
    names = e.elements(operands[0])
    if len(names) != count * (1 if shape == "32x32b" else 4):
        raise UnsupportedPtxError(f"{mods.op}: {len(names)} registers")
    address = e.address(operands[1], 32)
    e.add(f"w.whole({mods.op!r}, M32)")
    targets = ", ".join(e.target(name) for name in names)
    e.add(
        f"({targets},) = w.cta.tensor.read_{shape}(w.one({address}, 'tcgen05.ld address'), {count}, w.number)"
    )


@emits("griddepcontrol", "setmaxnreg")
def _nothing(e: Emit, mods: Modifiers, _: tuple[str, ...]) -> None:
    """Launch order and register counts: one kernel runs at a time, with registers enough."""
    mods.drop("wait", "launch_dependents", "inc", "dec", "sync", "aligned", "u32")
    mods.done()
    e.add("pass")
