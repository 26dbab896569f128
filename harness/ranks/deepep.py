"""DeepEP's low-latency dispatch and combine as one rank calls them: deep_ep.Buffer, as it is installed.

There is one Buffer a process, since NVSHMEM starts once. It is made large enough for the largest problem, and cleaned
between calls of different sizes, all ranks waiting for each other before and after.
Source: DeepEP deep_ep/buffer.py of 1.x, deep_ep/buffers/legacy.py of 2.x; SGLang's fork for `use_nvfp4`.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from harness.ranks.calling import call_as
from harness.ranks.collectives import Sizes
from harness.ranks.deepep_build import HIDDEN_SIZES, MOST_TOKENS, MOST_TOPK, ROW_MULTIPLE, find_build
from harness.ranks.deepep_results import received, sources
from reference.routing import Dispatched

LARGEST = ((MOST_TOKENS, 2048, 16), (256, 2048, 256), (256, 8192, 16))
"""max_tokens, hidden and experts of the problems that the Buffer has room for; experts are filled up to the ranks."""
_QP_DEPTH = 2 * (MOST_TOKENS + 1)  # DeepEP asserts as much of NVSHMEM's queues


class DeepEpCollectives:
    """The collectives of one rank through deep_ep, see harness.ranks.collectives.

    Raises:
        NoBuildError: deep_ep cannot be used here.
    """

    def __init__(self) -> None:
        self._build = find_build()
        os.environ.setdefault("NVSHMEM_QP_DEPTH", str(_QP_DEPTH))
        import deep_ep

        self._rank, self._ranks = dist.get_rank(), dist.get_world_size()
        self._device = (
            torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else "cpu"
        )
        self._id_dtype = getattr(deep_ep, "topk_idx_t", torch.int64)
        self._hint = deep_ep.Buffer.get_low_latency_rdma_size_hint
        largest = [(t, h, -(-e // self._ranks) * self._ranks) for t, h, e in LARGEST]
        self._bytes = max(self._hint(t, h, self._ranks, e) for t, h, e in largest)
        self._buffer = deep_ep.Buffer(
            dist.group.WORLD,
            num_rdma_bytes=self._bytes,
            low_latency_mode=True,
            num_qps_per_rank=max(e // self._ranks for _, _, e in largest),
            allow_nvlink_for_low_latency_mode=True,
            explicitly_destroy=True,
        )
        self._cleaned: tuple[int, int, int] | None = None
        self._more: tuple[Any, ...] = ()  # what a build's handle holds besides the five that combine reads

    def dispatch(
        self, x: Tensor, topk_idx: Tensor, sizes: Sizes, global_scale_enc: Tensor | None
    ) -> Dispatched:
        """Send this rank's tokens to their experts."""
        self._prepare(sizes, self._build.transports)
        options: dict[str, Any] = {}
        if "use_fp8" in self._build.dispatch:
            options["use_fp8"] = sizes.transport.startswith("fp8")
        if sizes.transport in ("fp8-rounded", "fp8-ue8m0"):
            options["round_scale"] = True
        if sizes.transport == "fp8-ue8m0":
            options["use_ue8m0"] = True
        if sizes.transport == "nvfp4":
            if global_scale_enc is None:
                raise ValueError("dispatch: nvfp4 needs global_scale_enc: without it the kernel traps")
            scale = global_scale_enc.to(self._device, torch.float32).reshape(1).contiguous()
            options |= {"use_nvfp4": True, "x_global_scale": scale}
        x = x.to(self._device).contiguous()
        topk_idx = topk_idx.to(self._device, self._id_dtype).contiguous()
        options |= self._style(sizes, self._build.dispatch)

        def call() -> Any:
            return self._buffer.low_latency_dispatch(x, topk_idx, sizes.max_tokens, sizes.experts, **options)

        recv, count, handle, event, hook = call_as(sizes.style, call)
        self._finish(sizes, event, hook)
        self._more = tuple(handle[5:])
        values, scales = received(recv, sizes.transport, sizes.hidden)
        return Dispatched(values, count.to(torch.int32), sources(*handle[:2]), scales)

    def combine(
        self, y: Tensor, source: Tensor, topk_idx: Tensor, topk_weights: Tensor, sizes: Sizes
    ) -> Tensor:
        """Bring rows back to their tokens."""
        self._prepare(sizes, self._build.combine_transports)
        handle = self._handle(source.to(self._device), sizes)
        y = y.to(self._device).contiguous()
        options = self._style(sizes, self._build.combine)
        if sizes.transport == "logfmt":
            options["use_logfmt"] = True
        elif sizes.style == "zero copy":  # rows in the send buffer are sent as they are
            self._buffer.get_next_low_latency_combine_buffer(handle)[:, :, :] = y
            options["zero_copy"] = True
        topk_idx = topk_idx.to(self._device, self._id_dtype).contiguous()
        topk_weights = topk_weights.to(self._device, torch.float32).contiguous()

        def call() -> Any:
            return self._buffer.low_latency_combine(y, topk_idx, topk_weights, handle, **options)

        combined, event, hook = call_as(sizes.style, call)
        self._finish(sizes, event, hook)
        out: Tensor = combined
        return out

    def _prepare(self, sizes: Sizes, transports: tuple[str, ...]) -> None:
        """Refuse what the kernels do not take; clean the buffer where the last call had other sizes. Raises ValueError."""
        self._check(sizes, transports)
        wanted = (sizes.max_tokens, sizes.hidden, sizes.experts)
        if self._cleaned == wanted:
            return
        self._wait_for_all()
        self._buffer.clean_low_latency_buffer(*wanted)
        self._synchronize()
        self._wait_for_all()
        self._cleaned = wanted

    def _check(self, sizes: Sizes, transports: tuple[str, ...]) -> None:
        if sizes.transport not in transports:
            raise ValueError(
                f"deep_ep {self._build.version} has no transport {sizes.transport} here: it has {', '.join(transports)}"
            )
        if sizes.hidden not in HIDDEN_SIZES:
            raise ValueError(f"deep_ep takes a hidden size of {HIDDEN_SIZES}, got {sizes.hidden}")
        if sizes.max_tokens > MOST_TOKENS:
            raise ValueError(
                f"too many tokens: deep_ep takes {MOST_TOKENS} of a rank, got {sizes.max_tokens}"
            )
        if not 1 <= sizes.topk <= MOST_TOPK:
            raise ValueError(f"deep_ep takes a top-k of 1 to {MOST_TOPK}, got {sizes.topk}")
        if self._ranks * sizes.max_tokens % ROW_MULTIPLE:
            raise ValueError(
                f"deep_ep needs ranks * max_tokens to be a multiple of {ROW_MULTIPLE}, got {self._ranks} * {sizes.max_tokens}"
            )
        needed = self._hint(sizes.max_tokens, sizes.hidden, self._ranks, sizes.experts)
        if needed > self._bytes:
            raise ValueError(
                f"too many tokens: {sizes} needs {needed:,} bytes, and the one Buffer of a process was made with "
                f"{self._bytes:,}"
            )

    def _style(self, sizes: Sizes, known: frozenset[str]) -> dict[str, Any]:
        wanted = {"hook": "return_recv_hook", "asynchronous": "async_finish"}.get(sizes.style)
        return {wanted: True} if wanted in known else {}

    def _finish(self, sizes: Sizes, event: Any, hook: Any) -> None:
        """Have everything arrived, whichever way the call was made."""
        if hook is not None:
            hook()
        elif sizes.style == "asynchronous":
            event.current_stream_wait()
        self._synchronize()

    def _handle(self, source: Tensor, sizes: Sizes) -> tuple[Any, ...]:
        """Return the handle of the dispatch that gave these rows: the contents are the same in any such handle."""
        layout_range = torch.zeros((len(source), self._ranks), dtype=torch.int64, device=source.device)
        row = torch.arange(source.shape[1], device=source.device)
        for rank in range(self._ranks):
            mine = source[..., 0] == rank
            count = mine.sum(1)
            begin = torch.where(mine, row, source.shape[1]).amin(1) if source.shape[1] else count
            last = torch.where(mine, row, -1).amax(1) if source.shape[1] else count - 1
            if bool(((count > 0) & (last - begin + 1 != count)).any()):
                raise ValueError(
                    f"combine: the rows of rank {rank} do not lie together, so no handle describes them"
                )
            layout_range[:, rank] = torch.where(count > 0, begin, 0) << 32 | count
        src_info = source[..., 1].clamp(min=0).to(torch.int32).contiguous()
        return (src_info, layout_range, sizes.max_tokens, sizes.hidden, sizes.experts, *self._more)

    def _wait_for_all(self) -> None:
        dist.all_gather_object([None] * self._ranks, None)

    def _synchronize(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
