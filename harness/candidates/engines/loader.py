"""What the candidates `sglang-loader` and `vllm-loader` share: an engine's own layer, filled by its own loader, on a CPU.

create_weights, weight_loader, process_weights_after_loading and what hands the result to the kernel run as they are
installed; what the kernel would be called with is what load_experts returns. masked_moe is the engine's function too,
over the kernels of another candidate; dispatch and combine: over_dispatchers.py.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from harness.candidates import cutedsl_support as cutedsl
from harness.candidates.engines.engine import Engine, EngineChangedError
from harness.candidates.layer_stages import LayerStages
from harness.candidates.support import Support, supported, unsupported
from harness.candidates.taps import StageCall

if TYPE_CHECKING:
    from torch import Tensor

    from harness.candidates.protocol import Traits

_TOLD = ("must match", "ccuracy")  # what an engine says of a checkpoint that it loads wrong


@dataclass(frozen=True)
class Shard:
    """What of a layer one rank has.

    Attributes:
        places: the expert of the checkpoint that each of the layer's slots holds; more slots than experts where some are
            there twice, as load balancing has it.
        hidden, inter: extents of the whole layer.
        gated: whether it has gate projections.
        ranks, rank: over which the slots are spread, and which of them this is.
        slices, slice: over which inter is cut, and which of them this is.
    """

    places: tuple[int, ...]
    hidden: int
    inter: int
    gated: bool
    ranks: int
    rank: int
    slices: int
    slice: int

    @property
    def experts(self) -> int:
        """Slots of the layer."""
        return len(self.places)

    @property
    def logical(self) -> int:
        """Experts of the checkpoint."""
        return max(self.places) + 1

    @property
    def local(self) -> int:
        """Slots of this rank."""
        return self.experts // self.ranks


class EngineLoader(LayerStages, ABC):
    """An engine's loader as a candidate.

    Args:
        kernels: a candidate with the three inner stages, which masked_moe calls in place of FlashInfer's; None for
            `physical`.
        replaced: "module:name" -> what stands there instead, for planting faults.
    """

    name: str
    engine: Engine
    tested: tuple[int, int]
    activations: tuple[str, ...]
    called: tuple[str, ...]
    """Names of the engine, "module:name", that are called here: each is looked up before anything is judged."""
    logger: str
    """Where the engine's quantization method says what is wrong with a checkpoint, "module:logger"."""

    def __init__(self, kernels: Any = None, replaced: Mapping[str, Any] | None = None) -> None:
        from harness.candidates.physical import Physical

        self.kernels: Any = Physical() if kernels is None else kernels
        self.replaced = dict(replaced or {})

    @property
    def traits(self) -> Traits:
        """Those of the kernels, in the extents and activations that the engine takes."""
        width = {"k_multiple": 64, "n_multiple": 64, "hints": (), "canary": False, "complete_only": True}
        traits: Traits = replace(self.kernels.traits, activations=self.activations, **width)
        return traits

    @property
    def warning(self) -> str:
        """What runs here and what does not, for every record."""
        stubbed = ", ".join(sorted(self.engine.stubs.names)) or "nothing"
        said = f"{self.engine.version} on a CPU: its loader and its masked MoE as installed, over the kernels of "
        said += f"{self.kernels.name}; stubbed: {stubbed}"
        outside = cutedsl.version_warning({self.engine.name: self.tested})
        return "; ".join(filter(None, (said, getattr(self.kernels, "warning", ""), outside)))

    def support(self) -> Support:
        """Return whether the engine is installed and has the names that are called here; it loads two experts for it."""
        if importlib.util.find_spec(self.engine.name) is None:
            return unsupported(
                f"{self.name} needs the Python files of {self.engine.name}, which are not installed; run: "
                f"pip install --no-deps {self.engine.name} (docs/ci-for-{self.engine.name}.md has what else it imports)"
            )
        try:
            with self.engine.running():
                for target in self.called:
                    self.engine.get(target)
            self.load_experts(_smallest(), range(2))
        except (EngineChangedError, AttributeError, NameError, TypeError, ImportError) as error:
            return unsupported(f"{self.name}: {error}; this adapter does not know that version")
        except Exception:  # noqa: BLE001 - it can be called; what it does wrong is for the rules to say
            return supported()
        return supported()

    def load_experts(self, checkpoint: Mapping[str, Tensor], experts: range) -> dict[str, Tensor]:
        """Return masked_moe's weight arguments as the engine hands them to its kernel; as `load_slice` of the whole."""
        return self.load_slice(checkpoint, experts, 0, 1)

    def load_slice(
        self, checkpoint: Mapping[str, Tensor], experts: range, place: int, slices: int
    ) -> dict[str, Tensor]:
        """Return the weight arguments of a rank that has a slice of inter of its experts.

        Args:
            checkpoint: one layer's ModelOpt tensors, all experts.
            experts: those of this rank, an equal part of all.
            place: which slice.
            slices: of how many.

        Raises: as `load_redundant`.
        """
        return self._loaded(checkpoint, _shard_of(checkpoint, experts, (place, slices)))

    def load_redundant(
        self, checkpoint: Mapping[str, Tensor], slots: range, places: Sequence[int]
    ) -> dict[str, Tensor]:
        """Return the weight arguments of a rank of a layer in which some experts are there more than once.

        Args:
            checkpoint: one layer's ModelOpt tensors, all experts.
            slots: those of this rank, an equal part of all.
            places: the expert that each slot holds.

        Raises:
            ValueError: the engine warns that it cannot load the checkpoint right, or the part is none of equal ones.
            EngineChangedError: the engine has changed.
        """
        return self._loaded(checkpoint, _shard_of(checkpoint, slots, (0, 1), tuple(places)))

    def _loaded(self, checkpoint: Mapping[str, Tensor], shard: Shard) -> dict[str, Tensor]:
        import torch

        log = _Log()
        with _visible_memory(), self.engine.running({self.logger: log, **self.replaced}):
            loaded = self._load(checkpoint, shard)
        told = [text for text in log.warnings if any(word in text for word in _TOLD)]
        if told:
            raise ValueError(f"{self.engine.name} warns: {told[0]}")
        return {n: v.detach().clone(memory_format=torch.contiguous_format) for n, v in loaded.items()}

    def masked_moe(self, *given: Any, **named: Any) -> Tensor:
        """Run the engine's masked MoE over `kernels`; arguments and result as in harness.candidates.protocol."""
        with self.engine.running(self._kernel_calls() | self.replaced):
            out: Tensor = self._moe().masked_moe(*given, **named)
        return out

    def masked_moe_tapped(self, *given: Any, **named: Any) -> tuple[Tensor, list[StageCall]]:
        """Run `masked_moe`; return its result and the engine's calls of the kernels, in order."""
        with self.engine.running(self._kernel_calls() | self.replaced):
            out, calls = self._moe().masked_moe_tapped(*given, **named)
        return out, calls

    @abstractmethod
    def _load(self, checkpoint: Mapping[str, Tensor], shard: Shard) -> dict[str, Tensor]:
        """Make the layer, fill it, prepare it, and return what its kernel would be called with."""

    @abstractmethod
    def _moe(self) -> Any:
        """Return the candidate that calls the engine's masked MoE."""

    @abstractmethod
    def _kernel_calls(self) -> dict[str, Any]:
        """Return what stands in the engine's module in place of FlashInfer's functions."""

    def _quantize(self, a: Tensor, mask: Tensor, a_global_sf: Tensor) -> tuple[Tensor, Tensor]:
        packed, scale = self.kernels.quantize_grouped(a, mask, a_global_sf)
        return packed, scale

    def _silu_mul_quantize(self, a: Tensor, mask: Tensor, a_global_sf: Tensor) -> tuple[Tensor, Tensor]:
        packed, scale = self.kernels.silu_mul_quantize_grouped(a, mask, a_global_sf)
        return packed, scale

    def _gemm(
        self, lhs: Any, rhs: Any, out: Tensor, masked_m: Tensor, *, alpha: Tensor | None = None, **_: Any
    ) -> None:
        """Call the kernel as the engine calls FlashInfer's: alpha is (1, 1, l), and B's scales lie as they are loaded."""
        from harness.candidates import layouts

        b, b_scale = rhs
        b_scale = b_scale if b_scale.ndim == 6 else layouts.as_mma(b_scale)
        self.kernels.masked_grouped_gemm(
            *lhs, b, b_scale, out, masked_m, None if alpha is None else alpha.reshape(-1)
        )


class Recorder:
    """Stands in for the engine's masked MoE and keeps what it is called with."""

    def __init__(self) -> None:
        self.arguments: dict[str, Any] = {}

    def __call__(self, **arguments: Any) -> Any:
        """Keep the arguments; return the tokens."""
        self.arguments = arguments
        tokens = arguments["hidden_states"]
        return tokens[0] if isinstance(tokens, tuple) else tokens

    def loaded(self, engine: Engine) -> dict[str, Tensor]:
        """Return the weight arguments. Raises EngineChangedError where the kernel got none of that name."""
        from harness.candidates.sglang_cutedsl import PARAMETERS

        names = [name for name in PARAMETERS if name not in {"hidden_states", "masked_m"}]
        missing = [name for name in names if self.arguments.get(name) is None]
        if missing:
            raise EngineChangedError(f"{engine.version} calls its masked MoE without {', '.join(missing)}")
        count = len(self.arguments["w1"])
        found = {name: self.arguments[name] for name in names}
        return {n: v.expand(count) if v.ndim == 0 else v for n, v in found.items()}


class _Log:
    """Stands in for a logger and keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def __getattr__(self, level: str) -> Any:
        def log(text: str, *given: Any, **_: Any) -> None:
            if level.startswith("warn"):
                self.warnings.append(str(text) % given if given else str(text))

        return log


@contextmanager
def _visible_memory() -> Iterator[None]:
    """Fill what torch.empty returns with NaN, or the largest integer, so that a slot that nobody writes is seen."""
    import torch

    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _shard_of(
    checkpoint: Mapping[str, Tensor], slots: range, width: tuple[int, int], places: tuple[int, ...] = ()
) -> Shard:
    """Return which part of which layer is asked for. Raises ValueError where it is none of equal parts."""
    places = places or tuple(range(1 + max(int(name.split(".")[1]) for name in checkpoint)))
    up = next(t for n, t in checkpoint.items() if ".up_proj.weight" in n and t.ndim == 2 and "scale" not in n)
    local = len(slots)
    if not local or len(places) % local or slots.start % local:
        raise ValueError(
            f"load_experts: experts must be one of equal parts of {len(places)}, as ranks have them, got {slots}"
        )
    gated = any(".gate_proj." in name for name in checkpoint)
    ranks, rank = len(places) // local, slots.start // local
    return Shard(places, up.shape[1] * 2, up.shape[0], gated, ranks, rank, width[1], width[0])


def _smallest() -> dict[str, Tensor]:
    """Return a checkpoint of two experts of zeros, to see that the engine can be called."""
    import torch

    found: dict[str, Tensor] = {}
    for expert in range(2):
        for projection in ("gate", "up", "down"):
            name = f"experts.{expert}.{projection}_proj."
            found[f"{name}weight"] = torch.zeros(64, 32, dtype=torch.uint8)
            found[f"{name}weight_scale"] = torch.zeros(64, 4).to(torch.float8_e4m3fn)
            found[f"{name}weight_scale_2"] = found[f"{name}input_scale"] = torch.tensor(1.0)
    return found
