"""Recording the stage calls of an engine that only offers the whole masked MoE.

An engine's function calls FlashInfer through names in its own module. Those names are replaced by recorders for the
length of a `with` block, so that each stage can be judged on the inputs that it really got. The names are patched where
they are looked up: SGLang copies them with `from flashinfer import ...` and vLLM resolves them once behind
`functools.cache`, so patching the attributes of `flashinfer` afterwards would tap nothing. That every tap fired, and in
the expected order, is checked: a tap that records nothing looks just like a stage without errors.

Not thread-safe: two threads may not tap the same module at once. Torch is imported by the engine, not here.
"""

from __future__ import annotations

import functools
import inspect
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import ModuleType

    from torch import Tensor

# Of each stage, in the order of FlashInfer's positional parameters: the name it gets in a StageCall, and the parameter
# names that mean it. Bound by name, because sgl_kernel's quantizers take (input, scale, mask), FlashInfer's
# (input, mask, scale), and both would be called without an error the wrong way round.
_GLOBAL_SCALE = ("global_scale_enc", ("a_global_sf", "input_global_scale", "global_scale"))
_MASK = ("masked_m", ("mask", "masked_m"))
_PARAMETERS: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "quantize_grouped": (("x", ("a", "input_tensor", "input")), _MASK, _GLOBAL_SCALE),
    "silu_mul_quantize_grouped": (("gate_up", ("a", "input_tensor", "input")), _MASK, _GLOBAL_SCALE),
    "masked_grouped_gemm": (
        ("lhs", ("lhs",)),
        ("rhs", ("rhs",)),
        ("out", ("out",)),
        ("masked_m", ("masked_m",)),
    ),
}


class TapError(RuntimeError):
    """A stage could not be recorded, so nothing may be concluded from what was. Says which name of which module."""


@dataclass(frozen=True, eq=False)  # compared by identity: tensors have no single truth value
class StageCall:
    """One call of a stage by an engine, all tensors copied at the time of the call, strides kept.

    `stage` is a name of `harness.candidates.protocol.STAGES`; shapes and physical layouts are those of the protocol,
    whatever views the engine passed (swizzled scales become their six-dimensional view, alpha becomes `(l,)`).

    Attributes:
        stage: "quantize_grouped", "silu_mul_quantize_grouped" or "masked_grouped_gemm".
        inputs: `x` or `gate_up`, `masked_m`, `global_scale_enc`; for the GEMM `a`, `a_scale`, `b`, `b_scale`,
            `masked_m` and, unless the engine passed none, `alpha`.
        outputs: `packed` and `block_scale`; for the GEMM `out`, as it was after the call.
    """

    stage: str
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class RoutedTaps:
    """What both GEMMs of a routed layer stored, slot after slot; what lies in slots that do not count is not looked at.

    Attributes:
        gate_up: `(slots, 2n)`, or `(slots, n)` of relu2.
        rows: `(slots, k)`, with the routing weight where the GEMM's epilogue multiplies by it.
        operands: of activations in FP8 with a scale of each row what either GEMM multiplied, E4M3 `(slots, k)` and its scales
            `(slots, 1)` float32. Without them sums of 13 bits are bounded so wide that x1.1 is legal.
    """

    gate_up: Tensor
    rows: Tensor
    operands: tuple[tuple[Tensor, Tensor], ...] = ()


class TappedRouted:
    """`routed_moe_tapped` of a routed_moe that takes `taps`, a list to which it adds a RoutedTaps: a mixin."""

    def routed_moe_tapped(self: Any, **arguments: Any) -> tuple[Tensor, RoutedTaps | None]:
        """Return routed_moe's output and what its GEMMs stored, None where none was launched."""
        taps: list[RoutedTaps] = []
        out = self.routed_moe(**arguments, taps=taps)
        return out, taps[0] if taps else None


@dataclass
class Taps:
    """What was recorded: `calls` in the order in which the engine finished them."""

    module: str
    names: dict[str, str]
    calls: list[StageCall] = field(default_factory=list)
    fired: dict[str, int] = field(default_factory=dict)

    def stages(self) -> list[str]:
        """Return the stage of each call, in order."""
        return [call.stage for call in self.calls]


def expected_stages(activation: str, *, prequantized: bool) -> list[str]:
    """Return the stage calls that a masked MoE consists of, in order.

    relu2 has no fused kernel: the engine applies it in torch and quantizes with the plain grouped quantizer.
    """
    middle = "silu_mul_quantize_grouped" if activation == "silu" else "quantize_grouped"
    head = [] if prequantized else ["quantize_grouped"]
    return [*head, "masked_grouped_gemm", middle, "masked_grouped_gemm"]


def missing_parameters(function: Callable[..., Any], required: Sequence[str]) -> list[str]:
    """Return which of the keyword arguments `required` the function would not accept, by its signature."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return []
    by_keyword = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [name for name in required if name not in parameters or parameters[name].kind not in by_keyword]


def unfilled_parameters(function: Callable[..., Any], given: Sequence[str]) -> list[str]:
    """Return the parameters without a default that are not in `given`, by the function's signature."""
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    return [
        p.name for p in parameters if p.default is p.empty and p.kind not in variadic and p.name not in given
    ]


def called_otherwise(target: str, version: str, function: Callable[..., Any], names: Sequence[str]) -> str:
    """Return why a function cannot be called with exactly these keyword arguments, or "".

    Args:
        target: "module:name".
        version: of the package, for the message.
        function: what it stands for.
        names: of the arguments that are passed to it.
    """
    missing, unfilled = missing_parameters(function, names), unfilled_parameters(function, names)
    if not missing and not unfilled:
        return ""
    return (
        f"{target} of {version} is not called as this harness calls it: unknown {', '.join(missing) or 'none'}, "
        f"not given {', '.join(unfilled) or 'none'}"
    )


@contextmanager
def tapped(
    module: ModuleType, names: Mapping[str, str], expected: Sequence[str] | None = None
) -> Iterator[Taps]:
    """Record the calls that code in `module` makes through the given names of that module.

    Args:
        module: the engine's module; its own globals are patched and restored, also after an exception.
        names: global name in the module -> stage that it implements.
        expected: the stages that have to be called in the block, in order; None: every name at least once.

    Yields:
        Taps, filled while the block runs.

    Raises:
        TapError: the module lacks a name, a function's parameters are not those of its stage, or the calls were not
            the expected ones. An exception of the block itself passes unchanged.
    """
    taps = Taps(module.__name__, dict(names))
    originals = {name: _original(module, name) for name in names}
    recorders = {name: _recorder(taps, name, stage, originals[name]) for name, stage in names.items()}
    try:
        for name, recorder in recorders.items():
            setattr(module, name, recorder)
        yield taps
    finally:
        for name, original in originals.items():
            setattr(module, name, original)
    silent = [name for name in names if not taps.fired.get(name)]
    if expected is None and silent:
        raise TapError(f"{module.__name__}: {', '.join(silent)} was tapped but never called; {_WHY_SILENT}")
    if expected is not None and taps.stages() != list(expected):
        raise TapError(
            f"{module.__name__}: expected the stage calls {', '.join(expected)}, "
            f"recorded {', '.join(taps.stages()) or 'none'}; {_WHY_SILENT}"
        )


def run_tapped(
    masked_moe: Callable[..., Tensor], module: ModuleType, names: Mapping[str, str], args: Any, kwargs: Any
) -> tuple[Tensor, list[StageCall]]:
    """Call a candidate's `masked_moe` with the engine's module tapped; return its result and the stage calls.

    Args:
        masked_moe: takes the arguments of the protocol's masked_moe.
        module: the engine's module, see `tapped`.
        names: global name in the module -> stage.
        args: positional arguments of masked_moe.
        kwargs: keyword arguments of masked_moe.

    Raises:
        TapError: the engine did not make exactly the stage calls that a masked MoE consists of.
    """
    bound = inspect.signature(masked_moe).bind(*args, **kwargs)
    bound.apply_defaults()
    prequantized = bound.arguments["hidden_states"][1] is not None
    with tapped(
        module, names, expected_stages(bound.arguments["activation"], prequantized=prequantized)
    ) as taps:
        out = masked_moe(*args, **kwargs)
    return out, taps.calls


_WHY_SILENT = (
    "this version of the engine composes the MoE in another way or reaches the kernels through other names, "
    "so judge its output as a whole and report the version"
)


def _original(module: ModuleType, name: str) -> Callable[..., Any]:
    function = vars(module).get(name)
    if not callable(function):
        found = sorted(n for n, v in vars(module).items() if callable(v) and not n.startswith("_"))
        raise TapError(
            f"{module.__name__} has no function {name!r} to tap (it has {', '.join(found) or 'no functions'}); "
            "this version of the engine is not supported by the taps"
        )
    checked: Callable[..., Any] = function
    return checked


def _recorder(taps: Taps, name: str, stage: str, original: Callable[..., Any]) -> Callable[..., Any]:
    bind = binder(f"{taps.module}.{name}", stage, original)

    @functools.wraps(original)
    def recorder(*args: Any, **kwargs: Any) -> Any:
        bound = bind(args, kwargs)
        inputs = (
            _gemm_inputs(bound) if stage == "masked_grouped_gemm" else {k: _copy(v) for k, v in bound.items()}
        )
        result = original(*args, **kwargs)
        if stage == "masked_grouped_gemm":
            outputs = {"out": _copy(bound["out"])}
        else:
            outputs = {"packed": _copy(result[0]), "block_scale": _copy(result[1])}
        taps.calls.append(StageCall(stage, inputs, outputs))
        taps.fired[name] = taps.fired.get(name, 0) + 1
        return result

    return recorder


def binder(where: str, stage: str, function: Callable[..., Any]) -> Callable[[Any, Any], dict[str, Any]]:
    """Return a function from (args, kwargs) of one call to the stage's arguments by their names in a StageCall."""
    roles = _PARAMETERS[stage]
    parameters = inspect.signature(function).parameters
    # vLLM's wrappers are `wrapper(*args, **kwargs)`: there FlashInfer's order of parameters is what the call means.
    opaque = any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters.values())
    order = [role for role, _ in roles]
    if not opaque:
        meaning = {name: role for role, accepted in roles for name in accepted}
        order = [meaning.get(name, name) for name in parameters]
        absent = [" or ".join(accepted) for role, accepted in roles if role not in order]
        if absent:
            raise TapError(
                f"{where}{inspect.signature(function)} has no parameter {', '.join(absent)}, "
                f"so its calls cannot be read as {stage}; add the new name to the taps"
            )

    def bind(args: Any, kwargs: Any) -> dict[str, Any]:
        bound = dict(zip(order, args, strict=False))
        for role, accepted in (*roles, ("alpha", ("alpha",))):
            for name in accepted:
                if name in kwargs:
                    bound[role] = kwargs[name]
        absent = [role for role in (role for role, _ in roles) if role not in bound]
        if absent:
            raise TapError(
                f"{where} was called without {', '.join(absent)}; it cannot be recorded as {stage}"
            )
        return {role: bound[role] for role in (*(role for role, _ in roles), "alpha") if role in bound}

    return bind


def _gemm_inputs(bound: dict[str, Any]) -> dict[str, Tensor]:
    (a, a_scale), (b, b_scale) = bound["lhs"], bound["rhs"]
    inputs = {
        "a": _copy(a),
        "a_scale": copied_scale(a_scale, a),
        "b": _copy(b),
        "b_scale": copied_scale(b_scale, b),
        "masked_m": _copy(bound["masked_m"]),
    }
    if bound.get("alpha") is not None:
        inputs["alpha"] = _copy(bound["alpha"]).reshape(-1)
    return inputs


def _copy(tensor: Tensor) -> Tensor:
    import torch

    # Later stages may reuse the memory; the physical order is what the kernels read, so it has to survive the copy.
    return tensor.detach().clone(memory_format=torch.preserve_format)


def copied_scale(scale: Tensor, packed: Tensor) -> Tensor:
    """Copy block scales, seen as the protocol's (32, 4, rm, 4, rk, l); `packed` is their operand, (rows, k/2, l)."""
    rows, half_k, experts = packed.shape
    tiles = (experts, -(-rows // 128), -(-half_k // 32), 32, 4, 4)
    if scale.dim() == 6 or scale.numel() != tiles[0] * tiles[1] * tiles[2] * 512:
        return _copy(scale)
    # Engines pass a weight's swizzled scales as they lie in memory, (l, padded rows, padded columns).
    return scale.detach().clone().contiguous().view(tiles).permute(3, 4, 1, 5, 2, 0)
