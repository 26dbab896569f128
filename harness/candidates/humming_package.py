"""What Humming's candidates take of the package humming-kernels, in each of its versions: preparation, launch, tiles.

Read in humming-kernels 0.1.12 (which sglang 0.5.23 pins), 0.1.19 and 0.1.20; paths are relative to the package:
    schema/base.py       BaseWeightSchema.from_config(config).convert_humming(tensors, ..., num_experts)
    transform.py         prepare_layer_config, transform_humming_tensors; prepare_fp16_e8m0_scale from 0.1.19 on
    tune/__init__.py     get_heuristics_config: the tiles that it chooses for so many rows, a kernel for each choice
    forward.py           humming_forward
    ops/                 quant_input in 0.1.12, process_input from 0.1.19 on
Engines call these functions and not `HummingLayer`, whose transform() in 0.1.12 does not hand the number of experts on.
What differs between the versions is asked of the functions themselves. Nothing is imported before it is used.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from harness.candidates.taps import called_otherwise

if TYPE_CHECKING:
    import torch
    from torch import Tensor

DISTRIBUTION, MODULE = "humming-kernels", "humming"
MASKED = "grouped_masked"  # one of the package's GemmType
LOCKS = 4096  # int32, zero: stream k's locks of 132 SMs need 1,024 in 0.1.12, up to 2,048 in 0.1.20
_LEAST_COLUMNS = 128  # that a tile of 16-bit activations has
_COMPILATIONS = 12  # at a time; each starts a compiler
_ANY_ROWS = 1 << 30
_MORE_ROWS = (
    1,
    2,
    4,
    8,
    16,
)  # times as many, where the package refuses the tiles that it chooses for so many

_SCHEMAS = {"nvfp4": {"quant_method": "modelopt", "quant_algo": "nvfp4"}, "mxfp4": {"quant_method": "mxfp4"}}
_ACTIVATIONS = {"bf16": "bfloat16", "fp16": "float16", "fp8": "float8e4m3"}


PARAMETERS: dict[str, tuple[str, ...]] = {
    "humming.schema:HummingInputSchema": ("a_dtype",),
    "humming.schema:HummingWeightSchema": (
        "b_dtype", "bs_dtype", "weight_scale_group_size", "weight_scale_type", "weight_scale_2_type",
    ),
    "humming.schema:BaseWeightSchema.from_config": ("config",),
    "humming.schema:BaseWeightSchema.convert_humming": (
        "self", "tensors", "shape_n_stacks", "shape_k_stacks", "param_dtype", "num_experts",
    ),
    "humming.transform:prepare_layer_config": (
        "shape_n", "shape_k", "weight_schema", "input_schema", "num_experts", "torch_dtype",
    ),
    "humming.transform:transform_humming_tensors": ("config", "tensors"),
    "humming.tune:get_heuristics_config": ("layer_config", "shape_m", "use_batch_invariant", "gemm_type"),
    "humming.kernel.humming:HummingKernel.prepare_kernels": ("layer_config", "compute_config", "tuning_config"),
    "humming.forward:humming_forward": (
        "config", "inputs", "outputs", "weight", "weight_scale", "weight_scale_2", "input_scale", "expert_layout",
        "sorted_ids", "expert_ids", "num_tokens_padded", "top_k", "locks", "compute_config", "tuning_config",
    ),
}  # fmt: skip
"""By function: every parameter that is passed to it, by keyword, in each version."""
_QUANTIZERS = {
    "humming.ops:process_input": ("inputs", "quant_mode", "quant_dtype", "layout", "expert_tokens"),
    "humming.ops:quant_input": ("inputs", "dtype"),
}
"""Of FP8 tokens: whichever of the two is there."""

_TILINGS: dict[tuple[str, int, bool, str], dict[str, Any]] = {}
"""The package's choices: by the configuration of a layer, rows, whether k is taken in one pass, and kind."""


def is_installed() -> bool:
    """Return whether the package is there."""
    return importlib.util.find_spec(MODULE) is not None


def changed() -> str:
    """Return which of the package's functions is not called as this harness calls it, or ""."""
    version = "of an unknown version"
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        version = importlib.metadata.version(DISTRIBUTION)
    what = f"{DISTRIBUTION} {version}"
    for target, names in PARAMETERS.items():
        try:
            function = _get(target)
        except Exception as error:  # noqa: BLE001 - a broken installation may raise anything, and that is the reason
            return f"{what} has no {target}: {type(error).__name__}: {error}"
        if why := called_otherwise(target, what, function, names):
            return why
    there = {target for target in _QUANTIZERS if hasattr(_get("humming:ops"), target.partition(":")[2])}
    if not there:
        return f"{what} has neither {' nor '.join(_QUANTIZERS)}"
    target = next(target for target in _QUANTIZERS if target in there)
    return called_otherwise(target, what, _get(target), _QUANTIZERS[target])


def _get(target: str) -> Any:
    """Return what "module:name" or "module:class.name" stands for."""
    module, _, names = target.partition(":")
    found: Any = importlib.import_module(module)
    for name in names.split("."):
        found = getattr(found, name)
    return found


def _accepted(function: Callable[..., Any], **options: Any) -> dict[str, Any]:
    """Return the options that a function of this version takes."""
    takes = inspect.signature(function).parameters
    return {name: value for name, value in options.items() if name in takes}


def layer_dtype(activations: str) -> torch.dtype:
    """Return the type of the layer's tokens and outputs."""
    import torch

    return torch.float16 if activations == "fp16" else torch.bfloat16


def prepared(
    weights: str, activations: str, tensors: dict[str, Tensor], extents: tuple[int, int, int]
) -> dict[str, Any]:
    """Return weights as the kernels take them, with the configuration of their layer.

    Args:
        weights: "nvfp4" or "mxfp4".
        activations: "bf16", "fp16" or "fp8".
        tensors: `weight` `(experts, n, k/2)` and `weight_scale` `(experts, n, k/block)` as in a checkpoint, and
            `weight_scale_2` `(experts,)` float32, perhaps.
        extents: experts, n, k.
    """
    from humming import transform
    from humming.config.enum import WeightScale2Type
    from humming.schema import BaseWeightSchema

    experts, n, k = extents
    own, factor = dict(tensors), tensors.get("weight_scale_2")
    schema, own = BaseWeightSchema.from_config(config=dict(_SCHEMAS[weights])).convert_humming(
        tensors=own,
        shape_n_stacks=[n],
        shape_k_stacks=[k],
        param_dtype=layer_dtype(activations),
        num_experts=experts,
    )
    if weights == "mxfp4" and factor is not None:  # the format has none in a checkpoint, the kernels take one
        schema = replace(schema, weight_scale_2_type=WeightScale2Type.TENSOR)
        own["weight_scale_2"] = factor
    config = layer_config(schema, activations, extents, own)
    if hasattr(transform, "prepare_fp16_e8m0_scale"):
        config, own = transform.prepare_fp16_e8m0_scale(config, own)
    made: dict[str, Any] = dict(transform.transform_humming_tensors(config=config, tensors=own))
    return made | {"config": config}


def layer_config(
    schema: Any, activations: str, extents: tuple[int, int, int], tensors: Mapping[str, Tensor] | None = None
) -> Any:
    """Return the configuration that the kernels of a layer are made for."""
    from humming import dtypes, transform
    from humming.schema import HummingInputSchema

    experts, n, k = extents
    inputs = HummingInputSchema(a_dtype=dtypes.DataType.from_str(_ACTIVATIONS[activations]))
    return transform.prepare_layer_config(
        shape_n=n, shape_k=k, weight_schema=schema, input_schema=inputs, num_experts=experts,
        torch_dtype=layer_dtype(activations), **_accepted(transform.prepare_layer_config, tensors=tensors),
    )  # fmt: skip


def _schema(weights: str) -> Any:
    """Return the schema that weights with a factor of each expert are converted to."""
    from humming import dtypes
    from humming.config.enum import WeightScale2Type, WeightScaleType
    from humming.schema import HummingWeightSchema

    scale, block = (dtypes.float8e4m3, 16) if weights == "nvfp4" else (dtypes.float8e8m0, 32)
    return HummingWeightSchema(
        b_dtype=dtypes.float4e2m1, bs_dtype=scale, weight_scale_group_size=block,
        weight_scale_type=WeightScaleType.GROUP, weight_scale_2_type=WeightScale2Type.TENSOR,
    )  # fmt: skip


def compute_config(*, one_pass: bool, kind: str = MASKED) -> dict[str, Any]:
    """Return what is asked of every kernel of a kind."""
    return {"gemm_type": kind, "use_batch_invariant": one_pass}


def tiling(config: Any, rows: int, *, one_pass: bool, kind: str = MASKED) -> dict[str, Any]:
    """Return the tiles that the package chooses for so many rows of all experts."""
    from humming.tune import get_heuristics_config

    key = config.to_str(), rows, one_pass, kind
    if key not in _TILINGS:
        for more in _MORE_ROWS:
            asked = compute_config(one_pass=one_pass, kind=kind)
            found = get_heuristics_config(layer_config=config, shape_m=more * rows, **asked)
            if not one_pass or _takes_k_whole(found):
                break
        _TILINGS[key] = found
    return _TILINGS[key]


def _takes_k_whole(tiles: Mapping[str, Any]) -> bool:
    """Return whether no warps share the k of a tile, which one pass demands; 0.1.12 chooses others for up to 32 rows."""
    return "warp_shape" not in tiles or bool(tiles["warp_shape"][2] == tiles["block_shape"][2])


@functools.cache
def columns_multiple(weights: str, activations: str, *, one_pass: bool) -> int:
    """Return what n is a multiple of: the tiles that 0.1.12 chooses have 256 columns whatever n is, later ones adapt."""
    config = layer_config(_schema(weights), activations, (1, _LEAST_COLUMNS, 2 * _LEAST_COLUMNS))
    columns: int = tiling(config, _LEAST_COLUMNS, one_pass=one_pass)["block_shape"][1]
    return max(columns, _LEAST_COLUMNS)


def launch(
    prepared_weights: Mapping[str, Any],
    a: Tensor,
    out: Tensor,
    masked_m: Tensor,
    *,
    tiles: Mapping[str, Any],
    one_pass: bool,
    a_scale: Tensor | None,
    locks: Tensor,
) -> None:
    """Multiply: a `(experts * capacity, k)`, a_scale None or `(experts * capacity, 1)`, into out `(experts * capacity, n)`."""
    from humming.forward import humming_forward

    tensors = {name: value for name, value in prepared_weights.items() if name not in {"config", "alpha"}}
    humming_forward(
        prepared_weights["config"], inputs=a, outputs=out, input_scale=a_scale, expert_layout=masked_m,
        locks=locks, compute_config=compute_config(one_pass=one_pass), tuning_config=dict(tiles), **tensors,
    )  # fmt: skip


def quantized(x: Tensor, masked_m: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return rows in E4M3 and their scales, float32 `(rows, 1)`, by the package.

    Args:
        x: `(rows, k)`; with `masked_m` `(experts * capacity, k)`.
        masked_m: valid rows of each expert; None: all rows are valid.
    """
    from humming import ops

    if hasattr(ops, "process_input"):
        codes, _, scale = ops.process_input(
            inputs=x, quant_mode="dynamic_token", quant_dtype="float8e4m3",
            layout="normal" if masked_m is None else "grouped_mask", expert_tokens=masked_m,
        )  # fmt: skip
        return codes, scale.view(-1, 1)
    codes, scale = ops.quant_input(inputs=x, dtype="float8e4m3")
    return codes, scale.view(-1, 1)


def compile_kernels(
    weights: str,
    activations: str,
    wanted: list[tuple[tuple[int, int, int], int]],
    *,
    one_pass: bool,
    kind: str = MASKED,
) -> None:
    """Compile kernels in parallel, for extents (experts, n, k) and rows each. What fails is left to the call that needs it."""
    import torch
    from humming.kernel.humming import HummingKernel

    device, asked = torch.cuda.current_device(), json.dumps(compute_config(one_pass=one_pass, kind=kind))

    def one(extents: tuple[int, int, int], rows: int) -> None:
        torch.cuda.set_device(device)
        with contextlib.suppress(Exception):  # the call itself says it, as a failure of its problem
            config = layer_config(_schema(weights), activations, extents)
            tiles = tiling(config, rows, one_pass=one_pass, kind=kind)
            # Outside the main thread 0.1.12 loads what it compiled only where tiles are given by numbers of rows.
            given = tiles if hasattr(HummingKernel, "compile_many") else [[0, _ANY_ROWS, tiles]]
            HummingKernel.prepare_kernels(
                layer_config=config.to_str(), compute_config=asked, tuning_config=json.dumps(given)
            )

    with ThreadPoolExecutor(_COMPILATIONS) as threads:
        list(threads.map(lambda each: one(*each), wanted))
