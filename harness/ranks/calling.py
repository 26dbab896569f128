"""Ways to make the same call on a GPU that must not change its results: between guard bytes, and replayed from a graph."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from harness.ranks.errors import RankError

GUARD = 0xA5
MOST_GUARDED = 64
"""Calls of a process: torch 2.11 crashed (SIGSEGV in Tensor.untyped_storage) after about 200 with a MemPool each."""
_REPLAYS = 2
_guarded = itertools.count()


def call_as(style: str, call: Callable[[], Any]) -> Any:
    """Make a call in the way that `style` names; another style than "guarded" and "graph" is none of this module.

    Guards are laid around the first calls of a process that ask for it. All ranks make the same calls, so they agree.
    """
    if style == "guarded" and next(_guarded) < MOST_GUARDED:
        return call_guarded(call, _pool())
    return call_from_graph(call) if style == "graph" else call()


@functools.cache
def _pool() -> Any:
    return torch.cuda.MemPool()


def call_guarded(call: Callable[[], Any], pool: Any) -> Any:
    """Make a call twice; its second results lie in memory whose every other byte is a guard.

    Args:
        call: allocates its results through torch, in the current stream.
        pool: a torch.cuda.MemPool in which nothing lives.

    Returns:
        What it returned, copied out of that memory.

    Raises:
        RankError: it wrote outside its results: how many bytes, and next to which of them.
    """
    with torch.cuda.use_mem_pool(pool):
        call()  # so that the pool has the memory that the next one takes
        torch.cuda.synchronize()
        segments = [_memory(segment["address"], segment["total_size"]) for segment in pool.snapshot()]
        for memory in segments:
            memory.fill_(GUARD)
        result = call()
    torch.cuda.synchronize()
    tensors = list(_tensors(result))
    outside = [_outside(memory, tensors) for memory in segments]
    if said := [words for words in outside if words]:
        raise RankError("; ".join(said))
    return _copied(result)


def call_from_graph(call: Callable[[], Any]) -> Any:
    """Capture two calls in one CUDA graph, replay it twice, and return what the second call returns, copied.

    Two, since low-latency buffers take turns: a graph of one call would use the same one again without cleaning it.
    """
    call()  # what is loaded at the first call cannot be captured
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
        result = call()
    for _ in range(_REPLAYS):
        graph.replay()
    torch.cuda.synchronize()
    return _copied(result)


def _memory(address: int, size: int) -> Tensor:
    """Return GPU memory as uint8, without owning it."""
    device = torch.device("cuda", torch.cuda.current_device())
    storage = torch._C._construct_storage_from_data_pointer(address, device, size)  # noqa: SLF001 - no public way
    return torch.empty(0, dtype=torch.uint8, device=device).set_(storage, 0, (size,), (1,))


def _outside(memory: Tensor, results: list[Tensor]) -> str:
    """Return which bytes outside the results are no guard any more, in words, or ""."""
    start, guarded = memory.data_ptr(), memory != GUARD
    inside = []
    for tensor in results:
        first = tensor.data_ptr() - start  # a view of all its memory, in whichever order
        if tensor.numel() and 0 <= first < len(memory):
            inside.append((first, first + tensor.numel() * tensor.element_size(), tensor))
            guarded[first : inside[-1][1]] = False
    wrong = guarded.nonzero().flatten()
    if not len(wrong):
        return ""
    at = int(wrong[0])
    before = [one for one in inside if one[1] <= at]
    near = "before all of them"
    if before:
        _, end, tensor = max(before, key=lambda one: one[1])
        near = f"{at - end:,} bytes past the end of the {str(tensor.dtype)[6:]} tensor {tuple(tensor.shape)}"
    return f"wrote {len(wrong):,} bytes outside its results, the first of them {near}"


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for one in value:
            yield from _tensors(one)


def _copied(value: Any) -> Any:
    """Return a result whose tensors have memory of their own, with the same strides."""
    if isinstance(value, Tensor):
        return value.clone()
    return type(value)(_copied(one) for one in value) if isinstance(value, (tuple, list)) else value
