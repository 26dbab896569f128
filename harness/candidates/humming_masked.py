"""`humming-masked`: Humming's masked grouped GEMM (package humming-kernels), NVFP4 and MXFP4 weights on Hopper.

The weights are prepared by the package's own code, the GEMM is its kernel, FP8 tokens are quantized by it. The activation
between the GEMMs is torch's: engines bring their own.

Modes: weights, activations, and how k is added. `use_batch_invariant` takes one pass over k; the package's default splits it
("stream"). FP8 activations take MXFP4 weights alone: the kernels demand blocks of 32 or more.
"""

from __future__ import annotations

import math
import threading
import zlib
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from harness.candidates.composition import ComposedMoe, compose_tapped
from harness.candidates.prepared import PreparedGemm
from harness.candidates.support import Support, supported, unsupported
from harness.candidates.traits import Traits

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import Tensor

    from harness.candidates.layouts import Pair
    from harness.candidates.taps import StageCall

_FORMATS = ("nvfp4-bf16", "nvfp4-fp16", "mxfp4-bf16", "mxfp4-fp16", "mxfp4-fp8")
_ACTIVATION_FORMAT = {"bf16": "bf16", "fp16": "fp16", "fp8": "fp8_token"}
_BLOCK = {"nvfp4": 16, "mxfp4": 32}
# Experts, hidden and inter: each is two kernels and more, for few and for many rows. Two differ in hidden alone: the
# output of w1 has the same shape, k another extent. The last ones reach far.
_SHAPES: tuple[tuple[int, int, int], ...] = (
    (4, 128, 128), (1, 256, 128), (3, 512, 256), (8, 384, 128), (2, 512, 384), (8, 512, 256), (3, 256, 128), (4, 256, 128),
    (16, 1024, 512), (32, 2048, 256), (4, 2048, 1024), (4, 1536, 768),
    (16, 128, 128), (256, 128, 128), (2, 7168, 128), (2, 128, 7168),
)  # fmt: skip
_COLUMNS = 128
_MOST_STREAMED = 2048  # k and n where k is split: which parts a tile was added in is searched for
# Rows of an expert that a tile is chosen for: one of each, by the shape, so that few kernels show most tiles.
_FEW, _MANY = range(8, 65, 8), range(72, 177, 8)
_HINTS: tuple[dict[str, Any], ...] = ({"rows": 32},)


class HummingMasked(PreparedGemm, ComposedMoe):
    """Humming's masked GEMM in one mode.

    Args:
        mode: one of `modes`.
    """

    name = "humming-masked"
    modes = (*_FORMATS, *(f"{each}-stream" for each in _FORMATS))

    def __init__(self, mode: str = _FORMATS[0]) -> None:
        self.name = f"{type(self).name}:{mode}"
        self.weights, self.activations, *stream = mode.split("-")
        self.one_pass = not stream
        self._locks: Tensor | None = None
        self._ran: list[dict[str, str]] = []

    @cached_property
    def traits(self) -> Traits:
        """What the package's code promises in this mode."""
        fp8 = self.activations == "fp8"
        stream: dict[str, Any] = {}
        columns = self._columns()
        shapes = tuple(
            dict.fromkeys((e, _up(hidden, columns), _up(inter, columns)) for e, hidden, inter in _SHAPES)
        )
        if not self.one_pass:
            stream = {"deterministic": False, "place_invariant": False, "cuda_graph": False}
            shapes = tuple(shape for shape in shapes if max(shape) <= _MOST_STREAMED)
        return Traits(
            activation_format=_ACTIVATION_FORMAT[self.activations],
            weight_format=self.weights,
            accumulator_chunk=32 if fp8 else 16,
            summation=self._summation(),
            k_multiple=64,
            n_multiple=columns,
            store_rows=1,
            out_dtypes=("float16" if self.activations == "fp16" else "bfloat16",),
            activations=("silu",),
            reads_strides=True,
            hints=_HINTS,
            shapes=shapes,
            least_scale=1e-30 if fp8 else 0.0,
            canary=(self.weights, self.activations) == ("nvfp4", "bf16"),  # whose checkpoint it is
            **stream,
        )

    def _columns(self) -> int:
        """Return what n is a multiple of, which the package is asked where it can run."""
        from harness.candidates.humming_package import columns_multiple

        if not self.support():
            return _COLUMNS
        return columns_multiple(self.weights, self.activations, one_pass=self.one_pass)

    def _summation(self) -> str:
        fp8 = self.activations == "fp8"
        unit = "sm_90 f8" if fp8 else "sm_90 f16"
        if self.one_pass:
            return unit
        # From which k on it is split depends on the shape; what is not split has two lanes, of FP8 the parts have one.
        return f"{unit}; lanes 2; from 640; stream" if fp8 else f"{unit}; lanes 2; stream"

    @property
    def asked(self) -> dict[str, str]:
        """What the package is asked for."""
        types = {"bf16": "bfloat16", "fp16": "float16", "fp8": "float8e4m3"}
        scales = {"nvfp4": "float8e4m3", "mxfp4": "float8e8m0"}
        return {
            "activations": types[self.activations],
            "weights": "float4e2m1",
            "block scales": scales[self.weights],
            **({"one pass": "True"} if self.one_pass else {}),  # by default the package decides
        }

    def ran(self) -> list[dict[str, str]]:
        """Return the kernels that were launched since the last call, as their configurations name them."""
        found, self._ran = self._ran, []
        return found

    def support(self) -> Support:
        """Return whether the package and a GPU of compute capability 9.0 are there."""
        from harness.candidates import humming_package
        from harness.extras import install_hint

        if not humming_package.is_installed():
            return unsupported(
                f"{humming_package.DISTRIBUTION} is not installed; run: {install_hint('hopper')}"
            )
        import torch

        if not torch.cuda.is_available():
            return unsupported("needs a CUDA device, torch sees none")
        major, minor = torch.cuda.get_device_capability()
        if (major, minor) != (9, 0):
            return unsupported(
                f"its modes are those of compute capability 9.0 (Hopper), this is {major}.{minor}"
            )
        changed = humming_package.changed()
        return unsupported(changed) if changed else supported()

    def masked_moe_tapped(self, **arguments: Any) -> tuple[Tensor, list[StageCall]]:
        """Return masked_moe's output and its stage calls."""
        return compose_tapped(self, **arguments)

    def compile_ahead(self) -> None:
        """Begin to compile the kernels of every shape that is drawn, in parallel; a call that needs one waits for it."""
        from harness.candidates.humming_package import compile_kernels

        wanted = {
            (extents, extents[0] * rows)
            for experts, hidden, inter in self.traits.shapes
            for extents in ((experts, 2 * inter, hidden), (experts, hidden, inter))
            for rows in {tile_rows(extents, each) for each in (1, 1 << 20)}
        }
        smallest = sorted(wanted, key=lambda each: math.prod(each[0]))
        ahead = partial(compile_kernels, self.weights, self.activations, smallest, one_pass=self.one_pass)
        threading.Thread(target=ahead, name="compile ahead", daemon=True).start()

    def prepare(self, b: Tensor, b_scale: Tensor, alpha: Tensor | None) -> dict[str, Any]:
        """Return weights in the kernels' order. Shapes: harness.candidates.protocol."""
        import torch

        from harness.candidates import layouts
        from harness.candidates.humming_package import prepared

        packed = b.permute(2, 0, 1).contiguous()
        experts, n, k = packed.shape[0], packed.shape[1], 2 * packed.shape[2]
        scale = layouts.block_scales_of(b_scale, n, k // _BLOCK[self.weights]).contiguous()
        tensors = {
            "weight": packed,
            "weight_scale": scale.view(torch.float8_e4m3fn) if self.weights == "nvfp4" else scale,
        }
        made_of_alpha: dict[str, Any] = {}
        if alpha is not None and self.activations == "fp8":
            # What makes a factor of each expert finer, for MXFP4 weights in E4M3, takes none of the caller's.
            made_of_alpha["alpha"] = alpha.reshape(-1).clone()
        elif alpha is not None:
            tensors["weight_scale_2"] = alpha.reshape(-1).contiguous()
        elif self.weights == "nvfp4":
            tensors["weight_scale_2"] = torch.ones(experts, device=packed.device)
        return prepared(self.weights, self.activations, tensors, (experts, n, k)) | made_of_alpha

    def multiply_prepared(
        self,
        a: Tensor,
        a_scale: Tensor | None,
        prepared: Mapping[str, Any],
        out: Tensor,
        masked_m: Tensor,
        *,
        rows: int = 0,
    ) -> None:
        """Multiply into out; `rows`, of an expert, choose the kernel's tiles: 0 for the capacity's."""
        import torch

        from harness.candidates.humming_package import LOCKS, launch, tiling

        stored = out.permute(2, 0, 1)
        if not stored.is_contiguous():
            raise ValueError("out must lie in memory experts outermost")
        experts, capacity, n = stored.shape
        tokens = a.permute(2, 0, 1).reshape(experts * capacity, -1)
        if self.activations == "fp8":
            tokens = tokens.view(torch.float8_e4m3fn)
        if a_scale is not None:
            factor = prepared.get("alpha")
            a_scale = a_scale if factor is None else a_scale * factor.view(-1, 1, 1)
        if self._locks is None:
            self._locks = torch.zeros(LOCKS, dtype=torch.int32, device=out.device)
        config = prepared["config"]
        of_tile = rows or tile_rows((experts, n, tokens.shape[1]), capacity)
        tiles = tiling(config, experts * of_tile, one_pass=self.one_pass)
        launch(
            prepared, tokens, stored.view(experts * capacity, n), masked_m.contiguous(), tiles=tiles, one_pass=self.one_pass,
            a_scale=None if a_scale is None else a_scale.reshape(-1, 1).contiguous(), locks=self._locks,
        )  # fmt: skip
        self.note(config, tiles)

    def note(self, config: Any, tiles: Mapping[str, Any]) -> None:
        """Keep which kernel was launched, for `ran`."""
        shape = " x ".join(map(str, tiles["block_shape"]))
        ran = {
            "activations": str(config.a_dtype),
            "weights": str(config.b_dtype),
            "block scales": str(config.bs_dtype),
            "one pass": str(not tiles.get("use_stream_k", True)),
            "instruction": str(tiles.get("mma_type", "the default")),
            "tile": shape,
        }
        if ran not in self._ran:
            self._ran.append(ran)

    def quantize_grouped(self, x: Tensor, masked_m: Tensor, global_scale_enc: Tensor) -> Pair:  # noqa: ARG002 - unused by these formats
        """Return the tokens as they are, or in FP8 with a scale of each. Shapes: harness.candidates.protocol."""
        if self.activations != "fp8":
            return x.contiguous().permute(1, 2, 0), None
        import torch

        from harness.candidates.humming_package import quantized

        experts, capacity, k = x.shape
        codes, scale = quantized(x.reshape(-1, k), masked_m.contiguous())
        stored = codes.view(torch.uint8).view(experts, capacity, k)
        return stored.permute(1, 2, 0), scale.view(experts, capacity, 1)

    def silu_mul_quantize_grouped(self, gate_up: Tensor, masked_m: Tensor, global_scale_enc: Tensor) -> Pair:
        """Apply silu(gate) * up in torch, then as quantize_grouped. Shapes: harness.candidates.protocol."""
        gate, up = gate_up.float().chunk(2, dim=-1)
        hidden: Tensor = (self._silu(gate) * up).to(gate_up.dtype)
        return self.quantize_grouped(hidden, masked_m, global_scale_enc)

    @staticmethod
    def _silu(gate: torch.Tensor) -> torch.Tensor:
        import torch

        return torch.nn.functional.silu(gate)


class StreamAsOnePass(HummingMasked):
    """The default mode under the declaration of one pass: what is seen by somebody who believes that k is not split."""

    name = "humming-masked-undeclared"

    def __init__(self) -> None:
        super().__init__("nvfp4-bf16-stream")

    @cached_property
    def traits(self) -> Traits:
        """Those of one pass."""
        return HummingMasked().traits


def _up(extent: int, multiple: int) -> int:
    return -(-extent // multiple) * multiple


def tile_rows(extents: tuple[int, int, int], capacity: int) -> int:
    """Return the rows of an expert that a kernel is chosen for: few or many, by the capacity; which, by the shape."""
    choices = _FEW if capacity <= _FEW[-1] else _MANY
    return choices[zlib.crc32(str(extents).encode()) % len(choices)]
