"""One call of a stage, as a fault sees it: arguments to change, `run()`, and what came out to change.

Arguments are attributes with the names of harness.candidates.protocol. Decoded views (codes and linear block scales) can
be read and assigned; assigning packs and swizzles again. A fault never changes a tensor of the caller in place unless
that is the mistake: it assigns new ones. A fault that does not call `run()` leaves the outputs unwritten.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from harness.candidates import layouts
from harness.candidates.protocol import traits_of
from harness.faults.arithmetic import over
from reference.activations import Activation
from reference.e2m1 import encode_e2m1
from reference.e4m3 import decode_e4m3
from reference.formats import FORMATS, Coded, Format
from reference.nvfp4 import BLOCK


class Call:
    """Base of all calls.

    Attributes:
        stage: name of the stage.
        function: the stage below: the candidate's, or another fault's.
        candidate: the candidate without any fault.
    """

    names: tuple[str, ...] = ()

    def __init__(
        self, stage: str, function: Callable[..., Any], candidate: Any, arguments: dict[str, Any]
    ) -> None:
        self.stage, self.function, self.candidate = stage, function, candidate
        self.extra = {name: value for name, value in arguments.items() if name not in self.names}
        for name in self.names:
            if name in arguments:
                setattr(self, name, arguments[name])

    @property
    def form(self) -> Format:
        """Format of the activations when they are multiplied."""
        return FORMATS[traits_of(self.candidate).activation_format]

    @property
    def way(self) -> Activation:
        """The candidate's activation with a gate."""
        return Activation.of(traits_of(self.candidate).gated)

    @property
    def weight_form(self) -> Format:
        """Format of the weights."""
        return FORMATS[traits_of(self.candidate).weight_format]

    def arguments(self) -> dict[str, Any]:
        """Return the arguments as they are now, hints included."""
        return {name: getattr(self, name) for name in self.names if hasattr(self, name)} | self.extra

    def run(self) -> None:
        """Run the stage below with the arguments as they are now."""
        raise NotImplementedError

    def result(self) -> Any:
        """Return what the caller gets."""
        raise NotImplementedError


class QuantizeCall(Call):
    """quantize_grouped or silu_mul_quantize_grouped.

    Attributes:
        x: `(l, m, k)` bfloat16, or gate_up `(l, m, 2k)` of silu_mul_quantize_grouped under the same name.
        masked_m: `(l,)` int32.
        global_scale_enc: `(l,)` float32.
        packed: logical `(m, k/2, l)` uint8, after run(); `(m, k, l)` of a format that does not pack.
        scales: logical 6-D float8_e4m3fn, after run(); None of a format without block scales.
    """

    names = ("x", "masked_m", "global_scale_enc")
    x: Tensor
    masked_m: Tensor
    global_scale_enc: Tensor

    def __init__(
        self, stage: str, function: Callable[..., Any], candidate: Any, arguments: dict[str, Any]
    ) -> None:
        super().__init__(stage, function, candidate, arguments)
        experts, rows, width = self.x.shape
        k = width // 2 if stage == "silu_mul_quantize_grouped" else width
        self.shape = (experts, rows, k)
        self.packed, self.scales = layouts.unwritten(self.form, self.shape, self.x.device)

    def run(self) -> None:
        """Quantize; packed and scales are there afterwards."""
        self.packed, self.scales = self.function(self.x, self.masked_m, self.global_scale_enc, **self.extra)

    def result(self) -> layouts.Pair:
        """Return (packed, scales)."""
        return self.packed, self.scales

    @property
    def codes(self) -> Tensor:
        """`(l, m, k)`, elements as the format stores them; assign to change."""
        return layouts.loaded(self.form, (self.packed, self.scales)).codes

    @codes.setter
    def codes(self, codes: Tensor) -> None:
        self.packed = layouts.elements(self.form, codes)

    @property
    def block_scale(self) -> Tensor:
        """`(l, m, k/block)` uint8, linear; assign to change (padding bytes stay as they are)."""
        return layouts.loaded(self.form, (self.packed, self.scales)).block_scale

    @block_scale.setter
    def block_scale(self, block_scale: Tensor) -> None:
        if self.form.swizzled:
            self.scales = layouts.with_block_scale(self.scales, block_scale)
        elif self.form.scale:
            self.scales = block_scale

    def valid(self) -> Tensor:
        """Return which rows count, `(l, m, 1)` bool."""
        return _valid(self.masked_m, self.shape[1])

    @property
    def values(self) -> Tensor:
        """`(l, m, k)` bfloat16: what is quantized, the input itself or the activation of it."""
        activated = self.stage == "silu_mul_quantize_grouped"
        return self.way.value(self.x.double()).to(self.x.dtype) if activated else self.x

    def amax(self) -> Tensor:
        """Return the largest magnitude of each block `(l, m, k/16)` float64; NaN only where every element is."""
        magnitude = split(self.values.double().abs(), BLOCK)
        is_nan = magnitude.isnan()
        return magnitude.masked_fill(is_nan, 0).amax(-1).masked_fill(is_nan.all(-1), torch.nan)

    def real_scale(self) -> Tensor:
        """Return the block scale before it is rounded, gs * amax / 6, `(l, m, k/16)` float64."""
        return over(self.amax() * self.global_scale_enc.double().view(-1, 1, 1), 6)

    def real_codes(self, block_scale: Tensor) -> Tensor:
        """Return x * gs / scale before it is rounded, `(l, m, k)` float64, for scale bytes or for scales in float64."""
        scale = decode_e4m3(block_scale).double() if block_scale.dtype == torch.uint8 else block_scale
        scaled = self.values.double() * self.global_scale_enc.double().view(-1, 1, 1)
        return scaled / scale.repeat_interleave(BLOCK, -1)

    def rescale(self, block_scale: Tensor) -> None:
        """Assign scale bytes, and codes computed with them where they changed: one wrong scale, used consistently."""
        changed = block_scale != self.block_scale
        codes = encode_e2m1(self.real_codes(block_scale), nan="as_max")
        self.codes = torch.where(changed.repeat_interleave(BLOCK, -1), codes, self.codes)
        self.block_scale = block_scale

    def run_on(self, hidden: Tensor) -> None:
        """Quantize another activation than the right one, `(l, m, k)` bfloat16, with the candidate's own quantizer.

        A float32 activation, or a candidate without that stage, is quantized as the reference does it.
        """
        own = getattr(self.candidate, "quantize_grouped", None)
        if own is not None and hidden.dtype == self.form.layer_dtype:
            self.packed, self.scales = own(hidden.contiguous(), self.masked_m, self.global_scale_enc)
            return
        quantized = self.form.quantize(hidden, self.global_scale_enc)
        self.packed, self.scales = layouts.stored(self.form, quantized, 0x7F)


class GemmCall(Call):
    """masked_grouped_gemm.

    Attributes:
        a: logical `(m, k/2, l)` uint8, or as its format has it; b: `(n, k/2, l)`; a_scale, b_scale: logical 6-D
            float8_e4m3fn; a_scale None of a format without block scales.
        out: logical `(m, n, l)`, written in place by run().
        masked_m: `(l,)` int32.
        alpha: `(l,)` float32 or None.
    """

    names = ("a", "a_scale", "b", "b_scale", "out", "masked_m", "alpha")
    a: Tensor
    a_scale: Any
    b: Tensor
    b_scale: Tensor
    out: Tensor
    masked_m: Tensor
    alpha: Tensor | None

    def run(self) -> None:
        """Multiply into out."""
        self.function(
            self.a, self.a_scale, self.b, self.b_scale, self.out, self.masked_m, self.alpha, **self.extra
        )

    def result(self) -> None:
        """Return nothing: out was written in place."""

    @property
    def product(self) -> Tensor:
        """Out as `(l, m, n)`; assign to write into the caller's buffer."""
        return self.out.permute(2, 0, 1)

    @product.setter
    def product(self, product: Tensor) -> None:
        self.out.copy_(product.permute(1, 2, 0))

    @property
    def k(self) -> int:
        """Elements along k."""
        return self.b.shape[1] * 2

    @property
    def a_coded(self) -> Coded:
        """A, `(l, m, k)`, linear."""
        return layouts.loaded(self.form, (self.a, self.a_scale))

    @property
    def b_coded(self) -> Coded:
        """B, `(l, n, k)`, linear."""
        return layouts.loaded(self.weight_form, (self.b, self.b_scale))

    @property
    def a_codes(self) -> Tensor:
        """`(l, m, k)`, elements as the format stores them; assign to change."""
        return self.a_coded.codes

    @a_codes.setter
    def a_codes(self, codes: Tensor) -> None:
        self.a = layouts.elements(self.form, codes)

    @property
    def b_codes(self) -> Tensor:
        """`(l, n, k)` uint8; assign to change."""
        return self.b_coded.codes

    @b_codes.setter
    def b_codes(self, codes: Tensor) -> None:
        self.b = layouts.elements(self.weight_form, codes)

    @property
    def a_block_scale(self) -> Tensor:
        """`(l, m, k/block)` uint8; assign to change."""
        return self.a_coded.block_scale

    @a_block_scale.setter
    def a_block_scale(self, block_scale: Tensor) -> None:
        self.a_scale = layouts.with_block_scale(self.a_scale, block_scale)

    @property
    def b_block_scale(self) -> Tensor:
        """`(l, n, k/block)` uint8; assign to change."""
        return self.b_coded.block_scale

    @b_block_scale.setter
    def b_block_scale(self, block_scale: Tensor) -> None:
        self.b_scale = layouts.with_block_scale(self.b_scale, block_scale)

    @property
    def a_values(self) -> Tensor:
        """Code x block scale of A, and the factor of its row, `(l, m, k)`; float32 and exact where scales are bytes."""
        coded = self.a_coded
        if coded.row_scale is not None:
            return self.form.values(coded, torch.float64) * coded.row_scale
        dtype = torch.float64 if self.form.scale == "float32" else torch.float32
        return self.form.values(coded, dtype)

    @property
    def b_values(self) -> Tensor:
        """Code x block scale of B, `(l, n, k)` float32, exact."""
        return self.weight_form.values(self.b_coded)

    def valid(self) -> Tensor:
        """Return which rows count, `(l, m, 1)` bool."""
        return _valid(self.masked_m, self.a.shape[0])

    def accumulate(self, a: Tensor, b: Tensor) -> Tensor:
        """Return a @ b.T, `(l, m, n)` float64: what the accumulator would hold if it never rounded."""
        return torch.bmm(a.double(), b.double().transpose(1, 2))

    def scaled(self, total: Tensor) -> Tensor:
        """Return an accumulator times alpha and the rows' factors, if any, not yet rounded to the output's type."""
        scaled = total if self.alpha is None else total * self.alpha.view(-1, 1, 1).to(total.dtype)
        return scaled * self.extra["factors"].to(total.dtype) if "factors" in self.extra else scaled

    def store(self, product: Tensor) -> None:
        """Write `(l, m, n)` into the valid rows of out, rounded to its type; other rows stay as they are."""
        self.product = torch.where(self.valid(), product.to(self.out.dtype), self.product)


class MoeCall(Call):
    """masked_moe: arguments under their names (harness.candidates.protocol), `output` `(l, m, k)` bfloat16 after run()."""

    names = (
        "hidden_states", "input_global_scale", "w1", "w1_blockscale", "w1_alpha", "w2", "a2_global_scale",
        "w2_blockscale", "w2_alpha", "masked_m", "activation",
    )  # fmt: skip
    hidden_states: tuple[Tensor, Tensor | None]
    input_global_scale: Tensor | None
    w1: Tensor
    w1_blockscale: Tensor
    w1_alpha: Tensor
    w2: Tensor
    a2_global_scale: Tensor
    w2_blockscale: Tensor
    w2_alpha: Tensor
    masked_m: Tensor
    activation: str
    output: Tensor

    def run(self) -> None:
        """Run the layer below."""
        self.output = self.function(**self.arguments())

    def result(self) -> Tensor:
        """Return the layer's output."""
        return self.output


def split(tensor: Tensor, size: int) -> Tensor:
    """Return `(..., n)` as `(..., n / size, size)`."""
    return tensor.reshape(*tensor.shape[:-1], -1, size)


def _valid(masked_m: Tensor, rows: int) -> Tensor:
    return (torch.arange(rows, device=masked_m.device) < masked_m.unsqueeze(-1)).unsqueeze(-1)
