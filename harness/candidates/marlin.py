"""`marlin`: Marlin's MoE GEMM (moe_wna16_marlin_gemm) as SGLang builds it: NVFP4 and MXFP4 weights, bfloat16 tokens.

The package compiles its source when it is called first. Weights, block scales and factors go through SGLang's own
preparation, the order of the slots, the activation and the sum of a token's rows are torch's here (harness.candidates.slots).

The kernel rounds sums to bfloat16, and multiplies them in it by the expert's factor, and in the second GEMM by the product of
the factor and the routing weight: each is rounded to bfloat16, and then their product (harness/replay/marlin.py). MXFP4 has
no factor of an expert: one that is a power of two goes into the block scales.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from harness.candidates.prepared import PreparedRouted
from harness.candidates.support import Support, supported, unsupported
from harness.candidates.traits import VARIES, Traits

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from harness.candidates.engines.engine import Engine
    from harness.candidates.slots import Slots
    from harness.candidates.taps import RoutedTaps

# Where partial sums are bfloat16: the bound of more of them tells little apart.
_STREAMED = (
    (4, 128, 128),
    (3, 512, 256),
    (8, 256, 512),
    (16, 128, 256),
    (2, 384, 384),
    (32, 256, 128),
    (1, 512, 128),
)

# An expert's factor is held in bfloat16, times 2^119; block scales as E5M3, weights times 2^-119: docs/found.md.
_HELD = "sums: held times 2^-119"
_OF_NVFP4: dict[str, Any] = {"most_alpha": 512.0, "keeps_subnormals": False, "finite_only": True}


class Marlin(PreparedRouted):
    """Marlin's MoE layer in one mode: weights, activations, and, "ordered", no atomic additions of partial sums.

    SGLang adds NVFP4's partial sums by atomic operations in bfloat16 from Hopper on, MXFP4's in float32.

    Args:
        mode: one of `modes`.
        device: torch device type; another than "cuda" where the launch is replaced.
    """

    name = "marlin"
    modes = ("nvfp4-bf16", "nvfp4-bf16-ordered", "mxfp4-bf16")

    def __init__(self, mode: str = "nvfp4-bf16", *, device: str = "cuda") -> None:
        self.name = f"{type(self).name}:{mode}"
        self.weights, _, *ordered = mode.split("-")
        self.atomic = self.weights == "nvfp4" and not ordered
        self._device = device
        self._ran: list[dict[str, str]] = []

    @property
    def traits(self) -> Traits:
        """What the kernel's code promises in this mode."""
        return Traits(
            device=self._device,
            activation_format="bf16",
            weight_format=self.weights,
            accumulator_chunk=8,  # an instruction adds 16; half leaves room for sums of warps and of blocks along k
            summation="sm_90 f16; lanes 2; stream" if self.atomic else VARIES,
            k_multiple=128,
            n_multiple=128,
            store_rows=1,
            out_dtypes=("bfloat16",),
            activations=("silu",),
            deterministic=not self.atomic,
            place_invariant=False,
            reads_strides=True,
            **(_OF_NVFP4 if self.weights == "nvfp4" else {}),
            deviations=(
                "cast: before alpha, alpha rounded to bfloat16",
                "factors: each rounded to bfloat16",
                *([_HELD] if self.weights == "nvfp4" else []),
            ),
            power_scales=self.weights == "mxfp4",
            final_sum="slots; weight on rows",
            shapes=_STREAMED if self.atomic else (),
            cuda_graph=False,
            canary=False,
            far=False,
        )

    @property
    def asked(self) -> dict[str, str]:
        """What the package is asked for."""
        return {
            "activations": "bfloat16",
            "weights": "float4_e2m1f",
            "block scales": {"nvfp4": "float8_e4m3fn", "mxfp4": "float8_e8m0fnu"}[self.weights],
            "atomic additions": str(self.atomic),
        }

    def ran(self) -> list[dict[str, str]]:
        """Return what was handed to the kernel since the last call; which tiles it took it does not tell."""
        found, self._ran = self._ran, []
        return found

    def support(self) -> Support:
        """Return whether the package and a Hopper GPU are there, and its functions are called as this harness calls them."""
        import importlib.util

        from harness.candidates import marlin_package
        from harness.candidates.engines.engine import EngineChangedError

        if importlib.util.find_spec("sglang") is None:
            return unsupported(
                "sglang is not installed; its Marlin kernels are read in 0.5.23: pip install sglang"
            )
        if self._device == "cuda":
            import torch

            if not torch.cuda.is_available():
                return unsupported("needs a CUDA device, torch sees none")
            if torch.cuda.get_device_capability()[0] != 9:
                return unsupported("its modes are those of compute capability 9.x (Hopper)")
        try:
            with self.engine.running():
                changed = self.engine.called_otherwise(marlin_package.PARAMETERS)
        except EngineChangedError as error:
            return unsupported(str(error))
        return unsupported(changed) if changed else supported()

    @cached_property
    def engine(self) -> Engine:
        """SGLang, as it is installed."""
        from harness.candidates.marlin_package import engine

        return engine(on_gpu=self._device == "cuda")

    @property
    def warning(self) -> str:
        """Which packages that SGLang imports are missing and were stubbed."""
        stubs = self.engine.stubs.names
        return f"stubbed, since they are not installed: {', '.join(sorted(stubs))}" if stubs else ""

    def compile_ahead(self) -> None:
        """Compute a small layer, so that the package compiles its source before anything is judged.

        Raises:
            NotImplementedError: it cannot be compiled here: the compiler's own words.
        """
        import torch

        from harness.candidates.marlin_package import BLOCK, prepared

        block, device = BLOCK[self.weights], self._device
        first, second = (
            prepared(
                self.engine, self.weights, torch.zeros(1, n, k // 2, dtype=torch.uint8, device=device),
                torch.full((1, n, k // block), 120, dtype=torch.uint8, device=device), torch.ones(1, device=device),
            )
            for n, k in ((256, 128), (128, 128))
        )  # fmt: skip
        ids = torch.zeros(2, 1, dtype=torch.int32, device=device)
        x = torch.zeros(2, 128, dtype=torch.bfloat16, device=device)
        self.route_prepared((x, None), ids, ids.float(), first, second, 0, torch.empty_like(x), "silu")
        self.ran()

    def prepare(self, b: Tensor, b_scale: Tensor, alpha: Tensor | None) -> dict[str, Any]:
        """Return weights in the kernel's order. Shapes: harness.candidates.protocol.

        Raises:
            ValueError: MXFP4 with an alpha that is no power of two.
        """
        import torch

        from harness.candidates import layouts
        from harness.candidates.marlin_package import BLOCK, prepared

        packed = b.permute(2, 0, 1).contiguous()
        scale = layouts.block_scales_of(b_scale, b.shape[0], 2 * b.shape[1] // BLOCK[self.weights])
        factor = torch.ones(len(packed), device=packed.device) if alpha is None else alpha.reshape(-1)
        return prepared(self.engine, self.weights, packed, scale, factor)

    def route_prepared(
        self,
        hidden_states: tuple[Tensor, Tensor | None],
        topk_idx: Tensor,
        topk_weights: Tensor,
        first: dict[str, Any],
        second: dict[str, Any],
        local_expert_offset: int,
        out: Tensor,
        activation: str,
    ) -> RoutedTaps:
        """Compute the layer into out; return what the GEMMs stored. Shapes: harness.candidates.protocol."""
        import torch

        from harness.candidates.slots import Slots, add_slots
        from harness.candidates.taps import RoutedTaps

        del activation  # the one that is declared
        x, weights = hidden_states[0].contiguous(), topk_weights.float().contiguous()
        slots = Slots(topk_idx.contiguous(), len(first["weight"]), local_expert_offset)
        gate_up = self._multiplied(x, slots, weights, first, weighted=False)
        gate, up = gate_up.float().chunk(2, dim=-1)
        hidden = (torch.nn.functional.silu(gate) * up).to(x.dtype)
        rows = self._multiplied(hidden, slots, weights, second, weighted=True)
        add_slots(rows.view(*topk_idx.shape, -1), torch.ones_like(weights), slots.there, out)
        return RoutedTaps(gate_up, rows)

    def _multiplied(
        self, x: Tensor, slots: Slots, weights: Tensor, prepared: Mapping[str, Any], *, weighted: bool
    ) -> Tensor:
        """Return each slot's row times its expert's weights, and, `weighted`, its routing weight, `(slots, n)`."""
        from harness.candidates.marlin_package import launch

        options = {"weighted": weighted, "atomic": self.atomic}
        rows, block = launch(self.engine, x, slots, weights, prepared, **options)
        ran = {
            "activations": str(x.dtype).removeprefix("torch."),
            "block scales": str(prepared["weight_scale"].dtype).removeprefix("torch."),
            "atomic additions": str(self.atomic),
            "slots of a block": str(block),
        }
        if ran not in self._ran:
            self._ran.append(ran)
        return rows


class MarlinAsContract(Marlin):
    """The ordered mode of NVFP4 with nothing left out: what is seen by somebody who expects all values that NVFP4 has."""

    name = "marlin-as-contract"

    def __init__(self, mode: str = "nvfp4-bf16-ordered", *, device: str = "cuda") -> None:
        super().__init__(mode, device=device)

    @property
    def traits(self) -> Traits:
        """Those of every value."""
        traits = super().traits
        deviations = tuple(text for text in traits.deviations if text != _HELD)
        return replace(
            traits, most_alpha=0.0, keeps_subnormals=True, finite_only=False, deviations=deviations
        )
