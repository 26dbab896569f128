"""FlashInfer's real Python layer on a CPU: only the compiled kernels and the device queries are replaced.

`launches` stands where the compiled code would be called: below FlashInfer's argument checks, allocations, layouts,
strides, shape inference, dtype names and pointers. It repeats the checks of the C++ entry point, reads operands through
the raw addresses in the canonical layout, as the kernels do, and writes the right answer.
"""

from __future__ import annotations

import ctypes
import importlib.util
import warnings
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

MAGNITUDES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], dtype=torch.float64)
MIDPOINTS = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0], dtype=torch.float64)


def quantize(x: Tensor, global_scale_enc: Tensor) -> tuple[Tensor, Tensor]:
    """(l, m, k) and (l,) -> codes (l, m, k) uint8, block scales (l, m, k/16) float8_e4m3fn, in real arithmetic."""
    blocks = x.double().reshape(*x.shape[:-1], -1, 16)
    gs = global_scale_enc.double().reshape(-1, 1, 1)
    scale = (gs * blocks.abs().amax(-1) / 6).clamp(max=448).to(torch.float8_e4m3fn)
    y = torch.where(scale.double() > 0, gs / scale.double(), 0.0).unsqueeze(-1) * blocks
    codes = torch.bucketize(y.abs(), MIDPOINTS) | (y.signbit().to(torch.int64) << 3)
    return codes.to(torch.uint8).reshape(x.shape), scale


def dequantize(codes: Tensor, scale: Tensor) -> Tensor:
    """Code times block scale, without the global scale: (l, m, k) float64."""
    sign = 1.0 - 2.0 * (codes >> 3).double()
    return sign * MAGNITUDES[(codes & 7).long()] * scale.double().repeat_interleave(16, -1)


def pack(codes: Tensor) -> Tensor:
    return codes[..., 0::2] | (codes[..., 1::2] << 4)


def unpack(packed: Tensor) -> Tensor:
    return torch.stack((packed & 15, packed >> 4), -1).flatten(-2)


def swizzle(scale: Tensor, fill: float = 0.0) -> Tensor:
    """(l, rows, columns) -> (l, padded rows, padded columns), byte (r, c) at the offset of the 128x4 layout."""
    experts, rows, columns = scale.shape
    tiles_r, tiles_c = -(-rows // 128), -(-columns // 4)
    out = torch.full((experts, tiles_r * tiles_c * 512), fill).to(scale.dtype)
    r, c = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    offset = ((r // 128) * tiles_c + c // 4) * 512 + r % 32 * 16 + r % 128 // 32 * 4 + c % 4
    out.view(torch.uint8)[:, offset.flatten()] = scale.view(torch.uint8).flatten(1)
    return out.view(experts, tiles_r * 128, tiles_c * 4)


def unswizzle(memory: Tensor, rows: int, columns: int) -> Tensor:
    """Bytes in 128x4 order, (l, *) -> (l, rows, columns)."""
    tiles_c = -(-columns // 4)
    r, c = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    offset = ((r // 128) * tiles_c + c // 4) * 512 + r % 32 * 16 + r % 128 // 32 * 4 + c % 4
    return (
        memory.view(torch.uint8)
        .flatten(1)[:, offset.flatten()]
        .view(-1, rows, columns)
        .view(torch.float8_e4m3fn)
    )


def activate(gemm1: Tensor, activation: str) -> Tensor:
    if activation == "relu2":
        return gemm1.relu().square()
    gate, up = gemm1.double().chunk(2, -1)
    return (gate * gate.sigmoid() * up).to(torch.bfloat16)


@dataclass
class Launches:
    """What arrived at the compiled kernels, in order. `gemms` holds the compiled program's parameters."""

    capability: tuple[int, int] = (10, 0)
    quantized: list[SimpleNamespace] = field(default_factory=list)
    gemms: list[SimpleNamespace] = field(default_factory=list)
    extents: dict[int, int] = field(
        default_factory=dict
    )  # address -> bytes behind it, of the GEMM call under way

    def silu_and_mul_scaled_nvfp4_experts_quantize(
        self, output, output_scale, x, global_scale, mask, use_silu_and_mul, recipe
    ) -> None:
        """The compiled quantizer: csrc/nv_internal/tensorrt_llm/thop/fp4Quantize.cpp:205-270."""
        for tensor in (output, output_scale, x, global_scale, mask):
            assert tensor.is_contiguous()
        assert (mask.dim(), output.dim(), output_scale.dim(), x.dim(), global_scale.dim()) == (1, 2, 2, 2, 1)
        assert (global_scale.dtype, mask.dtype) == (torch.float32, torch.int32)
        assert (output.dtype, output_scale.dtype) == (torch.uint8, torch.int32)
        assert x.dtype in {torch.bfloat16, torch.float16}
        assert type(use_silu_and_mul) is bool
        assert recipe in {-1, 0}, "4over6 must be off"
        experts = global_scale.shape[0]
        k = x.shape[1] // 2 if use_silu_and_mul else x.shape[1]
        assert mask.shape == (experts,)
        assert output.shape == (x.shape[0], k // 2)
        assert output_scale.shape[1] * 4 == -(-k // 64) * 4
        self.quantized.append(
            SimpleNamespace(x=x.clone(), silu=use_silu_and_mul, mask=mask, scale=global_scale)
        )
        rows = x.shape[0] // experts
        values = x.view(experts, rows, -1)
        codes, scale = quantize(activate(values, "silu") if use_silu_and_mul else values, global_scale)
        valid = torch.arange(rows) < mask.unsqueeze(-1)
        output.view(experts, rows, -1)[valid] = pack(codes)[valid]  # the kernel writes no padding row
        memory = output_scale.view(torch.uint8).view(experts, -1)
        written = (
            swizzle(valid.unsqueeze(-1).expand_as(scale).to(scale.dtype)).view(torch.uint8).flatten(1) != 0
        )
        memory.copy_(torch.where(written, swizzle(scale).view(torch.uint8).flatten(1), memory))

    def compile(self, program: Any, *_: Any) -> Any:
        """cutlass.cute.compile: takes the real, checked MaskedBatchedMatmulCuteDSL, returns a launch by addresses."""

        def launch(*pointers):
            a, b, sfa, sfb, c, masked_m, dst_signals, alpha, *rest = pointers
            assert dst_signals is None
            assert rest[:-1] == [None] * 6, "the parameters of the combine fusion"
            self._gemm(program, ((a, sfa), (b, sfb)), c, masked_m, alpha)

        return launch

    def _gemm(self, p, operands, c, masked_m, alpha) -> None:
        (a, sfa), (b, sfb) = operands
        assert (p._a_major, p._b_major, p._c_major) == ("k", "k", "n")
        names = [t.__name__ for t in (p._ab_dtype, p._sf_dtype, a.dtype, b.dtype, sfa.dtype, sfb.dtype)]
        assert names == ["Float4E2M1FN", "Float8E4M3FN", *["Float4E2M1FN"] * 2, *["Float8E4M3FN"] * 2]
        assert p._sf_vec_size == 16
        assert c.dtype is p._c_dtype
        assert alpha is None or alpha.dtype.__name__ == "Float32"
        m, n, k, experts = p._m, p._n, p._k, p._l
        self.gemms.append(
            SimpleNamespace(
                shape=(m, n, k, experts),
                tiler=p._mma_tiler_mn,
                cluster=p._cluster_shape_mn,
                sms=p._num_sms,
                c_dtype=p._c_dtype.__name__,
                alpha=alpha is not None,
            )
        )
        columns = k // 16
        scale_bytes = -(-columns // 4) * 512
        lhs, rhs = (
            dequantize(
                unpack(self.memory(codes, torch.uint8, experts, rows, k // 2)),
                unswizzle(
                    self.memory(scales, torch.uint8, experts, -(-rows // 128) * scale_bytes), rows, columns
                ),
            )
            for codes, scales, rows in ((a, sfa, m), (b, sfb, n))
        )
        result = lhs @ rhs.transpose(1, 2)
        if alpha is not None:
            result *= self.memory(alpha, torch.float32, experts).double().view(-1, 1, 1)
        dtype = {"BFloat16": torch.bfloat16, "Float16": torch.float16, "Float32": torch.float32}[
            p._c_dtype.__name__
        ]
        out = self.memory(c, dtype, experts, m, n)
        for expert, rows in enumerate(self.memory(masked_m, torch.int32, experts).tolist()):
            # whole tiles are stored, later tiles and empty experts are not touched
            tiles = -(-rows // 128) * 128
            out[expert, :tiles] = result[expert, :tiles].to(dtype)

    def memory(self, pointer: Any, dtype: torch.dtype, *shape: int) -> Tensor:
        """The memory behind a pointer, contiguous: what a kernel sees that ignores strides."""
        count, address = torch.Size(shape).numel(), int(pointer._pointer)
        assert count * dtype.itemsize <= self.extents[address], "the kernel would leave its operand"
        raw = (ctypes.c_uint8 * (count * dtype.itemsize)).from_address(address)
        return torch.frombuffer(raw, dtype=dtype, count=count).view(shape)

    def guard(self, compiled: Any) -> Any:
        """Note how much memory lies behind each address that a compiled GEMM is about to get."""

        def call(**tensors: Tensor | None) -> Any:
            present = [t for t in tensors.values() if t is not None]
            self.extents = {
                t.data_ptr(): t.untyped_storage().nbytes() - t.storage_offset() * t.itemsize for t in present
            }
            return compiled(**tensors)

        return call


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Any:
    """FlashInfer with its kernels replaced by `Launches`, believing that CPU tensors are on compute capability 10.0."""
    if importlib.util.find_spec("flashinfer") is None or importlib.util.find_spec("cutlass") is None:
        pytest.skip(
            "flashinfer-python and nvidia-cutlass-dsl are not installed: make test-flashinfer installs them"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the packages
        import flashinfer.activation as activation_module
        from cutlass import torch as cutlass_torch
        from flashinfer.gemm.kernels import grouped_gemm_masked_blackwell as blackwell
        from flashinfer.gemm.kernels import grouped_gemm_masked_wrapper as wrapper
        from flashinfer.quantization import fp4_quantization

    spy = Launches()
    for module in (activation_module, fp4_quantization, wrapper, blackwell):
        monkeypatch.setattr(module, "get_compute_capability", lambda _: spy.capability)
    for module in (wrapper, blackwell):
        monkeypatch.setattr(module, "get_num_sm", lambda _: 148)
    monkeypatch.setattr(blackwell, "get_max_active_clusters", lambda size: 148 // size)
    monkeypatch.setattr(blackwell.cute, "compile", spy.compile)
    compiled = blackwell.get_cute_dsl_compiled_masked_gemm_kernel
    monkeypatch.setattr(
        blackwell,
        "get_cute_dsl_compiled_masked_gemm_kernel",
        lambda **options: spy.guard(compiled(**options)),
    )
    monkeypatch.setattr(cutlass_torch, "current_stream", lambda: "stream")
    build = SimpleNamespace(build_and_load=lambda: spy)
    monkeypatch.setattr(fp4_quantization, "gen_fp4_quantization_sm100_module", lambda: build)
    monkeypatch.setattr(fp4_quantization, "gen_fp4_quantization_sm90_module", lambda: build)
    caches = (
        fp4_quantization.get_fp4_quantization_module,
        compiled,
    )
    for cache in caches:
        cache.cache_clear()
    yield spy
    for cache in caches:
        cache.cache_clear()  # nothing compiled from the spy may outlive the test


@dataclass
class Moe:
    """One MoE: arguments of masked_moe, and the same in logical form for the reference."""

    x: Tensor
    masked_m: Tensor
    weights: dict[str, Tensor]
    dense: dict[str, Tensor]

    def arguments(self, *, prequantized: bool = False) -> dict[str, Any]:
        scale = self.dense["input_global_scale"]
        hidden: tuple[Tensor, Tensor | None] = (self.x, None)
        if prequantized:
            codes, block_scale = quantize(self.x, scale)
            six = swizzle(block_scale).view(self.x.shape[0], -(-self.x.shape[1] // 128), -1, 32, 4, 4)
            hidden = (pack(codes).permute(1, 2, 0), six.permute(3, 4, 1, 5, 2, 0))
        first = {"hidden_states": hidden, "input_global_scale": None if prequantized else scale}
        return {**first, **self.weights, "masked_m": self.masked_m}

    def stages(self, activation: str) -> dict[str, Tensor]:
        """Return the plain dequantize-and-multiply result of each step."""
        alpha1, alpha2 = (self.weights[name].double().view(-1, 1, 1) for name in ("w1_alpha", "w2_alpha"))
        a = dequantize(*quantize(self.x, self.dense["input_global_scale"]))
        gemm1 = (a @ self.dense["w1"].transpose(1, 2) * alpha1).to(torch.bfloat16)
        a2 = dequantize(*quantize(activate(gemm1, activation), self.weights["a2_global_scale"]))
        out = (a2 @ self.dense["w2"].transpose(1, 2) * alpha2).to(torch.bfloat16)
        return {"a": a, "gemm1": gemm1, "a2": a2, "out": out}

    def valid(self) -> Tensor:
        return torch.arange(self.x.shape[1]) < self.masked_m.unsqueeze(-1)


def make_moe(
    activation: str, masked_m: tuple[int, ...] = (5, 0, 130), capacity: int = 160, k: int = 128, n: int = 64
) -> Moe:
    torch.manual_seed(20394)
    experts = len(masked_m)
    spread = torch.tensor([1.0, 7.0, 0.3, 2.0])[:experts]
    weights: dict[str, Tensor] = {}
    dense: dict[str, Tensor] = {"input_global_scale": 500.0 / spread}
    for name, shape in (("w1", (2 * n if activation == "silu" else n, k)), ("w2", (k, n))):
        codes, scale = quantize(torch.randn(experts, *shape), 300.0 / spread.flip(0))
        weights |= {name: pack(codes), f"{name}_blockscale": swizzle(scale)}
        dense[name] = dequantize(codes, scale)
    weights["w1_alpha"] = 1 / (dense["input_global_scale"] * 300.0 / spread.flip(0))
    weights["a2_global_scale"] = 900.0 / (spread * spread + 1)
    weights["w2_alpha"] = 1 / (weights["a2_global_scale"] * 300.0 / spread.flip(0))
    x = (torch.randn(experts, capacity, k) * spread.view(-1, 1, 1)).to(torch.bfloat16)
    return Moe(x, torch.tensor(masked_m, dtype=torch.int32), weights, dense)


@pytest.fixture(params=["silu", "relu2"])
def activation(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def moe(activation: str) -> Moe:
    return make_moe(activation)


@pytest.fixture
def gated_moe() -> Moe:
    return make_moe("silu")


@pytest.fixture
def tools() -> SimpleNamespace:
    """The functions above, for tests (a conftest cannot be imported by name)."""
    return SimpleNamespace(
        quantize=quantize,
        dequantize=dequantize,
        pack=pack,
        unpack=unpack,
        swizzle=swizzle,
        unswizzle=unswizzle,
        make_moe=make_moe,
    )
