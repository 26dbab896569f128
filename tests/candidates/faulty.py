"""Candidates that misbehave, each in one way. Named on the command line from this folder: `faulty:Doubled`.

Torch is imported inside the methods, so that commands which refuse their arguments stay fast.
"""

from __future__ import annotations

import inspect
import operator
import os
import sys
import time
from typing import Any

from harness import Support, Traits
from harness.candidates.eager import Eager


class Doubled(Eager):
    """Every output of the GEMM is twice what it should be."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha, **hints) -> None:
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)
        out.mul_(2)


class Aborts(Eager):
    """Ends its process on two experts and more at k 32, each time in another way."""

    def quantize_grouped(self, x, masked_m, global_scale_enc):
        if x.shape[2] != 32:
            return super().quantize_grouped(x, masked_m, global_scale_enc)
        if x.shape[0] == 2:
            os.abort()
        if x.shape[0] == 3:
            os._exit(0)
        if x.shape[0] == 4:
            sys.exit(0)
        if x.shape[0] == 5:
            import ctypes

            ctypes.string_at(0)
        if x.shape[0] == 6:
            time.sleep(600)
        return super().quantize_grouped(x, masked_m, global_scale_enc)


class AbortsInGemm(Eager):
    """Never survives a GEMM, that of the probe included."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha) -> None:
        os.abort()


class AbortsAtStart(Eager):
    """Does not survive being made."""

    def __init__(self) -> None:
        os.abort()


class RaisesAtStart(Eager):
    """Needs something that is not there, and says so by an exception instead of support()."""

    def __init__(self) -> None:
        raise FileNotFoundError("libkernel.so")


class Unsupported(Eager):
    """Cannot run here."""

    def support(self) -> Support:
        return Support(ok=False, reason="needs a machine that does not exist")


class Raises(Eager):
    """Raises in its GEMM, always."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha) -> None:
        raise KeyError("tile shape (128, 4)")


class RaisesInTorch(Eager):
    """Its own bug surfaces inside a function of torch."""

    def quantize_grouped(self, x, masked_m, global_scale_enc):
        import torch

        return torch.nn.functional.linear(x, x[0, :, 1:])


class RaisesUnderNoGrad(Eager):
    """The outermost frame of its call belongs to torch."""

    def __init__(self) -> None:
        super().__init__()
        import torch

        @torch.no_grad()
        def quantize_grouped(x, masked_m, global_scale_enc):
            raise ValueError("my own mistake")

        self.quantize_grouped = quantize_grouped


class RaisesWithoutFrames(Eager):
    """Its stage is a compiled function, which leaves no frame in a traceback."""

    quantize_grouped = staticmethod(operator.add)


class Stub(Eager):
    """Defines two stages that it has not written yet."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha, **hints) -> None:
        raise NotImplementedError("next week")

    def masked_moe(self, *arguments: Any, **named: Any):
        raise NotImplementedError


class StubOfEverything:
    """Defines one stage, without a line in it."""

    traits = Traits(device="cpu", k_multiple=16, n_multiple=1)

    def quantize_grouped(self, x, masked_m, global_scale_enc):
        raise NotImplementedError


class NarrowOnly(Eager):
    """Has not implemented tokens wider than 16, which is a valid problem refused."""

    def quantize_grouped(self, x, masked_m, global_scale_enc):
        if x.shape[2] > 16:
            raise NotImplementedError(f"k {x.shape[2]}")
        return super().quantize_grouped(x, masked_m, global_scale_enc)


class BreaksARule(Eager):
    """Plants a defect in the harness: a rule that raises while it judges a correct candidate."""

    def __init__(self) -> None:
        super().__init__()
        from harness.rules import numbers

        def broken(ctx):
            ctx.quantize(ctx.tensors.x, ctx.tensors.input_scale)
            return 1 // 0

        numbers.quantize = broken


class BreaksARuleInTorch(Eager):
    """Plants a defect in the harness that surfaces inside torch."""

    def __init__(self) -> None:
        super().__init__()
        from harness.rules import numbers

        def broken(ctx):
            import torch

            return torch.nn.functional.linear(ctx.tensors.x, ctx.tensors.x[0, :, 1:])

        numbers.quantize = broken


class Talks(Eager):
    """Writes to standard output, through Python and below it."""

    def quantize_grouped(self, x, masked_m, global_scale_enc):
        print("chatter from Python")
        os.write(1, b"chatter from a kernel\n")
        return super().quantize_grouped(x, masked_m, global_scale_enc)


class Sleeps(Eager):
    """Its activation never ends on a problem; says which process it is."""

    def silu_mul_quantize_grouped(self, gate_up, masked_m, global_scale_enc):
        if any("identification" in called.filename for called in inspect.stack(0)):
            return super().silu_mul_quantize_grouped(gate_up, masked_m, global_scale_enc)
        print(f"sleeping in process {os.getpid()}", file=sys.stderr, flush=True)
        time.sleep(600)
        return None


class TakesItsTime(Eager):
    """Is right after a quarter of a second."""

    def quantize_grouped(self, x, masked_m, global_scale_enc):
        if not any("identification" in called.filename for called in inspect.stack(0)):
            time.sleep(0.25)
        return super().quantize_grouped(x, masked_m, global_scale_enc)


class ReturnsNone(Eager):
    """Forgets to return, in every stage that returns something."""

    def quantize_grouped(self, x, masked_m, global_scale_enc):
        return None

    def silu_mul_quantize_grouped(self, gate_up, masked_m, global_scale_enc):
        return None

    def masked_moe(self, *arguments: Any, **named: Any):
        return None

    def prepare(self, b, b_scale, alpha):
        return None


class CutsOff(Eager):
    """Returns no more than eight rows of each expert."""

    def masked_moe(self, *arguments: Any, **named: Any):
        return super().masked_moe(*arguments, **named)[:, :8]


class ReturnsOnce(Eager):
    """Returns its layer's output on the first of two calls only."""

    calls = 0

    def masked_moe(self, *arguments: Any, **named: Any):
        self.calls += 1
        return super().masked_moe(*arguments, **named) if self.calls % 2 else None


class WrongShape(Eager):
    """Returns unpacked codes."""

    def quantize_grouped(self, x, masked_m, global_scale_enc):
        packed, scales = super().quantize_grouped(x, masked_m, global_scale_enc)
        return packed.repeat(1, 2, 1), scales


class WrongType(Eager):
    """Returns the layer's output in float32."""

    def masked_moe(self, *arguments: Any, **named: Any):
        return super().masked_moe(*arguments, **named).float()


class Strided(Eager):
    """Returns the right numbers in another memory layout than the kernels read."""

    def quantize_grouped(self, x, masked_m, global_scale_enc):
        packed, scales = super().quantize_grouped(x, masked_m, global_scale_enc)
        return packed.contiguous(), scales


class Mutates(Eager):
    """Sorts its weights' scales in place, as an engine that prepares weights lazily does."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha, **hints) -> None:
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)
        if alpha is not None:
            alpha.mul_(1.5)


class WritesEverywhere(Eager):
    """Writes zeros into every row that is not valid, beyond what its stores may cover."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha, **hints) -> None:
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)
        for expert, rows in enumerate(masked_m.tolist()):
            out[rows:, :, expert] = 0


class IgnoresMask(Eager):
    """Takes every expert to be as full as the first one."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha, **hints) -> None:
        super().masked_grouped_gemm(
            a, a_scale, b, b_scale, out, masked_m[:1].expand_as(masked_m).contiguous(), alpha
        )


class Reuses(Eager):
    """Answers with the result of an earlier call of the same shape."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[Any, Any] = {}

    def quantize_grouped(self, x, masked_m, global_scale_enc):
        key = tuple(x.shape)
        if key not in self.kept:
            self.kept[key] = super().quantize_grouped(x, masked_m, global_scale_enc)
        return self.kept[key]


class Nondeterministic(Eager):
    """Every other layer is off by one unit in its last place in every element: legal, but not the same."""

    calls = 0

    def masked_moe(self, *arguments: Any, **named: Any):
        import torch

        out = super().masked_moe(*arguments, **named)
        self.calls += 1
        return torch.nextafter(out, out * 2) if self.calls % 2 else out


class WritesNothing(Eager):
    """Returns from its GEMM without having written, as a kernel compiled for another GPU does."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha, **hints) -> None:
        return None


class QuantizesOnly:
    """Has one stage and nothing else: no name, no traits of its own but the device."""

    traits = Traits(device="cpu", k_multiple=16, n_multiple=1)

    def quantize_grouped(self, x, masked_m, global_scale_enc):
        return Eager().quantize_grouped(x, masked_m, global_scale_enc)


class Narrow(Eager):
    """Takes extents that are multiples of 64 only, and says so in its traits and by an exception."""

    def __init__(self) -> None:
        super().__init__()
        self.traits = Traits(
            device="cpu", arithmetic="real", k_multiple=64, store_rows=1, reads_strides=True, cuda_graph=False
        )

    def quantize_grouped(self, x, masked_m, global_scale_enc):
        if x.shape[2] % 64:
            raise ValueError(f"k must be a multiple of 64, got {x.shape[2]}")
        return super().quantize_grouped(x, masked_m, global_scale_enc)


class HintsOfAnyType(Eager):
    """Declares hints that JSON cannot hold, and takes them."""

    def __init__(self) -> None:
        super().__init__()
        import torch

        self.traits = Traits(
            device="cpu",
            arithmetic="real",
            k_multiple=16,
            n_multiple=1,
            store_rows=1,
            reads_strides=True,
            hints=({"c_dtype": torch.float16},),
        )

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha, c_dtype=None) -> None:
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)


NOT_A_CANDIDATE = {"stages": 0}
